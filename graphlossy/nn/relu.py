"""ReLU keeping one exact bit per element."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.autograd import relu

__all__ = ["ReLU"]


class ReLU(torch.nn.ReLU):
    """max(x, 0) as ``torch.nn.ReLU``, keeping 1 bit per element; values and gradient are exact.

    Args:
        inplace: overwrite the input.

    Shapes:
        any -> the same

    Example:
        >>> ReLU()(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """

    def forward(self, x: Tensor) -> Tensor:
        return relu(x, self.inplace)
