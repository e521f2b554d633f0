"""Local degree sparsification: every node keeps its neighbours of highest degree."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.core.quantize import seed_or_draw
from graphlossy.sparsify._choice import Choice, check_ratio, everything, graph_of, one_of
from graphlossy.sparsify._edges import EdgeList, read_edges
from graphlossy.sparsify._incidence import choosers, ranks

__all__ = ["choose", "local_degree_sparsify"]


def local_degree_sparsify(
    edge_index: Tensor,
    num_nodes: int | tuple[int, int] | None = None,
    *,
    ratio: float | None = None,
    alpha: float | None = None,
    reweight: bool = True,
    edge_weight: Tensor | None = None,
    undirected: bool | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Every node of degree d keeps the edges to its ceil(d^alpha) neighbours of highest degree (Hamann et al. 2016).

    In an undirected graph an edge is kept if one of its ends keeps it; in a directed one the target chooses, by the
    out-degree of the sources. Hamann, Lindner, Meyerhenke, Staudt and Wagner, "Structure-preserving sparsification
    methods for social networks". The choice is not random, so that no weights make it unbiased: kept
    edges keep their own (or 1). Weights have no part in degrees.

    Args:
        ratio: share of edges kept, from which alpha is found (ties at the border stay in).
        alpha: given instead, 0 to 1.
        seed: taken for the sake of one interface, and not used.

    The other arguments, returns and errors are those of `degree_sparsify`.

    Raises:
        ValueError: ``ratio`` is below the share of edges that lead to a best neighbour, which are always kept.

    Example:
        >>> wheel = torch.tensor([[0, 1, 2, 3, 4, 4, 4, 4], [1, 2, 3, 0, 0, 1, 2, 3]])
        >>> both = torch.cat([wheel, wheel.flip(0)], dim=1)
        >>> local_degree_sparsify(both, alpha=0)[0].tolist()
        [[0, 1, 2, 3, 4, 4, 4, 4], [4, 4, 4, 4, 0, 1, 2, 3]]
    """
    edges = read_edges(edge_index, num_nodes, edge_weight, undirected)
    return graph_of(edges, choose(edges, seed, ratio=ratio, alpha=alpha), reweight)


def choose(edges: EdgeList, seed: int | None, *, ratio: float | None = None, alpha: float | None = None) -> Choice:
    """The edges that `local_degree_sparsify` keeps."""
    if one_of({"ratio": ratio, "alpha": alpha}, "ratio and alpha") == "ratio":
        ratio = check_ratio(ratio)
    elif isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the exponent of the degree, 0 to 1; got {alpha!r}")
    if seed is not None:
        seed_or_draw(seed)
    if edges.count == 0 or ratio == 1:
        return everything(edges, unbiased=False)
    least = _least_alpha(edges)
    if alpha is not None:
        return Choice((least < alpha).nonzero().squeeze(1), None, False, {"alpha": float(alpha)})
    kept = max(1, round(ratio * edges.count))  # type: ignore[operator]
    always = int((least < 0).sum())
    if kept < always:
        raise ValueError(
            f"ratio {ratio} is out of reach: local degree always keeps the edge of every node to its best neighbour, "
            f"{always / edges.count:.4f} of the edges; give a larger ratio"
        )
    border = least.kthvalue(kept).values
    return Choice((least <= border).nonzero().squeeze(1), None, False, {"alpha": max(0.0, float(border))})


def _least_alpha(edges: EdgeList) -> Tensor:
    """float64 [m]: an edge is kept for every alpha above this; -1 where it always is.

    An edge is number r, counted from 0, in the list of a node of degree d: r < ceil(d^alpha) means log r < alpha log d.
    """
    nodes, others = choosers(edges)
    neighbour = edges.degrees(weighted=False)[0].to(torch.int64)
    most = int(neighbour.max())
    rank, counts = ranks(nodes, edges.sizes[1], most - neighbour[others], most.bit_length())
    least = rank.to(torch.float64).log_().div_(counts.to(torch.float64).log_()[nodes])
    least[rank == 0] = -1.0
    return torch.minimum(least[: edges.count], least[edges.count :]) if edges.undirected else least
