"""Graph attention convolution."""

from __future__ import annotations

from typing import cast

import torch
import torch_geometric.nn
from torch import Tensor
from torch_geometric.typing import OptPairTensor, OptTensor
from torch_geometric.utils import add_self_loops, remove_self_loops

from graphlossy.autograd import CSRGraph, gat_attention
from graphlossy.autograd._packed import check_bits
from graphlossy.autograd.graph import plain_tensor
from graphlossy.nn._adjacency import derived_graph, needs_pyg, num_destinations
from graphlossy.nn.linear import is_plain_linear, lossy_linear, materialize

__all__ = ["GATConv"]


class GATConv(torch_geometric.nn.GATConv):
    """x'_i = sum_j alpha_ij W x_j (Velickovic et al., ICLR 2018, equations 1 to 6) as ``torch_geometric.nn.GATConv``.

    Kept: the input and W x in about bits + 32 / 256 bits per element each (the input not where it can be computed
    again), two scores per node and head, one bit per edge and head with attention dropout. No tensor of edges x heads x
    channels exists at any time. The attention weights are recomputed exactly; see :mod:`graphlossy.autograd.attention`.

    Args:
        in_channels: F, or (F_src, F_dst); -1 to take them from the first input.
        out_channels: C.
        heads: H.
        concat: concatenate the heads, else average them.
        negative_slope: of the LeakyReLU.
        dropout: of the attention weights.
        add_self_loops: A + I.
        edge_dim: width of the edge features, if any.
        fill_value: edge features of self-loops.
        bias: learn an additive bias.
        residual: add a learned skip connection.
        bits: 1, 2, 3, 4, 8 or None (exact gradient).
        **kwargs: of ``torch_geometric.nn.MessagePassing``.

    Shapes:
        x [N, F] or ([N_src, F_src], [N_dst, F_dst] or None); edge_index [2, E], a torch sparse CSR tensor
        [N_dst, N_src] or a :class:`~graphlossy.autograd.CSRGraph` from :meth:`prepare`; edge_attr [E, D] or None ->
        [N_dst, H C] (``concat``) or [N_dst, C]

    Example:
        >>> conv = GATConv(16, 8, heads=3, bits=2)
        >>> conv(torch.randn(3, 16), torch.tensor([[0, 1], [1, 2]])).shape
        torch.Size([3, 24])
    """

    # PyG reads the arguments of ``propagate`` from the class's source text, unless they are given.
    propagate_type = {"x": OptPairTensor, "alpha": Tensor}
    edge_updater_type = {"alpha": OptPairTensor, "edge_attr": OptTensor}

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        edge_dim: int | None = None,
        fill_value: float | Tensor | str = "mean",
        bias: bool = True,
        residual: bool = False,
        *,
        bits: int | None = 2,
        **kwargs: object,
    ):
        check_bits(bits)
        arguments = (in_channels, out_channels, heads, concat, negative_slope, dropout, add_self_loops, edge_dim)
        super().__init__(*arguments, fill_value, bias, residual, **kwargs)
        self.bits = bits
        for name in ("lin", "lin_src", "lin_dst", "res"):
            if getattr(self, name) is not None:
                lossy_linear(getattr(self, name), bits)

    def prepare(self, x: Tensor | tuple[Tensor, Tensor | None], edge_index: Tensor) -> CSRGraph:
        """The sparse matrix with self-loops, to be passed as ``edge_index``; needed for ``torch.compile``."""
        x = (x, x) if isinstance(x, Tensor) else x
        return self._graph(x[0].size(0), None if x[1] is None else x[1].size(0), edge_index, None)

    def _loops(self, edge_index: Tensor, edge_attr: Tensor | None, num_nodes: int) -> tuple[Tensor, Tensor | None]:
        edge_index, edge_attr = remove_self_loops(plain_tensor(edge_index), edge_attr)
        return add_self_loops(edge_index, edge_attr, fill_value=self.fill_value, num_nodes=num_nodes)

    def _graph(self, num_src: int, num_dst: int | None, edge_index: Tensor, size: tuple[int, int] | None) -> CSRGraph:
        if isinstance(edge_index, CSRGraph):
            return edge_index
        loops = self._num_loops(num_src, num_dst, size)

        def build() -> CSRGraph:
            edges = self._loops(edge_index, None, loops)[0] if self.add_self_loops else edge_index
            if edges.layout is not torch.strided:
                return CSRGraph(edges).with_weight(None)
            return CSRGraph(edges, None, num_dst, num_src, self.flow)

        return derived_graph((edge_index,), ("gat", num_src, num_dst, loops, self.add_self_loops, self.flow), build)

    @staticmethod
    def _num_loops(num_src: int, num_dst: int | None, size: tuple[int, int] | None) -> int:
        return min(size) if size is not None else min(num_src, num_src if num_dst is None else num_dst)

    def _edge_scores(self, edge_index: Tensor, edge_attr: Tensor, loops: int) -> Tensor:
        """<W_e e, a_e> per head: [E, H], without the [E, H, C] product in between."""
        if self.add_self_loops and not isinstance(edge_index, CSRGraph):
            edge_attr = cast(Tensor, self._loops(edge_index, edge_attr, loops)[1])
        edge_attr = edge_attr.view(-1, 1) if edge_attr.dim() == 1 else edge_attr
        materialize(self.lin_edge, edge_attr)
        if not is_plain_linear(self.lin_edge):
            edges = self.lin_edge(edge_attr).view(-1, self.heads, self.out_channels)
            return (edges * self.att_edge).sum(dim=-1)
        weight = self.lin_edge.weight.view(self.heads, self.out_channels, -1)
        return edge_attr @ (weight * self.att_edge.view(self.heads, self.out_channels, 1)).sum(1).t()

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor | None],
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        size: tuple[int, int] | None = None,
        return_attention_weights: bool | None = None,
    ) -> Tensor | tuple[Tensor, object]:
        sparse = isinstance(edge_index, Tensor) and edge_index.layout is not torch.strided
        special = return_attention_weights is not None or (sparse and self.edge_dim is not None)
        if special or needs_pyg(self, edge_index) or self.aggr not in ("add", "sum"):
            return super().forward(x, edge_index, edge_attr, size, return_attention_weights)
        self._materialize(x)
        h_src, h_dst, root = self._transform(x)
        graph = self._graph(h_src.size(0), num_destinations(self, h_dst, size), edge_index, size)
        scores = None
        if edge_attr is not None and self.lin_edge is not None and graph.num_edges:
            rows = None if h_dst is None else h_dst.size(0)
            scores = self._edge_scores(edge_index, edge_attr, self._num_loops(h_src.size(0), rows, size))
        out = gat_attention(
            graph,
            h_src,
            self.att_src,
            None if h_dst is None else self.att_dst,
            None if h_dst is h_src else h_dst,
            scores,
            negative_slope=self.negative_slope,
            p=self.dropout if self.training else 0.0,
            bits=self.bits if self.training else None,
        )
        out = out.flatten(1) if self.concat else out.mean(dim=1)
        if self.res is not None and root is not None:
            skip = self.res(root)
            out = out.add_(skip) if out.dtype is skip.dtype else out + skip
        if self.bias is None:
            return out
        return out.add_(self.bias) if out.dtype is self.bias.dtype else out + self.bias

    def _materialize(self, x: Tensor | tuple[Tensor, Tensor | None]) -> None:
        source, target = (x, x) if isinstance(x, Tensor) else x
        if self.res is not None and target is not None:
            materialize(self.res, target)
        for lin, features in ((self.lin, source), (self.lin_src, source), (self.lin_dst, target)):
            if lin is not None and features is not None:
                materialize(lin, features)

    def _transform(self, x: Tensor | tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(h_src, h_dst, input of the skip connection); h_dst is h_src for a plain graph."""
        shape = (self.heads, self.out_channels)
        if isinstance(x, Tensor) and self.lin is not None:
            h = self.lin(x).unflatten(-1, shape)
            return h, h, x
        source, target = (x, x) if isinstance(x, Tensor) else x
        lin_src, lin_dst = (self.lin, self.lin) if self.lin is not None else (self.lin_src, self.lin_dst)
        h_dst = None if target is None else lin_dst(target).unflatten(-1, shape)
        return lin_src(source).unflatten(-1, shape), h_dst, target
