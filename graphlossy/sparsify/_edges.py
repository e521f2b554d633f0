"""The edge list that every sparsifier works on: checked, its self-loops set apart, its pairs found in linear time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["EdgeList", "fingerprint", "match", "read_edges"]

_CHUNK = 1 << 20  # columns at a time
_HASH_CHUNK = 1 << 19  # the hash takes a dozen passes over a chunk, which should stay near the processor
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass
class EdgeList:
    """A checked graph.

    Attributes:
        edge_index: integers [2, E], sources and targets.
        sizes: numbers of source and of target nodes; equal but for a bipartite graph.
        bipartite: whether sources and targets are nodes of two kinds, so that no edge is a self-loop.
        weight: float [E] at least 0, or None.
        undirected: whether every edge is stored in both directions, with the same weight.
        candidates: columns that may be left out, rising: those with source < target of an undirected graph, else
            all but the self-loops; None stands for all E.
        loops: int64, columns of the self-loops, which are kept.
    """

    edge_index: Tensor
    sizes: tuple[int, int]
    bipartite: bool
    weight: Tensor | None
    undirected: bool
    candidates: Tensor | None
    loops: Tensor
    _degrees: dict[bool, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def count(self) -> int:
        """Edges that may be left out; an undirected pair counts once."""
        return self.edge_index.shape[1] if self.candidates is None else self.candidates.numel()

    @property
    def num_nodes(self) -> int:
        """Nodes of either kind."""
        return sum(self.sizes) if self.bipartite else self.sizes[0]

    @property
    def device(self) -> torch.device:
        return self.edge_index.device

    def columns(self, index: Tensor) -> Tensor:
        """Columns of ``edge_index`` of candidates."""
        return index if self.candidates is None else self.candidates[index].to(torch.int64)

    def chunks(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None]]:
        """(place among the candidates, sources, targets, weights as float64), some at a time."""
        for start in range(0, self.count, _CHUNK):
            place = slice(start, min(start + _CHUNK, self.count))
            at = place if self.candidates is None else self.candidates[place].to(torch.int64)
            weight = None if self.weight is None else self.weight[at].to(torch.float64)
            yield place, self.edge_index[0][at].to(torch.int64), self.edge_index[1][at].to(torch.int64), weight

    def degrees(self, weighted: bool) -> tuple[Tensor, Tensor]:
        """Edges (or their weight) leaving every source and reaching every target, without self-loops: float64.

        Of an undirected graph both are the degrees of the nodes.
        """
        if weighted not in self._degrees:
            weight = self.weight if weighted else None
            out = self._degree(0, weight)
            self._degrees[weighted] = out, out if self.undirected else self._degree(1, weight)
        return self._degrees[weighted]

    def _degree(self, end: int, weight: Tensor | None) -> Tensor:
        size = self.sizes[end]
        found = torch.zeros(size, dtype=torch.float64, device=self.device)
        step = max(_CHUNK, size)  # every count takes an array of ``size``
        for start in range(0, self.edge_index.shape[1], step):
            nodes = self.edge_index[end, start : start + step]
            part = None if weight is None else weight[start : start + step].to(torch.float64)
            if self.loops.numel():
                keep = nodes != self.edge_index[1 - end, start : start + step]
                nodes, part = nodes[keep], None if part is None else part[keep]
            found += torch.bincount(nodes, part, minlength=size)
        if weight is not None and not bool(found.isfinite().all()):
            raise ValueError("edge_weight must have finite sums, but those of a node overflow float64; scale them down")
        return found


def read_edges(
    edge_index: Tensor,
    num_nodes: int | tuple[int, int] | None = None,
    edge_weight: Tensor | None = None,
    undirected: bool | None = None,
) -> EdgeList:
    """Checks a graph and finds out what it is.

    Args:
        edge_index: integers [2, E]; a plain tensor or an ``EdgeIndex`` of PyG.
        num_nodes: number of nodes; None is the largest number + 1; a pair (sources, targets) means a bipartite graph.
        edge_weight: [E] at least 0, or None.
        undirected: None finds out whether every edge is stored in both directions; False treats a symmetric graph as
            a directed one; True raises unless it is symmetric.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a shape does not fit, a node number is out of range, a weight is negative, NaN or infinite.
    """
    edge_index, num_nodes = _plain(edge_index, num_nodes)
    bipartite = isinstance(num_nodes, tuple)
    sizes = _sizes(edge_index, num_nodes)
    _check_range(edge_index, sizes)
    if edge_weight is not None:
        edge_weight = _check_weight(edge_weight, edge_index)
    if undirected is not None and not isinstance(undirected, bool):
        raise TypeError(f"undirected must be True, False or None, got {undirected!r}")
    if bipartite:
        if undirected:
            raise ValueError("undirected must not be True for a bipartite graph: its edges have one direction")
        return EdgeList(edge_index, sizes, True, edge_weight, False, None, _no_columns(edge_index))
    symmetric = undirected is not False and _is_symmetric(edge_index, sizes[0], edge_weight)
    if undirected and not symmetric:
        raise ValueError(
            "undirected is True, but edge_index does not hold every edge in both directions with equal weights; "
            "add them with torch_geometric.utils.to_undirected, or leave undirected out"
        )
    loops = _find(edge_index, lambda u, v: u == v).to(torch.int64)
    candidates = None
    if symmetric:
        candidates = _find(edge_index, torch.lt)
    elif loops.numel():
        candidates = _find(edge_index, torch.ne)
    return EdgeList(edge_index, sizes, False, edge_weight, symmetric, candidates, loops)


def _plain(edge_index: Any, num_nodes: Any) -> tuple[Tensor, Any]:
    if not isinstance(edge_index, Tensor) or edge_index.layout != torch.strided:
        kind = edge_index.layout if isinstance(edge_index, Tensor) else type(edge_index).__name__
        raise TypeError(f"edge_index must be an integer torch.Tensor [2, edges], got {kind}")
    known: Any = edge_index
    if hasattr(known, "as_tensor"):  # PyG's EdgeIndex knows its numbers of nodes
        size = known.sparse_size()
        if num_nodes is None and None not in size and size[0] == size[1]:
            num_nodes = size[0]
        edge_index = known.as_tensor()
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index must be [2, edges], got shape {tuple(edge_index.shape)}")
    if edge_index.dtype not in _INTEGERS:
        raise TypeError(f"edge_index must hold integers, got {edge_index.dtype}; convert it with .long()")
    return edge_index.detach(), num_nodes


def _sizes(edge_index: Tensor, num_nodes: Any) -> tuple[int, int]:
    if num_nodes is None:
        num_nodes = max(0, int(edge_index.max()) + 1) if edge_index.numel() else 0
    pair = num_nodes if isinstance(num_nodes, tuple) else (num_nodes, num_nodes)
    if len(pair) != 2 or any(isinstance(n, bool) or not isinstance(n, int) for n in pair):
        raise TypeError(f"num_nodes must be an int or a pair of ints (sources, targets), got {num_nodes!r}")
    if min(pair) < 0:
        raise ValueError(f"num_nodes must be at least 0, got {num_nodes}")
    if pair[0] * pair[1] >= 2**63:  # an edge is also handled as one int64, source * nodes + target
        raise ValueError(f"a graph has at most 3,037,000,499 nodes, got {num_nodes}: is a number in edge_index wrong?")
    return pair


def _check_range(edge_index: Tensor, sizes: tuple[int, int]) -> None:
    if not edge_index.numel():
        return
    for end, (size, name) in enumerate(zip(sizes, ("source", "target"), strict=True)):
        low, high = (int(value) for value in edge_index[end].aminmax())
        if low < 0 or high >= size:
            at = int(((edge_index[end] < 0) | (edge_index[end] >= size)).nonzero()[0])
            raise ValueError(
                f"edge_index holds {name} {int(edge_index[end, at])} in column {at}; the numbers of {size} nodes go "
                f"from 0 to {size - 1}: give a larger num_nodes or leave the edge out"
            )


def _check_weight(weight: Tensor, edge_index: Tensor) -> Tensor:
    if not isinstance(weight, Tensor) or weight.layout != torch.strided or weight.is_complex():
        raise TypeError(f"edge_weight must be a dense real torch.Tensor, got {getattr(weight, 'dtype', type(weight))}")
    if weight.dim() != 1 or weight.shape[0] != edge_index.shape[1]:
        raise ValueError(f"edge_weight must be [{edge_index.shape[1]}], one for an edge; got {tuple(weight.shape)}")
    if weight.device != edge_index.device:
        raise ValueError(f"edge_weight must be on the device of edge_index, {edge_index.device}; got {weight.device}")
    weight = weight.detach()
    if not weight.is_floating_point():
        weight = weight.to(torch.float32)
    for start in range(0, weight.numel(), _CHUNK):
        part = weight[start : start + _CHUNK]
        low, high = (float(value) for value in part.aminmax())
        if not (low >= 0 and high < float("inf")):
            at = start + int((~(part >= 0) | part.isinf()).nonzero()[0])
            raise ValueError(
                f"edge_weight must be finite and at least 0, but edge_weight[{at}] is {weight[at].item()}; "
                "degrees and probabilities are sums of weights: leave such edges out or give their absolute value"
            )
    return weight


def _find(edge_index: Tensor, where: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Columns of which ``where(sources, targets)`` holds, as int32 where that is wide enough."""
    count = edge_index.shape[1]
    dtype = torch.int32 if count < 2**31 else torch.int64
    total = 0
    for start in range(0, count, _CHUNK):
        total += int(where(*edge_index[:, start : start + _CHUNK]).sum())
    found = torch.empty(total, dtype=dtype, device=edge_index.device)
    to = 0
    for start in range(0, count if total else 0, _CHUNK):
        part = where(*edge_index[:, start : start + _CHUNK]).nonzero().squeeze(1)
        found[to : to + part.numel()] = part + start
        to += part.numel()
    return found


