"""A search runs a model forward and backward; afterwards the model is what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["preserved"]


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restores gradients, training flags and buffers of ``model``; parameters a search leaves as they are, or restores
    itself: tables are too large for a copy that is not needed."""
    copies = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    grads = [(param, param.grad) for param in model.parameters()]
    flags = [(module, module.training) for module in model.modules()]
    for param, _ in grads:
        param.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, copy in copies:
                buffer.copy_(copy)
        for param, grad in grads:
            param.grad = grad
        for module, flag in flags:
            module.training = flag
