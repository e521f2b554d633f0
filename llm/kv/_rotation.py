"""Rotation of head dimensions by an orthogonal matrix without large entries: large channels are spread over all."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["rotate"]


@lru_cache(maxsize=16)
def _matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Orthogonal and symmetric: Sylvester's Hadamard matrix of the largest power of two that divides the size, times
    (Kronecker) the discrete Hartley transform (Hartley, 1942) of what is left."""
    block = size & -size
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    number = torch.arange(size // block, dtype=torch.float64)
    angle = number[:, None] * number * (2 * math.pi / len(number))
    return (torch.kron(angle.cos() + angle.sin(), matrix) / size**0.5).to(dtype=dtype, device=device)


def rotate(x: Tensor) -> Tensor:
    """x times an orthogonal matrix along the last dimension; applied twice it is x again, up to rounding.

    Shapes:
        x [..., D] -> [..., D]

    Example:
        >>> rotate(torch.tensor([2.0, 0, 0, 0]))
        tensor([1., 1., 1., 1.])
    """
    return x @ _matrix(x.shape[-1], x.dtype, x.device)
