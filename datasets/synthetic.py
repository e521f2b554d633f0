"""Generated graphs: a degree-corrected block model with hard nodes, and a quick power-law graph for benchmarks."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np

from graphlossy.datasets._assemble import Arrays, assemble
from graphlossy.datasets._block_model import (
    BlockModel,
    both_directions,
    check_count,
    check_edges,
    distinct_pairs,
    draw_blocks,
    pick,
)
from graphlossy.datasets._generate import ARXIV_SHARES, BLOCK_MODELS, generate

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["PRESETS", "BlockModel", "dc_sbm", "random_graph"]

PRESETS = BLOCK_MODELS


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
    check_count("seed", seed, 0)
    if isinstance(preset, str) and not changes:
        return assemble(generate(name, seed, 1.0), 0, seed)
    arrays = draw_blocks(replace(model, **changes), name, seed)
    arrays.shares = ARXIV_SHARES
    return assemble(arrays, 0, seed)


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
        check_count(name, value, least)
    check_edges(num_edges, num_nodes)
    if num_classes > num_nodes:
        raise ValueError(f"num_classes must be at most num_nodes = {num_nodes}, got {num_classes}")
    rng = np.random.default_rng(seed)
    weight = np.cumsum((np.arange(num_nodes) + 10.0) ** (-2 / 3))
    name_of = rng.permutation(num_nodes)

    def draw(count: int) -> np.ndarray:
        return pick(weight, rng.random((2, count)) * weight[-1])

    edges = both_directions(distinct_pairs(draw, num_edges, num_nodes, rng), num_nodes, name_of)
    x = rng.standard_normal((num_nodes, num_features), dtype=np.float32)
    y = rng.integers(num_classes, size=num_nodes)
    arrays = Arrays("random-graph", "random-graph", x, edges, y, num_classes=num_classes, trusted=True, synthetic=True)
    return assemble(arrays, 0, seed % 2**32)
