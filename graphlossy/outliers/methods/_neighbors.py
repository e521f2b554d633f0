"""Distances to the neighbours' embeddings, linear in the graph."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.autograd import CSRGraph, spmm

__all__ = ["neighbor_distance"]


def neighbor_distance(incoming: CSRGraph, h: Tensor) -> Tensor:
    """Mean over the neighbours j of i of ||h_i - h_j||^2, [N]; 0 for nodes without any.

    = ||h_i||^2 - 2 h_i . mean_j h_j + mean_j ||h_j||^2, after the mean of all rows was taken off, which changes no
    distance and keeps the terms as small as the spread of the rows. O(E h) time, O(E + N h) memory.

    Args:
        incoming: the neighbours of node i are the sources of the edges that arrive at i.
        h: [N, h].

    Example:
        >>> graph = CSRGraph(torch.tensor([[0, 1], [1, 0]]), num_dst=3)
        >>> neighbor_distance(graph, torch.tensor([[0.0], [2.0], [10.0]]))
        tensor([4., 4., 0.])
    """
    h = h - h.mean(0)
    square = h.square().sum(1, keepdim=True)
    mean = spmm(incoming, torch.cat([h, square], 1), "mean")
    distance = square[:, 0] - 2 * (h * mean[:, :-1]).sum(1) + mean[:, -1]
    return torch.where(incoming.crow.diff() > 0, distance.clamp(min=0), 0.0)
