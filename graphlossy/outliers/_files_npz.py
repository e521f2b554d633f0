"""Graphs with outlier labels as ``.npz`` files: small, and read without pickle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphlossy.core._files import written
from graphlossy.datasets import DatasetError
from graphlossy.datasets._npz import dense_from_csr, open_npz
from graphlossy.outliers._checks import prepare
from graphlossy.outliers._labels import read_labels

__all__ = ["read_npz", "save_npz"]

_CSR = ("x_data", "x_indices", "x_indptr", "x_shape")
_SPARSE = 1 / 3  # share of non-zeros below which rows are stored as such: a value and a column number each


def save_npz(data: Any, path: str | os.PathLike[str]) -> Path:
    """Writes a graph and its outlier labels to a compressed ``.npz`` file, whole or not at all.

    ==================  =====================================================================================
    ``edge_index``      [2, E] int32, or int64 where there are more nodes
    ``x``               [N, F] float32; or, where few entries are not zero, the parts ``x_data``, ``x_indices``,
                        ``x_indptr`` and ``x_shape`` of a CSR matrix
    ``y``               [N] uint8, where there are labels
    ``typed``           whether ``y`` is a bit field, 1 contextual and 2 structural
    ``name``, ``note``  text
    ==================  =====================================================================================

    Args:
        data: PyG ``Data`` as :func:`graphlossy.outliers.load` returns it; ``y``, ``typed``, ``name`` and ``note`` may
            be absent. Duplicate edges are stored once.
        path: of the file, ending in ``.npz``.

    Returns:
        ``path``.

    Raises:
        TypeError, ValueError: the graph cannot be used, its labels are no labels of outliers, ``path`` has another
            ending, or the file cannot be written there.

    Example:
        >>> import tempfile
        >>> from torch_geometric.data import Data
        >>> graph = Data(x=torch.eye(3), edge_index=torch.tensor([[0], [1]]), y=torch.tensor([0, 1, 0]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = save_npz(graph, Path(folder) / "graph.npz")
        ...     sorted(read_npz(file))
        ['edge_index', 'typed', 'x', 'y']
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise DatasetError(f"path must end in .npz, got {path}")
    graph = prepare(data)
    edges, x = graph.edge_index.cpu().numpy(), graph.x.cpu().numpy()
    narrow = np.int32 if graph.num_nodes <= np.iinfo(np.int32).max else np.int64
    arrays: dict[str, Any] = {"edge_index": edges.astype(narrow), **_stored(x)}
    if getattr(data, "y", None) is not None:
        arrays["y"] = (
            read_labels(data.y, graph.num_nodes, str(getattr(data, "name", "the graph"))).numpy().astype(np.uint8)
        )
        arrays["typed"] = bool(getattr(data, "typed", False))
    arrays |= {key: str(value) for key in ("name", "note") if (value := getattr(data, key, None)) is not None}
    try:
        with written(path) as file:
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from None
    return path


def read_npz(path: Path) -> dict[str, Any]:
    """The arrays of a file with the keys of :func:`save_npz`; ``edges`` [E, 2] and ``labels`` are read as well.

    Returns:
        ``x``, ``edge_index`` and every other entry of numbers as it is; ``name`` and ``note`` as text, ``typed`` as
        bool. {} where the file has neither ``x`` nor ``edge_index``: it is of another format.

    Raises:
        DatasetError: the file is absent or damaged, needs pickle, or lacks one of the two.
    """
    with open_npz(path) as archive:
        keys = set(archive.files)
        sparse = keys.issuperset(_CSR)
        has_x, has_edges = "x" in keys or sparse, "edge_index" in keys or ("x" in keys and "edges" in keys)
        if not has_x and not has_edges:
            return {}
        if not (has_x and has_edges):
            raise DatasetError(f"{path}: its keys are {', '.join(sorted(keys))}; a graph has x and edge_index")
        found: dict[str, Any] = {key: _read(archive, key, path) for key in sorted(keys)}
    if sparse and "x" not in keys:
        found["x"] = dense_from_csr([found.pop(key) for key in _CSR], "x", str(path))
    if "edge_index" not in found:
        edges = found.pop("edges")
        found["edge_index"] = edges.T if edges.ndim == 2 and edges.shape[1] == 2 else edges
    for key in ("name", "note"):
        if key in found:
            found[key] = str(found[key])
    if "typed" in found:
        found["typed"] = bool(found["typed"].any())
    if "y" not in found and "labels" in found:
        found["y"] = found.pop("labels")
    return {key: _tensor(value) for key, value in found.items()}


def _stored(x: np.ndarray) -> dict[str, np.ndarray]:
    if np.count_nonzero(x) > _SPARSE * x.size:
        return {"x": x}
    rows, columns = np.nonzero(x)
    pointers = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(x)))])
    width = np.uint16 if x.shape[1] <= np.iinfo(np.uint16).max else np.int32
    values = [x[rows, columns], columns.astype(width), pointers, np.array(x.shape)]
    return dict(zip(_CSR, values, strict=True))


def _read(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    try:
        return archive[key]
    except Exception as error:  # damaged bytes raise nearly anything
        if "allow_pickle" in str(error):
            reason = "is stored as pickled objects, which could run code and are not read; save plain arrays"
            raise DatasetError(f"{path}: {key} {reason}") from None
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DatasetError(f"{path}: {key} cannot be read ({reason}); download or write the file again") from None


def _tensor(value: Any) -> Any:
    """Numbers as a tensor, which the checks of graphs speak about; torch knows no unsigned integers but bytes."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        return value
    kind = np.dtype(np.int64) if value.dtype.kind == "u" else value.dtype.newbyteorder("=")
    return torch.from_numpy(np.ascontiguousarray(value, kind))
