"""Norm -> ReLU -> dropout as one layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphlossy.autograd import norm_act_dropout, relu_dropout
from graphlossy.autograd._packed import check_bits
from graphlossy.autograd.dropout import check_probability
from graphlossy.nn.batch_norm import BatchNorm, batch_statistics_momentum, takes_batch_statistics
from graphlossy.nn.layer_norm import LayerNorm

__all__ = ["NormActDropout"]

_NORMS: dict[str, type[BatchNorm] | type[LayerNorm]] = {"batch": BatchNorm, "layer": LayerNorm}


class NormActDropout(torch.nn.Module):
    """dropout(relu(norm(x))) keeping one low-bit tensor and one exact bit per element.

    Kept per element at 2 bits: 2 + 32 / 256 bits of the normalised input and 1 bit of the joint mask, 3.125 in all; a
    linear layer or convolution of this package that follows keeps nothing for its input. On the CPU the values equal
    those of the three layers under the same seed. ``norm=None`` keeps the joint mask only.

    Args:
        in_channels: C.
        norm: ``"batch"`` (``self.norm`` is a :class:`BatchNorm`), ``"layer"`` (a :class:`LayerNorm`) or None.
        p: dropout probability.
        bits: 1, 2, 3, 4, 8 or None (exact norm).
        **kwargs: further arguments of the norm (``eps``, ``momentum``, ``affine``, ``mode``, ...).

    Shapes:
        [N, C] -> [N, C]

    Example:
        >>> NormActDropout(16, norm="batch", p=0.5)(torch.randn(100, 16)).shape
        torch.Size([100, 16])
    """

    def __init__(
        self, in_channels: int, norm: str | None = "batch", p: float = 0.5, *, bits: int | None = 2, **kwargs: Any
    ):
        super().__init__()
        check_bits(bits)
        check_probability(p)
        if norm is not None and norm not in _NORMS:
            raise ValueError(f"norm must be one of {(*_NORMS, None)}, got {norm!r}")
        if norm is None and kwargs:
            raise TypeError(f"without a norm there are no further arguments, got {sorted(kwargs)}")
        self.in_channels, self.p, self.bits = in_channels, p, bits
        self.norm = None if norm is None else _NORMS[norm](in_channels, bits=bits, **kwargs)

    def reset_parameters(self) -> None:
        if self.norm is not None:
            self.norm.reset_parameters()

    def forward(self, x: Tensor, batch: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        if self.norm is None:
            return relu_dropout(x, self.p, self.training)
        layer = isinstance(self.norm, LayerNorm)
        plain = not (self.training and x.dim() == 2) or (not layer and not takes_batch_statistics(self.norm, x))
        if self.bits is None or plain:
            y = self.norm(x, batch, batch_size) if layer else self.norm(x)
            return relu_dropout(y, self.p, self.training)
        if layer:
            return norm_act_dropout(
                x, self.norm.weight, self.norm.bias, norm=self.norm.mode, p=self.p, eps=self.norm.eps,
                batch=batch, batch_size=batch_size, bits=self.bits,
            )  # fmt: skip
        inner = self.norm.module
        momentum = batch_statistics_momentum(inner)
        return norm_act_dropout(
            x, inner.weight, inner.bias, inner.running_mean, inner.running_var, p=self.p, momentum=momentum,
            eps=inner.eps, bits=self.bits,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_channels}, norm={self.norm}, p={self.p}, bits={self.bits})"
