"""What sparsification did to a graph: counts, degrees, weights, connectivity and, for small graphs, the spectrum."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphlossy.sparsify._components import components
from graphlossy.sparsify._edges import EdgeList, read_edges
from graphlossy.sparsify.resistance import MOST_NODES, as_undirected, laplacian

__all__ = ["MOST_SPECTRAL_NODES", "Report", "report"]

MOST_SPECTRAL_NODES = 1500  # up to which the spectrum is looked at unasked: seconds


@dataclass(frozen=True)
class Report:
    """What `report` found. Edges are columns of ``edge_index``; of an undirected graph each pair is two of them.

    Attributes:
        nodes: number of nodes (of a bipartite graph, sources and targets).
        undirected: whether the graph held every edge in both directions.
        edges_before, edges_after: columns of ``edge_index``.
        self_loops: of them before, all of which stay.
        share: of the edges that are no self-loops, kept.
        isolated_before, isolated_after: nodes without an edge, self-loops aside.
        components_before, components_after: connected components, isolated nodes among them.
        weight_total_before, weight_total_after: sums of the weights, self-loops aside.
        weights: least, mean, median, largest weight and the coefficient of variation after, self-loops aside; None if
            the thinned graph has no weights or no edges.
        degrees_before, degrees_after: [[least degree, nodes], ...] of bins 0, 1, 2-3, 4-7, ...; the degree counts the
            edges that reach a node, self-loops aside.
        eigenvalues: [least, largest] generalised eigenvalue of the two Laplacians, or None if not looked at.
        spectral_epsilon: the least epsilon with (1 - epsilon) x'Lx <= x'L'x <= (1 + epsilon) x'Lx for all x, or None.
    """

    nodes: int
    undirected: bool
    edges_before: int
    edges_after: int
    self_loops: int
    share: float
    isolated_before: int
    isolated_after: int
    components_before: int
    components_after: int
    weight_total_before: float
    weight_total_after: float
    weights: dict[str, float] | None
    degrees_before: list[list[int]]
    degrees_after: list[list[int]]
    eigenvalues: list[float] | None
    spectral_epsilon: float | None

    @property
    def isolated_made(self) -> int:
        """Nodes that lost their last edge."""
        return self.isolated_after - self.isolated_before

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers and lists, fit for JSON."""
        return {**asdict(self), "isolated_made": self.isolated_made}

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        kind = "undirected (each edge counts twice)" if self.undirected else "directed"
        lines = [
            f"{self.nodes:,} nodes, {kind}",
            f"edges       {self.edges_before:,} -> {self.edges_after:,} ({100 * self.share:.2f} % kept"
            + (f", {self.self_loops:,} self-loops aside)" if self.self_loops else ")"),
            f"isolated    {self.isolated_before:,} -> {self.isolated_after:,} nodes",
            f"components  {self.components_before:,} -> {self.components_after:,}",
            f"weight      {self.weight_total_before:,.6g} -> {self.weight_total_after:,.6g} in all",
        ]
        if self.weights is not None:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in self.weights.items())
            lines.append(f"weights     {shown}")
        if self.eigenvalues is not None:
            low, high = self.eigenvalues
            bounds = f"{low:.3f} x'Lx <= x'L'x <= {high:.3f} x'Lx for every x"
            lines.append(f"spectrum    {bounds} (epsilon {self.spectral_epsilon:.3f})")
        lines.append("degree      nodes before -> after")
        before = {low: count for low, count in self.degrees_before}
        after = {low: count for low, count in self.degrees_after}
        for low in sorted({*before, *after}):
            name = str(low) if low < 2 else f"{low}-{2 * low - 1}"
            lines.append(f"  {name:>9} {before.get(low, 0):>12,} -> {after.get(low, 0):,}")
        return "\n".join(lines)

    def picture(self, path: str | os.PathLike[str]) -> Path:
        """Draws the degree distributions before and after to a file; its ending says the format (.png, .svg, .pdf).

        Raises:
            ModuleNotFoundError: matplotlib is missing; the message says how to install it.
            OSError: the file cannot be written.
            ValueError: the ending is of no known format.
        """
        from graphlossy.sparsify._picture import draw_degrees

        return draw_degrees(self, Path(path))


