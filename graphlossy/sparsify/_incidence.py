"""Edges grouped by the nodes that choose among them."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.sparsify._edges import EdgeList

__all__ = ["choosers", "ranks"]


def choosers(edges: EdgeList) -> tuple[Tensor, Tensor]:
    """(nodes, others), int64 [I]: who chooses, and the neighbour at the other end.

    Of an undirected graph both ends of each pair choose: first all sources, then all targets. Of a directed graph the
    target does, as it gathers messages: I is the number of candidates, or twice that.
    """
    at = edges.columns(torch.arange(edges.count, device=edges.device))
    u, v = (edges.edge_index[end][at].to(torch.int64) for end in (0, 1))
    return (torch.cat([u, v]), torch.cat([v, u])) if edges.undirected else (v, u)


def ranks(nodes: Tensor, size: int, order: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(rank of each incidence among those of its node, number of incidences of each node).

    Args:
        nodes: int64 [I], below ``size``.
        size: number of nodes.
        order: int64 [I], at least 0 and below 2**bits: small ones come first, equal ones in their own order.
        bits: width of ``order``; that of ``size`` and this are at most 63.
    """
    place = ((nodes << bits) | order).argsort(stable=True)
    counts = torch.bincount(nodes, minlength=size)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(nodes)
    rank[place] = torch.arange(nodes.numel(), device=nodes.device) - first[nodes[place]]
    return rank, counts
