"""From the arrays a reader found to the ``Data`` object a trainer takes: one way for every format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphlossy.datasets._check import MASKS, check_data, check_labels_and_masks
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._splits import DRAWN_SPLITS, TEST, TRAIN, VALIDATION, per_class_split, random_split

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["METRICS", "Arrays", "assemble", "distinct", "from_keys", "undirected"]

METRICS = ("accuracy", "rocauc")
_CHUNK = 1 << 22  # edges whose two ends are looked at together


@dataclass
class Arrays:
    """What a reader found, unchecked.

    Attributes:
        name: of the data set.
        where: what messages call it: the name, or the file.
        x: features [N, F], any real type.
        edges: node numbers [2, E], any integer type; each undirected edge once or in both directions.
        y: class numbers [N], or 0, 1 and NaN [N, T].
        masks: training, validation and test masks, each [N] or [N, S]; None where the format has no splits.
        shares: of training and validation nodes in a drawn split; None draws 20 and 30 nodes of each class.
        num_classes: number of classes; None takes the largest label + 1.
        metric: ``"accuracy"``, ``"rocauc"``, or None: rocauc for labels of several tasks, else accuracy.
        trusted: ``x`` is float32 and finite, and ``edges`` are int64, in range, and as :func:`undirected` makes them,
            as they are where this package has written them; neither is looked at again.
        synthetic: whether the graph is generated.
        reference: name of the leaderboard that the graph is on or stands in for; the ``Data`` has no such attribute
            where it is None, as PyTorch Geometric keeps none of that value.
        extras: further values for the ``Data``, such as ``node_year`` [N, 1].
    """

    name: str
    where: str
    x: np.ndarray
    edges: np.ndarray
    y: np.ndarray
    masks: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    shares: tuple[float, float] | None = (0.6, 0.2)
    num_classes: int | None = None
    metric: str | None = None
    trusted: bool = False
    synthetic: bool = False
    reference: str | None = None
    extras: dict[str, Any] = field(default_factory=dict)


def assemble(arrays: Arrays, split: int | None, seed: int) -> Data:
    """Checks the arrays and builds the ``Data`` of them, undirected and with the chosen split.

    Raises:
        DatasetError: as :func:`check_data`, or there is no split of that number.
    """
    from torch_geometric.data import Data

    where = arrays.where
    x = arrays.x if arrays.trusted else _numbers(arrays.x, "x", where, floating=True)
    edges = arrays.edges if arrays.trusted else _numbers(arrays.edges, "edge_index", where)
    y = _numbers(arrays.y, "y", where, floating=arrays.y.ndim == 2)
    if y.ndim == 2 and y.shape[1] == 1:
        y = _numbers(y[:, 0], "y", where)
    nodes = x.shape[0] if x.ndim else 0
    masks = _choose(arrays, y, split, seed) if nodes and y.shape[:1] == x.shape[:1] else _blank(nodes)
    metric = arrays.metric or ("rocauc" if y.ndim == 2 else "accuracy")
    if metric not in METRICS:
        raise DatasetError(f"{where}: metric is {metric!r}; it must be {' or '.join(map(repr, METRICS))}")
    data = Data(x=torch.from_numpy(x), edge_index=torch.from_numpy(edges), y=torch.from_numpy(y))
    for name, mask in zip(MASKS, masks, strict=True):
        setattr(data, name, torch.from_numpy(np.ascontiguousarray(mask)))
    if arrays.num_classes is not None:
        data.num_classes = arrays.num_classes
    if arrays.trusted:
        check_labels_and_masks(data, where)
    else:
        check_data(data, where)
    _check_metric(metric, y, where)
    if not arrays.trusted:
        data.edge_index = torch.from_numpy(undirected(edges, nodes))
    data.num_classes = arrays.num_classes or (y.shape[1] if y.ndim == 2 else int(y.max()) + 1)
    data.name, data.metric = arrays.name, metric
    data.synthetic, data.reference = arrays.synthetic, arrays.reference
    for name, value in arrays.extras.items():
        setattr(data, name, torch.from_numpy(value) if isinstance(value, np.ndarray) else value)
    return data


def _check_metric(metric: str, y: np.ndarray, where: str) -> None:
    """A metric must suit the labels: ROC-AUC ranks nodes by one score for each yes-or-no question."""
    if metric == "accuracy" and y.ndim == 2:
        raise DatasetError(
            f"{where}: metric is 'accuracy', but y has shape {list(y.shape)}; labels of several tasks are scored by "
            "'rocauc'"
        )
    if metric == "rocauc" and y.ndim == 1 and not (y.min() == 0 and y.max() == 1):
        raise DatasetError(
            f"{where}: metric is 'rocauc', but the labels go from {y.min()} to {y.max()}; it needs two classes, 0 and "
            "1 (or a column of 0 and 1 for each task)"
        )


def undirected(edges: np.ndarray, nodes: int) -> np.ndarray:
    """Every edge in both directions, once, sorted by source and then target, self-loops left out.

    An array that is already so is returned as it is, without a copy, so that a memory-mapped one stays on disk.

    Args:
        edges: node numbers [2, E] int64, all in range.
        nodes: number of nodes N.

    Returns:
        int64 array [2, E'].

    Example:
        >>> undirected(np.array([[0, 0, 1, 2], [1, 1, 0, 2]]), 3).tolist()
        [[0, 1], [1, 0]]
    """
    if _is_undirected(edges, nodes):
        return edges
    loops = sum(int((source == target).sum()) for source, target in _parts(edges))
    key, first = np.empty(2 * (edges.shape[1] - loops), np.int64), 0
    for part in _parts(edges):
        source, target = part[:, part[0] != part[1]] if loops else part
        for one, other in ((source, target), (target, source)):
            np.multiply(one, nodes, out=key[first : first + len(one)])
            key[first : first + len(one)] += other
            first += len(one)
    return from_keys(key, nodes)


def from_keys(key: np.ndarray, nodes: int) -> np.ndarray:
    """The pairs [2, E] of the distinct values of ``source * nodes + target``, which are sorted in place."""
    key = distinct(key, in_place=True)
    edges = np.empty((2, len(key)), np.int64)
    np.floor_divide(key, nodes, out=edges[0])
    np.multiply(edges[0], nodes, out=edges[1])
    np.subtract(key, edges[1], out=edges[1])
    return edges


def _parts(edges: np.ndarray) -> list[np.ndarray]:
    return [edges[:, first : first + _CHUNK] for first in range(0, edges.shape[1], _CHUNK)]


def _is_undirected(edges: np.ndarray, nodes: int) -> bool:
    """Whether the edges are sorted, distinct, without self-loops, and each is there in both directions."""
    last = -1
    for source, target in _parts(edges):
        key = source * nodes + target
        if key[0] <= last or (key[1:] <= key[:-1]).any() or (source == target).any():
            return False
        last = key[-1]
    turned = np.empty(edges.shape[1], np.int64)
    for first, (source, target) in zip(range(0, len(turned), _CHUNK), _parts(edges), strict=True):
        np.multiply(target, nodes, out=turned[first : first + len(source)])
        turned[first : first + len(source)] += source
    turned.sort()
    there = zip(range(0, len(turned), _CHUNK), _parts(edges), strict=True)
    return all((turned[first : first + len(s)] == s * nodes + t).all() for first, (s, t) in there)


def distinct(keys: np.ndarray, in_place: bool = False) -> np.ndarray:
    """The different values in rising order, as ``numpy.unique``, whose hashing takes many times longer on edges.

    With ``in_place``, the result is the beginning of ``keys`` itself.
    """
    if in_place:
        keys.sort()
    else:
        keys = np.sort(keys)
    kept = min(1, len(keys))
    for first in range(1, len(keys), _CHUNK):  # moved forward piece by piece, as a copy may be gigabytes
        last = min(len(keys), first + _CHUNK)
        new = keys[first:last][keys[first:last] != keys[first - 1 : last - 1]]
        keys[kept : kept + len(new)] = new
        kept += len(new)
    return keys[:kept]


def _choose(arrays: Arrays, y: np.ndarray, split: int | None, seed: int) -> list[np.ndarray]:
    if arrays.masks is not None:
        return [_column(mask, split, arrays.where) for mask in arrays.masks]
    if split is not None and split >= DRAWN_SPLITS:
        raise _no_split(arrays.where, split, DRAWN_SPLITS)
    numbers = range(DRAWN_SPLITS) if split is None else [split]
    if arrays.shares is None:
        parts = [per_class_split(y, seed, number) for number in numbers]
    else:
        parts = [random_split(len(y), seed, number, arrays.shares) for number in numbers]
    part = np.stack(parts, axis=1) if split is None else parts[0]
    return [part == value for value in (TRAIN, VALIDATION, TEST)]


def _column(mask: np.ndarray, split: int | None, where: str) -> np.ndarray:
    if mask.dtype != np.bool_:
        raise DatasetError(f"{where}: a mask is an array of {mask.dtype}; masks must be of type bool")
    mask = mask[:, None] if mask.ndim == 1 else mask
    if mask.ndim == 2 and mask.shape[1] == 0:
        raise DatasetError(f"{where}: the masks hold no split; there must be at least one")
    if split is None or mask.ndim != 2:  # the checks refuse a mask of another shape
        return mask
    if split >= mask.shape[1]:
        raise _no_split(where, split, mask.shape[1])
    return mask[:, split]


def _no_split(where: str, split: int, count: int) -> DatasetError:
    allowed = f"its {count} splits are 0 to {count - 1}" if count > 1 else "it has one split, 0"
    return DatasetError(f"{where}: there is no split {split}; {allowed}")


def _blank(nodes: int) -> list[np.ndarray]:
    """Masks for data that the checks refuse before they look at a mask."""
    return [np.zeros(nodes, np.bool_) for _ in MASKS]


def _numbers(value: Any, name: str, where: str, floating: bool = False) -> np.ndarray:
    """The array as float32 or int64, without a copy where it is of that type already."""
    array = np.asarray(value)
    if array.dtype.kind not in ("fiub" if floating else "iub"):
        integral = array.dtype.kind == "f" and not floating
        if not integral or not (np.isfinite(array).all() and (array == np.trunc(array)).all()):
            kind = "numbers" if floating else "whole numbers"
            raise DatasetError(f"{where}: {name} is an array of {array.dtype}; it must hold {kind}")
    if array.dtype.kind == "u" and not floating and array.size and array.max() > np.iinfo(np.int64).max:
        raise DatasetError(f"{where}: {name} holds {array.max()}, which is out of range")
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows float32 is found and named by the checks
        array = array.astype(np.float32 if floating else np.int64, copy=False)
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)
