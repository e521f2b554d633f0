"""Aggregation followed by a linear layer, y = (A x) W^T + b, that keeps x once and no aggregated copy.

The weight gradient of GraphSAGE's neighbour branch (Hamilton et al., NeurIPS 2017) is usually dy^T (A x), so A x is
kept beside the x of the root branch. But dy^T (A x) = (A^T dy)^T x, and A^T dy is wanted anyway, for dx = (A^T dy) W.
So x suffices, the same x that the root branch keeps (or computes again), and the sparse product is done once, as
before. Where x needs no gradient the product would be extra work, and A x is kept in low bits instead. Linear in what
is kept, so unbiased either way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from graphlossy.autograd import _ops
from graphlossy.autograd._once import once_differentiable
from graphlossy.autograd._packed import check_bits, pack
from graphlossy.autograd.graph import CSRGraph
from graphlossy.autograd.linear import linear, weight_grad
from graphlossy.autograd.recipe import Recipe, keep
from graphlossy.autograd.spmm import spmm

__all__ = ["spmm_linear"]


class _SpMMLinear(torch.autograd.Function):
    """y = (A x) W^T + b; the recipe describes x."""

    @staticmethod
    def forward(ctx, x, weight, bias, crow, col, values, crow_t, col_t, values_t, mean, layout, *tensors):
        ctx.layout = layout
        ctx.input_dtype, ctx.bias_dtype = x.dtype, None if bias is None else bias.dtype
        ctx.save_for_backward(weight, crow_t, col_t, values_t, *tensors)
        return F.linear(_ops.spmm(crow, col, values, x, mean), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, crow_t, col_t, values_t, *tensors = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).to(ctx.bias_dtype)
        spread = _ops.spmm(crow_t, col_t, values_t.to(grad.dtype), grad, False)
        if ctx.needs_input_grad[0]:
            grad_x = (spread @ weight.to(spread.dtype)).to(ctx.input_dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = weight_grad(spread, ctx.layout.rebuild(tensors)).to(weight.dtype)
        return grad_x, grad_weight, grad_bias, *[None] * (8 + len(tensors))


class _KeptAggregateLinear(torch.autograd.Function):
    """The same where x needs no gradient; the recipe describes A x."""

    @staticmethod
    def forward(ctx, aggregated, weight, bias, layout, *tensors):
        ctx.layout, ctx.bias_dtype = layout, None if bias is None else bias.dtype
        ctx.save_for_backward(weight, *tensors)
        return F.linear(aggregated, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, *tensors = ctx.saved_tensors
        grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_weight = weight_grad(grad, ctx.layout.rebuild(tensors)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).to(ctx.bias_dtype)
        return None, grad_weight, grad_bias, None, *[None] * len(tensors)


def spmm_linear(
    graph: CSRGraph,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    reduce: str = "sum",
    *,
    bits: int | None = 2,
    group_size: int = 256,
) -> Tensor:
    """(A x) W^T + b, keeping ``x`` in ``bits`` bits, or nothing where it can be computed again or lives anyway.

    Kept per element of ``x`` if it needs a gradient: 0 bits with a recipe or if another layer packed the same ``x``,
    else bits + 32 / group_size; if it needs none: as many per element of A x.

    Args:
        graph: [num_dst, num_src].
        x: [num_src, D].
        weight: [O, D].
        bias: [O] or None.
        reduce: ``"sum"`` or ``"mean"``.
        bits: 1, 2, 3, 4, 8 or None (exact: A x is kept as it is).
        group_size: elements that share a scale and an offset.

    Returns:
        [num_dst, O].

    Raises:
        ValueError: if the shapes do not fit or ``bits`` or ``reduce`` is not supported.

    Example:
        >>> graph = CSRGraph(torch.tensor([[0, 1, 2], [1, 2, 1]]), num_dst=3)
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> spmm_linear(graph, x, torch.tensor([[10.0]]), reduce="mean").flatten()
        tensor([ 0., 20., 20.])
    """
    check_bits(bits)
    if x.dim() != 2 or weight.dim() != 2 or x.size(1) != weight.size(1):
        raise ValueError(f"x must have shape [num_src, {weight.size(-1)}], got {tuple(x.shape)}")
    recorded = torch.is_grad_enabled()
    if not recorded or bits is None or graph.edge_weight is not None or not weight.requires_grad:
        return linear(spmm(graph, x, reduce, bits=bits), weight, bias, bits=bits, group_size=group_size)
    if not x.requires_grad:
        aggregated = spmm(graph, x, reduce)
        recipe = Recipe(pack(aggregated, bits, group_size))
        return _KeptAggregateLinear.apply(aggregated, weight, bias, recipe.layout, *recipe.tensors)
    if reduce not in ("sum", "add", "mean") or x.size(0) != graph.num_src:
        return spmm(graph, x, reduce)  # raises, with the reason
    mean = reduce == "mean"
    crow_t, col_t, _ = graph.transpose()
    values, values_t = graph.values(x.dtype), graph.values(x.dtype, transposed=True, mean=mean)
    recipe = keep(x, bits, group_size)
    arrays = (graph.crow, graph.col, values, crow_t, col_t, values_t, mean)
    return _SpMMLinear.apply(x, weight, bias, *arrays, recipe.layout, *recipe.tensors)
