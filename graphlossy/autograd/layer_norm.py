"""Layer normalisation that keeps the normalised input in low bits.

PyG's layer norm takes its statistics over the channels of a node (``"node"``) or over all elements of a graph
(``"graph"``). Both are y = w x_hat + b with x_hat = (x - mean) inv, where mean and inv are shared by a set of elements,
and

    dx = inv (d - mean(d) - c x_hat mean(d x_hat)),   d = w dy,

with the means over the same set (Ba et al., 2016). c is 1 where eps is added to the variance; PyG adds it to the
deviation s if there is a single graph, and then c = (s + eps) / s. Computed over blocks of rows, like the batch norm's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from graphlossy.autograd._once import once_differentiable
from graphlossy.autograd._ops import define
from graphlossy.autograd._packed import Meta, Packed, check_bits, draw_seed, row_blocks
from graphlossy.autograd.norm import grad_block, normalized_recipe, pack_normalized, rows_of, wide
from graphlossy.autograd.recipe import attach

__all__ = ["layer_norm", "layer_norm_grads", "layer_norm_statistics"]


def _layer_backward(
    grad: Tensor,
    kept: list[Tensor],
    inv: Tensor,
    correction: Tensor | None,
    index: Tensor | None,
    weight: Tensor | None,
    mask: Tensor | None,
    p: float,
    bits: int,
    group_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    count, width = grad.shape
    source = Packed(tuple(kept), Meta(bits, group_size, False, grad.shape, inv.dtype))
    mean, product = inv.new_zeros(count, 1), inv.new_zeros(count, 1)
    grad_weight, grad_bias = inv.new_zeros(width), inv.new_zeros(width)
    for start, end, x_hat in row_blocks(source):
        part = grad_block(grad, start, end, mask, p, inv.dtype)
        grad_bias += part.sum(0)
        x_hat = x_hat.mul_(part)
        grad_weight += x_hat.sum(0)
        ones = inv.new_ones(width) if weight is None else weight.to(inv.dtype)
        torch.mv(part, ones, out=mean[start:end, 0])
        torch.mv(x_hat, ones, out=product[start:end, 0])
    mean, product = _pool(mean, inv, index, width), _pool(product, inv, index, width)
    if correction is not None:
        product = product * correction
    out = torch.empty_like(grad, memory_format=torch.contiguous_format)
    for start, end, x_hat in row_blocks(source):
        block = grad_block(grad, start, end, mask, p, inv.dtype)
        if weight is not None:
            block *= weight
        block -= rows_of(mean, index, start, end)
        block -= x_hat.mul_(rows_of(product, index, start, end))
        out[start:end] = block.mul_(rows_of(inv, index, start, end))
    return out, grad_weight, grad_bias


def _pool(per_row: Tensor, inv: Tensor, index: Tensor | None, width: int) -> Tensor:
    """Mean over the elements that share a statistic, from sums per row [N, 1]: [N, 1], [1, 1] or [B, 1]."""
    if index is None and inv.size(0) == per_row.size(0):
        return per_row / width
    if index is None:
        return per_row.sum(0, keepdim=True) / (per_row.size(0) * width)
    counts = torch.bincount(index, minlength=inv.size(0)).clamp_(min=1).to(inv.dtype).unsqueeze(1)
    return torch.zeros_like(inv).index_add_(0, index, per_row) / (counts * width)


_layer_backward_op = define(
    "layer_norm_backward(Tensor grad, Tensor[] kept, Tensor inv, Tensor? correction, Tensor? index, Tensor? weight, "
    "Tensor? mask, float p, int bits, int group_size) -> (Tensor, Tensor, Tensor)",
    _layer_backward,
    lambda grad, kept, inv, correction, index, weight, mask, p, bits, group_size: (
        grad.new_empty(grad.shape),
        inv.new_empty(grad.size(1)),
        inv.new_empty(grad.size(1)),
    ),
)


def _node_forward(x, weight, bias, eps):  # type: ignore[no-untyped-def]
    out, mean, inv = torch.native_layer_norm(x, (x.size(-1),), weight, bias, eps)
    return out, mean, inv, None


def _graph_forward(x, weight, bias, eps):  # type: ignore[no-untyped-def]
    mean = x.mean()
    out = x - mean
    deviation = out.std(unbiased=False)
    inv = (1.0 / (deviation + eps)).view(1, 1)
    # A constant graph: x_hat is zero, and so is what the correction multiplies.
    correction = torch.where(deviation > 0, (deviation + eps) / deviation, torch.zeros_like(deviation)).view(1, 1)
    out = _affine(out.div_(deviation + eps), weight, bias)
    return out, mean.view(1, 1), inv, correction


def _batched_forward(x, weight, bias, eps, batch, batch_size):  # type: ignore[no-untyped-def]
    count = torch.bincount(batch, minlength=batch_size).clamp_(min=1).to(x.dtype).mul_(x.size(-1)).unsqueeze(1)
    zeros = x.new_zeros(batch_size, 1)
    mean = zeros.index_add(0, batch, x.sum(-1, keepdim=True)) / count
    out = x - mean.index_select(0, batch)
    squares = torch.linalg.vecdot(out, out).unsqueeze(1)
    inv = (zeros.index_add(0, batch, squares) / count + eps).rsqrt()
    out = _affine(out.mul_(inv.index_select(0, batch)), weight, bias)
    return out, mean, inv, None


def _affine(out: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return out if weight is None else out.mul_(weight).add_(bias)


def layer_norm_statistics(x, weight, bias, eps, mode, batch, batch_size):  # type: ignore[no-untyped-def]
    """(y, mean, inverse deviation, correction) in the given mode."""
    if mode == "node":
        return _node_forward(x, weight, bias, eps)
    if batch is None:
        return _graph_forward(x, weight, bias, eps)
    return _batched_forward(x, weight, bias, eps, batch, batch_size)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, mode, batch, batch_size, bits, group_size):
        out, mean, inv, correction = layer_norm_statistics(x, weight, bias, eps, mode, batch, batch_size)
        kind = wide(x.dtype)
        kept = pack_normalized(x, mean.to(kind), inv.to(kind), bits, group_size, batch)
        ctx.bits, ctx.group_size = bits, group_size
        ctx.mark_non_differentiable(*kept.tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, inv, correction, batch, *kept.tensors)
        return out, *kept.tensors

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        weight, inv, correction, batch, *kept = ctx.saved_tensors
        arguments = (kept, inv, correction, batch, weight, None, 0.0, ctx.bits, ctx.group_size)
        return *layer_norm_grads(grad, *arguments), *[None] * 6


def layer_norm_grads(  # type: ignore[no-untyped-def]
    grad, kept, inv, correction, batch, weight, mask, p, bits, group_size
):
    """(dx, dw, db) from what the forward kept; through ``mask`` if a ReLU and dropout(p) followed."""
    inv = inv.to(wide(grad.dtype))
    arguments = (kept, inv, correction, batch, weight, mask, p, bits, group_size)
    grad_x, grad_weight, grad_bias = _layer_backward_op(grad, *arguments)
    if weight is None:
        return grad_x, None, None
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    mode: str = "node",
    batch: Tensor | None = None,
    batch_size: int | None = None,
    *,
    bits: int | None = 2,
    group_size: int = 256,
) -> Tensor:
    """Layer normalisation of [N, C] with PyG's values, keeping x_hat in ``bits`` bits.

    Kept per element: bits + 32 / group_size bits, and one number per node or graph.

    Args:
        x: [N, C].
        weight: [C] or None, with ``bias``.
        bias: [C] or None.
        eps: added to the variance (mode ``"graph"`` without ``batch``: to the deviation, as in PyG).
        mode: ``"node"``: statistics over a node's channels; ``"graph"``: over all elements of each graph.
        batch: [N], graph of each node, for ``mode="graph"``.
        batch_size: number of graphs; default: from ``batch``.
        bits: 1, 2, 3, 4, 8, or None: exact, by torch's own operations.
        group_size: elements that share a scale and an offset.

    Raises:
        ValueError: if ``bits`` or ``mode`` is not supported or ``x`` is not a matrix.

    Example:
        >>> x = torch.randn(100, 8, requires_grad=True)
        >>> torch.equal(layer_norm(x, mode="node"), F.layer_norm(x, (8,)))
        True
    """
    check_bits(bits)
    if mode not in ("node", "graph"):
        raise ValueError(f"mode must be 'node' or 'graph', got {mode!r}")
    if x.dim() != 2:
        raise ValueError(f"x must have shape [N, C], got {tuple(x.shape)}")
    if mode == "graph" and batch is not None and batch_size is None:
        batch_size = int(batch.max()) + 1 if batch.numel() else 0
    batch = None if mode == "node" else batch
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    if bits is None or not wanted or x.numel() == 0:
        if bits is not None:
            draw_seed()  # as with gradients
        return _plain(x, weight, bias, eps, mode, batch, batch_size)
    out, *kept = _LayerNorm.apply(x, weight, bias, eps, mode, batch, batch_size, bits, group_size)
    return attach(out, normalized_recipe(kept, x, weight, bias, bits, group_size))


def _plain(x, weight, bias, eps, mode, batch, batch_size):  # type: ignore[no-untyped-def]
    """(y, mean, inverse deviation, correction) in the given mode."""
    if mode == "node":
        return F.layer_norm(x, (x.size(-1),), weight, bias, eps)
    if batch is None:
        x = x - x.mean()
        out = x / (x.std(unbiased=False) + eps)
    else:
        count = torch.bincount(batch, minlength=batch_size).clamp_(min=1).to(x.dtype).mul_(x.size(-1)).unsqueeze(1)
        zeros = x.new_zeros(batch_size, 1)
        x = x - (zeros.index_add(0, batch, x.sum(-1, keepdim=True)) / count).index_select(0, batch)
        variance = zeros.index_add(0, batch, (x * x).sum(-1, keepdim=True)) / count
        out = x / (variance + eps).sqrt().index_select(0, batch)
    return out if weight is None else out * weight + bias
