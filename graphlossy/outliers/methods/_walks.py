"""Local subgraphs by random walks with restart, for all nodes at once and without compiled extensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphlossy.outliers._checks import Graph

__all__ = ["LocalGraphs", "walk_contexts"]

_STEPS = 8  # of a walk for each node that it looks for


@dataclass(frozen=True)
class LocalGraphs:
    """The surroundings of B target nodes, c slots each; slot 0 is the target itself.

    Attributes:
        nodes: int64 [B, c]; slots that found no node repeat the target.
        valid: bool [B, c], False for those.
        adjacency: float32 [B, c, c], D^-1/2 (A + I) D^-1/2 among the valid slots, zero elsewhere.
    """

    nodes: Tensor
    valid: Tensor
    adjacency: Tensor


def walk_contexts(graph: Graph, targets: Tensor, size: int, restart: float) -> LocalGraphs:
    """Random walks with restart (Tong et al., ICDM 2006) from each target, until ``size - 1`` other nodes were met.

    All walks move together. In each of at most 8 (size - 1) steps a walk returns to its target with probability
    ``restart`` and otherwise goes to a uniform neighbour; a node without edges leaves its slots empty.

    Args:
        graph: undirected, without self loops.
        targets: int64 [B].
        size: c, slots of a target, at least 1.
        restart: probability of a return, in [0, 1).

    Example:
        >>> path = Graph(torch.empty(3, 0), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 3)
        >>> local = walk_contexts(path, torch.tensor([0]), 2, 0.0)
        >>> local.nodes.tolist(), local.valid.tolist()
        ([[0, 1]], [[True, True]])
    """
    crow, col = graph.csr
    degree, count = graph.degrees, len(targets)
    nodes = targets.unsqueeze(1).repeat(1, size)
    found = torch.zeros_like(targets)
    where = targets
    for _ in range(_STEPS * (size - 1)):
        draws = torch.rand(2, count, dtype=torch.float64, device=graph.device)
        where = torch.where(draws[0] < restart, targets, where)
        choices = degree[where]
        step = (draws[1] * choices).long().clamp(max=graph.num_nodes)
        step = torch.minimum(step, (choices - 1).clamp(min=0))
        place = (crow[where] + step).clamp(max=max(len(col) - 1, 0))
        where = torch.where(choices > 0, col[place] if len(col) else where, where)
        fresh = (found < size - 1) & (nodes != where.unsqueeze(1)).all(1)
        slot = torch.where(fresh, found + 1, 0)
        nodes[torch.arange(count, device=graph.device), slot] = torch.where(fresh, where, targets)
        found += fresh
        if bool((found == size - 1).all()):
            break
    valid = torch.arange(size, device=graph.device) <= found.unsqueeze(1)
    return LocalGraphs(nodes, valid, _normalised(graph, nodes, valid))


def _normalised(graph: Graph, nodes: Tensor, valid: Tensor) -> Tensor:
    """The edges among the slots of each target, with self loops, normalised by the degrees in the subgraph."""
    keys = graph.edge_index[0] * graph.num_nodes + graph.edge_index[1]
    wanted = nodes.unsqueeze(2) * graph.num_nodes + nodes.unsqueeze(1)
    if len(keys):
        linked = keys[torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)] == wanted
    else:
        linked = torch.zeros_like(wanted, dtype=torch.bool)
    linked &= valid.unsqueeze(2) & valid.unsqueeze(1)
    itself = torch.diag_embed(valid)
    adjacency = (linked | itself).float()
    scale = adjacency.sum(2).clamp(min=1).rsqrt()
    return scale.unsqueeze(2) * adjacency * scale.unsqueeze(1)