def report(before: Any, after: Any, num_nodes: int | None = None, spectral: bool | None = None) -> Any:
    """Compare a graph with its thinned self.

    Args:
        before: an ``edge_index`` [2, E], a pair (edge_index, edge_weight), a ``Data`` or a ``HeteroData``.
        after: the same of the thinned graph.
        num_nodes: N where the graphs do not say it; None is the largest number of ``before`` + 1.
        spectral: whether the Laplacians are compared, which takes dense matrices of all nodes (of a directed graph,
            sources and targets, between which its edges are taken as undirected ones). None does it up to
            `MOST_SPECTRAL_NODES` nodes.

    Returns:
        `Report`; of a ``HeteroData``, a dict of one for each type of edges.

    Raises:
        TypeError: the two are no graphs of one kind.
        ValueError: as `degree_sparsify`; ``spectral=True`` and more than 20,000 nodes.

    Example:
        >>> from graphlossy.sparsify import random_sparsify
        >>> ring = torch.tensor([[0, 1, 2, 3, 1, 2, 3, 0], [1, 2, 3, 0, 0, 1, 2, 3]])
        >>> found = report(ring, random_sparsify(ring, ratio=0.5, seed=1))
        >>> found.edges_after, found.share, found.weights["mean"]
        (4, 0.5, 2.0)
    """
    if hasattr(before, "edge_types"):
        if not hasattr(after, "edge_types") or list(before.edge_types) != list(after.edge_types):
            raise TypeError("before and after must have the same types of edges")
        found = {}
        for kind in before.edge_types:
            sizes = int(before[kind[0]].num_nodes), int(before[kind[2]].num_nodes)
            size = sizes[0] if kind[0] == kind[2] else sizes
            found[kind] = _compare(_edges(before[kind], size), _edges(after[kind], size), spectral)
        return found
    first, given = _parts(before)
    count = num_nodes if num_nodes is not None else given
    if count is None:
        count = int(first[0].max()) + 1 if first[0].numel() else 0
    return _compare(_edges(before, count), _edges(after, count), spectral)


def _parts(graph: Any) -> tuple[tuple[Tensor, Tensor | None], int | None]:
    """((edge_index, edge_weight), number of nodes or None)."""
    if isinstance(graph, Tensor):
        return (graph, None), None
    if isinstance(graph, tuple) and len(graph) == 2:
        return graph, None
    if getattr(graph, "edge_index", None) is not None:
        weight = graph["edge_weight"] if "edge_weight" in graph else None
        return (graph.edge_index, weight), getattr(graph, "num_nodes", None)
    raise TypeError(f"a graph must be an edge_index, (edge_index, edge_weight) or a Data, got {type(graph).__name__}")


def _edges(graph: Any, size: int | tuple[int, int]) -> tuple[EdgeList, Tensor | None]:
    index, weight = _parts(graph)[0]
    return read_edges(index, size, weight), weight


def _compare(
    before: tuple[EdgeList, Tensor | None], after: tuple[EdgeList, Tensor | None], spectral: bool | None
) -> Report:
    one, two = before[0], after[0]
    kept = two.edge_index.shape[1] - two.loops.numel()
    possible = one.edge_index.shape[1] - one.loops.numel()
    values = None
    size = one.num_nodes if one.undirected or one.bipartite else 2 * one.num_nodes
    if spectral and size > 4 * MOST_NODES:
        raise ValueError(f"spectral=True takes dense matrices of at most {4 * MOST_NODES} nodes; this graph has {size}")
    if spectral or (spectral is None and size <= MOST_SPECTRAL_NODES):
        values = eigenvalues(one, two)
    totals = [_weights(edges) for edges in (one, two)]
    return Report(
        nodes=one.num_nodes,
        undirected=one.undirected,
        edges_before=one.edge_index.shape[1],
        edges_after=two.edge_index.shape[1],
        self_loops=one.loops.numel(),
        share=kept / possible if possible else 1.0,
        isolated_before=_isolated(one),
        isolated_after=_isolated(two),
        components_before=_count_components(one),
        components_after=_count_components(two),
        weight_total_before=_total(one, totals[0]),
        weight_total_after=_total(two, totals[1]),
        weights=None if after[1] is None else _statistics(totals[1]),
        degrees_before=_binned(one),
        degrees_after=_binned(two),
        eigenvalues=values,
        spectral_epsilon=None if values is None else max(1 - values[0], values[1] - 1, 0.0),
    )


