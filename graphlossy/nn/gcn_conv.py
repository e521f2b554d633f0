"""Graph convolution of Kipf and Welling."""

from __future__ import annotations

import torch_geometric.nn
from torch import Tensor
from torch_geometric.typing import OptTensor

from graphlossy.autograd import CSRGraph, spmm
from graphlossy.autograd._packed import check_bits
from graphlossy.nn._adjacency import needs_pyg, normalized_graph
from graphlossy.nn.linear import lossy_linear

__all__ = ["GCNConv"]


class GCNConv(torch_geometric.nn.GCNConv):
    """X' = D^-1/2 (A + I) D^-1/2 X W (Kipf and Welling, ICLR 2017, equation 2) as ``torch_geometric.nn.GCNConv``.

    Kept: the input X in bits + 32 / 256 bits per element, or nothing where it can be computed again (after
    :class:`~graphlossy.nn.NormActDropout`) or lives anyway; nothing for the aggregation, except bits + 32 / C bits per
    element of X W if the edge weights require a gradient. Values equal PyG's to summation rounding. The normalised
    sparse matrix is cached for as long as ``edge_index`` lives unchanged, with or without ``cached``.

    Args:
        in_channels: F, or -1 to take it from the first input.
        out_channels: C.
        improved: A + 2 I.
        cached: keep the first normalised graph for all later calls.
        add_self_loops: default: as ``normalize``.
        normalize: add self-loops and normalise.
        bias: learn an additive bias.
        bits: 1, 2, 3, 4, 8 or None (exact gradient).
        **kwargs: of ``torch_geometric.nn.MessagePassing``.

    Shapes:
        x [N, F]; edge_index [2, E], a torch sparse CSR tensor [N, N] (rows are destinations), or a
        :class:`~graphlossy.autograd.CSRGraph` from :meth:`prepare`; edge_weight [E] or None -> [N, C]

    Example:
        >>> import torch
        >>> conv = GCNConv(16, 8, bits=2)
        >>> conv(torch.randn(3, 16), torch.tensor([[0, 1], [1, 2]])).shape
        torch.Size([3, 8])
    """

    # PyG reads the arguments of ``propagate`` from the class's source text, unless they are given.
    propagate_type = {"x": Tensor, "edge_weight": OptTensor}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        improved: bool = False,
        cached: bool = False,
        add_self_loops: bool | None = None,
        normalize: bool = True,
        bias: bool = True,
        *,
        bits: int | None = 2,
        **kwargs: object,
    ):
        check_bits(bits)
        super().__init__(in_channels, out_channels, improved, cached, add_self_loops, normalize, bias, **kwargs)
        self.bits = bits
        lossy_linear(self.lin, bits)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._cached_graph: CSRGraph | None = None

    def prepare(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> CSRGraph:
        """The normalised sparse matrix of a graph, to be passed as ``edge_index``; needed for ``torch.compile``."""
        return normalized_graph(self, edge_index, edge_weight, x.size(0), self.improved, x.dtype)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        if isinstance(x, (tuple, list)) or needs_pyg(self, edge_index) or self.aggr not in ("add", "sum", "mean"):
            return super().forward(x, edge_index, edge_weight)
        graph = self._cached_graph
        if graph is None:
            graph = self.prepare(x, edge_index, edge_weight)
            if self.cached and self.normalize:
                self._cached_graph = graph
        out = spmm(graph, self.lin(x), self.aggr, bits=self.bits if self.training else None)
        if self.bias is None:
            return out
        return out.add_(self.bias) if out.dtype is self.bias.dtype else out + self.bias
