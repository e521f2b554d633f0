"""Linear layer that keeps its input in low bits, or nothing where an earlier layer's tensors determine it.

For y = x W^T + b the gradients are dx = dy W, dW = dy^T x and db = sum(dy). Only dW needs x, and it is linear in x:
with unbiased rounding its expectation is exact (ActNN, Chen et al., ICML 2021, theorem 1; EXACT, Liu et al., ICLR 2022,
proposition 1). dW is accumulated over blocks of rows, so the full floating-point x never exists again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from graphlossy.autograd._once import once_differentiable
from graphlossy.autograd._ops import define
from graphlossy.autograd._packed import Meta, check_bits, draw_seed
from graphlossy.autograd.recipe import Layout, Recipe, keep

__all__ = ["linear", "weight_grad"]


def _weight_grad(
    grad: Tensor,
    tensors: list[Tensor],
    affine: int,
    scales: list[float],
    bits: int,
    group_size: int,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    recipe = Layout(Meta(bits, group_size, False, tuple(shape), dtype), affine, tuple(scales)).rebuild(tensors)
    accumulator = torch.promote_types(torch.promote_types(grad.dtype, dtype), torch.float32)
    total = grad.new_zeros(grad.size(1), shape[1], dtype=accumulator)
    for start, end, block in recipe.blocks():
        part = grad[start:end]
        if part.dtype is accumulator:
            total.addmm_(part.t(), block.to(accumulator))
        else:
            total += part.t() @ block.to(part.dtype)
    return total


def _weight_grad_fake(grad, tensors, affine, scales, bits, group_size, shape, dtype):  # type: ignore[no-untyped-def]
    accumulator = torch.promote_types(torch.promote_types(grad.dtype, dtype), torch.float32)
    return grad.new_empty(grad.size(1), shape[1], dtype=accumulator)


_weight_grad_op = define(
    "linear_weight_grad(Tensor grad, Tensor[] tensors, int affine, float[] scales, int bits, int group_size, "
    "SymInt[] shape, ScalarType dtype) -> Tensor",
    _weight_grad,
    _weight_grad_fake,
)


def weight_grad(grad: Tensor, recipe: Recipe) -> Tensor:
    """grad^T h [O, D] for grad [N, O] and a recipe of h [N, D], block by block; float32 at least."""
    meta = recipe.kept.meta
    layout = (len(recipe.affine), list(recipe.scales), meta.bits, meta.group_size, list(meta.shape), meta.dtype)
    return _weight_grad_op(grad, list(recipe.tensors), *layout)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, layout, *tensors):
        ctx.layout, ctx.input_shape, ctx.input_dtype = layout, x.shape, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(weight, *tensors)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, *tensors = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (rows @ weight.to(rows.dtype)).to(ctx.input_dtype).view(ctx.input_shape)
        if ctx.needs_input_grad[1]:
            grad_weight = weight_grad(rows, ctx.layout.rebuild(tensors)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0, dtype=torch.promote_types(rows.dtype, torch.float32)).to(ctx.bias_dtype)
        return grad_x, grad_weight, grad_bias, None, *[None] * len(tensors)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, bits: int | None = 2, group_size: int = 256
) -> Tensor:
    """x W^T + b, keeping ``x`` in ``bits`` bits for the gradient of W; same values as ``torch.nn.functional.linear``.

    Kept per element of ``x``: bits + 32 / group_size bits (2.125 at 2 bits); nothing if W needs no gradient, if ``x``
    lives anyway (it needs no gradient or is a leaf), or if it can be computed again (see
    :mod:`graphlossy.autograd.recipe`). The gradient of W is unbiased, the others are exact.

    Args:
        x: [..., D].
        weight: [O, D].
        bias: [O] or None.
        bits: 1, 2, 3, 4, 8, or None for torch's own exact operation.
        group_size: elements that share a scale and an offset.

    Returns:
        [..., O].

    Raises:
        ValueError: if ``bits`` is not supported or the widths differ.

    Example:
        >>> x, weight = torch.randn(1000, 64, requires_grad=True), torch.randn(32, 64, requires_grad=True)
        >>> torch.equal(linear(x, weight, bits=2), torch.nn.functional.linear(x, weight))
        True
    """
    check_bits(bits)
    if x.shape[-1:] != weight.shape[1:]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, but weight {tuple(weight.shape)} takes {weight.shape[-1]} columns"
        )
    wanted = any(t is not None and t.requires_grad for t in (x, weight, bias))
    if bits is None or not wanted or not torch.is_grad_enabled():
        if bits is not None and weight.requires_grad:
            draw_seed()  # as with gradients
        return F.linear(x, weight, bias)
    if not weight.requires_grad:
        layout = Layout(Meta(0, group_size, False, (0, 0), x.dtype), 0, ())
        return _Linear.apply(x, weight, bias, layout)
    recipe = keep(x, bits, group_size)
    return _Linear.apply(x, weight, bias, recipe.layout, *recipe.tensors)
