"""Low-bit codes for groups that look like draws of one normal distribution, such as rotated vectors: no offset is kept.

Values beyond the outermost code are cut, which a quantiser by least and greatest value does not do: with few bits its
steps are wide for the sake of two numbers. A cut group is too short, and that error is the same in every group, so that
sums over many groups do not average it out. As EDEN does (Vargaftik et al., ICML 2022, section 3, after DRIVE, NeurIPS
2021), the scale is therefore not the one of the least error but the one that keeps the length along the group itself,

    scale = sum_i x_i^2 / sum_i x_i l_i          x'_i = scale l_i          l_i = code_i - (2^bits - 1) / 2

so that sum_i x_i x'_i = sum_i x_i^2: over random rotations the expected value of x', turned back, is x. At 2 bits that
costs .135 of the squared length of long groups (.119 is the least that equal steps can have) and .13 of groups of 64,
where least and greatest value cost .20, and 16 bits more.

There is one implementation, in plain torch for every device; sums may round differently from device to device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.core import _schemas
from graphlossy.core._reference import pack

__all__ = ["SYMMETRIC_BITS", "offset_of", "quantize_symmetric"]

# Equal steps of least squared error for a normal distribution, in standard deviations (Max, 1960, table II).
_STEPS = {1: 1.596, 2: 0.9957, 3: 0.5860}
SYMMETRIC_BITS = tuple(_STEPS)  # with more, least and greatest value are the better ends


def quantize_symmetric(x: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of groups along the last dimension; ``scale * code + offset_of(scale, bits)`` is the value.

    Rounding is to the nearest code. A group of zeros comes back as zeros, one with a NaN or an infinity as NaN.

    Args:
        x: float, [..., N, D].
        bits: 1, 2 or 3.
        group_size: elements that share a scale of 2 bytes, a multiple of 8; the last group of a row may be shorter.

    Returns:
        (uint8 [..., N, bytes], bfloat16 [..., N, groups]), codes in the order of :func:`graphlossy.core.quantize`.

    Raises:
        TypeError: ``x`` is no float tensor.
        ValueError: ``bits`` or ``group_size`` is not allowed.

    Example:
        >>> x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
        >>> codes, scale = quantize_symmetric(x, 2, 64)
        >>> codes.shape, scale.shape, offset_of(torch.tensor([2.0]), 2)
        (torch.Size([4, 16]), torch.Size([4, 1]), tensor([-3.]))
    """
    _schemas.check_float("x", x.dtype)
    _schemas.check_group_size(group_size)
    if bits not in _STEPS:
        raise ValueError(f"bits must be one of {', '.join(map(str, SYMMETRIC_BITS))}, got {bits!r}")
    found = [_group(part.float(), bits) for part in x.detach().split(group_size, -1)]
    return torch.cat([codes for codes, _ in found], -1), torch.cat([scale for _, scale in found], -1)


def offset_of(scale: Tensor, bits: int) -> Tensor:
    """Value of code 0."""
    return scale * (-(2**bits - 1) / 2)


def _group(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    levels = 2**bits - 1
    top = x.abs().amax(-1, keepdim=True)
    unit = x / torch.where(top > 0, top, 1)  # squares neither overflow nor vanish
    length = unit.square()
    step = length.mean(-1, keepdim=True).sqrt() * _STEPS[bits]
    code = (unit / torch.where(step > 0, step, 1) + levels / 2).round().clamp(0, levels).nan_to_num(0)
    along = (unit * (code - levels / 2)).sum(-1, keepdim=True)  # above 0: signs are those of x
    scale = top * (length.sum(-1, keepdim=True) / torch.where(top > 0, along, 1))
    width = x.shape[-1]
    code = torch.nn.functional.pad(code.to(torch.int32), (0, -width % 8))
    return pack(code.flatten(0, -2), bits).unflatten(0, x.shape[:-1]), scale.to(torch.bfloat16)
