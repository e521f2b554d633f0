"""The definition of the core's operators in plain torch, on every device that has no kernel of its own.

The kernels in csrc/ agree with these functions bit for bit. One group of float32 values x_i with least and greatest
values lo and hi, rounded to ``bits`` bits (levels = 2**bits - 1):

    offset = bfloat16(lo) rounded down          scale = bfloat16((hi - offset) / levels) rounded up
    code_i = min(floor((x_i - offset) / scale + u_i), levels)          x'_i = code_i * scale + offset

The metadata is rounded first and the values are encoded with what is stored, so that E[x'_i] = x_i for u_i uniform in
[0, 1) (stochastic rounding: ActNN, Chen et al. 2021, section 3; EXACT, Liu et al. 2022, eq. 3). u_i = 1/2 is nearest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.core import _schemas

__all__ = ["dequantize", "mask_apply", "pack_mask", "quantize", "unpack_mask"]

_LOW32 = 0xFFFFFFFF
# Elements at a time: the 64-bit integers of the hash would otherwise take several times the tensor's own bytes.
_CHUNK = 1 << 22
_SMALLEST_NORMAL = 2.0**-126
_LARGEST_BFLOAT16 = 0x7F7F << 16
_SCALE_NAN = 0x7FC0


def mix32(x: Tensor) -> Tensor:
    """A 32-bit hash with low bias (Wellons' hash prospector) of an int64 tensor with values in [0, 2**32)."""
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD) & _LOW32
    x = x ^ (x >> 15)
    x = (x * 0x735A2D97) & _LOW32
    return x ^ (x >> 15)


def group_key(seed: int, group: Tensor) -> Tensor:
    """The 32-bit random key of each group from a 64-bit seed and the 64-bit index of the group."""
    low = torch.tensor(seed & _LOW32, device=group.device)
    high = torch.tensor(((seed >> 32) + 0x9E3779B9) & _LOW32, device=group.device)
    h = mix32(low ^ mix32(high))
    h = mix32(h ^ (group & _LOW32))
    return mix32(h ^ ((group >> 32) & _LOW32) ^ 0x85EBCA6B)


