"""A search runs a model forward and backward; afterwards the model is what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["preserved"]


@contextmanager
def preserved(model: nn.Module, trains: bool) -> Iterator[None]:
    """Restores gradients, training flags and buffers of ``model``; after an exception, parameters too if ``trains``.

    Args:
        model: that is searched.
        trains: the search changes parameters, and is meant to. Only then are they copied: tables are large.
    """
    copies = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())
              if trains or not isinstance(tensor, nn.Parameter)]  # fmt: skip
    grads = [(param, param.grad) for param in model.parameters()]
    flags = [(module, module.training) for module in model.modules()]
    for param, _ in grads:
        param.grad = None
    done = False
    try:
        yield
        done = True
    finally:
        if not (done and trains):
            _restore(copies)
        for param, grad in grads:
            param.grad = grad
        for module, flag in flags:
            module.training = flag


@torch.no_grad()
def _restore(copies: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, copy in copies:
        if 0 not in tensor.stride() or tensor.numel() <= 1:  # the handle of low-bit rows is one element seen many times
            tensor.copy_(copy)
