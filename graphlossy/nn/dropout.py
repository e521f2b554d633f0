"""Dropout keeping one exact bit per element, or its seed only."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.autograd import dropout
from graphlossy.autograd.dropout import check_keep

__all__ = ["Dropout"]


class Dropout(torch.nn.Dropout):
    """Dropout as ``torch.nn.Dropout`` (Srivastava et al., JMLR 2014); the gradient is exact.

    Args:
        p: probability of dropping an element.
        inplace: overwrite the input.
        keep: ``"mask"``: 1 bit per element, on the CPU torch's own noise; ``"seed"``: 64 bits in all, and the noise is
            drawn again in the backward pass.

    Shapes:
        any -> the same

    Example:
        >>> Dropout(p=1.0)(torch.tensor([-1.0, 2.0]))
        tensor([-0., 0.])
    """

    def __init__(self, p: float = 0.5, inplace: bool = False, *, keep: str = "mask"):
        super().__init__(p, inplace)
        check_keep(keep)
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training, self.inplace, keep=self.keep)
