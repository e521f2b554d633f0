"""What every detector is given: a graph whose features and edges were checked once, with what is derived from them."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from graphlossy.autograd import CSRGraph

__all__ = ["Graph", "check_number", "coalesced", "prepare"]


@dataclass(frozen=True, eq=False)
class Graph:
    """A checked attributed graph of N nodes, E distinct edges and F features.

    Row i of the adjacency matrix A holds the edges that leave node i: A[i, j] = 1 where ``edge_index`` has the column
    (i, j). What is derived is made when it is first read, and kept.

    Attributes:
        x: [N, F] float32, finite; F = 0 where the method needs no features and the graph has none.
        edge_index: [2, E] int64, sorted by source and target, no duplicates; self loops kept, direction as given.
        num_nodes: N.

    Example:
        >>> graph = Graph(torch.eye(3), torch.tensor([[0, 1], [1, 2]]), 3)
        >>> graph.degrees.tolist(), graph.undirected.degrees.tolist()
        ([1, 1, 0], [1, 2, 1])
    """

    x: Tensor
    edge_index: Tensor
    num_nodes: int

    def __post_init__(self) -> None:
        key = self.edge_index[0] * self.num_nodes + self.edge_index[1]
        if not bool((key[1:] > key[:-1]).all()):
            raise ValueError(
                "edge_index of a Graph must be sorted by source and target, without duplicates; use prepare"
            )

    @property
    def num_edges(self) -> int:
        return self.edge_index.size(1)

    @property
    def num_features(self) -> int:
        return self.x.size(1)

    @property
    def device(self) -> torch.device:
        return self.edge_index.device

    @cached_property
    def csr(self) -> tuple[Tensor, Tensor]:
        """Row pointers [N + 1] and columns [E] of A, int64: the targets of node i are ``col[crow[i]:crow[i + 1]]``."""
        bounds = torch.arange(self.num_nodes + 1, device=self.device)
        return torch.searchsorted(self.edge_index[0].contiguous(), bounds), self.edge_index[1].contiguous()

    @cached_property
    def adjacency(self) -> CSRGraph:
        """A for :func:`graphlossy.autograd.spmm`: ``spmm(graph.adjacency, z)`` is A z."""
        return CSRGraph(self.edge_index, None, self.num_nodes, self.num_nodes, flow="target_to_source")

    @cached_property
    def gcn_adjacency(self) -> CSRGraph:
        """D^-1/2 (A^T + I) D^-1/2, rows being targets, D the in-degrees with the self loops added (each node has one).

        Kipf and Welling, ICLR 2017, equation 2; the numbers of PyG's ``GCNConv``.
        """
        plain, loops = self.without_self_loops.edge_index, torch.arange(self.num_nodes, device=self.device)
        edges = torch.cat([plain, torch.stack([loops, loops])], 1)
        scale = torch.bincount(edges[1], minlength=self.num_nodes).to(torch.float32).rsqrt()
        return CSRGraph(edges, scale[edges[0]] * scale[edges[1]], self.num_nodes, self.num_nodes)

    @cached_property
    def degrees(self) -> Tensor:
        """[N] int64: the sum of each row of A, self loops included."""
        return self.csr[0].diff()

    @cached_property
    def undirected(self) -> Graph:
        """The graph with each edge in both directions (itself if it has them already)."""
        both = torch.cat([self.edge_index, self.edge_index.flip(0)], 1)
        edges = coalesced(both, self.num_nodes)
        return self if edges.size(1) == self.num_edges else Graph(self.x, edges, self.num_nodes)

    @cached_property
    def without_self_loops(self) -> Graph:
        """The graph with no edge from a node to itself (itself if it has none)."""
        keep = self.edge_index[0] != self.edge_index[1]
        return self if bool(keep.all()) else Graph(self.x, self.edge_index[:, keep], self.num_nodes)

    @cached_property
    def varying_x(self) -> Tensor:
        """x without the columns in which all nodes are equal; x itself where none is left, or none goes.

        A constant says nothing about a node, and a large one (books has a column of 193,978) leaves the other features
        of a norm or a product below float32's precision.
        """
        varies = (self.x != self.x[:1]).any(0)
        return self.x if bool(varies.all()) or not bool(varies.any()) else self.x[:, varies]

    def dense_adjacency(self) -> Tensor:
        """A as float32 [N, N]; 4 N**2 bytes, for definitions and small graphs."""
        dense = self.x.new_zeros(self.num_nodes, self.num_nodes)
        dense[self.edge_index[0], self.edge_index[1]] = 1
        return dense

    def to(self, device: torch.device | str) -> Graph:
        """The graph on another device (itself if it is there)."""
        x, edges = self.x.to(device), self.edge_index.to(device)
        return self if x is self.x and edges is self.edge_index else Graph(x, edges, self.num_nodes)


def prepare(data: Any, *, needs: Sequence[str] = ("x", "edges")) -> Graph:
    """Checks a graph that a user brings and copies what a detector may read. Labels are not among it.

    Args:
        data: a ``torch_geometric.data.Data`` or any object with ``x`` [N, F] and ``edge_index`` [2, E]; or a
            :class:`Graph`, which is returned as it is.
        needs: ``"x"`` and ``"edges"``, what the method cannot do without. A graph without edges (E = 0) and isolated
            nodes are allowed; what is missing and not needed is taken as empty, and x may have no columns (F = 0)
            where it is not needed.

    Returns:
        The graph, edges coalesced. ``data`` is not changed.

    Raises:
        TypeError: ``data`` is no such object, or ``x`` or ``edge_index`` is missing or of the wrong type.
        ValueError: wrong shapes, no nodes, features that are NaN or infinite, or edges to nodes that do not exist.

    Example:
        >>> from torch_geometric.data import Data
        >>> graph = prepare(Data(x=torch.ones(3, 2), edge_index=torch.tensor([[0, 0], [1, 1]])))
        >>> graph.num_nodes, graph.num_edges
        (3, 1)
    """
    if isinstance(data, Graph):
        return data
    unknown = set(needs) - {"x", "edges"}
    if unknown:
        raise ValueError(f"needs may name 'x' and 'edges', got {sorted(unknown)}")
    # By name, without importing PyG; the class of a batch is made by PyG as a subclass, DataBatch.
    if {"HeteroData", "Batch"} & {cls.__name__ for cls in type(data).__mro__}:
        raise TypeError(
            f"data must be one graph of one node type, got {type(data).__name__}: use data.to_homogeneous() or "
            "one graph at a time"
        )
    if not hasattr(data, "x") and not hasattr(data, "edge_index"):
        raise TypeError(
            f"data must be a torch_geometric.data.Data with x [N, F] and edge_index [2, E], got {type(data).__name__}"
        )
    x, edges = getattr(data, "x", None), getattr(data, "edge_index", None)
    if x is None and "x" in needs:
        raise TypeError(
            "data.x is missing: this method needs node features [N, F]; which do without says the column 'needs' of "
            "'graphlossy outliers methods'"
        )
    if edges is None and "edges" in needs:
        raise TypeError(
            "data.edge_index is missing: this method needs edges [2, E]; torch.empty(2, 0, dtype=torch.long) is a "
            "graph without any"
        )
    given = getattr(data, "num_nodes", None)
    if x is not None:
        x = _features(x, 1 if "x" in needs else 0)
        num_nodes = x.size(0)
        if given is not None and int(given) != num_nodes:
            raise ValueError(f"data.num_nodes is {int(given)}, but data.x has {num_nodes} rows: they must agree")
    elif given is None:
        raise TypeError("data has neither x nor num_nodes, so its number of nodes is unknown: set data.num_nodes")
    else:
        num_nodes = int(given)
        x = torch.empty(num_nodes, 0, device=None if edges is None else edges.device)
    if num_nodes == 0:
        raise ValueError("data has no nodes: a graph needs at least one")
    edges = torch.empty(2, 0, dtype=torch.long, device=x.device) if edges is None else _edges(edges, num_nodes)
    if edges.device != x.device:
        raise ValueError(f"data.x is on {x.device}, data.edge_index on {edges.device}: move one of them")
    return Graph(x, coalesced(edges, num_nodes), num_nodes)


def _features(x: Any, least: int) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"data.x must be a tensor [N, F], got {type(x).__name__}: use torch.as_tensor(x)")
    if x.layout is not torch.strided:
        x = x.to_dense()
    if x.is_complex():
        raise TypeError(f"data.x must hold real numbers, got {x.dtype}")
    if x.dim() != 2 or (x.size(0) and x.size(1) < least):
        raise ValueError(f"data.x must have shape [N, F]{' with at least one feature' * least}, got {list(x.shape)}")
    x = x.detach().to(torch.float32).contiguous()
    bad = (~torch.isfinite(x)).any(1)
    if bool(bad.any()):
        first, count = int(bad.nonzero()[0]), int(bad.sum())
        raise ValueError(
            f"data.x has NaN or infinite features in {count} of {x.size(0)} nodes, the first is node {first}: "
            "fill them in (torch.nan_to_num) or drop these nodes"
        )
    return x


def _edges(edges: Any, num_nodes: int) -> Tensor:
    if not isinstance(edges, Tensor):
        raise TypeError(f"data.edge_index must be a tensor [2, E], got {type(edges).__name__}")
    if edges.dtype.is_floating_point or edges.is_complex() or edges.dtype is torch.bool:
        raise TypeError(f"data.edge_index must hold node numbers, got {edges.dtype}: use edge_index.long()")
    if edges.dim() != 2 or edges.size(0) != 2:
        raise ValueError(f"data.edge_index must have shape [2, E], got {list(edges.shape)}")
    edges = edges.detach().to(torch.int64)
    if edges.numel():
        low, high = (int(v) for v in torch.aminmax(edges))
        if low < 0 or high >= num_nodes:
            raise ValueError(
                f"data.edge_index holds node numbers from {low} to {high}, but the graph has {num_nodes} nodes: "
                f"they must lie in [0, {num_nodes - 1}]"
            )
    return edges


def coalesced(edges: Tensor, num_nodes: int) -> Tensor:
    """The distinct columns, sorted by source, then target."""
    key = torch.unique(edges[0] * num_nodes + edges[1])
    return torch.stack([key.div(num_nodes, rounding_mode="floor"), key.remainder(num_nodes)])


def check_number(
    name: str,
    value: object,
    low: float,
    high: float = float("inf"),
    *,
    integer: bool = False,
    open_low: bool = False,
) -> Any:
    """``value`` if it is a number between ``low`` and ``high``.

    Args:
        name: of the argument, for the message.
        value: what the user gave.
        low: the least that is allowed, or what it must exceed (``open_low``).
        high: the most that is allowed.
        integer: whole numbers only.
        open_low: ``low`` itself is not allowed.

    Raises:
        TypeError: no number, or no whole one.
        ValueError: out of range.

    Example:
        >>> check_number("dropout", 0.5, 0, 1)
        0.5
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if integer else numbers.Real):
        kind = "a whole number" if integer else "a number"
        raise TypeError(f"{name} must be {kind}, got {value!r} ({type(value).__name__})")
    if not (value > low if open_low else value >= low) or not value <= high:  # type: ignore[operator]
        bounds = f"more than {low}" if open_low else f"at least {low}"
        raise ValueError(
            f"{name} must be {bounds}{'' if high == float('inf') else f' and at most {high}'}, got {value}"
        )
    return value
