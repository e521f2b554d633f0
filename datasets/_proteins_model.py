"""A dense graph of associations with scores on its edges, and many yes-or-no questions about its nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from graphlossy.datasets._assemble import Arrays
from graphlossy.datasets._block_model import both_directions, distinct_pairs, pick
from graphlossy.datasets._splits import TEST, TRAIN, VALIDATION

__all__ = ["AssociationModel", "Proteins", "draw_proteins"]

_CHUNK = 1 << 17  # edges whose scores are made together
_SPECIES = 8
_TRAINED = 6  # species 0 to 5; 6 is for validation and 7 for testing
_LEAST_MODULES, _MODULE = 4, 3_000  # modules, and about how many nodes one has


@dataclass(frozen=True)
class AssociationModel:
    """Parameters of the stand-in for ogbn-proteins.

    A node belongs to a species and to a module, which has a hidden vector z of eight numbers. Both ends of an edge are
    drawn by their weights: 35 % of the edges stay in a module, 35 % in a species, the rest go anywhere. The eight
    scores of an edge within a module show its z; each carries the biases of both its ends, which no mean over a node's
    own edges can tell from z, while the mean over its neighbours can. A task is a direction in the space of z, and a
    node has the label with probability sigmoid(offset + 2 strength z.direction). Hard nodes belong to no module.

    Attributes:
        num_nodes: N.
        num_edges: undirected edges.
        num_tasks: T.
        modules: number of modules.
        pareto: exponent of the node weights' density.
        weight_cap: largest weight, of which the smallest is 1.
        in_module: share of the edges that stay in a module.
        in_species: share of the edges that stay in a species.
        hard: share of nodes that belong to no module.
        strength: of the labels' dependence on z.
        signal: scale of z in the scores of an edge.
        bias: standard deviation of a node's bias in each score.
        shares: of training and validation nodes.
    """

    num_nodes: int
    num_edges: int
    num_tasks: int = 112
    modules: int = 24
    pareto: float = 2.2
    weight_cap: float = 48.0
    in_module: float = 0.35
    in_species: float = 0.35
    hard: float = 0.15
    strength: float = 1.0
    signal: float = 0.12
    bias: float = 0.06
    shares: tuple[float, float] = (86_619 / 132_534, 21_236 / 132_534)


@dataclass(frozen=True)
class Proteins:
    """The graph, and the scores of any of its edges.

    Attributes:
        arrays: the graph; its features are the means of the scores of each node's edges.
        scores: maps edges [2, k] to float32 [k, 8], the same in both directions.
    """

    arrays: Arrays
    scores: Callable[[np.ndarray], np.ndarray]


def draw_proteins(model: AssociationModel, name: str, seed: int) -> Proteins:
    """The graph of a model."""
    rng = np.random.default_rng(seed)
    nodes = model.num_nodes
    species, part = _species(nodes, model.shares, rng)
    module = rng.integers(model.modules, size=nodes)
    hard = rng.random(nodes) < model.hard
    module[hard] = model.modules  # the last row of z, which is zero
    weight = np.minimum((1 - rng.random(nodes)) ** (-1 / (model.pareto - 1)), model.weight_cap)
    edges = both_directions(_pairs(model, weight, module, species, rng), nodes)
    z = np.concatenate([rng.standard_normal((model.modules, 8)), np.zeros((1, 8))])
    direction = rng.standard_normal((8, model.num_tasks)) / np.sqrt(8)
    offset = rng.uniform(-2.5, 0.0, model.num_tasks)
    chance = 1 / (1 + np.exp(-(offset + 2 * model.strength * z[module] @ direction)))
    y = (rng.random((nodes, model.num_tasks)) < chance).astype(np.float32)
    bias = model.bias * rng.standard_normal((nodes, 8))
    salt = int(rng.integers(2**62))

    def scores(pairs: np.ndarray) -> np.ndarray:
        source, target = pairs
        shared = (module[source] == module[target])[:, None] * z[module[source]]
        value = 0.4 + model.signal * shared + bias[source] + bias[target]
        value += 0.1 * _noise(np.minimum(source, target) * nodes + np.maximum(source, target), salt)
        return (np.rint(value.clip(0.001, 1.0) * 1000) / 1000).astype(np.float32)

    x = _means(edges, nodes, scores)
    masks = (part == TRAIN, part == VALIDATION, part == TEST)
    extras = {"node_species": species[:, None]}
    arrays = Arrays(
        name, name, x, edges, y, masks, num_classes=model.num_tasks, metric="rocauc", trusted=True, synthetic=True,
        extras=extras,
    )  # fmt: skip
    return Proteins(arrays, scores)


def _species(nodes: int, shares: tuple[float, float], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Species int64 [N] and the split by them, of the sizes asked for."""
    order = rng.permutation(nodes)
    train, validation = max(_TRAINED, round(shares[0] * nodes)), max(1, round(shares[1] * nodes))
    species = np.empty(nodes, np.int64)
    part = np.empty(nodes, np.int8)
    first = 0
    for number in range(_TRAINED):
        last = train * (number + 1) // _TRAINED
        species[order[first:last]] = number
        first = last
    species[order[train : train + validation]] = _TRAINED
    species[order[train + validation :]] = _TRAINED + 1
    part[order[:train]], part[order[train : train + validation]] = TRAIN, VALIDATION
    part[order[train + validation :]] = TEST
    return species, part


