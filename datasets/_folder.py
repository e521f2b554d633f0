"""A graph as a folder of ``.npy`` files, memory-mapped when it is loaded."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from graphlossy.datasets._assemble import METRICS, Arrays, undirected
from graphlossy.datasets._check import MASKS, check_data
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._splits import TEST, TRAIN, UNUSED, VALIDATION

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["is_folder_layout", "read_folder", "save_folder"]

_REQUIRED = ("edge_index", "x", "y")
_META = ("name", "num_classes", "metric", "synthetic", "reference")


def save_folder(data: Data, path: str | os.PathLike[str]) -> Path:
    """Writes a graph as a folder that :func:`load` reads, memory-mapped, so that the features stay on disk.

    The folder holds

    * ``edge_index.npy``: int64 [2, E];
    * ``x.npy``: float32 [N, F];
    * ``y.npy``: int64 [N], or float32 [N, T] with 0, 1 and NaN;
    * ``edge_weight.npy`` (optional): float32 [E], at least 0;
    * ``split.npy`` (optional): int8 [N] or, with several splits, [N, S]: 0 training, 1 validation, 2 test, -1 unused;
    * ``meta.json`` (optional): an object with any of ``name``, ``num_classes``, ``metric`` (``"accuracy"`` or
      ``"rocauc"``), ``synthetic`` (true for a generated graph) and ``reference`` (the leaderboard that it is on or
      stands in for).

    Written by hand, each file may be of any other integer or real type. Where ``split.npy`` is absent, splits of 60 %,
    20 % and 20 % are drawn from the seed.

    Args:
        data: a graph that passes :func:`check_data`.
        path: the folder; it must not exist or be empty. Nothing is left there when writing fails.

    Returns:
        The folder's path.

    Raises:
        DatasetError: the data fail a check, the folder has files in it, or cannot be written.

    Example:
        >>> from graphlossy.datasets import load, save_folder
        >>> data = load("synth-arxiv-tiny")
        >>> folder = save_folder(data, "tiny")
        >>> sorted(file.name for file in folder.iterdir())
        ['edge_index.npy', 'meta.json', 'split.npy', 'x.npy', 'y.npy']
        >>> load("tiny").x.equal(data.x)
        True
    """
    check_data(data)
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(f"{folder}: exists already and is no empty folder; give another path or remove it first")
    arrays = {name: _array(getattr(data, name)) for name in _REQUIRED}
    arrays["x"] = arrays["x"].astype(np.float32, copy=False)
    if getattr(data, "edge_weight", None) is not None:
        _check_weight(data.edge_weight.detach().cpu().numpy(), data.num_edges, "edge_weight")
        arrays["edge_weight"] = _array(data.edge_weight).astype(np.float32, copy=False)
    arrays["split"] = _split(*(_array(getattr(data, name)) for name in MASKS))
    meta = {name: getattr(data, name) for name in _META if getattr(data, name, None)}
    made = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        for name, array in arrays.items():
            np.save(made / f"{name}.npy", array)
        (made / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
        made.chmod(0o755)  # mkdtemp keeps others out
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be written ({error.strerror or error}); give another path") from None
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
    return folder


def is_folder_layout(folder: Path) -> bool:
    """Whether a folder holds at least one of the files of the layout that :func:`save_folder` writes."""
    return any((folder / f"{name}.npy").exists() for name in _REQUIRED)


def read_folder(folder: Path) -> Arrays:
    """Reads the layout that :func:`save_folder` documents; large arrays are memory-mapped.

    Raises:
        DatasetError: a file is missing, damaged or of another kind.
    """
    missing = [f"{name}.npy" for name in _REQUIRED if not (folder / f"{name}.npy").exists()]
    if missing:
        raise DatasetError(f"{folder}: {', '.join(missing)} missing; a graph's folder has edge_index.npy, x.npy, y.npy")
    edges, x, y = (_map(folder / f"{name}.npy") for name in _REQUIRED)
    split = folder / "split.npy"
    masks = _masks(_map(split), split) if split.exists() else None
    meta = _meta(folder / "meta.json")
    name = meta.get("name", folder.resolve().name)
    weight = folder / "edge_weight.npy"
    extras = {}
    if weight.exists():
        edges, extras["edge_weight"] = _weighted(edges, _map(weight), len(x) if x.ndim else 0, str(weight))
    arrays = Arrays(name, str(folder), x, edges, y, masks, num_classes=meta.get("num_classes"), extras=extras)
    arrays.metric, arrays.synthetic = meta.get("metric"), meta.get("synthetic", False)
    arrays.reference = meta.get("reference")
    return arrays


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def _split(train: np.ndarray, validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    part = np.full(train.shape, UNUSED, np.int8)
    for value, mask in ((TRAIN, train), (VALIDATION, validation), (TEST, test)):
        part[mask] = value
    return part


def _weighted(edges: np.ndarray, weight: np.ndarray, nodes: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Edges in the order of :func:`undirected`, with their weights; of an edge given twice the first weight counts.

    Edges that no graph may have are returned as they are, for the checks to refuse.
    """
    usable = edges.ndim == 2 and len(edges) == 2 and edges.dtype.kind in "iu"
    if usable:
        _check_weight(weight, edges.shape[1], where)
    weight = weight.astype(np.float32, copy=False)
    if not usable or not edges.size or edges.min() < 0 or edges.max() >= nodes:
        return edges, weight
    edges = edges.astype(np.int64, copy=False)
    if undirected(edges, nodes) is edges:
        return edges, weight
    proper = edges[0] != edges[1]
    (source, target), weight = edges[:, proper], weight[proper]
    key, first = np.unique(np.concatenate([source * nodes + target, target * nodes + source]), return_index=True)
    return np.stack([key // nodes, key % nodes]), np.concatenate([weight, weight])[first]


def _check_weight(weight: np.ndarray, edges: int, where: str) -> None:
    if weight.dtype.kind not in "fiu" or weight.shape != (edges,):
        found = f"shape {list(weight.shape)} and type {weight.dtype}"
        raise DatasetError(f"{where}: has {found}; it must hold one real number for each of the {edges:,} edges")
    for start in range(0, edges, 1 << 22):
        wrong = ~(weight[start : start + (1 << 22)] >= 0) | np.isinf(weight[start : start + (1 << 22)])
        if wrong.any():
            at = start + int(wrong.argmax())
            raise DatasetError(
                f"{where}: the weight of edge {at} is {weight[at]}; weights must be finite and at least 0"
            )


def _map(file: Path) -> np.ndarray:
    try:
        # Copy on write: torch wants an array it may write to, and the file stays as it is.
        array = np.load(file, mmap_mode="c", allow_pickle=False)
    except Exception as error:  # damaged bytes raise whatever the header's parser or the mapping stumbles over
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DatasetError(f"{file}: no readable .npy file ({reason}); write it again with numpy.save") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise DatasetError(f"{file}: is an .npz archive; write it with numpy.save, as a single array")
    return array


def _masks(part: np.ndarray, file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if part.dtype.kind not in "iu" or not np.isin(part, (UNUSED, TRAIN, VALIDATION, TEST)).all():
        raise DatasetError(f"{file}: must hold the whole numbers 0 (training), 1 (validation), 2 (test), -1 (unused)")
    return part == TRAIN, part == VALIDATION, part == TEST


def _meta(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        meta = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: cannot be read as JSON ({error}); correct it or remove it") from None
    allowed = {
        "name": lambda value: isinstance(value, str),
        "num_classes": lambda value: type(value) is int and value > 0,
        "metric": lambda value: value in METRICS,
        "synthetic": lambda value: isinstance(value, bool),
        "reference": lambda value: isinstance(value, str),
    }
    if not isinstance(meta, dict) or not all(key in allowed and allowed[key](value) for key, value in meta.items()):
        raise DatasetError(
            f"{file}: must be an object with any of name (text), num_classes (a positive whole number), metric "
            f"({' or '.join(METRICS)}), synthetic (true or false) and reference (text); it is {json.dumps(meta)[:80]}"
        )
    return meta