def _weights(edges: EdgeList) -> Tensor | None:
    """Weights that are no self-loops', of every column; None stands for ones."""
    if edges.weight is None or not edges.loops.numel():
        return edges.weight
    keep = torch.ones(edges.edge_index.shape[1], dtype=torch.bool, device=edges.device)
    keep[edges.loops] = False
    return edges.weight[keep]


def _total(edges: EdgeList, weights: Tensor | None) -> float:
    if weights is None:
        return float(edges.edge_index.shape[1] - edges.loops.numel())
    return float(weights.sum(dtype=torch.float64))


def _statistics(weights: Tensor | None) -> dict[str, float] | None:
    if weights is None or not weights.numel():
        return None
    mean = float(weights.mean(dtype=torch.float64))
    spread = math.sqrt(max(0.0, float(weights.to(torch.float64).square().mean()) - mean * mean))
    return {
        "min": float(weights.min()),
        "mean": mean,
        "median": float(weights.median()),
        "max": float(weights.max()),
        "variation": spread / mean if mean else 0.0,
    }


def _reached(edges: EdgeList) -> Tensor:
    """Degrees of all nodes by incoming edges; of a bipartite graph those of the sources come first, by their own."""
    out, into = edges.degrees(weighted=False)
    return torch.cat([out, into]) if edges.bipartite else into


def _isolated(edges: EdgeList) -> int:
    out, into = edges.degrees(weighted=False)
    if edges.bipartite:
        return int((out == 0).sum()) + int((into == 0).sum())
    return int(((out == 0) & (into == 0)).sum())


def _count_components(edges: EdgeList) -> int:
    u, v = edges.edge_index
    if edges.bipartite:
        v = v.to(torch.int64) + edges.sizes[0]
    label = components(edges.num_nodes, u, v)
    return int((label == torch.arange(edges.num_nodes, device=edges.device)).sum())


def _binned(edges: EdgeList) -> list[list[int]]:
    """[[least degree, nodes], ...] of the bins 0, 1, 2-3, 4-7, ... that hold nodes."""
    degrees = _reached(edges)
    exponent = torch.frexp(degrees)[1].to(torch.int64)  # degrees of [2^(e-1), 2^e) have exponent e, 0 has 0
    counts = torch.bincount(exponent).tolist()
    return [[2 ** (e - 1) if e else 0, n] for e, n in enumerate(counts) if n]


def eigenvalues(before: EdgeList, after: EdgeList) -> list[float]:
    """[least, largest] eigenvalue mu of L' x = mu L x, x orthogonal to the null space of L.

    L' - L in the basis of L's eigenvectors, scaled by their eigenvalues: x'L'x / x'Lx takes values between the two.
    """
    if before.count == 0:
        return [1.0, 1.0]
    if before.undirected != after.undirected:  # a few edges of a directed graph may happen to be symmetric
        before, after = (read_edges(e.edge_index, e.sizes[0], e.weight, undirected=False) for e in (before, after))
    matrices = [laplacian(*as_undirected(edges)) for edges in (before, after)]
    values, vectors = torch.linalg.eigh(matrices[0])
    positive = values > values.abs().max() * len(values) * torch.finfo(torch.float64).eps * 8
    if not bool(positive.any()):
        return [1.0, 1.0]
    basis = vectors[:, positive] / values[positive].sqrt()
    found = torch.linalg.eigvalsh(basis.t() @ matrices[1] @ basis)
    return [max(0.0, float(found[0])), float(found[-1])]
