"""Generated graphs: a degree-corrected block model with hard nodes, and a quick power-law graph for benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from graphlossy.datasets._assemble import Arrays, assemble, distinct
from graphlossy.datasets._errors import DatasetError

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["PRESETS", "BlockModel", "dc_sbm", "generate", "random_graph"]

_CHUNK = 1 << 20  # edges, and rows times features / 8, drawn at a time


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _check_edges(edges: int, nodes: int) -> None:
    most = nodes * (nodes - 1) // 2
    if edges > most:
        raise ValueError(f"num_edges must be at most {most}, the pairs of {nodes} nodes, got {edges}")


@dataclass(frozen=True)
class BlockModel:
    """Parameters of :func:`dc_sbm`.

    Attributes:
        num_nodes: N.
        num_edges: undirected edges; ``edge_index`` has twice as many columns.
        num_classes: blocks.
        num_features: F.
        pareto: exponent of the node weights' density, over 1; smaller means heavier tails.
        weight_cap: largest node weight, of which the smallest is 1.
        homophily: probability that an edge from an ordinary node stays in its block.
        signal: scale of the class centres against the noise of variance 1.
        class_skew: block k has a size proportional to ``(k + 1) ** -class_skew``.
        hard: share of nodes that tell nothing: a label at random, features of noise, edges to anywhere.
    """

    num_nodes: int = 169_343
    num_edges: int = 1_157_799
    num_classes: int = 40
    num_features: int = 128
    pareto: float = 2.2
    weight_cap: float = 3000.0
    homophily: float = 0.87
    signal: float = 0.24
    class_skew: float = 0.8
    hard: float = 0.26

    def __post_init__(self) -> None:
        for name, least in (("num_nodes", 2), ("num_edges", 1), ("num_classes", 1), ("num_features", 1)):
            _check_count(name, getattr(self, name), least)
        _check_edges(self.num_edges, self.num_nodes)
        if self.num_classes > self.num_nodes:
            raise ValueError(f"num_classes must be at most num_nodes = {self.num_nodes}, got {self.num_classes}")
        ranges = {
            "pareto": (1 < self.pareto < np.inf, "over 1"),
            "weight_cap": (1 <= self.weight_cap < np.inf, "at least 1"),
            "homophily": (0 <= self.homophily <= 1, "from 0 to 1"),
            "signal": (0 <= self.signal < np.inf, "at least 0"),
            "class_skew": (0 <= self.class_skew < np.inf, "at least 0"),
            "hard": (0 <= self.hard < 1, "at least 0 and below 1"),
        }
        for name, (right, allowed) in ranges.items():
            if not right:
                raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)!r}")


PRESETS = {
    "synth-arxiv": BlockModel(),
    "synth-arxiv-tiny": BlockModel(num_nodes=1_500, num_edges=10_000, num_classes=10, num_features=32, signal=0.5),
}
_SHARES = (90_941 / 169_343, 29_799 / 169_343)  # of training and validation nodes in ogbn-arxiv


def dc_sbm(preset: str | BlockModel = "synth-arxiv", *, seed: int = 0, **changes: float) -> Data:
    """A degree-corrected stochastic block model (Karrer and Newman 2011) with features and a share of hard nodes.

    Node i has a weight w_i ~ Pareto. An edge starts at a node drawn with probability ~ w_i; it ends, with probability
    ``homophily``, at a node of the same block, else at any node, again ~ w_j. Features are the class centre times
    ``signal`` plus normal noise. Hard nodes make the task as hard as real ones are: without them, one averaging of
    neighbours solves any homophilous graph.

    ``"synth-arxiv"`` has the size, the degrees, the homophily and the class sizes of ogbn-arxiv (OGB, 2020), but is not
    it: an accuracy here says nothing of the accuracy there. Work and memory grow with the edges; edges and features are
    drawn in chunks. The same seed gives the same graph (1 s on one core).

    Measured for ``"synth-arxiv"``, seed 0: degree 13.7 on average, median 6, 99th percentile 124, at most 5,753;
    homophily 0.609; largest class 16.6 %; logistic regression on own features 55.8 %, with the neighbours' mean 73.8 %
    (ogbn-arxiv: an MLP 55.5 %, a GCN 71.7 %).

    Args:
        preset: ``"synth-arxiv"``, ``"synth-arxiv-tiny"``, or a :class:`BlockModel`.
        seed: of everything, the split (54 % training, 18 % validation) included.
        changes: parameters of :class:`BlockModel` that differ from the preset.

    Returns:
        ``Data`` as :func:`graphlossy.datasets.load` describes it, with exactly ``num_edges`` undirected edges.

    Raises:
        ValueError: a parameter is unknown or out of range, or the edges cannot be placed.

    Example:
        >>> from graphlossy.datasets.synthetic import dc_sbm
        >>> data = dc_sbm("synth-arxiv-tiny", seed=1, num_edges=5_000)
        >>> data.num_nodes, data.num_edges, data.is_undirected(), data.has_self_loops()
        (1500, 10000, True, False)
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"preset must be {' or '.join(map(repr, PRESETS))} or a BlockModel, got {preset!r}")
        name, model = preset, PRESETS[preset]
    else:
        name, model = "dc-sbm", preset
    known = [field.name for field in fields(BlockModel)]
    if unknown := sorted(set(changes) - set(known)):
        raise ValueError(f"dc_sbm has no parameter {unknown[0]!r}; the model's are {', '.join(known)}")
    _check_count("seed", seed, 0)
    return assemble(_draw(replace(model, **changes), name, seed), 0, seed)


