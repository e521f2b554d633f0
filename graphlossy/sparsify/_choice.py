"""What a sparsifier chose, and the graph that comes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from graphlossy.sparsify._edges import EdgeList, match

__all__ = ["Choice", "check_ratio", "columns", "everything", "graph_of", "one_of"]


@dataclass
class Choice:
    """The edges that are kept.

    Attributes:
        index: int64 [m], candidates of the edge list, rising, distinct.
        factor: float64 [m], by which their weights are multiplied; None is 1.
        unbiased: whether the expected weighted adjacency matrix is the original's.
        facts: what the method did: number of draws, k, alpha.
    """

    index: Tensor
    factor: Tensor | None
    unbiased: bool
    facts: dict[str, Any] = field(default_factory=dict)


def everything(edges: EdgeList, unbiased: bool = True) -> Choice:
    """All edges, as they are."""
    return Choice(torch.arange(edges.count, device=edges.device), None, unbiased)


def check_ratio(ratio: object) -> float:
    """``ratio`` as a float above 0 and at most 1."""
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
        raise TypeError(f"ratio must be a number above 0 and at most 1, got {type(ratio).__name__} {ratio!r}")
    if not (math.isfinite(ratio) and 0 < ratio <= 1):
        raise ValueError(f"ratio is the share of edges that is kept, above 0 and at most 1; got {ratio}")
    return float(ratio)


def one_of(given: Mapping[str, object], names: str) -> str:
    """The one argument of ``given`` that is not None; raises unless it is one."""
    found = [name for name, value in given.items() if value is not None]
    if len(found) != 1:
        what = "none" if not found else " and ".join(found)
        raise ValueError(f"give exactly one of {names}; got {what}")
    return found[0]


def columns(edges: EdgeList, choice: Choice) -> Tensor:
    """int64 [E'], the column of the input that each edge of `graph_of` is, so that attributes can follow it."""
    kept = edges.columns(choice.index)
    if not edges.undirected:
        return _with_loops(kept, edges)
    u, v = edges.edge_index
    forward = edges.columns(torch.arange(edges.count, device=edges.device))
    backward = (u > v).nonzero().squeeze(1)
    weights = None if edges.weight is None else (edges.weight[forward], edges.weight[backward])
    pairs = (u[forward], v[forward]), (v[backward], u[backward])
    partner = match(*pairs, edges.sizes[1], weights)
    return torch.cat([kept, backward[partner[choice.index]], edges.loops])


def _with_loops(kept: Tensor, edges: EdgeList) -> Tensor:
    """Columns of a directed graph in their old order."""
    return torch.cat([kept, edges.loops]).sort().values if edges.loops.numel() else kept


def graph_of(edges: EdgeList, choice: Choice, reweight: bool) -> tuple[Tensor, Tensor | None]:
    """(edge_index [2, E'], edge_weight [E']) of the edges kept.

    Of a directed graph the columns keep their order; of an undirected one the pairs come first, in their order, then
    the same pairs in the other direction, then the self-loops. Weights are float32, or of the input's floating dtype;
    None without ``reweight`` and weights of the input.
    """
    kept, loops = edges.columns(choice.index), edges.loops
    pairs, single = kept.numel(), loops.numel()
    order = None
    if not edges.undirected and single:
        order = torch.cat([kept, loops]).argsort(stable=True)
    total = pairs * (2 if edges.undirected else 1) + single
    out = torch.empty((2, total), dtype=edges.edge_index.dtype, device=edges.device)
    for end in (0, 1):
        out[end, :pairs] = edges.edge_index[end][kept]
        if edges.undirected:
            out[1 - end, pairs : 2 * pairs] = out[end, :pairs]
        out[end, total - single :] = edges.edge_index[end][loops]
    weight = _weights(edges, choice, kept, total) if reweight or edges.weight is not None else None
    if weight is not None and not reweight and edges.weight is not None:
        weight = _weights(edges, Choice(choice.index, None, False), kept, total)
    if order is None:
        return out, weight
    return out[:, order], None if weight is None else weight[order]


def _weights(edges: EdgeList, choice: Choice, kept: Tensor, total: int) -> Tensor:
    dtype = torch.float32 if edges.weight is None else edges.weight.dtype
    found = torch.ones(total, dtype=dtype, device=edges.device)
    pairs, single = kept.numel(), edges.loops.numel()
    own = None if edges.weight is None else edges.weight[kept]
    if choice.factor is not None:
        found[:pairs] = choice.factor if own is None else choice.factor * own
        if not bool(found[:pairs].isfinite().all()):
            name = str(dtype).removeprefix("torch.")
            raise ValueError(f"edge_weight must leave room for weights that stand for several edges: {name} overflows")
    elif own is not None:
        found[:pairs] = own
    if edges.undirected:
        found[pairs : 2 * pairs] = found[:pairs]
    if edges.weight is not None and single:
        found[total - single :] = edges.weight[edges.loops]
    return found
