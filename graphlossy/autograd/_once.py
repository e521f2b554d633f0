"""What an autograd function without a second derivative tells whoever asks for one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["once_differentiable"]


class _NoSecondDerivative(torch.autograd.Function):
    """Hands first gradients through; raises if a gradient is asked to flow back through one of them."""

    @staticmethod
    def forward(ctx, recorded, *grads):
        return tuple(None if grad is None else grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "double backward is not supported by graphlossy's fused functions (they are once_differentiable): what "
            "they keep in low bits gives the first gradient only. For a gradient of a gradient build the layers with "
            "bits=None, with torch's own norms, activations and dropout between them, or use graphlossy.compress"
        )


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """As ``torch.autograd.function.once_differentiable``, with an error that says what to do.

    It raises for constant incoming gradients as well, where torch's would drop the part of the second derivative that
    goes through the saved tensors. Compiled code has no second derivative anyway: torch says so itself.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            out = backward(ctx, *grads)
        recorded = torch.empty(0, requires_grad=True)
        return _NoSecondDerivative.apply(recorded, *(out if isinstance(out, tuple) else (out,)))

    return wrapper
