"""K-neighbour sparsification: every node keeps a few random neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.core._random import random_bits, uniform
from graphlossy.core.quantize import seed_or_draw
from graphlossy.sparsify._choice import Choice, check_ratio, everything, graph_of, one_of
from graphlossy.sparsify._edges import EdgeList, read_edges
from graphlossy.sparsify._incidence import choosers, ranks

__all__ = ["choose", "k_neighbor_sparsify"]

_CHUNK = 1 << 20
_FIXED = 2.0**32  # shares are added up as multiples of 1 / _FIXED, so that no sum depends on the number of threads


def k_neighbor_sparsify(
    edge_index: Tensor,
    num_nodes: int | tuple[int, int] | None = None,
    *,
    ratio: float | None = None,
    k: float | None = None,
    reweight: bool = True,
    edge_weight: Tensor | None = None,
    undirected: bool | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Every node chooses k of its edges at random, all of them if it has fewer; what an end has chosen is kept.

    In an undirected graph both ends of a pair choose, in a directed one the target does. A node of degree d chooses an
    edge with probability s = min(1, k / d), so a pair is kept with probability 1 - (1 - s_u)(1 - s_v) and a directed
    edge with s_v; divided by it, weights are unbiased (Horvitz and Thompson 1952). A k between two integers means that
    a node takes the upper one with the probability of the fractional part.

    Args:
        ratio: expected share of edges kept, from which k is found.
        k: given instead, above 0.

    The other arguments, returns and errors are those of `degree_sparsify`.

    Example:
        >>> star = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0]])
        >>> edge_index, edge_weight = k_neighbor_sparsify(star, k=2, seed=0)
        >>> edge_index.shape, edge_weight.tolist()
        (torch.Size([2, 2]), [2.0, 2.0])
    """
    edges = read_edges(edge_index, num_nodes, edge_weight, undirected)
    return graph_of(edges, choose(edges, seed, ratio=ratio, k=k), reweight)


def choose(edges: EdgeList, seed: int | None, *, ratio: float | None = None, k: float | None = None) -> Choice:
    """The edges that `k_neighbor_sparsify` keeps."""
    if one_of({"ratio": ratio, "k": k}, "ratio and k") == "ratio":
        ratio = check_ratio(ratio)
    elif isinstance(k, bool) or not isinstance(k, (int, float)) or not 0 < k < float("inf"):
        raise ValueError(f"k is the number of neighbours that a node chooses, above 0; got {k!r}")
    else:
        k = min(k, edges.count)  # more choose no more
    seed = seed_or_draw(seed)
    if edges.count == 0 or ratio == 1:
        return everything(edges)
    degrees = edges.degrees(weighted=False)[1]
    if k is None:
        k = _k_for(edges, degrees, ratio)  # type: ignore[arg-type]
    nodes, _ = choosers(edges)
    size = edges.sizes[1]
    bits = min(40, 63 - size.bit_length())
    words = random_bits(seed, nodes.numel(), 0, 4, edges.device).bitwise_and_(2**bits - 1)
    rank, _ = ranks(nodes, size, words, bits)
    most = int(k) + (uniform(seed, size, 0, 5, edges.device) < k % 1).to(torch.int64)
    chosen = rank < most[nodes]
    if edges.undirected:
        chosen = chosen[: edges.count] | chosen[edges.count :]
    index = chosen.nonzero().squeeze(1)
    at = edges.columns(index)
    ends = (edges.edge_index[end][at].to(torch.int64) for end in (0, 1))
    return Choice(index, _inclusion(edges, _share(degrees, k), *ends).reciprocal_(), True, {"k": k})


def _share(degrees: Tensor, k: float) -> Tensor:
    """Probability with which a node of each degree chooses one of its edges."""
    degrees = degrees.clamp(min=1)
    low, fraction = int(k), k % 1
    upper = ((low + 1) / degrees).clamp_(max=1).mul_(fraction)
    return (low / degrees).clamp_(max=1).mul_(1 - fraction).add_(upper)


def _inclusion(edges: EdgeList, share: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Probability with which each edge (u, v) is kept."""
    return share[u] + share[v] - share[u] * share[v] if edges.undirected else share[v]


def _k_for(edges: EdgeList, degrees: Tensor, ratio: float) -> float:
    """k, a multiple of 2**-20, for which the expected share of the edges kept is ``ratio``."""

    def expected(k: float) -> float:
        share = _share(degrees, k)
        parts = (_inclusion(edges, share, u, v) for _, u, v, _ in edges.chunks())
        return sum(int((part * _FIXED).to(torch.int64).sum()) for part in parts) / _FIXED / edges.count

    low, high = 0.0, float(degrees.max())
    below, above = -ratio, 1 - ratio
    # Regula falsi with the Illinois rule: each step looks at every edge.
    for _ in range(60):
        k = low - below * (high - low) / (above - below)
        k = min(max(k, low + (high - low) * 1e-3), high - (high - low) * 1e-3)
        found = expected(k) - ratio
        if abs(found) < 1e-5 * ratio or high - low < 2**-20:
            break
        if found < 0:
            low, below, above = k, found, above / 2
        else:
            high, above, below = k, found, below / 2
    return max(round(k * 2**20), 1) / 2**20