def uniform(seed: int, groups: Tensor, length: int) -> Tensor:
    """Noise in [0, 1) with 16 random bits for groups [N] of ``length`` (padded) elements: float32 [N, length].

    One 32-bit hash serves two elements: element i of the first half its low bits, element i of the second half its
    high bits.
    """
    counter = torch.arange(length // 2, device=groups.device)
    h = mix32((group_key(seed, groups).unsqueeze(1) + counter) & _LOW32)
    return torch.cat([h & 0xFFFF, h >> 16], dim=1).to(torch.float32) * (1.0 / 65536.0)


def affine(lo: Tensor, hi: Tensor, poisoned: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """(scale, offset, poisoned) of groups: the stored metadata as float32.

    A group is poisoned if it holds a NaN or an infinity, or if its range leaves bfloat16's: its scale is NaN, so that
    a NaN or an overflow is never turned into a finite number.
    """
    lo, hi = lo + 0.0, hi + 0.0  # -0 becomes +0: which of the two a minimum returns depends on the order
    offset = _bfloat16_away(lo, lo < 0)
    scale = (hi - offset) / torch.full_like(hi, levels)
    scale = _bfloat16_away(scale, scale > 0)
    # Below the normal range 1 / scale would overflow.
    scale = torch.where((scale > 0) & (scale < _SMALLEST_NORMAL), torch.full_like(scale, _SMALLEST_NORMAL), scale)
    largest = torch.tensor(_LARGEST_BFLOAT16, dtype=torch.int32, device=lo.device).view(torch.float32)
    poisoned = poisoned | ~(scale * levels + offset <= largest)
    scale = torch.where(poisoned, torch.full_like(scale, torch.nan), scale)
    return scale, torch.where(poisoned, torch.zeros_like(offset), offset), poisoned


def _bfloat16_away(value: Tensor, away: Tensor) -> Tensor:
    """float32 cut to bfloat16 precision: away from zero where ``away``, towards zero elsewhere."""
    pattern = value.view(torch.int32)
    cut = pattern & -0x10000
    return torch.where(away & (pattern != cut), cut + 0x10000, cut).view(torch.float32)


def _quantize_groups(
    v: Tensor, bits: int, stochastic: bool, seed: int, groups: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(packed [N, bits * L / 8], scale [N], offset [N]) of groups v [N, len], L = len rounded up to a multiple of 8."""
    v = v.to(torch.float32)
    levels = 2**bits - 1
    length = (v.shape[1] + 7) // 8 * 8
    lo, hi = v.aminmax(dim=1)
    scale, offset, poisoned = affine(lo, hi, ~v.isfinite().all(dim=1), levels)
    inv = torch.where(scale > 0, torch.ones_like(scale) / scale, torch.zeros_like(scale))
    u: Tensor | float = uniform(seed, groups, length)[:, : v.shape[1]] if stochastic else 0.5
    t = (v - offset.unsqueeze(1)) * inv.unsqueeze(1) + u
    t = torch.where(poisoned.unsqueeze(1), torch.zeros_like(t), t)
    code = t.clamp(max=levels).to(torch.int32)
    code = torch.nn.functional.pad(code, (0, length - v.shape[1]))
    stored = torch.where(poisoned, torch.full_like(lo.view(torch.int32), _SCALE_NAN << 16), scale.view(torch.int32))
    return pack(code, bits), _bfloat16(stored), _bfloat16(offset.view(torch.int32))


def _bfloat16(bits32: Tensor) -> Tensor:
    return (bits32 >> 16).to(torch.int16).view(torch.bfloat16)


def pack(code: Tensor, bits: int) -> Tensor:
    """Planar: byte j of a group holds elements j, j + P, j + 2P, ...; 3 bits are a plane of 2 and a plane of 1."""
    if bits == 3:
        return torch.cat([pack(code & 3, 2), pack(code >> 2, 1)], dim=1)
    per = 8 // bits
    planes = code.view(code.shape[0], per, code.shape[1] // per)
    byte = planes[:, 0]
    for k in range(1, per):
        byte = byte | (planes[:, k] << (k * bits))
    return byte.to(torch.uint8)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    if bits == 3:
        low = packed.shape[1] // 3 * 2
        return _unpack(packed[:, :low], 2) | (_unpack(packed[:, low:], 1) << 2)
    byte = packed.to(torch.int32)
    return torch.cat([(byte >> (k * bits)) & (2**bits - 1) for k in range(8 // bits)], dim=1)


def _spans(rows: int, width: int, group_size: int) -> list[tuple[int, int, int, int]]:
    """Blocks of equally long groups: (first group, end group, first element, length of a group), per row."""
    full, tail = divmod(width, group_size)
    step = max(1, _CHUNK // max(1, rows * group_size))
    spans = [(g, min(g + step, full), g * group_size, group_size) for g in range(0, full, step)]
    return [*spans, (full, full + 1, full * group_size, tail)] if tail else spans


def quantize(x: Tensor, bits: int, group_size: int, stochastic: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Definition of graphlossy::quantize: (packed, scale, offset) of x [R, D]."""
    packed, scale, offset = _schemas.FAKES["quantize"](x, bits, group_size, stochastic, seed)
    rows, width = x.shape
    count = scale.shape[1]
    row_step = max(1, _CHUNK // max(1, width))
    for r in range(0, rows, row_step):
        end = min(r + row_step, rows)
        for first, last, start, length in _spans(end - r, width, group_size):
            n = last - first
            v = x[r:end, start : start + n * length].reshape(-1, length)
            index = torch.arange(r, end, device=x.device).unsqueeze(1) * count
            index = (index + torch.arange(first, last, device=x.device)).reshape(-1)
            codes, s, o = _quantize_groups(v, bits, stochastic, seed, index)
            at = start // 8 * bits
            packed[r:end, at : at + n * codes.shape[1]] = codes.view(end - r, -1)
            scale[r:end, first:last] = s.view(end - r, n)
            offset[r:end, first:last] = o.view(end - r, n)
    return packed, scale, offset


def dequantize(
    packed: Tensor, scale: Tensor, offset: Tensor, bits: int, group_size: int, width: int, dtype: torch.dtype
) -> Tensor:
    """Definition of graphlossy::dequantize: code * scale + offset in float32 (two roundings), then ``dtype``."""
    out = _schemas.FAKES["dequantize"](packed, scale, offset, bits, group_size, width, dtype)
    rows = packed.shape[0]
    row_step = max(1, _CHUNK // max(1, width))
    for r in range(0, rows, row_step):
        end = min(r + row_step, rows)
        for first, last, start, length in _spans(end - r, width, group_size):
            at, size = start // 8 * bits, (length + 7) // 8 * bits
            codes = _unpack(packed[r:end, at : at + (last - first) * size].reshape(-1, size), bits)[:, :length]
            s = scale[r:end, first:last].reshape(-1, 1).to(torch.float32)
            o = offset[r:end, first:last].reshape(-1, 1).to(torch.float32)
            out[r:end, start : start + (last - first) * length] = _cast(codes * s + o, dtype).view(end - r, -1)
    return out


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value`` as ``dtype``: finite stays finite in float16, and every NaN is the canonical one on every device."""
    if dtype == torch.float16:
        value = torch.where(value.isinf(), value, value.clamp(-65504.0, 65504.0))
    return _canonical_nan(value.to(dtype))


def _canonical_nan(value: Tensor) -> Tensor:
    return value.masked_fill(value.isnan(), torch.nan)


def pack_mask(mask: Tensor) -> Tensor:
    """Definition of graphlossy::pack_mask: element i is bit i & 7 of byte i >> 3; nonzero (and NaN) is 1."""
    flat = mask.reshape(-1)
    out = _schemas.FAKES["pack_mask"](mask)
    shifts = torch.arange(8, device=mask.device)
    for start in range(0, flat.numel(), _CHUNK):
        bits = flat[start : start + _CHUNK] != 0
        bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 8))
        byte = (bits.view(-1, 8).to(torch.int32) << shifts).sum(dim=1)
        out[start // 8 : start // 8 + byte.numel()] = byte.to(torch.uint8)
    return out


def unpack_mask(
    packed: Tensor, numel: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype | None = None
) -> Tensor:
    """Definition of graphlossy::unpack_mask: ``high``, rounded to ``dtype``, where the bit is set, else ``low``."""
    out = _schemas.FAKES["unpack_mask"](packed, numel, low, high, dtype)
    lower, upper = _schemas.two_values(low, high, dtype).to(packed.device)
    shifts = torch.arange(8, device=packed.device)
    for start in range(0, numel, _CHUNK):
        end = min(start + _CHUNK, numel)
        byte = packed[start // 8 : _schemas.mask_bytes(end)].to(torch.int32).unsqueeze(1)
        bits = ((byte >> shifts) & 1).reshape(-1)[: end - start] != 0
        torch.where(bits, upper, lower, out=out[start:end])
    return out


def mask_apply(grad: Tensor, packed: Tensor, scale: float) -> Tensor:
    """Definition of graphlossy::mask_apply: grad * scale where the bit is set, else 0.

    Computed in float32 (float64 for float64). Under a zero bit NaN and infinity give 0 too; a NaN is canonical.
    """
    _schemas.check_mask_apply(grad, packed)
    wide = torch.promote_types(grad.dtype, torch.float32)
    bits = unpack_mask(packed, grad.numel()).view(grad.shape)
    factor = torch.tensor(scale, dtype=wide, device=grad.device)
    product = (grad.to(wide) * factor).to(grad.dtype)
    return torch.where(bits, _canonical_nan(product), torch.zeros_like(product)).contiguous()


for _name in _schemas.OPS:
    _schemas.LIBRARY.impl(_name, globals()[_name], "CompositeExplicitAutograd")
