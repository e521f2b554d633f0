"""GraphSAGE convolution."""

from __future__ import annotations

import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.typing import OptPairTensor

from graphlossy.autograd import CSRGraph, relu, spmm, spmm_linear
from graphlossy.autograd._packed import check_bits
from graphlossy.nn._adjacency import needs_pyg, node_graph, num_destinations
from graphlossy.nn.linear import is_plain_linear, lossy_linear, materialize

__all__ = ["SAGEConv"]


class SAGEConv(torch_geometric.nn.SAGEConv):
    """x'_i = W_1 x_i + W_2 mean_j x_j (Hamilton et al., NeurIPS 2017) as ``torch_geometric.nn.SAGEConv``.

    Kept: the input once for both branches, in bits + 32 / 256 bits per element, or nothing where it can be computed
    again; no aggregated copy (see :mod:`graphlossy.autograd.spmm_linear`). Where the input needs no gradient, the
    aggregated copy in low bits instead. Other aggregations than sum and mean run as PyG's own, with lossy linear
    layers; ``normalize`` is exact.

    Args:
        in_channels: F, or (F_src, F_dst); -1 to take them from the first input.
        out_channels: C.
        aggr: ``"mean"``, ``"sum"``, or any of PyG's.
        normalize: scale the output rows to unit length.
        root_weight: add W_1 x_i.
        project: transform the neighbours by a linear layer and a ReLU first (equation 3).
        bias: learn an additive bias.
        bits: 1, 2, 3, 4, 8 or None (exact gradient).
        **kwargs: of ``torch_geometric.nn.MessagePassing``.

    Shapes:
        x [N, F] or ([N_src, F_src], [N_dst, F_dst] or None); edge_index [2, E], a torch sparse CSR tensor
        [N_dst, N_src] or a :class:`~graphlossy.autograd.CSRGraph` -> [N_dst, C]

    Example:
        >>> import torch
        >>> conv = SAGEConv((16, 4), 8, bits=2)
        >>> conv((torch.randn(3, 16), torch.randn(2, 4)), torch.tensor([[0, 2], [1, 0]])).shape
        torch.Size([2, 8])
    """

    # PyG reads the arguments of ``propagate`` from the class's source text, unless they are given.
    propagate_type = {"x": OptPairTensor}

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        aggr: str | list[str] | Aggregation | None = "mean",
        normalize: bool = False,
        root_weight: bool = True,
        project: bool = False,
        bias: bool = True,
        *,
        bits: int | None = 2,
        **kwargs: object,
    ):
        check_bits(bits)
        super().__init__(in_channels, out_channels, aggr, normalize, root_weight, project, bias, **kwargs)
        self.bits = bits
        for name in ("lin", "lin_l", "lin_r"):
            if hasattr(self, name):
                lossy_linear(getattr(self, name), bits)

    def prepare(self, x: Tensor | tuple[Tensor, Tensor | None], edge_index: Tensor) -> CSRGraph:
        """The sparse matrix of a graph, to be passed as ``edge_index``; needed for ``torch.compile``."""
        return self._graph((x, x) if isinstance(x, Tensor) else x, edge_index, None)

    def _graph(self, x: tuple[Tensor, Tensor | None], edge_index: Tensor, size: tuple[int, int] | None) -> CSRGraph:
        return node_graph(self, edge_index, x[0].size(0), num_destinations(self, x[1], size))

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor | None],
        edge_index: Tensor,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        if needs_pyg(self, edge_index) or self.aggr not in ("add", "sum", "mean"):
            return super().forward(x, edge_index, size)
        x = (x, x) if isinstance(x, Tensor) else x
        materialize(self.lin_l, x[0])
        if self.root_weight and x[1] is not None:
            materialize(self.lin_r, x[1])
        source = relu(self.lin(x[0])) if self.project else x[0]
        graph = self._graph((source, x[1]), edge_index, size)
        bits = self.bits if self.training else None
        with_root = self.root_weight and x[1] is not None
        if bits is None or not is_plain_linear(self.lin_l):
            out = self.lin_l(spmm(graph, source, self.aggr))
        else:
            # Both branches in one, block by block, where they have the same input and nobody looks at one of them.
            fused = with_root and x[1] is source and is_plain_linear(self.lin_r) and graph.num_dst == graph.num_src
            weight, root = self.lin_l.weight, self.lin_r.weight if fused else None
            out = spmm_linear(graph, source, weight, self.lin_l.bias, self.aggr, root=root, bits=bits)
            with_root = with_root and not fused
        if with_root:
            root = self.lin_r(x[1])
            # Hooks may have kept the output of lin_l: it is theirs then.
            own = is_plain_linear(self.lin_l) and out.dtype is root.dtype
            out = out.add_(root) if own else out + root
        return F.normalize(out, p=2.0, dim=-1) if self.normalize else out
