"""GCNII convolution."""

from __future__ import annotations

import torch_geometric.nn
from torch import Tensor
from torch_geometric.typing import OptTensor

from graphlossy.autograd import CSRGraph, identity_linear, spmm
from graphlossy.autograd._packed import check_bits
from graphlossy.nn._adjacency import needs_pyg, normalized_graph

__all__ = ["GCN2Conv"]


class GCN2Conv(torch_geometric.nn.GCN2Conv):
    """X' = ((1 - alpha) P X + alpha X0) ((1 - beta) I + beta W) (Chen et al., ICML 2020, equation 5) as PyG's
    ``GCN2Conv``.

    P is GCN's normalised matrix, beta = log(theta / layer + 1). Kept: the sum in front of W in bits + 32 / 256 bits per
    element; with two weights (GCNII*), P X and X0 apart, X0 once for all layers.

    Args:
        channels: C.
        alpha: strength of the initial residual.
        theta: of beta.
        layer: of beta, from 1.
        shared_weights: one W for P X and X0.
        cached: keep the first normalised graph for all later calls.
        add_self_loops: A + I.
        normalize: add self-loops and normalise.
        bits: 1, 2, 3, 4, 8 or None (exact gradient).
        **kwargs: of ``torch_geometric.nn.MessagePassing``.

    Shapes:
        x [N, C], x_0 [N, C]; edge_index [2, E], a torch sparse CSR tensor [N, N] or a
        :class:`~graphlossy.autograd.CSRGraph` from :meth:`prepare`; edge_weight [E] or None -> [N, C]

    Example:
        >>> import torch
        >>> conv, x = GCN2Conv(16, alpha=0.1, theta=0.5, layer=1), torch.randn(3, 16)
        >>> conv(x, x, torch.tensor([[0, 1], [1, 2]])).shape
        torch.Size([3, 16])
    """

    # PyG reads the arguments of ``propagate`` from the class's source text, unless they are given.
    propagate_type = {"x": Tensor, "edge_weight": OptTensor}

    def __init__(
        self,
        channels: int,
        alpha: float,
        theta: float | None = None,
        layer: int | None = None,
        shared_weights: bool = True,
        cached: bool = False,
        add_self_loops: bool = True,
        normalize: bool = True,
        *,
        bits: int | None = 2,
        **kwargs: object,
    ):
        check_bits(bits)
        if (theta is None) != (layer is None):
            raise ValueError(f"theta and layer set beta together: give both or neither, got {theta} and {layer}")
        arguments = (channels, alpha, theta, layer, shared_weights, cached, add_self_loops, normalize)
        super().__init__(*arguments, **kwargs)
        self.bits = bits

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._cached_graph: CSRGraph | None = None

    def prepare(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> CSRGraph:
        """The normalised sparse matrix of a graph, to be passed as ``edge_index``; needed for ``torch.compile``."""
        return normalized_graph(self, edge_index, edge_weight, x.size(0), False, x.dtype)

    def forward(self, x: Tensor, x_0: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        if needs_pyg(self, edge_index) or self.aggr not in ("add", "sum", "mean"):
            return super().forward(x, x_0, edge_index, edge_weight)
        graph = self._cached_graph
        if graph is None:
            graph = self.prepare(x, edge_index, edge_weight)
            if self.cached and self.normalize:
                self._cached_graph = graph
        bits = self.bits if self.training else None
        x = spmm(graph, x, self.aggr, bits=bits).mul_(1 - self.alpha)
        x_0 = x_0 if x_0.size(0) == x.size(0) else x_0[: x.size(0)]
        if self.weight2 is None:
            return identity_linear(x.add_(self.alpha * x_0), self.weight1, self.beta, bits=bits)
        out = identity_linear(x, self.weight1, self.beta, bits=bits)
        return out + identity_linear(x_0, self.weight2, self.beta, self.alpha, bits=bits)
