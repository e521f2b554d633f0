"""Two small products with a shared input: the identity mapping of GCNII and the weighted self-loop of GIN."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.autograd._once import once_differentiable
from graphlossy.autograd._packed import check_bits, draw_seed
from graphlossy.autograd.linear import weight_grad
from graphlossy.autograd.recipe import keep

__all__ = ["identity_linear", "scaled_self"]


class _IdentityLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, beta, scale, layout, *tensors):
        ctx.beta, ctx.scale, ctx.layout = beta, scale, layout
        ctx.save_for_backward(weight, *tensors)
        return _identity_linear(x, weight, beta, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, *tensors = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            transposed = weight.t().to(grad.dtype)
            grad_x = torch.addmm(grad, grad, transposed, beta=1.0 - ctx.beta, alpha=ctx.beta)
            grad_x = grad_x if ctx.scale == 1.0 else grad_x.mul_(ctx.scale)
        if ctx.needs_input_grad[1]:
            product = weight_grad(grad, ctx.layout.rebuild(tensors)).t()
            grad_weight = product.mul(ctx.beta * ctx.scale).to(weight.dtype)
        return grad_x, grad_weight, None, None, None, *[None] * len(tensors)


def _identity_linear(x: Tensor, weight: Tensor, beta: float, scale: float) -> Tensor:
    x = x if scale == 1.0 else scale * x
    return torch.addmm(x, x, weight, beta=1.0 - beta, alpha=beta)


def identity_linear(
    x: Tensor, weight: Tensor, beta: float, scale: float = 1.0, *, bits: int | None = 2, group_size: int = 256
) -> Tensor:
    """s x ((1 - beta) I + beta W): GCNII's identity mapping (Chen et al., ICML 2020, equation 5), x kept in ``bits``
    bits.

    Args:
        x: [N, D].
        weight: [D, D].
        beta: strength of W.
        scale: s.
        bits: 1, 2, 3, 4, 8 or None (exact).
        group_size: elements that share a scale and an offset.

    Example:
        >>> identity_linear(torch.ones(1, 2), torch.zeros(2, 2), beta=0.25)
        tensor([[0.7500, 0.7500]])
    """
    check_bits(bits)
    if bits is None or not torch.is_grad_enabled() or not weight.requires_grad:
        if bits is not None and weight.requires_grad:
            draw_seed()  # as with gradients
        return _identity_linear(x, weight, beta, scale)
    recipe = keep(x, bits, group_size)
    return _IdentityLinear.apply(x, weight, beta, scale, recipe.layout, *recipe.tensors)


class _ScaledSelf(torch.autograd.Function):
    @staticmethod
    def forward(ctx, aggregated, x, eps, layout, *tensors):
        ctx.layout, ctx.input_dtype = layout, x.dtype
        ctx.save_for_backward(eps, *tensors)
        return aggregated + (1 + eps) * x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        eps, *tensors = ctx.saved_tensors
        grad_eps = grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = ((1 + eps) * grad).to(ctx.input_dtype)
        if ctx.needs_input_grad[2]:
            rows = grad.reshape(-1, grad.shape[-1])
            grad_eps = torch.zeros_like(eps)
            for start, end, block in ctx.layout.rebuild(tensors).blocks():
                grad_eps += (block.to(grad.dtype) * rows[start:end]).sum()
        return grad, grad_x, grad_eps, None, *[None] * len(tensors)


def scaled_self(aggregated: Tensor, x: Tensor, eps: Tensor, *, bits: int | None = 2, group_size: int = 256) -> Tensor:
    """aggregated + (1 + eps) x, as in GIN (Xu et al., ICLR 2019, equation 4.1); x is kept only for a trained eps.

    Args:
        aggregated: [N, D].
        x: [N, D].
        eps: [1].
        bits: 1, 2, 3, 4, 8 or None (exact).
        group_size: elements that share a scale and an offset.

    Example:
        >>> scaled_self(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.5]))
        tensor([[1.5000, 1.5000]])
    """
    check_bits(bits)
    if bits is None or not torch.is_grad_enabled() or not eps.requires_grad:
        if bits is not None and eps.requires_grad:
            draw_seed()  # as with gradients
        return aggregated + (1 + eps) * x
    recipe = keep(x, bits, group_size)
    return _ScaledSelf.apply(aggregated, x, eps, recipe.layout, *recipe.tensors)
