"""LeakyReLU keeping one exact bit per element."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.autograd import leaky_relu

__all__ = ["LeakyReLU"]


class LeakyReLU(torch.nn.LeakyReLU):
    """x where x > 0, else slope * x, as ``torch.nn.LeakyReLU``, keeping 1 bit per element; values and gradient are
    exact.

    Args:
        negative_slope: factor of the negative side.
        inplace: accepted for compatibility; the input is left alone while a gradient is recorded.

    Shapes:
        any -> the same

    Example:
        >>> LeakyReLU(0.5)(torch.tensor([-1.0, 2.0]))
        tensor([-0.5000,  2.0000])
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.inplace and not (x.requires_grad and torch.is_grad_enabled()):
            return super().forward(x)
        return leaky_relu(x, self.negative_slope)
