"""What the convolutions share: when PyG's own path must be taken, and the cached sparse matrices."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.typing import SparseTensor

from graphlossy.autograd import CSRGraph, GraphCache, cached_graph
from graphlossy.autograd.graph import plain_tensor

__all__ = ["derived_graph", "needs_pyg", "node_graph", "normalized_graph", "num_destinations"]

_HOOKS = ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
_DERIVED = GraphCache()


def needs_pyg(conv: MessagePassing, edge_index: object) -> bool:
    """Whether a caller looks at single messages (explainer, hooks) or brings what has no CSR form here."""
    if isinstance(edge_index, CSRGraph):
        return False
    if isinstance(edge_index, SparseTensor) or not isinstance(edge_index, Tensor):
        return True
    sparse = edge_index.layout is not torch.strided
    if sparse and (conv.flow != "source_to_target" or edge_index.requires_grad):
        return True
    if conv.explain or conv.decomposed_layers > 1:
        return True
    return any(getattr(conv, f"_{name}_forward{kind}_hooks", None) for name in _HOOKS for kind in ("", "_pre"))


def num_destinations(conv: MessagePassing, x_dst: Tensor | None, size: tuple[int, int] | None) -> int | None:
    """Rows of the output as far as features or ``size`` (num_src, num_dst in the direction of the edges) tell."""
    if x_dst is not None:
        return x_dst.size(0)
    if size is None:
        return None
    return size[1] if conv.flow == "source_to_target" else size[0]


def derived_graph(tensors: tuple[Tensor | None, ...], options: Hashable, build: Callable[[], CSRGraph]) -> CSRGraph:
    """A cached graph whose edges are derived from these tensors (self-loops, normalisation)."""
    return _DERIVED.get(tensors, options, build)


def node_graph(conv: MessagePassing, edge_index: Tensor | CSRGraph, num_src: int, num_dst: int | None) -> CSRGraph:
    """The cached graph of an unweighted aggregation."""
    if isinstance(edge_index, CSRGraph):
        return edge_index
    if edge_index.layout is not torch.strided:
        return cached_graph(edge_index)
    return cached_graph(edge_index, None, num_dst, num_src, conv.flow)


def normalized_graph(
    conv: MessagePassing,
    edge_index: Tensor | CSRGraph,
    edge_weight: Tensor | None,
    num_nodes: int,
    improved: bool,
    dtype: torch.dtype,
) -> CSRGraph:
    """The graph with GCN's self-loops and symmetric normalisation (Kipf and Welling, ICLR 2017, equation 2), cached.

    The numbers are those of PyG's ``gcn_norm``. A :class:`CSRGraph` is taken as it is.
    """
    if isinstance(edge_index, CSRGraph):
        return edge_index if edge_weight is None else edge_index.with_weight(edge_weight)
    if edge_index.layout is not torch.strided:
        if not conv.normalize:
            return cached_graph(edge_index)
        return derived_graph(
            (edge_index,),
            ("gcn", num_nodes, improved, conv.add_self_loops, dtype),
            lambda: CSRGraph(gcn_norm(edge_index, None, num_nodes, improved, conv.add_self_loops, conv.flow, dtype)[0]),
        )
    if not conv.normalize:
        return cached_graph(edge_index, edge_weight, num_nodes, num_nodes, conv.flow)

    def normalize(weight: Tensor | None) -> tuple[Tensor, Tensor]:
        edges = plain_tensor(edge_index)
        return gcn_norm(edges, weight, num_nodes, improved, conv.add_self_loops, conv.flow, dtype)

    def build() -> CSRGraph:
        edges, weight = normalize(None if edge_weight is None else edge_weight.detach())
        return CSRGraph(edges, weight, num_nodes, num_nodes, conv.flow)

    options = ("gcn", num_nodes, improved, conv.add_self_loops, conv.flow, dtype)
    if edge_weight is not None and edge_weight.requires_grad and torch.is_grad_enabled():
        pattern = derived_graph((edge_index,), (*options, "pattern"), build)
        return pattern.with_weight(normalize(edge_weight)[1])
    return derived_graph((edge_index, edge_weight), options, build)
