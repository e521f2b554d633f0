"""Sparsification by degree: DSpar (Liu et al., "DSpar: an embarrassingly simple strategy for efficient GNN training and
inference via degree-based sparsification", TMLR 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from graphlossy.core._weighted_sample import MOST_DRAWS, check_draw_count
from graphlossy.core.quantize import seed_or_draw
from graphlossy.sparsify._choice import Choice, check_ratio, everything, graph_of, one_of
from graphlossy.sparsify._draws import Scores, draw, draws_for_share
from graphlossy.sparsify._edges import EdgeList, read_edges

__all__ = ["choose", "degree_sparsify"]


def degree_sparsify(
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
    """Thin a graph by draws with probability p_e ~ 1/d_u + 1/d_v and weights that keep its expected Laplacian.

    1/d_u + 1/d_v bounds the effective resistance of an edge from both sides (Lovasz 1993, corollary 3.3), so that this
    is spectral sparsification (Spielman and Srivastava 2008) without solving for resistances (DSpar). Q
    edges are drawn with replacement; an edge drawn c times is kept once, with the weight c / (Q p_e).

    A graph that holds every edge in both directions is an undirected one: each pair is drawn once, and both directions
    are kept, with the same weight, of expected value 1. In a directed graph d_u counts the edges that leave u and d_v
    those that reach v: the degrees of the undirected bipartite graph between sources and targets, of which the directed
    adjacency matrix is one block. With weights w_e, degrees are sums of weights, p_e ~ w_e (1/d_u + 1/d_v), and the
    weight of a kept edge is w_e c / (Q p_e); an edge of weight 0 is never kept. Parallel edges are edges of their own.
    Self-loops, which no Laplacian sees, are kept as they are and counted in no degree.

    Args:
        edge_index: integers [2, E].
        num_nodes: N; None is the largest number + 1; a pair for a bipartite graph.
        ratio: share of distinct edges (pairs) to keep, self-loops aside; the expected value of Q draws, which is found
            from the probabilities. At 1 the graph stays as it is.
        epsilon: Q = 0.16 N ln N / epsilon^2 (DSpar's rule; the Laplacian is then within 1 +- epsilon over
            the spectral gap).
        num_samples: Q itself.
        reweight: False keeps the weights of the input (the paper's unweighted option, biased).
        edge_weight: [E] finite, at least 0.
        undirected: None finds out, in linear time; False treats a symmetric graph as a directed one.
        seed: of the draws; None takes one from torch's global generator. The result does not depend on the threads.

    Returns:
        (edge_index [2, E'], edge_weight [E']): undirected pairs in the order of the input, then the same pairs the
        other way round, then self-loops; directed edges in the order of the input. The weight is None if ``reweight``
        is False and the input has none.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: not exactly one of ``ratio``, ``epsilon`` and ``num_samples``, one of them out of range, a ratio out
            of reach, a node number out of range, a weight that is negative or not finite.

    Example:
        >>> path = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
        >>> edge_index, edge_weight = degree_sparsify(path, num_samples=2, seed=0)
        >>> edge_index.tolist(), [round(weight, 2) for weight in edge_weight.tolist()]
        ([[1, 2, 2, 3], [2, 3, 1, 2]], [2.0, 1.33, 2.0, 1.33])
    """
    edges = read_edges(edge_index, num_nodes, edge_weight, undirected)
    choice = choose(edges, seed, ratio=ratio, epsilon=epsilon, num_samples=num_samples)
    return graph_of(edges, choice, reweight)


def choose(
    edges: EdgeList,
    seed: int | None,
    *,
    ratio: float | None = None,
    epsilon: float | None = None,
    num_samples: int | None = None,
    score: Callable[[EdgeList], Tensor] | None = None,
) -> Choice:
    """The edges drawn with probabilities ~ ``score(edges)``, by default those of `degree_sparsify`."""
    given = {"ratio": ratio, "epsilon": epsilon, "num_samples": num_samples}
    which = one_of(given, "ratio, epsilon and num_samples")
    draws = 0
    if which == "ratio":
        ratio = check_ratio(ratio)
    elif which == "epsilon":
        draws = draws_for_epsilon(epsilon, edges.num_nodes)
    elif isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples is the number of draws, an int of at least 1; got {num_samples!r}")
    else:
        check_draw_count(num_samples)
        draws = num_samples
    seed = seed_or_draw(seed)
    if edges.count == 0 or ratio == 1:
        return everything(edges)
    values = (score or _scores)(edges)
    if not bool((values > 0).any()):  # all weights are 0: no edge contributes anything
        return Choice(torch.empty(0, dtype=torch.int64, device=edges.device), None, True, {"draws": 0})
    scores = Scores(values)
    return draw(scores, draws if ratio is None else draws_for_share(scores, ratio), seed)


def draws_for_epsilon(epsilon: object, nodes: int) -> int:
    """Q = 0.16 N ln N / epsilon^2, at least 1."""
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)):
        raise TypeError(f"epsilon must be a number above 0, got {type(epsilon).__name__} {epsilon!r}")
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"epsilon must be above 0 and finite, got {epsilon}; smaller values keep more edges")
    draws = 0.16 * nodes * math.log(max(nodes, 1)) / epsilon / epsilon
    if draws > MOST_DRAWS:
        raise ValueError(f"epsilon {epsilon} asks for {draws:.3g} draws from {nodes} nodes; give a larger one")
    return max(1, math.ceil(draws))


def _scores(edges: EdgeList) -> Tensor:
    """float32 [m]: 1/d_u + 1/d_v, or w (1/d_u + 1/d_v), of every candidate."""
    sources, targets = edges.degrees(weighted=edges.weight is not None)
    scores = torch.empty(edges.count, dtype=torch.float32, device=edges.device)
    if edges.weight is None:  # a candidate is an edge of both its ends: their degrees are at least 1
        one = sources.clamp(min=1).reciprocal_().to(torch.float32)
        other = one if sources is targets else targets.clamp(min=1).reciprocal_().to(torch.float32)
        for place, u, v, _ in edges.chunks():
            torch.add(one[u], other[v], out=scores[place])
        return scores
    for place, u, v, weight in edges.chunks():
        if weight is not None:
            # w / d is at most 1, where w * (1 / d) could overflow; a degree of 0 has edges of weight 0 only
            share = weight / sources[u] + weight / targets[v]
            scores[place] = torch.where(weight > 0, share, torch.zeros_like(share))
    return scores
