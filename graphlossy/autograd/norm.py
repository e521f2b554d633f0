"""Batch normalisation that keeps the normalised input in low bits.

With x_hat = (x - mean) / std and y = w x_hat + b, all gradients follow from x_hat, the inverse deviation and dy:

    dw = sum(dy x_hat),  db = sum(dy),  dx = (1 / std) (d - mean(d) - x_hat mean(d x_hat)),  d = w dy

(Ioffe and Szegedy, ICML 2015). x_hat is kept rather than x: its columns have one scale, so the columns that share a
group of the low-bit format lose equally little. Under unbiased rounding dw, db and both means are unbiased; the last
product holds the rounding error of x_hat twice, which biases dx by a share of order 1 / N. Everything is computed over
blocks of rows: beside the result there is no temporary of the size of x.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from graphlossy.autograd._once import once_differentiable
from graphlossy.autograd._ops import define
from graphlossy.autograd._packed import Meta, Packed, block_rows, check_bits, draw_seed, pack_tensor, row_blocks
from graphlossy.autograd.dropout import keep_scale
from graphlossy.autograd.recipe import Recipe, attach
from graphlossy.core._memory import release_free_memory

__all__ = ["batch_norm", "batch_norm_grads", "check_batch", "grad_block", "pack_normalized", "rows_of", "wide"]

_MASK64 = 2**64 - 1


def _block_seed(seed: int, block: int) -> int:
    """An independent 63-bit seed for each block (splitmix64), so that blocks do not share their rounding noise."""
    z = (seed + (block + 1) * 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return (z ^ (z >> 31)) >> 1


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def rows_of(per_row: Tensor, index: Tensor | None, start: int, end: int) -> Tensor:
    """The [rows, 1] or broadcastable part of a statistic given per column, per row, per graph or once."""
    if index is not None:
        return per_row.index_select(0, index[start:end])
    return per_row[start:end] if per_row.dim() == 2 and per_row.size(0) > 1 else per_row


def _pack_normalized(
    x: Tensor, mean: Tensor, inv: Tensor, index: Tensor | None, bits: int, group_size: int, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    base, dtype = int(seed), wide(x.dtype)
    step = block_rows(x.shape, group_size, x.device)
    parts = []
    for number, start in enumerate(range(0, max(x.size(0), 1), step)):
        end = min(start + step, x.size(0))
        block = x[start:end].to(dtype) - rows_of(mean, index, start, end)
        block *= rows_of(inv, index, start, end)
        parts.append(pack_tensor(block, bits, group_size, False, _block_seed(base, number)))
    if len(parts) == 1:
        return parts[0]
    return tuple(torch.cat(column, dim=1) for column in zip(*parts, strict=True))  # type: ignore[return-value]


def _pack_normalized_fake(x, mean, inv, index, bits, group_size, seed):  # type: ignore[no-untyped-def]
    return pack_tensor(x.to(wide(x.dtype)), bits, group_size, False, 0)


_pack_normalized_op = define(
    "pack_normalized(Tensor x, Tensor mean, Tensor inv, Tensor? index, int bits, int group_size, Tensor seed) "
    "-> (Tensor, Tensor, Tensor)",
    _pack_normalized,
    _pack_normalized_fake,
)


def pack_normalized(
    x: Tensor, mean: Tensor, inv: Tensor, bits: int, group_size: int, index: Tensor | None = None
) -> Packed:
    """(x - mean) * inv in ``bits`` bits, normalised and packed block by block.

    Args:
        x: [N, D].
        mean: statistics that broadcast against ``x``: [D] by columns, [N, 1] by rows, [1, 1], or [B, 1] with ``index``.
        inv: inverse deviations, of the same shape.
        bits: 1, 2, 3, 4 or 8.
        group_size: elements that share a scale and an offset.
        index: [N], the row of ``mean`` and ``inv`` that each row of ``x`` uses.
    """
    tensors = _pack_normalized_op(x, mean, inv, index, bits, group_size, draw_seed())
    return Packed(tuple(tensors), Meta(bits, group_size, False, x.shape, wide(x.dtype)))


def grad_block(grad: Tensor, start: int, end: int, mask: Tensor | None, p: float, dtype: torch.dtype) -> Tensor:
    """Rows of the incoming gradient, taken back through the mask of a ReLU and dropout after the norm (a copy)."""
    part = grad[start:end]
    if mask is None:
        return part.to(dtype, copy=True)
    width, scale = grad.size(1), keep_scale(p, grad.dtype)
    part = torch.ops.graphlossy.mask_apply(part.contiguous(), mask[start * width // 8 : -(-end * width // 8)], scale)
    return part.to(dtype)


def _batch_backward(
    grad: Tensor,
    kept: list[Tensor],
    inv: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    p: float,
    bits: int,
    group_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    meta = Meta(bits, group_size, False, grad.shape, inv.dtype)
    source = Packed(tuple(kept), meta)
    sum_grad, sum_product, mean = (inv.new_zeros(grad.size(1)) for _ in range(3))
    count = max(1, grad.size(0))
    for start, end, x_hat in row_blocks(source):
        part = grad_block(grad, start, end, mask, p, inv.dtype)
        mean += x_hat.sum(0) / count
        sum_grad += part.sum(0)
        sum_product += x_hat.mul_(part).sum(0)
    # x_hat has mean zero; so must its low-bit copy, or a bias in front of the norm, which the norm cancels, would be
    # given noise for a gradient.
    sum_product -= mean * sum_grad
    factor = inv if weight is None else inv * weight
    slope = factor * sum_product / count
    shift = factor * sum_grad / count - slope * mean
    out = torch.empty_like(grad, memory_format=torch.contiguous_format)
    for start, end, x_hat in row_blocks(source):
        block = grad_block(grad, start, end, mask, p, inv.dtype).mul_(factor)
        block -= x_hat.mul_(slope)
        out[start:end] = block.sub_(shift)
    return out, sum_product, sum_grad


_batch_backward_op = define(
    "batch_norm_backward(Tensor grad, Tensor[] kept, Tensor inv, Tensor? weight, Tensor? mask, float p, int bits, "
    "int group_size) -> (Tensor, Tensor, Tensor)",
    _batch_backward,
    lambda grad, kept, inv, weight, mask, p, bits, group_size: (
        grad.new_empty(grad.shape),
        inv.new_empty(grad.size(1)),
        inv.new_empty(grad.size(1)),
    ),
)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, bits, group_size):
        out, mean, inv = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        kept = pack_normalized(x, mean.to(wide(x.dtype)), inv.to(wide(x.dtype)), bits, group_size)
        ctx.bits, ctx.group_size = bits, group_size
        ctx.mark_non_differentiable(*kept.tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, inv, *kept.tensors)
        return out, *kept.tensors

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        weight, inv, *kept = ctx.saved_tensors
        grads = batch_norm_grads(grad, kept, inv, weight, None, 0.0, ctx.bits, ctx.group_size)
        return *grads, *[None] * 6


def batch_norm_grads(  # type: ignore[no-untyped-def]
    grad, kept, inv, weight, mask, p, bits, group_size
):
    """(dx, dw, db) from what the forward kept; through ``mask`` if a ReLU and dropout(p) followed."""
    inv = inv.to(wide(grad.dtype))
    release_free_memory(grad.device, grad.numel() * grad.element_size())
    grad_x, grad_weight, grad_bias = _batch_backward_op(grad, kept, inv, weight, mask, p, bits, group_size)
    if weight is None:
        return grad_x, None, None
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


def check_batch(x: Tensor, training: bool) -> None:
    """torch's own rules for a batch to take statistics of."""
    if x.dim() != 2:
        raise ValueError(f"x must have shape [N, C], got {tuple(x.shape)}")
    if training and x.size(0) == 1 and x.size(1) > 0:
        raise ValueError(f"batch statistics need more than one row in training mode, got x of shape {tuple(x.shape)}")


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    bits: int | None = 2,
    group_size: int = 256,
) -> Tensor:
    """Batch normalisation of [N, C] with torch's values and running statistics, keeping x_hat in ``bits`` bits.

    Kept per element: bits + 32 / group_size bits, and two numbers per column. Ioffe and Szegedy, ICML 2015, algorithm
    1. Arguments as in ``torch.nn.functional.batch_norm``; without ``training`` (running statistics) or with
    ``bits=None`` this is torch's own operation.

    Raises:
        ValueError: if ``bits`` is not supported, ``x`` is not a matrix, or it has one row in training.

    Example:
        >>> x = torch.randn(100, 8, requires_grad=True)
        >>> torch.equal(batch_norm(x, None, None, training=True), F.batch_norm(x, None, None, training=True))
        True
    """
    check_bits(bits)
    check_batch(x, training)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    if bits is None or not training or not wanted or x.numel() == 0:
        if bits is not None and training:
            draw_seed()  # as with gradients
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    arguments = (x, weight, bias, running_mean, running_var, momentum, eps, bits, group_size)
    out, *kept = _BatchNorm.apply(*arguments)
    return attach(out, normalized_recipe(kept, x, weight, bias, bits, group_size))


def normalized_recipe(kept, x, weight, bias, bits, group_size):  # type: ignore[no-untyped-def]
    """The recipe w x_hat + b of a norm's output."""
    affine = () if weight is None else (weight.detach(), bias.detach())
    return Recipe(Packed(tuple(kept), Meta(bits, group_size, False, x.shape, wide(x.dtype))), affine)
