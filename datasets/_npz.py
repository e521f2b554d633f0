"""Readers of the two ``.npz`` formats in which graphs are published; nothing in a file is ever unpickled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from graphlossy.datasets._assemble import Arrays
from graphlossy.datasets._errors import DatasetError

__all__ = ["dense_from_csr", "open_npz", "read_npz"]

HETEROPHILOUS = ("node_features", "node_labels", "edges", "train_masks", "val_masks", "test_masks")
ATTRIBUTED = ("adj_data", "adj_indices", "adj_indptr", "adj_shape", "labels")
_CSR = ("attr_data", "attr_indices", "attr_indptr", "attr_shape")
_AGAIN = "it is damaged or incomplete, so download or write it again"


def read_npz(path: Path) -> Arrays:
    """Reads a graph from an ``.npz`` file of one of two formats.

    *Heterophilous graphs* (Platonov et al., ICLR 2023): ``node_features`` [N, F], ``node_labels`` [N], ``edges``
    [E, 2], and ``train_masks``, ``val_masks``, ``test_masks`` [S, N], one row a split (the published files have ten).
    Two classes are scored by ROC-AUC, more by accuracy, as in the paper.

    *Attributed graphs* (Shchur et al. 2018, "Pitfalls of graph neural network evaluation"): the adjacency matrix in CSR
    parts ``adj_data``, ``adj_indices``, ``adj_indptr``, ``adj_shape``; features likewise in ``attr_data``,
    ``attr_indices``, ``attr_indptr``, ``attr_shape``, or dense in ``attr_matrix`` [N, F]; ``labels`` [N]. There is no
    split: 20 training and 30 validation nodes of each class are drawn, as in the paper. Features are kept as stored.

    Other entries (names of nodes and classes, metadata) are not looked at.

    Raises:
        DatasetError: the file is damaged, has the keys of neither format, or needs pickle.
    """
    with open_npz(path) as archive:
        keys = set(archive.files)
        read = _reader(archive, path.name)
        if keys.issuperset(HETEROPHILOUS):
            return _heterophilous(path, read)
        if keys.issuperset(ATTRIBUTED) and ("attr_matrix" in keys or keys.issuperset(_CSR)):
            return _attributed(path, read, keys)
    raise DatasetError(
        f"{path.name}: its keys are {', '.join(sorted(keys)) or 'none'}; a graph has "
        f"either {', '.join(HETEROPHILOUS)}, or {', '.join(ATTRIBUTED)} and attr_matrix or {', '.join(_CSR)}"
    )


@contextmanager
def open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Opens an ``.npz`` file for the length of a ``with`` block; an error says what is wrong with it."""
    try:
        stream = open(path, "rb")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be opened ({error.strerror or error})") from None
    with stream:  # numpy leaves a damaged file open when it is given the path
        try:
            archive = np.load(stream, allow_pickle=False)
        except Exception as error:  # damaged bytes raise whatever zip, zlib or the header's parser stumbles over
            raise DatasetError(f"{path.name}: no readable .npz file ({_line(error)}); {_AGAIN}") from None
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DatasetError(f"{path.name}: holds a single array; an .npz file, with one entry an array, is needed")
        with archive:
            yield archive


def _reader(archive: np.lib.npyio.NpzFile, name: str) -> Callable[[str], np.ndarray]:
    def read(key: str) -> np.ndarray:
        try:
            return archive[key]
        except Exception as error:  # as above
            if "allow_pickle" in str(error):
                raise DatasetError(
                    f"{name}: {key} is stored as pickled objects, which could run code and are not read; "
                    "save it as a plain array of numbers"
                ) from None
            raise DatasetError(f"{name}: {key} cannot be read ({_line(error)}); {_AGAIN}") from None

    return read


def _heterophilous(path: Path, read: Callable[[str], np.ndarray]) -> Arrays:
    x, y, edges, train, validation, test = map(read, HETEROPHILOUS)
    if edges.ndim != 2 or edges.shape[1] != 2:
        raise DatasetError(f"{path.name}: edges has shape {list(edges.shape)}; it must be [edges, 2]")
    metric = None  # labels of several tasks, or what the checks refuse
    if y.ndim == 1 and y.size and y.dtype.kind in "iufb":
        metric = "rocauc" if y.max() == 1 else "accuracy"
    return Arrays(path.stem, path.name, x, edges.T, y, (train.T, validation.T, test.T), metric=metric)


def _attributed(path: Path, read: Callable[[str], np.ndarray], keys: set[str]) -> Arrays:
    name = path.name
    parts = [read(f"adj_{part}") for part in ("data", "indices", "indptr", "shape")]
    shape = _check_csr(parts, "adj", name)
    if shape[0] != shape[1]:
        raise DatasetError(f"{name}: adj_shape is {list(shape)}; an adjacency matrix must be square")
    data, target, indptr, _ = parts
    source = np.repeat(np.arange(shape[0]), np.diff(indptr))
    stored = data != 0
    edges = np.stack([source[stored], target[stored]])
    x = read("attr_matrix") if "attr_matrix" in keys else dense_from_csr([read(key) for key in _CSR], "attr", name)
    return Arrays(path.stem, name, x, edges, read("labels"), shares=None)


def dense_from_csr(parts: list[np.ndarray], key: str, where: str) -> np.ndarray:
    """The dense float32 matrix of CSR parts ``data, indices, indptr, shape``; an entry given twice is summed."""
    shape = _check_csr(parts, key, where)
    data, indices, indptr, _ = parts
    if len(indices) and not 0 <= indices.min() <= indices.max() < shape[1]:
        raise DatasetError(
            f"{where}: {key}_indices go from {indices.min()} to {indices.max()}; the columns are 0 to {shape[1] - 1}"
        )
    try:
        dense = np.zeros(shape, np.float32)
    except (MemoryError, ValueError):
        size = shape[0] * shape[1] * 4 / 2**30
        raise DatasetError(f"{where}: {key} is {list(shape)}, {size:,.0f} GiB when dense, more than there is") from None
    rows = np.repeat(np.arange(shape[0]), np.diff(indptr))
    np.add.at(dense, (rows, indices), data.astype(np.float32))
    return dense


def _check_csr(parts: list[np.ndarray], key: str, where: str) -> tuple[int, int]:
    data, indices, indptr, shape = parts
    kinds = [part.dtype.kind in "iu" for part in (indices, indptr, shape)] + [data.dtype.kind in "fiub"]
    if not all(kinds) or shape.shape != (2,) or shape.min() < 0 or {data.ndim, indices.ndim, indptr.ndim} != {1}:
        raise DatasetError(f"{where}: {key}_data, {key}_indices, {key}_indptr and {key}_shape are no CSR matrix")
    steps = np.diff(indptr.astype(np.int64))
    whole = len(indptr) == shape[0] + 1 and indptr[0] == 0 and indptr[-1] == len(indices) == len(data)
    if not whole or (steps < 0).any():
        raise DatasetError(
            f"{where}: {key}_indptr must rise from 0 to the {len(indices)} stored entries in {shape[0] + 1} values, "
            f"one more than there are rows; it has {len(indptr)} and {key}_data {len(data)}"
        )
    return int(shape[0]), int(shape[1])


def _line(error: Exception) -> str:
    """The first line of an error's message; numpy takes whatever it does not know for a pickle."""
    if "allow_pickle" in str(error):
        return "no archive of arrays"
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
