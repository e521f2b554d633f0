"""Dropout that keeps one exact bit per element, or only the seed of its noise.

torch keeps the noise as a float tensor (32 bits per element on the CPU). Which elements were dropped is one bit; and
noise that is drawn again from its seed is none at all, for the time of drawing it twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.autograd._once import once_differentiable
from graphlossy.autograd._ops import define
from graphlossy.autograd._packed import draw_seed
from graphlossy.autograd.recipe import Recipe, attach, recipe_of, reference

__all__ = [
    "attach_masked",
    "bernoulli",
    "check_keep",
    "check_probability",
    "dropout",
    "drop_",
    "dropout_backward",
    "dropout_without_grad",
    "keep_scale",
]

_KEEP = ("mask", "seed")
_BLOCK = 1 << 20  # elements


def check_probability(p: float) -> None:
    """Raise unless 0 <= p <= 1."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"the dropout probability p must lie in [0, 1], got {p}")


def check_keep(keep: str) -> None:
    """Raise unless ``keep`` names a way to keep the noise."""
    if keep not in _KEEP:
        raise ValueError(f"keep must be one of {_KEEP}, got {keep!r}")


def keep_scale(p: float, dtype: torch.dtype) -> float:
    """1 / (1 - p) as torch's dropout rounds it in ``dtype``; 0 for p = 1."""
    if p >= 1.0:
        return 0.0
    return torch.ones((), dtype=dtype, device="cpu").div_(1.0 - p).item()


def bernoulli(shape: torch.Size, p: float, device: torch.device, seed: int | None = None) -> Tensor:
    """Bool noise that is true with probability 1 - p; the CPU draws the same bits for every element type."""
    generator = None if seed is None else torch.Generator(device=device).manual_seed(seed)
    noise = torch.empty(shape, dtype=torch.bool, device=device)
    return noise.bernoulli_(1.0 - p, generator=generator)


def drop_(x: Tensor, noise: Tensor, p: float) -> Tensor:
    """x * noise / (1 - p) in place. On the CPU by blocks: a product with bools makes a float copy of them first."""
    rows = max(1, x.shape[0] * _BLOCK // max(1, x.numel())) if x.dim() and x.device.type == "cpu" else 0
    parts = zip(x.split(rows), noise.split(rows), strict=True) if rows else [(x, noise)]
    for part, kept in parts:
        part.mul_(kept).mul_(keep_scale(p, x.dtype))
    return x


def _forward(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    noise = bernoulli(x.shape, p, x.device)
    mask = torch.ops.graphlossy.pack_mask(noise.view(-1))
    return drop_(x.clone(memory_format=torch.contiguous_format), noise, p), mask


def _forward_fake(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((x.numel() + 7) // 8, dtype=torch.uint8)


_forward_op = define("dropout(Tensor x, float p) -> (Tensor, Tensor)", _forward, _forward_fake, random=True)


def _backward(grad: Tensor, mask: Tensor, p: float) -> Tensor:
    return torch.ops.graphlossy.mask_apply(grad.contiguous(), mask, keep_scale(p, grad.dtype))


dropout_backward = define(
    "dropout_backward(Tensor grad, Tensor mask, float p) -> Tensor",
    _backward,
    lambda grad, mask, p: grad.new_empty(grad.shape),
)


def _seeded(x: Tensor, p: float, seed: Tensor) -> Tensor:
    noise = bernoulli(x.shape, p, x.device, int(seed))
    return drop_(x.clone(memory_format=torch.contiguous_format), noise, p)


_seeded_op = define(
    "dropout_seeded(Tensor x, float p, Tensor seed) -> Tensor", _seeded, lambda x, p, seed: x.new_empty(x.shape)
)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p, inplace):
        if inplace:
            noise = bernoulli(x.shape, p, x.device)
            ctx.mark_dirty(x)
            out = drop_(x, noise, p)
            mask = torch.ops.graphlossy.pack_mask(noise.view(-1))
        else:
            out, mask = _forward_op(x, p)
        ctx.p = p
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask)
        return out, mask

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        (mask,) = ctx.saved_tensors
        return dropout_backward(grad, mask, ctx.p), None, None


class _SeededDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p, seed):
        ctx.p = p
        ctx.save_for_backward(seed)
        return _seeded_op(x, p, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (seed,) = ctx.saved_tensors
        return _seeded_op(grad.contiguous(), ctx.p, seed), None, None


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, keep: str = "mask") -> Tensor:
    """Zero each element with probability p and scale the rest by 1 / (1 - p); the gradient is exact.

    Srivastava et al., JMLR 2014. With ``keep="mask"`` the values on the CPU equal those of
    ``torch.nn.functional.dropout`` under the same ``torch.manual_seed``, bit for bit; CUDA draws other noise than
    torch's fused kernel. With ``keep="seed"`` the noise comes from its own generator, whose seed is drawn from torch's.

    Args:
        x: any shape.
        p: probability of dropping an element.
        training: if False, ``x`` is returned.
        inplace: overwrite ``x`` (with ``keep="mask"``).
        keep: ``"mask"`` (1 bit per element) or ``"seed"`` (64 bits in all, noise drawn again in the backward pass).

    Raises:
        ValueError: if ``p`` is not a probability or ``keep`` is unknown.

    Example:
        >>> x = torch.ones(4, requires_grad=True)
        >>> out = dropout(x, 0.5)
        >>> torch.equal(torch.autograd.grad(out.sum(), x)[0], out)
        True
    """
    check_probability(p)
    check_keep(keep)
    if not training or p == 0.0:
        return x
    if keep == "seed":
        out = _SeededDropout.apply(x, p, draw_seed())
        return x.copy_(out) if inplace and not torch.is_grad_enabled() else out
    if not torch.is_grad_enabled():
        return dropout_without_grad(x, p, inplace)
    recipe = recipe_of(x)
    # A leaf lives anyway: what follows can compute the output again from it and the mask.
    if recipe is None and x.dim() > 1 and not inplace and not torch.compiler.is_compiling() and x.is_leaf:
        recipe = reference(x)
    out, mask = _Dropout.apply(x, p, inplace)
    return attach_masked(out, recipe, mask, p)


def dropout_without_grad(x: Tensor, p: float, inplace: bool = False) -> Tensor:
    """dropout(x) by the noise that is drawn with gradients: torch's on the CPU; on CUDA its own kernel's differs."""
    if x.is_cuda and not torch.compiler.is_compiling():
        return drop_(x if inplace else x.clone(), bernoulli(x.shape, p, x.device), p)
    return torch.nn.functional.dropout(x, p, inplace=inplace)


def attach_masked(out: Tensor, recipe: Recipe | None, mask: Tensor, p: float) -> Tensor:
    """Leave on ``out`` the recipe of dropout(p) by ``mask`` of a tensor with this recipe, if it has one."""
    if recipe is None or torch.compiler.is_compiling():
        return out
    return attach(out, recipe.masked(mask, keep_scale(p, out.dtype)))