def _pairs(
    model: AssociationModel, weight: np.ndarray, module: np.ndarray, species: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Distinct pairs as keys: the target by weight from the source's module, its species, or all nodes."""
    nodes = model.num_nodes
    everyone = np.cumsum(weight)
    groups = [_Groups(module, weight, model.modules), _Groups(species, weight, _SPECIES)]

    def draw(count: int) -> np.ndarray:
        source = pick(everyone, rng.random(count) * everyone[-1])
        kind, at = rng.random(count), rng.random(count)
        target = np.empty(count, np.int64)
        inside = (kind < model.in_module) & (module[source] < model.modules)
        alike = ~inside & (kind < model.in_module + model.in_species)
        anywhere = ~inside & ~alike
        target[anywhere] = pick(everyone, at[anywhere] * everyone[-1])
        for rows, group in ((inside, groups[0]), (alike, groups[1])):
            target[rows] = group.members(source[rows], at[rows])
        return np.stack([source, target])

    return distinct_pairs(draw, model.num_edges, nodes, rng)


class _Groups:
    """Draws a member of a node's own group by weight."""

    def __init__(self, group: np.ndarray, weight: np.ndarray, count: int) -> None:
        self.group, self.order = group, np.argsort(group, kind="stable")
        self.reached = np.concatenate([[0.0], np.cumsum(weight[self.order])])
        self.start = np.searchsorted(group[self.order], np.arange(count + 2))

    def members(self, node: np.ndarray, at: np.ndarray) -> np.ndarray:
        group = self.group[node]
        low, high = self.reached[self.start[group]], self.reached[self.start[group + 1]]
        return self.order[pick(self.reached[1:], low + at * (high - low))]


def _noise(key: np.ndarray, salt: int) -> np.ndarray:
    """Eight numbers of variance 1 for each key (the sum of two uniform ones), by SplitMix64, so that an edge's scores
    depend on its ends alone."""
    state = key.astype(np.uint64)[:, None] * np.uint64(8) + np.arange(8, dtype=np.uint64) + np.uint64(salt)
    state *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state ^= state >> np.uint64(shift)
        state *= np.uint64(factor)
    state ^= state >> np.uint64(31)
    low, high = (state & np.uint64(0xFFFFFFFF)).astype(np.float64), (state >> np.uint64(32)).astype(np.float64)
    return ((low + high) * 2.0**-32 - 1) * np.sqrt(6)


def _means(edges: np.ndarray, nodes: int, scores: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The mean score of each node's edges, float32 [N, 8]; ``edges`` are sorted by source."""
    total = np.zeros((nodes, 8))
    for first in range(0, edges.shape[1], _CHUNK):
        pairs = edges[:, first : first + _CHUNK]
        start = np.flatnonzero(np.diff(pairs[0], prepend=-1))
        total[pairs[0, start]] += np.add.reduceat(scores(pairs).astype(np.float64), start, axis=0)
    return (total / np.maximum(1, np.bincount(edges[0], minlength=nodes))[:, None]).astype(np.float32)
