"""Sparse matrix times dense matrix, the aggregation of a graph convolution, with the least kept for the backward pass.

For out = A x the gradients are

    dx = A^T dout              (needs only the graph)
    dA[i, j] = <dout[i], x[j]> (needs the dense operand, and only if the edge weights are trained)

so nothing dense is kept for fixed weights; torch_sparse keeps x always. dx is linear in dout, and its own gradient is
the product with A again: fixed weights allow any number of derivatives, trained ones the first only. For trained
weights x is kept in ``bits`` bits and the weight gradient is a sampled product computed in chunks of edges, never an
E x C tensor. It is linear in x, so unbiased rounding leaves it unbiased.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.autograd import _ops
from graphlossy.autograd._once import once_differentiable
from graphlossy.autograd._packed import Packed, draw_seed, pack
from graphlossy.autograd.graph import CSRGraph, compress_index
from graphlossy.autograd.graph_cache import GraphCache, cached_graph, clear_graph_cache

__all__ = ["CSRGraph", "GraphCache", "cached_graph", "clear_graph_cache", "spmm"]


class _FixedSpMM(torch.autograd.Function):
    """A x for weights without a gradient: keeps the graph's own arrays only."""

    @staticmethod
    def forward(ctx, x, crow, col, values, crow_t, col_t, values_t, mean):
        ctx.save_for_backward(crow_t, col_t, values_t)
        return _ops.spmm(crow, col, values, x, mean)

    @staticmethod
    def backward(ctx, grad):
        crow_t, col_t, values_t = ctx.saved_tensors
        return _Product.apply(grad, crow_t, col_t, values_t), *[None] * 7


class _Product(torch.autograd.Function):
    """B x that can be differentiated any number of times; B is transposed (edges sorted) only if it is."""

    @staticmethod
    def forward(ctx, x, crow, col, values):
        ctx.num_columns = x.size(0)
        ctx.save_for_backward(crow, col, values)
        return _ops.spmm(crow, col, values, x, False)

    @staticmethod
    def backward(ctx, grad):
        crow, col, values = ctx.saved_tensors
        crow_t, perm = compress_index(col, ctx.num_columns, col.dtype)
        nodes = torch.arange(crow.numel() - 1, dtype=col.dtype, device=col.device)
        row = torch.repeat_interleave(nodes, crow.diff(), output_size=col.numel())
        if perm is not None:
            row, values = row.index_select(0, perm), values.index_select(0, perm)
        return _Product.apply(grad, crow_t, row, values), None, None, None


class _WeightedSpMM(torch.autograd.Function):
    """A x for trained weights, given in the order of the edge list."""

    @staticmethod
    def forward(ctx, x, weight, graph, mean, bits, group_size):
        values = weight if graph.perm is None else weight.index_select(0, graph.perm)
        ctx.graph, ctx.mean, ctx.weight_dtype = graph, mean, weight.dtype
        kept = pack(x, bits if ctx.needs_input_grad[1] else None, group_size, rows=True)
        ctx.meta = kept.meta
        operand = kept.tensors if ctx.needs_input_grad[1] else ()
        ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None, *operand)
        return _ops.spmm(graph.crow, graph.col, values.to(x.dtype), x, mean)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        graph, mean = ctx.graph, ctx.mean
        weight, *operand = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            crow_t, col_t = graph.transpose_pattern()
            values = weight if graph.perm is None else weight.index_select(0, graph.perm)
            values_t = graph.order_values(values, grad.dtype, transposed=True, mean=mean)
            grad_x = _ops.spmm(crow_t, col_t, values_t, grad, False)
        if ctx.needs_input_grad[1]:
            grad_values = _ops.sampled_dot(graph.row, graph.col, grad, Packed(tuple(operand), ctx.meta), heads=1)
            grad_values = grad_values.view(-1)
            if mean:
                grad_values /= graph.in_degree(grad_values.dtype).index_select(0, graph.row)
            grad_values = grad_values.to(ctx.weight_dtype)
            if graph.perm is None:
                grad_weight = grad_values
            else:
                grad_weight = torch.empty_like(grad_values).index_copy_(0, graph.perm.long(), grad_values)
        return grad_x, grad_weight, None, None, None, None


def spmm(graph: CSRGraph, x: Tensor, reduce: str = "sum", *, bits: int | None = None, group_size: int = 256) -> Tensor:
    """Sum or average the rows of ``x`` over the in-edges of each node: A x, or A x divided by the in-degree.

    Keeps nothing dense for the backward pass unless the graph's edge weights require a gradient. EXACT (Liu et al.,
    ICLR 2022), section 3: the gradient of A x needs the graph only.

    Args:
        graph: the edges, [num_dst, num_src].
        x: [num_src, ...] float16, bfloat16, float32 or float64.
        reduce: ``"sum"``, or ``"mean"`` as in PyG: the weighted sum divided by the number of in-edges (at least 1).
        bits: width at which ``x`` is kept if the edge weights require a gradient: 1, 2, 3, 4, 8 or None (exact).
        group_size: elements that share a scale and an offset.

    Returns:
        [num_dst, ...] of the type of ``x``.

    Raises:
        ValueError: if ``reduce`` is unknown, the sizes do not fit, or graph and features are on different devices.

    Example:
        >>> graph = CSRGraph(torch.tensor([[0, 1, 2], [1, 2, 1]]), num_dst=3)
        >>> spmm(graph, torch.tensor([[1.0], [2.0], [3.0]]))
        tensor([[0.],
                [4.],
                [2.]])
    """
    if reduce not in ("sum", "add", "mean"):
        raise ValueError(f"reduce must be 'sum' or 'mean', got {reduce!r}")
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {x.dtype}: use x.float()")
    if x.dim() == 0 or x.size(0) != graph.num_src:
        raise ValueError(f"x must have one row for each of the graph's {graph.num_src} sources, got {tuple(x.shape)}")
    if x.device != graph.device:
        raise ValueError(f"x is on {x.device}, the graph on {graph.device}: move one of them")
    mean = reduce == "mean"
    shape = x.shape[1:]
    flat = x if x.dim() == 2 else x.reshape(x.size(0), shape.numel())
    if graph.edge_weight is not None and torch.is_grad_enabled():
        out = _WeightedSpMM.apply(flat, graph.edge_weight, graph, mean, bits, group_size)
    else:
        values = graph.values(x.dtype)
        if x.requires_grad and torch.is_grad_enabled():
            crow_t, col_t = graph.transpose_pattern()
            values_t = graph.values(x.dtype, transposed=True, mean=mean)
            out = _FixedSpMM.apply(flat, graph.crow, graph.col, values, crow_t, col_t, values_t, mean)
        else:
            if graph.edge_weight is not None and bits is not None:
                draw_seed()  # as with gradients
            out = _ops.spmm(graph.crow, graph.col, values, flat, mean)
    return out if x.dim() == 2 else out.view(-1, *shape)