def generate(name: str, seed: int) -> Arrays:
    """The arrays of a preset."""
    return _draw(PRESETS[name], name, seed)


def random_graph(num_nodes: int, num_edges: int, num_features: int, num_classes: int, seed: int = 0) -> Data:
    """A power-law graph with normal features and random labels, made quickly: for measuring, not for learning.

    Chung and Lu's model (2002): an end of an edge is node i with probability ~ (i + 10) ** (-2/3), which makes the
    number of nodes of degree k fall about as k ** -2.5; node numbers are shuffled.

    Args:
        num_nodes: N.
        num_edges: undirected edges; ``edge_index`` has twice as many columns.
        num_features: F.
        num_classes: classes.
        seed: of everything, the split of 60 % / 20 % / 20 % included.

    Raises:
        ValueError: a size is out of range, or so many edges cannot be placed.

    Example:
        >>> from graphlossy.datasets.synthetic import random_graph
        >>> random_graph(1_000, 5_000, 16, 4, seed=0).edge_index.shape
        torch.Size([2, 10000])
    """
    for name, value, least in (
        ("num_nodes", num_nodes, 2), ("num_edges", num_edges, 1), ("num_features", num_features, 1),
        ("num_classes", num_classes, 1), ("seed", seed, 0),
    ):  # fmt: skip
        _check_count(name, value, least)
    _check_edges(num_edges, num_nodes)
    if num_classes > num_nodes:
        raise ValueError(f"num_classes must be at most num_nodes = {num_nodes}, got {num_classes}")
    rng = np.random.default_rng(seed)
    weight = np.cumsum((np.arange(num_nodes) + 10.0) ** (-2 / 3))
    name_of = rng.permutation(num_nodes)

    def draw(count: int) -> np.ndarray:
        return _pick(weight, rng.random((2, count)) * weight[-1])

    edges = name_of[_distinct_edges(draw, num_edges, num_nodes, rng)]
    x = rng.standard_normal((num_nodes, num_features), dtype=np.float32)
    y = rng.integers(num_classes, size=num_nodes)
    return assemble(Arrays("random-graph", "random-graph", x, edges, y, num_classes=num_classes), 0, seed % 2**32)


def _draw(model: BlockModel, name: str, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    nodes, classes = model.num_nodes, model.num_classes
    sizes = (np.arange(classes) + 1.0) ** -model.class_skew
    y = _pick(np.cumsum(sizes), rng.random(nodes) * sizes.sum())
    hard = rng.random(nodes) < model.hard
    # Inverse of the Pareto law's distribution function; 1 - u is never zero.
    weight = np.minimum((1 - rng.random(nodes)) ** (-1 / (model.pareto - 1)), model.weight_cap)
    # Blocks are runs of the sorted nodes; the hard nodes form a block of their own, that no edge is kept in.
    block = np.where(hard, classes, y)
    order = np.argsort(block, kind="stable")
    block = block[order]
    reached = np.concatenate([[0.0], np.cumsum(weight[order])])
    start = np.searchsorted(block, np.arange(classes + 1))
    low, high = reached[start], np.append(reached[start[1:]], reached[-1])

    def draw(count: int) -> np.ndarray:
        source = _pick(reached[1:], rng.random(count) * reached[-1])
        own = block[source]
        stays = (rng.random(count) < model.homophily) & (own < classes)
        left, right = np.where(stays, low[own], 0.0), np.where(stays, high[own], reached[-1])
        target = _pick(reached[1:], left + rng.random(count) * (right - left))
        return np.stack([source, target])

    edges = order[_distinct_edges(draw, model.num_edges, nodes, rng)]
    x = np.empty((nodes, model.num_features), np.float32)
    centre = rng.standard_normal((classes, model.num_features), dtype=np.float32) * np.float32(model.signal)
    rows = max(1, 8 * _CHUNK // model.num_features)
    for first in range(0, nodes, rows):
        part = slice(first, min(nodes, first + rows))
        rng.standard_normal(out=x[part], dtype=np.float32)
        x[part] += np.where(hard[part, None], np.float32(0), centre[y[part]])
    return Arrays(name, name, x, edges, y, num_classes=classes, shares=_SHARES)


def _pick(cumulated: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Index i with ``cumulated[i - 1] <= value < cumulated[i]``: an item drawn by weight, given ``value`` uniform."""
    # Rounding can lift a value to the last sum, which no item would own.
    return np.minimum(np.searchsorted(cumulated, value, side="right"), len(cumulated) - 1)


def _distinct_edges(draw, count: int, nodes: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` different pairs [2, count] without self-loops, from repeated calls of ``draw(number)``."""
    found = np.empty(0, np.int64)
    while len(found) < count:
        fresh = []
        number = int(1.25 * (count - len(found))) + 16
        if len(found):  # what is left is rare: a later round draws many times as much
            number = max(number, 4096)
        for first in range(0, number, _CHUNK):
            source, target = draw(min(_CHUNK, number - first))
            key = np.minimum(source, target) * nodes + np.maximum(source, target)
            fresh.append(distinct(key[source != target]))
        before, found = len(found), distinct(np.concatenate([found, *fresh]))
        if len(found) < count and len(found) - before < 0.001 * number:
            raise DatasetError(
                f"num_edges = {count} cannot be placed: after {len(found)} different edges, fewer than 0.1 % of the "
                "drawn ones are new; ask for fewer edges, more nodes, or lighter tails"
            )
    kept = np.sort(rng.choice(len(found), count, replace=False, shuffle=False)) if len(found) > count else slice(None)
    found = found[kept]
    return np.stack([found // nodes, found % nodes])
