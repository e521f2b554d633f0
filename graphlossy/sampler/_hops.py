"""Hop by hop from the seeds: what a neighbour sampler does with one batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphlossy.core import relabel, sample_neighbors
from graphlossy.sampler._graph import Graph
from graphlossy.sampler._seeding import fold

__all__ = ["Draw", "Hops", "sample_hops"]


@dataclass(frozen=True)
class Draw:
    """How edges are drawn and weighted.

    Attributes:
        replace: with replacement.
        weight: [E] drawing weights in the order of the graph's positions, or None.
        weighted: whether each edge gets a weight that makes sums unbiased.
        mean: whether that weight is divided by the full degree.
    """

    replace: bool = False
    weight: Tensor | None = None
    weighted: bool = False
    mean: bool = False

    def edge_weight(self, graph: Graph, frontier: Tensor, position: Tensor, counts: Tensor, expected: Tensor) -> Tensor:
        """float32 a_e / (expected times that e is drawn), and divided by the degree for a mean."""
        degree = graph.in_degree(frontier).to(torch.float64)
        if self.weight is None:
            per_node = torch.where(counts > 0, (1.0 if self.mean else degree) / counts, 0.0)
            weight = per_node.repeat_interleave(counts)
        else:
            weight = 1.0 / expected
            if self.mean:
                weight /= degree.repeat_interleave(counts)
        if graph.value is not None:
            weight *= graph.value.index_select(0, graph.edge_ids(position)).to(torch.float64)
        return weight.to(torch.float32)


@dataclass(frozen=True)
class Hops:
    """A sampled neighbourhood; nodes and edges in the order in which they were found.

    Attributes:
        node: int64 ids, the seeds first.
        row, col: int64 local ends of the edges, from the sampled neighbour ``row`` to the node ``col`` that drew it.
        edge: int64 positions in the graph.
        weight: float32 weight of each edge, or None.
        tree: int64 seed that each node belongs to, or None.
        num_nodes, num_edges: found in each hop; the seeds are hop 0 of the nodes.
    """

    node: Tensor
    row: Tensor
    col: Tensor
    edge: Tensor
    weight: Tensor | None
    tree: Tensor | None
    num_nodes: list[int]
    num_edges: list[int]


def sample_hops(graph: Graph, seeds: Tensor, fanouts: list[int], draw: Draw, disjoint: bool, seed: int) -> Hops:
    """Expand every node once, in the hop after the one that found it, as PyG's sampler does.

    What node v draws in hop h depends on (seed, h, v), and with ``disjoint`` also on the seed node of its tree, so that
    trees are independent of each other and of the batch they are in.
    """
    seeds = seeds.to(torch.int64)
    total = graph.num_nodes
    node = [seeds]
    tree = [torch.arange(seeds.shape[0])] if disjoint else None
    if disjoint and seeds.shape[0] * total >= 2**63:
        raise ValueError(f"disjoint sampling takes fewer than 2**63 / {total} seeds a batch, got {seeds.shape[0]}")
    known = tree[0] * total + seeds if tree is not None else seeds
    frontier, first = seeds, 0
    rows, cols, edges, weights, num_nodes, num_edges = [], [], [], [], [seeds.shape[0]], []
    for hop, k in enumerate(fanouts):
        stream = None if tree is None else seeds[tree[-1]]
        position, counts, expected = sample_neighbors(
            graph.indptr, frontier, k, replace=draw.replace, weight=draw.weight, stream=stream, seed=fold(seed, hop)
        )
        found = graph.sources(position)
        if tree is not None:
            found += (tree[-1] * total).repeat_interleave(counts)
        fresh, local = relabel(known, found, 0 if disjoint else total)
        rows.append(local)
        cols.append(torch.arange(first, first + frontier.shape[0]).repeat_interleave(counts))
        edges.append(position)
        if draw.weighted:
            weights.append(draw.edge_weight(graph, frontier, position, counts, expected))
        num_nodes.append(fresh.shape[0])
        num_edges.append(position.shape[0])
        first = known.shape[0]
        if hop + 1 < len(fanouts):
            known = torch.cat([known, fresh])
        frontier = fresh
        if tree is not None:
            tree.append(fresh // total)
            frontier = fresh % total
        node.append(frontier)
    return Hops(
        torch.cat(node),
        torch.cat(rows),
        torch.cat(cols),
        torch.cat(edges),
        torch.cat(weights) if draw.weighted else None,
        None if tree is None else torch.cat(tree),
        num_nodes,
        num_edges,
    )