def _no_columns(edge_index: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.int64, device=edge_index.device)


def _mix(x: Tensor) -> Tensor:
    """A hash of int64 numbers: the finaliser of SplitMix64."""
    x = x.bitwise_xor((x >> 30).bitwise_and_(2**34 - 1)).mul_(-0x40A7B892E31B1A47)
    x.bitwise_xor_((x >> 27).bitwise_and_(2**37 - 1)).mul_(-0x6B2FB644ECCEEE15)
    return x.bitwise_xor_((x >> 31).bitwise_and_(2**33 - 1))


def _hash(u: Tensor, v: Tensor, size: int, weight: Tensor | None) -> Tensor:
    """A number for each (u, v, weight) with v < size."""
    h = _mix((u * size).add_(v).add_(0x1234567))
    if weight is None:
        return h
    return _mix(h.bitwise_xor_((weight.to(torch.float64) + 0.0).view(torch.int64)))


def fingerprint(edge_index: Tensor, size: int, weight: Tensor | None = None, flipped: bool = False) -> int:
    """A sum over edges that two edge lists share exactly if they hold the same edges, in any order.

    Up to a chance of 2**-64. ``size`` is the number of targets; ``flipped`` takes every edge in the other direction.
    """
    total = 0
    for start in range(0, edge_index.shape[1], _HASH_CHUNK):
        u, v = (row.to(torch.int64) for row in edge_index[:, start : start + _HASH_CHUNK])
        u, v = (v, u) if flipped else (u, v)
        total += int(_hash(u, v, size, None if weight is None else weight[start : start + _HASH_CHUNK]).sum())
    return total % 2**64


