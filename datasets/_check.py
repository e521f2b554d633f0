"""Checks that a graph can be trained on: shapes, finite features, labels and edges in range, disjoint splits."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from graphlossy.datasets._errors import DatasetError

__all__ = ["MASKS", "check_data", "check_features", "check_labels_and_masks"]

MASKS = ("train_mask", "val_mask", "test_mask")
_CHUNK = 1 << 22  # elements looked at together, so that a memory-mapped array is never read as a whole


def check_data(data: Any, where: str | None = None) -> None:
    """Raises an error with one clear line unless a node classifier can be trained on ``data``.

    Args:
        data: a ``torch_geometric.data.Data`` with ``x`` [N, F] floating, ``edge_index`` [2, E] int64, ``y`` [N] int64
            (or [N, T] with 0, 1 and NaN, one column a task) and boolean ``train_mask``, ``val_mask``, ``test_mask``
            [N] or [N, S], one column a split. ``data.num_classes`` is the allowed range of ``y`` where it is given.
        where: what the messages call the data; by default its ``name``.

    Raises:
        DatasetError: an attribute is missing or has another shape or type; there are no nodes; ``x`` holds NaN or
            infinite values (their number and the first position are given); labels or edge ends are out of range;
            masks overlap; a split has no training nodes.

    Example:
        >>> from graphlossy.datasets import check_data, load
        >>> data = load("synth-arxiv-tiny")
        >>> check_data(data)
        >>> data.x[3, 5] = float("nan")
        >>> check_data(data)
        Traceback (most recent call last):
        ...
        graphlossy.datasets._errors.DatasetError: synth-arxiv-tiny: x holds 1 NaN or infinite value, at node 3, ...
    """
    where = where or str(getattr(data, "name", None) or "the data set")
    x, edge_index, _ = (_tensor(data, name, where) for name in ("x", "edge_index", "y"))
    if x.dim() != 2:
        raise DatasetError(f"{where}: x has shape {list(x.shape)}; it must be [nodes, features]")
    nodes = x.shape[0]
    if nodes == 0 or x.shape[1] == 0:
        raise DatasetError(f"{where}: x has shape {list(x.shape)}; there must be at least one node and one feature")
    check_features(x, where)
    _check_edges(edge_index, nodes, where)
    check_labels_and_masks(data, where)


def check_labels_and_masks(data: Any, where: str) -> None:
    """The part of :func:`check_data` that neither looks at the features nor at the edges."""
    nodes = data.x.shape[0]
    _check_labels(_tensor(data, "y", where), nodes, getattr(data, "num_classes", None), where)
    _check_masks({name: _tensor(data, name, where) for name in MASKS}, nodes, where)


def check_features(x: Tensor, where: str) -> None:
    """Raises unless ``x`` [N, F] is floating and every value is finite."""
    if not x.is_floating_point():
        raise DatasetError(f"{where}: x is {x.dtype}; it must be floating, as x.float() makes it")
    rows = max(1, _CHUNK // x.shape[1])
    count, first = 0, None
    for start in range(0, x.shape[0], rows):
        wrong = ~torch.isfinite(x[start : start + rows])
        if wrong.any():
            count += int(wrong.sum())
            first = first or [start + int(wrong.any(1).nonzero()[0]), int(wrong[wrong.any(1)][0].nonzero()[0])]
    if first:
        raise DatasetError(
            f"{where}: x holds {_times(count, 'NaN or infinite value')}, "
            f"{'the first ' if count > 1 else ''}at node {first[0]}, feature {first[1]}; "
            "every feature must be finite: fill these entries or leave out their nodes"
        )


def _check_edges(edge_index: Tensor, nodes: int, where: str) -> None:
    if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
        found = f"shape {list(edge_index.shape)} and type {edge_index.dtype}"
        raise DatasetError(f"{where}: edge_index has {found}; it must be [2, edges] and torch.int64")
    count, first = 0, -1
    for start in range(0, edge_index.shape[1], _CHUNK):
        part = edge_index[:, start : start + _CHUNK]
        if part.amin() >= 0 and part.amax() < nodes:
            continue
        wrong = ((part < 0) | (part >= nodes)).any(0).nonzero().squeeze(1)
        first = start + int(wrong[0]) if first < 0 else first
        count += len(wrong)
    if count:
        ends = edge_index[:, first].tolist()
        raise DatasetError(
            f"{where}: {_times(count, 'edge')} with an end out of range, "
            f"{'the first ' if count > 1 else ''}at column {first} ({ends[0]}, {ends[1]}); "
            f"node numbers of {_times(nodes, 'node')} go from 0 to {nodes - 1}: drop such edges or renumber the nodes"
        )


def _check_labels(y: Tensor, nodes: int, classes: int | None, where: str) -> None:
    if y.dim() not in (1, 2) or y.shape[0] != nodes:
        raise DatasetError(f"{where}: y has shape {list(y.shape)}; it must be [{nodes}], one label for each row of x")
    if y.dim() == 2:
        wrong = ~((y == 0) | (y == 1) | (y != y))  # NaN, unlike itself, marks a label that is not known
        if wrong.any():
            row, task = wrong.nonzero()[0].tolist()
            raise DatasetError(
                f"{where}: y[{row}, {task}] is {y[row, task].item()}; labels of several tasks, shape [nodes, tasks], "
                "must be 0, 1 or NaN (not known)"
            )
        return
    if y.dtype != torch.int64:
        raise DatasetError(f"{where}: y is {y.dtype}; class numbers must be torch.int64, as y.long() makes them")
    allowed = nodes if classes is None else classes
    wrong = ((y < 0) | (y >= allowed)).nonzero().squeeze(1)
    if len(wrong):
        why = f"there are {classes} classes" if classes is not None else "no graph has more classes than nodes"
        raise DatasetError(
            f"{where}: {_times(len(wrong), 'label')} out of range, {'the first ' if len(wrong) > 1 else ''}at node "
            f"{int(wrong[0])} ({int(y[wrong[0]])}); labels must go from 0 to {allowed - 1} ({why}): "
            "renumber them, and leave nodes without a label out of all masks with any label in range"
        )


def _check_masks(masks: dict[str, Tensor], nodes: int, where: str) -> None:
    shape = masks["train_mask"].shape
    for name, mask in masks.items():
        if mask.dtype != torch.bool or mask.dim() not in (1, 2) or mask.shape[0] != nodes or mask.shape != shape:
            raise DatasetError(
                f"{where}: {name} has shape {list(mask.shape)} and type {mask.dtype}; all masks must be torch.bool and "
                f"[{nodes}], or [{nodes}, splits], one value for each row of x"
            )
    for (name, mask), (other_name, other) in combinations(masks.items(), 2):
        both = (mask & other).nonzero()
        if len(both):
            raise DatasetError(
                f"{where}: {name} and {other_name} share {_times(len(both), 'node')}, "
                f"{'the first being' if len(both) > 1 else 'namely'} node {int(both[0, 0])}; "
                "a node may be in one mask only: take it out of the others"
            )
    empty = (masks["train_mask"].reshape(nodes, -1).sum(0) == 0).nonzero().squeeze(1)
    if len(empty) or not masks["train_mask"].numel():
        split = f" in split {int(empty[0])}" if len(shape) == 2 and len(empty) else ""
        raise DatasetError(f"{where}: there are no training nodes{split}; train_mask must mark at least one node")


def _tensor(data: Any, name: str, where: str) -> Tensor:
    value = getattr(data, name, None)
    if not isinstance(value, Tensor):
        found = "is missing" if value is None else f"is a {type(value).__name__}"
        raise DatasetError(f"{where}: {name} {found}; x, edge_index, y and {', '.join(MASKS)} must be tensors")
    return value


def _times(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
