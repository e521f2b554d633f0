"""A degree-corrected block model with hard nodes, drawn in chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from graphlossy.datasets._assemble import Arrays, distinct, from_keys
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._splits import TEST, TRAIN, VALIDATION

__all__ = ["BlockModel", "both_directions", "check_count", "check_edges", "distinct_pairs", "draw_blocks", "pick"]

_CHUNK = 1 << 20  # edges, and rows times features / 8, drawn at a time


def check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_edges(edges: int, nodes: int) -> None:
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
            check_count(name, getattr(self, name), least)
        check_edges(self.num_edges, self.num_nodes)
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


def draw_blocks(model: BlockModel, name: str, seed: int, popular: tuple[float, float] | None = None) -> Arrays:
    """The graph of a model, its edges in both directions.

    Args:
        model: its parameters.
        name: of the data set.
        seed: of everything.
        popular: shares of training and validation nodes, which are then those with the most edges (give or take some
            noise), as the best-selling products are; None leaves the split to be drawn.
    """
    rng = np.random.default_rng(seed)
    nodes, classes = model.num_nodes, model.num_classes
    sizes = (np.arange(classes) + 1.0) ** -model.class_skew
    y = pick(np.cumsum(sizes), rng.random(nodes) * sizes.sum())
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
        source = pick(reached[1:], rng.random(count) * reached[-1])
        own = block[source]
        stays = (rng.random(count) < model.homophily) & (own < classes)
        left, right = np.where(stays, low[own], 0.0), np.where(stays, high[own], reached[-1])
        target = pick(reached[1:], left + rng.random(count) * (right - left))
        return np.stack([source, target])

    edges = both_directions(distinct_pairs(draw, model.num_edges, nodes, rng), nodes, order)
    x = np.empty((nodes, model.num_features), np.float32)
    centre = rng.standard_normal((classes, model.num_features), dtype=np.float32) * np.float32(model.signal)
    rows = max(1, 8 * _CHUNK // model.num_features)
    for first in range(0, nodes, rows):
        part = slice(first, min(nodes, first + rows))
        rng.standard_normal(out=x[part], dtype=np.float32)
        x[part] += np.where(hard[part, None], np.float32(0), centre[y[part]])
    masks = None
    if popular is not None:
        degree = np.bincount(edges[0], minlength=nodes)
        masks = _by_rank(degree * np.exp(0.5 * rng.standard_normal(nodes)), popular)
    return Arrays(name, name, x, edges, y, masks, num_classes=classes, trusted=True, synthetic=True)


def _by_rank(popularity: np.ndarray, shares: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks of the most popular nodes for training, the next ones for validation and the rest for testing."""
    nodes = len(popularity)
    train = max(1, round(shares[0] * nodes))
    ends = [train, train + max(1, round(shares[1] * nodes))]
    part = np.empty(nodes, np.int8)
    for value, rows in zip((TRAIN, VALIDATION, TEST), np.split(np.argsort(-popularity), ends), strict=True):
        part[rows] = value
    return part == TRAIN, part == VALIDATION, part == TEST


def pick(cumulated: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Index i with ``cumulated[i - 1] <= value < cumulated[i]``: an item drawn by weight, given ``value`` uniform."""
    # Rounding can lift a value to the last sum, which no item would own.
    return np.minimum(np.searchsorted(cumulated, value, side="right"), len(cumulated) - 1)


def distinct_pairs(draw: Callable[[int], np.ndarray], count: int, nodes: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` different pairs i < j, as rising keys ``i * nodes + j``, from repeated calls of ``draw(number)``."""
    found = np.empty(0, np.int64)
    while len(found) < count:
        fresh = [found]
        number = int(1.25 * (count - len(found))) + 16
        if len(found):  # what is left is rare: a later round draws many times as much
            number = max(number, 4096)
        for first in range(0, number, _CHUNK):
            source, target = draw(min(_CHUNK, number - first))
            key = np.minimum(source, target) * nodes + np.maximum(source, target)
            fresh.append(distinct(key[source != target], in_place=True))
        before = len(found)
        found = np.concatenate(fresh)
        fresh.clear()
        found = distinct(found, in_place=True)
        if len(found) < count and len(found) - before < 0.001 * number:
            raise DatasetError(
                f"num_edges = {count} cannot be placed: after {len(found)} different edges, fewer than 0.1 % of the "
                "drawn ones are new; ask for fewer edges, more nodes, or lighter tails"
            )
    if len(found) > count:
        kept = rng.choice(len(found), count, replace=False, shuffle=False)
        kept.sort()
        found = found[kept]
    return found


def both_directions(keys: np.ndarray, nodes: int, names: np.ndarray | None = None) -> np.ndarray:
    """The ``edge_index`` [2, 2 E] of pairs i < j given as keys, whose nodes are called ``names[i]``, ``names[j]``.

    Example:
        >>> both_directions(np.array([1, 5]), 3).tolist()
        [[0, 1, 1, 2], [1, 0, 2, 1]]
    """
    out = np.empty(2 * len(keys), np.int64)
    for first in range(0, len(keys), _CHUNK):
        source, target = np.divmod(keys[first : first + _CHUNK], nodes)
        if names is not None:
            source, target = names[source], names[target]
        out[2 * first : 2 * first + len(source)] = source * nodes + target
        out[2 * first + len(source) : 2 * (first + len(source))] = target * nodes + source
    return from_keys(out, nodes)