def _is_symmetric(edge_index: Tensor, size: int, weight: Tensor | None) -> bool:
    """Whether each edge is there in both directions equally often, with the same weights; as `fingerprint`."""
    total = 0
    for start in range(0, edge_index.shape[1], _HASH_CHUNK):
        u, v = (row.to(torch.int64) for row in edge_index[:, start : start + _HASH_CHUNK])
        part = None if weight is None else weight[start : start + _HASH_CHUNK]
        sign = (v - u).sign_()
        total += int(_hash(torch.minimum(u, v), torch.maximum(u, v), size, part).mul_(sign).sum())
    return total % 2**64 == 0


def match(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], size: int, weights: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """For every edge (u, v) of ``one`` the place of an edge (u, v) of ``other``, each taken once: int64.

    Both hold the same edges. ``size`` is the number of values of v; ``weights`` tells parallel edges apart.
    """
    orders = []
    for i, (u, v) in enumerate((one, other)):
        key = u.to(torch.int64) * size + v.to(torch.int64)
        if weights is None:
            orders.append(key.argsort(stable=True))
        else:
            order = weights[i].argsort(stable=True)
            orders.append(order[key[order].argsort(stable=True)])
    place = torch.empty_like(orders[0])
    place[orders[0]] = orders[1]
    return place
