"""Rotation of head dimensions by Hadamard matrices: it spreads a few large channels over all."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["rotate"]


@lru_cache(maxsize=16)
def _hadamard(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthogonal, symmetric Hadamard matrix of a power of two (Sylvester's)."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return (matrix / size**0.5).to(dtype=dtype, device=device)


def rotate(x: Tensor) -> Tensor:
    """x times an orthogonal matrix along the last dimension; applied twice it is x again, up to rounding.

    Where the last dimension is no power of two, blocks of the largest power of two that divides it are rotated.

    Shapes:
        x [..., D] -> [..., D]

    Example:
        >>> rotate(torch.tensor([2.0, 0, 0, 0]))
        tensor([1., 1., 1., 1.])
    """
    width = x.shape[-1]
    block = width & -width  # the largest power of two that divides it
    matrix = _hadamard(block, x.dtype, x.device)
    return (x.unflatten(-1, (-1, block)) @ matrix).flatten(-2)
