"""What a graph is like: degrees, homophily, classes, splits and features, in time linear in its edges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphlossy.datasets._check import MASKS
from graphlossy.datasets._errors import DatasetError

__all__ = ["Degrees", "Features", "Labels", "Statistics", "degree_counts", "statistics"]

_FEW = 20  # nodes outside all splits that may all be of class 0 by chance
_CHUNK = 1 << 22  # edges or features looked at together, so that a memory-mapped array is never held as a whole


@dataclass(frozen=True)
class Degrees:
    """How many edges leave a node.

    Attributes:
        mean: over all nodes, as the following.
        median: half of the nodes have no more.
        p90: 90 % of the nodes have no more.
        p99: 99 % of the nodes have no more.
        max: the largest.
        isolated: nodes without an edge.
        top_share: share of all edge ends that belong to the 1 % of the nodes with the most (one node at least).
    """

    mean: float
    median: int
    p90: int
    p99: int
    max: int
    isolated: int
    top_share: float


@dataclass(frozen=True)
class Labels:
    """What is to be predicted.

    Attributes:
        classes: classes or, for labels [N, T], tasks.
        sizes: nodes of each class; of labels [N, T], the nodes for which each task's answer is yes.
        unknown: nodes without any label (of [N, T], entries without one). In [N], labels below 0; and the nodes
            outside all splits, where every one of them is labelled 0, which only stands in (as in ogbn-papers100M).
        largest: share of the largest class among the labelled nodes (of [N, T], the largest share of yes).
        smallest: likewise the smallest.
        homophily: share of the edges that join nodes of one class, counted where both have a label; None for [N, T]
            or where there is no such edge.
        adjusted_homophily: the same corrected for class sizes, 0 where edges do not look at classes and 1 where all
            stay in one: (h - s) / (1 - s), s = sum over classes of (their share of edge ends)^2 (Platonov et al.,
            NeurIPS 2023, equation 2); None where the first is or s = 1.
    """

    classes: int
    sizes: tuple[int, ...]
    unknown: int
    largest: float
    smallest: float
    homophily: float | None
    adjusted_homophily: float | None


@dataclass(frozen=True)
class Features:
    """What is known of a node.

    Attributes:
        width: F.
        density: share of the N * F values that are not zero.
        mean: of the finite values.
        std: their standard deviation.
        not_finite: values that are NaN or infinite.
    """

    width: int
    density: float
    mean: float
    std: float
    not_finite: int


@dataclass(frozen=True)
class Statistics:
    """What :func:`statistics` finds.

    Attributes:
        nodes: N.
        edges: columns of ``edge_index``: an undirected edge counts twice.
        self_loops: edges from a node to itself.
        degrees: of the nodes.
        labels: None where there is no ``y``.
        features: None where there is no ``x``.
        splits: nodes of each mask, of the first split where there are several.
        num_splits: splits.
    """

    nodes: int
    edges: int
    self_loops: int
    degrees: Degrees
    labels: Labels | None
    features: Features | None
    splits: dict[str, int]
    num_splits: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return asdict(self)


def statistics(data: Any) -> Statistics:
    """Degree, homophily, class, split and feature statistics of a graph.

    One pass over the edges and one over the features, in pieces: beyond the data, some bytes a node are needed and
    nothing that grows with the edges, so that memory-mapped graphs of any number of edges can be looked at.

    Args:
        data: a ``torch_geometric.data.Data`` with ``edge_index`` [2, E]; ``x`` [N, F], ``y`` [N] or [N, T] and the
            masks ``train_mask``, ``val_mask``, ``test_mask`` are looked at where they are there. Degrees count the
            edges that leave a node, so an undirected graph must have each edge in both directions, as
            :func:`graphlossy.datasets.load` gives it.

    Raises:
        DatasetError: there is no ``edge_index`` or no node, or an edge's end is out of range.

    Example:
        >>> from graphlossy.datasets import load, statistics
        >>> found = statistics(load("wordnet-verbs"))
        >>> found.nodes, found.edges, found.degrees.max, found.degrees.isolated
        (13767, 31306, 402, 100)
        >>> round(found.labels.homophily, 3), round(found.labels.adjusted_homophily, 3)
        (0.858, 0.841)
    """
    where = str(getattr(data, "name", None) or "the data set")
    edge_index = getattr(data, "edge_index", None)
    if not isinstance(edge_index, Tensor) or edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise DatasetError(f"{where}: there is no edge_index [2, edges], of which to take statistics")
    nodes = int(data.num_nodes or 0)
    if nodes < 1:
        raise DatasetError(f"{where}: there are no nodes, of which to take statistics")
    x, y = (value if isinstance(value := getattr(data, name, None), Tensor) else None for name in ("x", "y"))
    masks = {name: mask for name in MASKS if isinstance(mask := getattr(data, name, None), Tensor)}
    labels = None
    if y is not None and y.dim() == 1 and not y.is_floating_point() and len(y) == nodes:
        y = labels = _known(y, list(masks.values()))
    degree, self_loops, same, ends = _edge_pass(edge_index, nodes, labels, where)
    return Statistics(
        nodes=nodes,
        edges=edge_index.shape[1],
        self_loops=self_loops,
        degrees=_degrees(degree, edge_index.shape[1]),
        labels=None if y is None else _labels(y, getattr(data, "num_classes", None), same, ends),
        features=None if x is None else _features(x),
        splits={name: int((mask if mask.dim() == 1 else mask[:, 0]).sum()) for name, mask in masks.items()},
        num_splits=max((1 if mask.dim() == 1 else mask.shape[1] for mask in masks.values()), default=0),
    )


def degree_counts(data: Any) -> np.ndarray:
    """Number of nodes of each degree: int64 array [largest degree + 1].

    Example:
        >>> from graphlossy.datasets import load
        >>> degree_counts(load("wordnet-verbs"))[:4].tolist()
        [100, 8499, 2569, 972]
    """
    where = str(getattr(data, "name", None) or "the data set")
    return np.bincount(_edge_pass(data.edge_index, int(data.num_nodes), None, where)[0])


def _known(y: Tensor, masks: list[Tensor]) -> Tensor:
    """The labels, -1 where a label only stands in."""
    if not masks or any(len(mask) != len(y) for mask in masks):
        return y
    outside = torch.ones(len(y), dtype=torch.bool)
    for mask in masks:
        outside &= ~(mask if mask.dim() == 1 else mask.any(1)).cpu()
    stands_in = outside.sum() > _FEW and not y.cpu()[outside].any()
    return y.cpu().masked_fill(outside, -1) if stands_in else y


def _edge_pass(edge_index: Tensor, nodes: int, y: Tensor | None, where: str) -> tuple[np.ndarray, int, int, np.ndarray]:
    """Out-degrees [N], self-loops, edges within a class, and edges between labelled nodes by their source's class."""
    degree = np.zeros(nodes, np.int64)
    label = None if y is None else y.detach().cpu().numpy()
    ends = np.zeros(1 if label is None else max(0, int(label.max())) + 1, np.int64)
    self_loops = same = 0
    for source, target in _pieces(edge_index):
        if source.size and not (min(source.min(), target.min()) >= 0 and max(source.max(), target.max()) < nodes):
            raise DatasetError(f"{where}: an edge's end is out of range; nodes go from 0 to {nodes - 1}")
        _count(source, degree)
        self_loops += int((source == target).sum())
        if label is not None:
            ours, theirs = label[source], label[target]
            known = (ours >= 0) & (theirs >= 0)
            same += int((ours == theirs)[known].sum())
            _count(ours[known], ends)
    return degree, self_loops, same, ends


