"""Probabilities that nodes and pairs of nodes are touched by independent draws, and symmetry of a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.core._neighbors import mix64
from graphlossy.sampler._graph import Graph, edge_graph

__all__ = ["is_symmetric", "joint_mass", "present", "reverse_edges"]


def present(mass: Tensor, draws: int) -> Tensor:
    """1 - (1 - mass)^draws in float64, without cancellation for small masses."""
    return -torch.expm1(draws * torch.log1p(-mass))


def joint_mass(row: Tensor, col: Tensor, mass: Tensor, num_nodes: int) -> Tensor:
    """For each edge the mass of all edges that join its two ends, in either direction."""
    pair = torch.minimum(row, col) * num_nodes + torch.maximum(row, col)
    distinct, inverse = pair.unique(return_inverse=True)
    return torch.zeros(distinct.shape[0], dtype=mass.dtype).index_add(0, inverse, mass)[inverse]


def is_symmetric(graph: Graph) -> bool:
    """Whether every edge is there in both directions, equally often.

    Compares sums of 64-bit hashes of the edges and of the reversed edges: linear time, no memory; wrong with
    probability about 2**-64.
    """
    there = back = 0
    for row, col, _ in graph.chunks():
        there += int(mix64(row * graph.num_nodes + col).sum())
        back += int(mix64(col * graph.num_nodes + row).sum())
    return (there - back) % 2**64 == 0


def reverse_edges(graph: Graph) -> Graph | None:
    """The graph with its edges turned round, or None if it is symmetric."""
    if is_symmetric(graph):
        return None
    to = torch.arange(graph.num_nodes).repeat_interleave(graph.in_degree())
    return edge_graph(torch.stack([to, graph.indices.to(torch.int64)]), graph.num_nodes)
