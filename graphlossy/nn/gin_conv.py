"""Graph isomorphism convolution."""

from __future__ import annotations

from collections.abc import Callable

import torch_geometric.nn
from torch import Tensor
from torch_geometric.typing import OptPairTensor

from graphlossy.autograd import CSRGraph, scaled_self, spmm
from graphlossy.autograd._packed import check_bits
from graphlossy.nn._adjacency import needs_pyg, node_graph, num_destinations

__all__ = ["GINConv"]


class GINConv(torch_geometric.nn.GINConv):
    """x'_i = h((1 + eps) x_i + sum_j x_j) (Xu et al., ICLR 2019, equation 4.1) as ``torch_geometric.nn.GINConv``.

    Kept by the convolution itself: nothing, except x in bits + 32 / 256 bits per element for a trained eps. What h
    keeps is up to its layers: build it from this package's.

    Args:
        nn: h, maps [N, F] to [N, C].
        eps: its first value.
        train_eps: learn it.
        bits: 1, 2, 3, 4, 8 or None (exact gradient).
        **kwargs: of ``torch_geometric.nn.MessagePassing``.

    Shapes:
        x [N, F] or ([N_src, F], [N_dst, F] or None); edge_index [2, E], a torch sparse CSR tensor [N_dst, N_src] or a
        :class:`~graphlossy.autograd.CSRGraph` -> [N_dst, C]

    Example:
        >>> import torch
        >>> conv = GINConv(torch_geometric.nn.MLP([16, 32, 8], norm=None), train_eps=True)
        >>> conv(torch.randn(3, 16), torch.tensor([[0, 1], [1, 2]])).shape
        torch.Size([3, 8])
    """

    # PyG reads the arguments of ``propagate`` from the class's source text, unless they are given.
    propagate_type = {"x": OptPairTensor}

    def __init__(
        self, nn: Callable, eps: float = 0.0, train_eps: bool = False, *, bits: int | None = 2, **kwargs: object
    ):
        check_bits(bits)
        super().__init__(nn, eps, train_eps, **kwargs)
        self.bits = bits

    def prepare(self, x: Tensor | tuple[Tensor, Tensor | None], edge_index: Tensor) -> CSRGraph:
        """The sparse matrix of a graph, to be passed as ``edge_index``; needed for ``torch.compile``."""
        x = (x, x) if isinstance(x, Tensor) else x
        return node_graph(self, edge_index, x[0].size(0), num_destinations(self, x[1], None))

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor | None],
        edge_index: Tensor,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        if needs_pyg(self, edge_index) or self.aggr not in ("add", "sum", "mean"):
            return super().forward(x, edge_index, size)
        x = (x, x) if isinstance(x, Tensor) else x
        graph = node_graph(self, edge_index, x[0].size(0), num_destinations(self, x[1], size))
        out = spmm(graph, x[0], self.aggr)
        if x[1] is not None:
            out = scaled_self(out, x[1], self.eps, bits=self.bits if self.training else None)
        return self.nn(out)