def _pieces(edge_index: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for first in range(0, edge_index.shape[1], _CHUNK):
        source, target = edge_index[:, first : first + _CHUNK].detach().cpu().numpy()
        yield source, target


def _count(values: np.ndarray, total: np.ndarray) -> None:
    """Adds the number of times that each value occurs; as wide as the values' range, not as all there could be."""
    if values.size:
        low = int(values.min())
        counts = np.bincount(values - low)
        total[low : low + len(counts)] += counts


def _degrees(degree: np.ndarray, edges: int) -> Degrees:
    # Degrees are small whole numbers, so that counting them sorts them.
    nodes, count = len(degree), np.bincount(degree)
    reached = np.cumsum(count)

    def quantile(share: float) -> int:
        return int(np.searchsorted(reached, math.ceil(share * nodes)))

    left, top = max(1, nodes // 100), 0
    for value in np.nonzero(count)[0][::-1].tolist():
        taken = min(left, int(count[value]))
        top, left = top + taken * value, left - taken
        if not left:
            break
    return Degrees(
        mean=edges / nodes,
        median=quantile(0.5),
        p90=quantile(0.9),
        p99=quantile(0.99),
        max=len(count) - 1,
        isolated=int(count[0]),
        top_share=top / edges if edges else 0.0,
    )


def _labels(y: Tensor, classes: int | None, same: int, ends: np.ndarray) -> Labels:
    if y.dim() == 2 or y.is_floating_point():
        return _tasks(y.reshape(len(y), -1))
    known = y[y >= 0]
    sizes = torch.bincount(known, minlength=classes or 1)
    share = sizes / max(1, len(known))
    total = int(ends.sum())
    homophily = same / total if total else None
    chance = float(np.square(ends / total).sum()) if total else 1.0
    adjusted = (homophily - chance) / (1 - chance) if homophily is not None and chance < 1 else None
    return Labels(
        len(sizes),
        tuple(sizes.tolist()),
        len(y) - len(known),
        float(share.max()),
        float(share.min()),
        homophily,
        adjusted,
    )


def _tasks(y: Tensor) -> Labels:
    known = ~torch.isnan(y) if y.is_floating_point() else torch.ones_like(y, dtype=torch.bool)
    yes = ((y == 1) & known).sum(0)
    share = yes / known.sum(0).clamp(min=1)
    unknown = y.numel() - int(known.sum())
    return Labels(y.shape[1], tuple(yes.tolist()), unknown, float(share.max()), float(share.min()), None, None)


def _features(x: Tensor) -> Features:
    x = x.reshape(len(x), -1)
    rows = max(1, _CHUNK // max(1, x.shape[1]))
    full = finite = 0
    total = squares = 0.0
    for first in range(0, len(x), rows):
        piece = x[first : first + rows].detach().cpu()
        right = torch.isfinite(piece)
        full += int((piece != 0).sum())
        finite += int(right.sum())
        values = piece[right].double()
        total += float(values.sum())
        squares += float(values.square().sum())
    mean = total / max(1, finite)
    spread = math.sqrt(max(0.0, squares / max(1, finite) - mean**2))
    return Features(x.shape[1], full / max(1, x.numel()), mean, spread, x.numel() - finite)
