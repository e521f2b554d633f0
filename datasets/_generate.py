"""The generated data sets by name, at any share of their full size."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from graphlossy.datasets._assemble import Arrays
from graphlossy.datasets._block_model import BlockModel, draw_blocks
from graphlossy.datasets._facts import FACTS
from graphlossy.datasets._papers_model import CitationModel, Papers, papers_arrays, years
from graphlossy.datasets._proteins_model import AssociationModel, Proteins, draw_proteins
from graphlossy.datasets._splits import TEST, TRAIN, VALIDATION, random_split

__all__ = [
    "ARXIV_SHARES",
    "BLOCK_MODELS",
    "GENERATED",
    "check_scale",
    "generate",
    "papers",
    "part_of",
    "proteins",
    "scaled_name",
]

BLOCK_MODELS = {
    "synth-arxiv": BlockModel(),
    "synth-arxiv-tiny": BlockModel(num_nodes=1_500, num_edges=10_000, num_classes=10, num_features=32, signal=0.5),
    "synth-products": BlockModel(
        num_nodes=2_449_029, num_edges=61_859_140, num_classes=47, num_features=100, pareto=2.6, weight_cap=925.0,
        homophily=0.93, hard=0.15, signal=0.29,
    ),
}  # fmt: skip
GENERATED = (*BLOCK_MODELS, "synth-papers100M", "synth-proteins")
ARXIV_SHARES = (90_941 / 169_343, 29_799 / 169_343)  # of training and validation nodes in ogbn-arxiv
_LEAST_NODES = 500
_LEAST_CLASSES = 4


def generate(name: str, seed: int, scale: float | None = None, edge_features: bool = False) -> Arrays:
    """The arrays of a generated data set.

    Args:
        name: one of ``GENERATED``.
        seed: of everything.
        scale: share of the full number of nodes, at which the mean degree, the tail of the degrees, homophily, class
            balance and split stay as they are, as far as so few nodes allow. None takes the data set's default.
        edge_features: adds ``edge_attr`` [E, 8], which synth-proteins has.

    Raises:
        ValueError: the scale leaves fewer than 500 nodes or is no number, or there are no edge features.
    """
    scale = check_scale(name, scale)
    if edge_features and name != "synth-proteins":
        raise ValueError(f"edge_features must be left out for {name}: its edges have none")
    label = scaled_name(name, scale)
    if name == "synth-proteins":
        made = proteins(seed, scale)
        arrays = made.arrays
        if edge_features:
            arrays.extras["edge_attr"] = _all_scores(made)
    elif name == "synth-papers100M":
        arrays = papers_arrays(papers(seed, scale), label)
    else:
        popular = None
        if name == "synth-products":
            train, validation, _ = FACTS[name].sizes_of_split or (0, 0, 0)
            popular = (train / FACTS[name].nodes, validation / FACTS[name].nodes)
        arrays = draw_blocks(_scaled_blocks(name, scale), label, seed, popular)
        if name == "synth-arxiv":
            arrays.shares = ARXIV_SHARES
            part = random_split(len(arrays.y), seed, 0, ARXIV_SHARES)
            arrays.extras["node_year"] = years(part, np.random.default_rng([seed, 3]))
        elif name == "synth-arxiv-tiny":
            arrays.shares = ARXIV_SHARES
    arrays.reference = FACTS[name].reference
    return arrays


def proteins(seed: int, scale: float) -> Proteins:
    """The stand-in for ogbn-proteins with the scores of its edges."""
    nodes, edges, degree = _sizes("synth-proteins", scale)
    modules = max(4, min(24, nodes // 3_000))
    # A weight is 3.5 on average, and no node is to have more than a quarter of all nodes as neighbours.
    cap = min(48.0, max(2.0, 3.5 * nodes / (4 * degree)))
    model = AssociationModel(nodes, edges, modules=modules, weight_cap=cap)
    return draw_proteins(model, scaled_name("synth-proteins", scale), seed)


def papers(seed: int, scale: float) -> Papers:
    """The stand-in for ogbn-papers100M, to be made in pieces."""
    nodes, edges, degree = _sizes("synth-papers100M", scale)
    classes = _classes(172, nodes, degree)
    return Papers(CitationModel(nodes, edges, classes, weight_cap=min(2_000.0, max(4.0, nodes / 8 / degree))), seed)


def scaled_name(name: str, scale: float) -> str:
    """What a graph is called, so that its size is never taken for the full one.

    Example:
        >>> scaled_name("synth-products", 0.1), scaled_name("synth-products", 1)
        ('synth-products x0.1', 'synth-products')
    """
    return name if scale == 1 else f"{name} x{np.format_float_positional(scale, trim='-')}"


def check_scale(name: str, scale: object) -> float:
    """The scale as a number; None is the data set's default.

    Raises:
        ValueError: it is none, or leaves too few nodes.
    """
    entry = FACTS[name]
    if scale is None:
        return entry.default_scale
    number = isinstance(scale, (int, float, np.integer, np.floating)) and not isinstance(scale, bool)
    if not number or not math.isfinite(scale) or not entry.nodes * scale >= _LEAST_NODES or scale > 64:  # type: ignore[operator, arg-type]
        raise ValueError(
            f"scale must be a number from {_LEAST_NODES / entry.nodes:.2g} ({_LEAST_NODES} nodes) to 64 for {name} of "
            f"{entry.nodes:,} nodes, got {scale!r}"
        )
    return float(scale)  # type: ignore[arg-type]


def _sizes(name: str, scale: float) -> tuple[int, int, float]:
    """Nodes, edges and mean degree; the degree is that of the full graph or a sixteenth of the nodes."""
    entry = FACTS[name]
    nodes = round(entry.nodes * scale)
    edges = round(min(entry.edges / entry.nodes, nodes / 32) * nodes) if scale != 1 else entry.edges
    return nodes, edges, 2 * edges / nodes


def _classes(classes: int, nodes: int, degree: float) -> int:
    """As many classes as can have ten times as many nodes as a node has edges, on average."""
    return min(classes, max(_LEAST_CLASSES, int(nodes / (10 * degree))))


def _scaled_blocks(name: str, scale: float) -> BlockModel:
    model = BLOCK_MODELS[name]
    if scale == 1:
        return model
    nodes, edges, degree = _sizes(name, scale)
    mean = (model.pareto - 1) / (model.pareto - 2)  # of the weights without their cap
    cap = min(model.weight_cap, max(4.0, nodes / 8 * mean / degree))
    classes = _classes(model.num_classes, nodes, degree)
    return replace(model, num_nodes=nodes, num_edges=edges, num_classes=classes, weight_cap=cap)


def _all_scores(made: Proteins, step: int = 1 << 17) -> np.ndarray:
    edges = made.arrays.edges
    out = np.empty((edges.shape[1], 8), np.float32)
    for first in range(0, len(out), step):
        out[first : first + step] = made.scores(edges[:, first : first + step])
    return out


def part_of(arrays: Arrays, seed: int) -> np.ndarray:
    """The split int8 [N] of generated arrays: 0 training, 1 validation, 2 test, -1 none."""
    if arrays.masks is None:
        return random_split(len(arrays.y), seed, 0, arrays.shares or (0.6, 0.2))
    part = np.full(len(arrays.y), -1, np.int8)
    for value, mask in zip((TRAIN, VALIDATION, TEST), arrays.masks, strict=True):
        part[mask] = value
    return part
