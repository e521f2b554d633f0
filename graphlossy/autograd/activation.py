"""ReLU and LeakyReLU that keep one exact bit per element.

Their gradients ask only which side of zero an element lies on (ActNN, section 4.2; EXACT, section 3.1). One bit per
element answers that exactly; a low-bit float would not: a small positive output rounded to zero loses its gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.autograd._once import once_differentiable
from graphlossy.autograd._ops import define
from graphlossy.autograd.recipe import attach, recipe_of

__all__ = ["leaky_relu", "relu"]

_BLOCK = {"cpu": 1 << 20}
_DEVICE_BLOCK = 1 << 24


def _leaky_backward(grad: Tensor, packed: Tensor, slope: float) -> Tensor:
    flat = grad.reshape(-1)
    out = flat * slope
    step = _BLOCK.get(grad.device.type, _DEVICE_BLOCK)
    for start in range(0, flat.numel(), step):
        end = min(start + step, flat.numel())
        positive = torch.ops.graphlossy.unpack_mask(packed[start // 8 : -(-end // 8)], end - start)
        torch.where(positive, flat[start:end], out[start:end], out=out[start:end])
    return out.view(grad.shape)


_leaky_backward_op = define(
    "leaky_relu_backward(Tensor grad, Tensor packed, float slope) -> Tensor",
    _leaky_backward,
    lambda grad, packed, slope: grad.new_empty(grad.shape),
)


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, inplace):
        if inplace:
            ctx.mark_dirty(x)
            out = x.relu_()
        else:
            out = x.relu()
        mask = torch.ops.graphlossy.pack_mask(out.reshape(-1))
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask)
        return out, mask

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        (mask,) = ctx.saved_tensors
        return torch.ops.graphlossy.mask_apply(grad.contiguous(), mask, 1.0), None


class _LeakyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, slope):
        mask = torch.ops.graphlossy.pack_mask(x.reshape(-1) > 0)
        ctx.slope = slope
        ctx.save_for_backward(mask)
        return torch.nn.functional.leaky_relu(x, slope)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        return _leaky_backward_op(grad.contiguous(), mask, ctx.slope), None


def relu(x: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0), keeping one bit per element; values and gradient equal torch's.

    Args:
        x: any shape.
        inplace: overwrite ``x``.

    Example:
        >>> x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
        >>> relu(x).sum().backward(); x.grad
        tensor([0., 0., 1.])
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        return torch.nn.functional.relu(x, inplace=inplace)
    recipe = recipe_of(x)
    out, mask = _ReLU.apply(x, inplace)
    return out if recipe is None else attach(out, recipe.masked(mask, 1.0))


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope * x, keeping one bit per element; values and gradient equal torch's.

    Args:
        x: any shape.
        negative_slope: factor of the negative side.

    Example:
        >>> leaky_relu(torch.tensor([-1.0, 2.0]), 0.5)
        tensor([-0.5000,  2.0000])
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        return torch.nn.functional.leaky_relu(x, negative_slope)
    return _LeakyReLU.apply(x, float(negative_slope))
