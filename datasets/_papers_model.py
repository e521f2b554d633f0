"""A directed graph of citations of any size, made in pieces that are never in memory together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from graphlossy.datasets._assemble import Arrays, distinct, undirected
from graphlossy.datasets._block_model import pick
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._splits import TEST, TRAIN, UNUSED, VALIDATION

__all__ = ["CitationModel", "Papers", "papers_arrays", "years"]

_CHUNK = 1 << 21  # edges made at a time
_ROWS = 1 << 16  # nodes whose features are made at a time
_ROUNDS = 40  # draws for the edges of a piece


@dataclass(frozen=True)
class CitationModel:
    """Parameters of the stand-in for ogbn-papers100M: a directed block model of :func:`dc_sbm`'s kind.

    Attributes:
        num_nodes: N.
        num_edges: directed edges, all different.
        num_classes: blocks.
        num_features: F.
        homophily: probability that an edge from an ordinary node stays in its block.
        hard: share of nodes that tell nothing.
        pareto: exponent of the density of how often a node is cited.
        weight_cap: largest of these weights, of which the smallest is 1.
        signal: scale of the class centres against the noise of variance 1.
        class_skew: block k has a size proportional to ``(k + 1) ** -class_skew``.
        shares: of all nodes, the training, validation and test nodes; the others have no label.
    """

    num_nodes: int
    num_edges: int
    num_classes: int = 172
    num_features: int = 128
    homophily: float = 0.75
    hard: float = 0.3
    pareto: float = 2.3
    weight_cap: float = 2_000.0
    signal: float = 0.25
    class_skew: float = 0.8
    shares: tuple[float, float, float] = (1_207_179 / 111_059_956, 125_265 / 111_059_956, 214_338 / 111_059_956)


class Papers:
    """The graph of a model: arrays of the nodes at hand, edges and features made as they are asked for.

    Attributes:
        y: class numbers [N] of all nodes, labelled or not.
        split: int8 [N]: 0 training, 1 validation, 2 test, -1 without a label.
        year: int64 [N, 1]; training nodes up to 2017, validation nodes 2018, test nodes from 2019.
    """

    def __init__(self, model: CitationModel, seed: int) -> None:
        self.model, self.seed = model, seed
        rng, nodes = np.random.default_rng(seed), model.num_nodes
        sizes = (np.arange(model.num_classes) + 1.0) ** -model.class_skew
        self.y = pick(np.cumsum(sizes), rng.random(nodes) * sizes.sum()).astype(np.int16)
        self._hard = rng.random(nodes) < model.hard
        cited = np.minimum((1 - rng.random(nodes)) ** (-1 / (model.pareto - 1)), model.weight_cap)
        block = np.where(self._hard, np.int16(model.num_classes), self.y)
        self._order = np.argsort(block, kind="stable")
        self._reached = np.concatenate([[0.0], np.cumsum(cited[self._order])])
        starts = np.searchsorted(block[self._order], np.arange(model.num_classes + 2))
        self._low, self._high = self._reached[starts[:-1]], self._reached[starts[1:]]
        # How many papers one cites varies far less than how often it is cited.
        self._cites = np.cumsum(rng.gamma(2.0, size=nodes))
        self._centre = rng.standard_normal((model.num_classes, model.num_features)).astype(np.float32) * model.signal
        self.split = np.full(nodes, UNUSED, np.int8)
        counts = [max(1, round(share * nodes)) for share in model.shares]
        labelled = rng.choice(nodes, sum(counts), replace=False)
        for value, rows in zip((TRAIN, VALIDATION, TEST), np.split(labelled, np.cumsum(counts)[:-1]), strict=True):
            self.split[rows] = value
        self.year = years(self.split, rng)

    def edges(self) -> Iterator[np.ndarray]:
        """The edges in chunks [2, k] int64, sorted by their source."""
        model = self.model
        pieces = -(-model.num_edges // _CHUNK)
        ends = np.searchsorted(self._cites, np.linspace(0, self._cites[-1], pieces + 1)[1:-1], side="right")
        bounds = np.unique(np.concatenate([[0], ends, [model.num_nodes]]))
        # Where a piece begins among all edges, in proportion to what its nodes cite.
        share = np.concatenate([[0.0], self._cites])[bounds] / self._cites[-1]
        first = np.rint(share * model.num_edges).astype(np.int64)
        for piece in range(len(bounds) - 1):
            rng = np.random.default_rng([self.seed, 1, piece])
            yield self._piece(int(bounds[piece]), int(bounds[piece + 1]), int(first[piece + 1] - first[piece]), rng)

    def _piece(self, low: int, high: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """``count`` different edges from the nodes ``low`` to ``high - 1``."""
        nodes, before = self.model.num_nodes, self._cites[low - 1] if low else 0.0
        found = np.empty(0, np.int64)
        for _ in range(_ROUNDS):
            number = int(1.2 * (count - len(found))) + 256
            source = low + pick(self._cites[low:high], before + rng.random(number) * (self._cites[high - 1] - before))
            stays = (rng.random(number) < self.model.homophily) & ~self._hard[source]
            left = np.where(stays, self._low[self.y[source]], 0.0)
            right = np.where(stays, self._high[self.y[source]], self._reached[-1])
            target = self._order[pick(self._reached[1:], left + rng.random(number) * (right - left))]
            key = (source * nodes + target)[source != target]
            found = distinct(np.concatenate([found, key]), in_place=True)
            if len(found) >= count:
                kept = np.sort(rng.choice(len(found), count, replace=False, shuffle=False))
                return np.stack(np.divmod(found[kept], nodes))
        raise DatasetError(
            f"{count} edges from {high - low} nodes of {nodes} cannot be placed; ask for fewer edges or more nodes"
        )

    def features(self) -> Iterator[np.ndarray]:
        """The features in chunks [k, F] float32."""
        for first in range(0, self.model.num_nodes, _ROWS):
            part = slice(first, min(self.model.num_nodes, first + _ROWS))
            rng = np.random.default_rng([self.seed, 2, first // _ROWS])
            x = rng.standard_normal((part.stop - first, self.model.num_features), dtype=np.float32)
            x += np.where(self._hard[part, None], np.float32(0), self._centre[self.y[part]])
            yield x

    def labels(self) -> np.ndarray:
        """float32 [N, 1], NaN where there is no label."""
        return np.where(self.split == UNUSED, np.float32(np.nan), self.y.astype(np.float32))[:, None]


def papers_arrays(papers: Papers, name: str) -> Arrays:
    """The whole graph in memory, undirected."""
    edges = undirected(np.concatenate(list(papers.edges()), axis=1), papers.model.num_nodes)
    y = np.where(papers.split == UNUSED, 0, papers.y).astype(np.int64)
    masks = (papers.split == TRAIN, papers.split == VALIDATION, papers.split == TEST)
    return Arrays(
        name, name, np.concatenate(list(papers.features())), edges, y, masks, num_classes=papers.model.num_classes,
        trusted=True, synthetic=True, extras={"node_year": papers.year},
    )  # fmt: skip


def years(split: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Years [N, 1] that agree with a split by time: more and more papers up to 2017, then 2018, then 2019 and 2020."""
    nodes = len(split)
    year = 2017 - np.minimum(40, rng.exponential(6.0, nodes)).astype(np.int64)
    year[split == VALIDATION] = 2018
    year[split == TEST] = rng.integers(2019, 2021, nodes)[split == TEST]
    return year[:, None]
