"""Sparsification by exact effective resistance: what sparsification by degree approximates, for small graphs."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from graphlossy.sparsify import degree
from graphlossy.sparsify._choice import graph_of
from graphlossy.sparsify._components import components
from graphlossy.sparsify._edges import EdgeList, read_edges

__all__ = ["MOST_NODES", "choose", "effective_resistance", "laplacian", "resistance_sparsify"]

MOST_NODES = 5000  # of which a dense matrix of float64 takes 200 MB


def resistance_sparsify(
    edge_index: Tensor,
    num_nodes: int | tuple[int, int] | None = None,
    *,
    ratio: float | None = None,
    epsilon: float | None = None,
    num_samples: int | None = None,
    reweight: bool = True,
    edge_weight: Tensor | None = None,
    undirected: bool | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Thin a small graph by draws with probability p_e ~ w_e R_e, R_e the effective resistance (Spielman-Srivastava).

    Spielman and Srivastava 2008, algorithm Sparsify: Q draws with replacement, weight w_e c / (Q p_e). A directed graph
    is taken as the undirected bipartite graph between its sources and targets, as by `degree_sparsify`, whose
    arguments, returns and errors these are.

    Raises:
        ValueError: more than `MOST_NODES` nodes (of a directed graph, sources and targets together), or weights that
            span too many orders of magnitude.

    Example:
        >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])  # every edge of a tree has resistance 1
        >>> resistance_sparsify(path, num_samples=1, seed=0)[1].tolist()
        [2.0, 2.0]
    """
    edges = read_edges(edge_index, num_nodes, edge_weight, undirected)
    choice = choose(edges, seed, ratio=ratio, epsilon=epsilon, num_samples=num_samples)
    return graph_of(edges, choice, reweight)


def _scores(edges: EdgeList) -> Tensor:
    size, u, v, weight = as_undirected(edges)
    if size > MOST_NODES:
        raise ValueError(
            f"exact effective resistance takes a dense matrix of all nodes, at most {MOST_NODES}; this graph has "
            f"{size} (of a directed graph, sources and targets): use degree_sparsify, which approximates it"
        )
    return effective_resistance(size, u, v, weight).mul_(weight).to(torch.float32)


choose = partial(degree.choose, score=_scores)  # the edges that `resistance_sparsify` keeps


def as_undirected(edges: EdgeList) -> tuple[int, Tensor, Tensor, Tensor]:
    """(nodes, u, v, weight) of the candidates; the targets of a directed graph are nodes of their own."""
    at = edges.columns(torch.arange(edges.count, device=edges.device))
    u, v = (edges.edge_index[end][at].to(torch.int64) for end in (0, 1))
    weight = torch.ones(edges.count, dtype=torch.float64, device=edges.device)
    if edges.weight is not None:
        weight = edges.weight[at].to(torch.float64)
    return (edges.sizes[0], u, v, weight) if edges.undirected else (sum(edges.sizes), u, v + edges.sizes[0], weight)


def laplacian(size: int, u: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """float64 [size, size], sum_e w_e (1_u - 1_v)(1_u - 1_v)^T."""
    found = torch.zeros(size * size, dtype=torch.float64, device=u.device)
    for row, column, sign in ((u, u, 1), (v, v, 1), (u, v, -1), (v, u, -1)):
        found.index_add_(0, row * size + column, weight * sign)
    return found.view(size, size)


def effective_resistance(size: int, u: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """float64 [m], R_e = (1_u - 1_v)^T L^+ (1_u - 1_v) of the edges of an undirected graph; 0 where the weight is."""
    matrix = laplacian(size, u, v, weight)
    label = components(size, u[weight > 0], v[weight > 0])
    # With 1/n added between all nodes of a component of n nodes the matrix has an inverse, which gives the same R.
    same = (label.unsqueeze(0) == label.unsqueeze(1)).to(torch.float64)
    scale = matrix.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    matrix.add_(same.div_(same.sum(1, keepdim=True)).mul_(scale))
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        raise ValueError("edge_weight spans too many orders of magnitude for effective resistance; use degree_sparsify")
    inverse = torch.cholesky_inverse(factor)
    found = inverse[u, u] + inverse[v, v] - 2 * inverse[u, v]
    return torch.where(weight > 0, found.clamp_(min=0), torch.zeros_like(found))
