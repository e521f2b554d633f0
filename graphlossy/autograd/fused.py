"""Norm -> ReLU -> dropout as one function that keeps one low-bit tensor and one exact bit per element.

Kept in total for [N, D] at 2 bits and groups of 256: 2.125 bits of x_hat and 1 bit of the joint mask (let through by
the ReLU *and* by the dropout), 3.125 bits per element. A following linear layer keeps nothing: its input is
s m (w x_hat + b). EXACT (Liu et al., ICLR 2022) keeps two masks and two low-bit tensors for the same layers, 8.75 bits
at D = 128. Forward and backward work in place on one result and over blocks of rows, so the peak is the input, the
result and one byte per element of noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.autograd._once import once_differentiable
from graphlossy.autograd._ops import define
from graphlossy.autograd._packed import Meta, Packed, check_bits, draw_seed
from graphlossy.autograd.activation import relu
from graphlossy.autograd.dropout import (
    attach_masked,
    bernoulli,
    check_probability,
    drop_,
    dropout_backward,
    dropout_without_grad,
)
from graphlossy.autograd.layer_norm import layer_norm, layer_norm_grads, layer_norm_statistics
from graphlossy.autograd.norm import batch_norm, batch_norm_grads, check_batch, pack_normalized, wide
from graphlossy.autograd.recipe import Recipe, recipe_of

__all__ = ["norm_act_dropout", "relu_dropout"]

_BLOCK = 1 << 20  # elements, a multiple of 8


def _relu_dropout(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    if p == 0.0:
        return _relu_dropout_(x.clone(), p)
    # Drawn and packed before there is a result, so that a byte of noise per element is never beside it.
    noise = torch.ops.graphlossy.pack_mask(bernoulli(x.shape, p, x.device).view(-1))
    out = x.clone().relu_()
    flat, step = out.view(-1), _BLOCK if out.device.type == "cpu" else max(1, out.numel())
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step]
        kept = torch.ops.graphlossy.unpack_mask(noise[start // 8 : (start + part.numel() + 7) // 8], part.numel())
        drop_(part, kept, p)
    return out, torch.ops.graphlossy.pack_mask(flat)


def _relu_dropout_(out: Tensor, p: float) -> tuple[Tensor, Tensor]:
    out.relu_()
    if p > 0.0:
        drop_(out, bernoulli(out.shape, p, out.device), p)
    # Positive, kept and scaled elements are exactly the non-zero ones.
    return out, torch.ops.graphlossy.pack_mask(out.view(-1))


_relu_dropout_op = define(
    "relu_dropout(Tensor x, float p) -> (Tensor, Tensor)",
    _relu_dropout,
    lambda x, p: (x.new_empty(x.shape), x.new_empty((x.numel() + 7) // 8, dtype=torch.uint8)),
    random=True,
)


def _act(out: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """ReLU and dropout in place where nothing else sees ``out``; compiled graphs do their own reuse of buffers."""
    return _relu_dropout_op(out, p) if torch.compiler.is_compiling() else _relu_dropout_(out, p)


class _ReLUDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p):
        out, mask = _relu_dropout_op(x, p)
        ctx.p = p
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask)
        return out, mask

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        (mask,) = ctx.saved_tensors
        return dropout_backward(grad, mask, ctx.p), None


class _BatchNormReLUDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, p, bits, group_size):
        out, mean, inv = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        out, mask = _act(out, p)  # first, so that the noise is that of the three layers under the same seed
        kept = pack_normalized(x, mean.to(wide(x.dtype)), inv.to(wide(x.dtype)), bits, group_size)
        ctx.p, ctx.bits, ctx.group_size = p, bits, group_size
        ctx.mark_non_differentiable(mask, *kept.tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, inv, mask, *kept.tensors)
        return out, mask, *kept.tensors

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        weight, inv, mask, *kept = ctx.saved_tensors
        grads = batch_norm_grads(grad, kept, inv, weight, mask, ctx.p, ctx.bits, ctx.group_size)
        return *grads, *[None] * 7


class _LayerNormReLUDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, mode, batch, batch_size, p, bits, group_size):
        out, mean, inv, correction = layer_norm_statistics(x, weight, bias, eps, mode, batch, batch_size)
        out, mask = _act(out, p)
        kept = pack_normalized(x, mean.to(wide(x.dtype)), inv.to(wide(x.dtype)), bits, group_size, batch)
        ctx.p, ctx.bits, ctx.group_size = p, bits, group_size
        ctx.mark_non_differentiable(mask, *kept.tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, inv, correction, batch, mask, *kept.tensors)
        return out, mask, *kept.tensors

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        weight, inv, correction, batch, mask, *kept = ctx.saved_tensors
        arguments = (kept, inv, correction, batch, weight, mask, ctx.p, ctx.bits, ctx.group_size)
        return *layer_norm_grads(grad, *arguments), *[None] * 7


def relu_dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """dropout(relu(x)) keeping one exact joint bit per element; same values as torch's two functions on the CPU.

    Args:
        x: any shape.
        p: probability of dropping an element.
        training: if False, only the ReLU is applied.

    Example:
        >>> relu_dropout(torch.tensor([-1.0, 2.0]), training=False)
        tensor([0., 2.])
    """
    check_probability(p)
    if not training or p == 0.0:
        return relu(x)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return dropout_without_grad(x.relu(), p, inplace=True)
    recipe = recipe_of(x)
    out, mask = _ReLUDropout.apply(x, p)
    return attach_masked(out, recipe, mask, p)


def norm_act_dropout(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    norm: str = "batch",
    p: float = 0.5,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    batch: Tensor | None = None,
    batch_size: int | None = None,
    bits: int | None = 2,
    group_size: int = 256,
) -> Tensor:
    """dropout(relu(norm(x))) on [N, C]: forward values as of the three functions, kept bits as in the module's head.

    Args:
        x: [N, C].
        weight: [C] or None, with ``bias``.
        bias: [C] or None.
        running_mean: [C] or None: running statistics of a batch norm, updated in place as torch does.
        running_var: [C] or None.
        norm: ``"batch"``, ``"node"`` or ``"graph"`` (the two modes of PyG's LayerNorm).
        p: dropout probability.
        training: batch statistics and dropout; if False, running statistics and no dropout.
        momentum: of the running statistics.
        eps: of the norm.
        batch: [N] graph of each node, for ``norm="graph"``.
        batch_size: number of graphs; default: from ``batch``.
        bits: 1, 2, 3, 4, 8, or None: an exact norm, and exact masks.
        group_size: elements that share a scale and an offset.

    Returns:
        [N, C].

    Raises:
        ValueError: on an unknown norm, unsupported bits, a probability outside [0, 1] or a wrong shape.

    Example:
        >>> x = torch.randn(1000, 16, requires_grad=True)
        >>> h = norm_act_dropout(x, None, None, p=0.5, bits=2)
        >>> bool(h.min() == 0), h.shape
        (True, torch.Size([1000, 16]))
    """
    check_bits(bits)
    check_probability(p)
    if norm not in ("batch", "node", "graph"):
        raise ValueError(f"norm must be 'batch', 'node' or 'graph', got {norm!r}")
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    if bits is None or not training or not wanted or x.numel() == 0 or x.dim() != 2:
        if norm == "batch":
            y = batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps, bits=None)
        else:
            y = layer_norm(x, weight, bias, eps, norm, batch, batch_size, bits=None if training else bits)
        out = relu_dropout(y, p, training)
        if bits is not None and training:
            draw_seed()  # as with gradients
        return out
    if norm == "batch":
        check_batch(x, training)
        arguments = (x, weight, bias, running_mean, running_var, momentum, eps, p, bits, group_size)
        out, mask, *kept = _BatchNormReLUDropout.apply(*arguments)
    else:
        if norm == "node":
            batch = batch_size = None
        elif batch is not None and batch_size is None:
            batch_size = int(batch.max()) + 1
        arguments = (x, weight, bias, eps, norm, batch, batch_size, p, bits, group_size)
        out, mask, *kept = _LayerNormReLUDropout.apply(*arguments)
    meta = Meta(bits, group_size, False, x.shape, wide(x.dtype))
    affine = () if weight is None else (weight.detach(), bias.detach())
    return attach_masked(out, Recipe(Packed(tuple(kept), meta), affine), mask, p)
