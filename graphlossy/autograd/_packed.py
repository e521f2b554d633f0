"""Low-bit copies of saved tensors as plain tensors plus constants, in the form autograd and ``torch.compile`` can keep.

Groups run flat (``group_size`` consecutive elements over the whole tensor: least metadata, 2.125 bits per element at 2
bits and 256) or by rows (each row has its own groups, so that single rows can be unpacked). Scales and offsets are kept
as bytes, so no saved-tensor hook takes them for activations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import graphlossy.core  # noqa: F401  registers graphlossy::quantize and graphlossy::dequantize

__all__ = ["Meta", "Packed", "block_rows", "check_bits", "draw_seed", "pack", "row_blocks", "unpack_rows"]

_BITS = (1, 2, 3, 4, 8)
# Elements unpacked at a time: 4 MiB of float32 stays in a CPU's cache; a GPU needs more to be busy.
_BLOCK = {"cpu": 1 << 20}
_DEVICE_BLOCK = 1 << 24


def check_bits(bits: int | None) -> None:
    """Raise unless ``bits`` is a supported width or None."""
    if bits is not None and (isinstance(bits, bool) or bits not in _BITS):
        raise ValueError(f"bits must be one of {_BITS} or None (exact), got {bits!r}")


class Meta(NamedTuple):
    """What is needed to unpack: constants only."""

    bits: int  # 0: not packed
    group_size: int
    rows: bool
    shape: Sequence[int]
    dtype: torch.dtype


class Packed(NamedTuple):
    """(packed, scale, offset), or (x,) if not packed, and how to read them."""

    tensors: tuple[Tensor, ...]
    meta: Meta

    def dequantize(self) -> Tensor:
        if self.meta.bits == 0:
            return self.tensors[0]
        width = self.meta.shape[-1] if self.meta.rows else _numel(self.meta.shape)
        return _dequantize(self.tensors, self.meta, width).view(self.meta.shape)


def _dequantize(tensors: Sequence[Tensor], meta: Meta, width: int) -> Tensor:
    packed, scale, offset = tensors
    scale, offset = scale.view(torch.bfloat16), offset.view(torch.bfloat16)
    return torch.ops.graphlossy.dequantize(packed, scale, offset, meta.bits, meta.group_size, width, meta.dtype)


def _numel(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def draw_seed() -> Tensor:
    """A 63-bit seed from torch's global generator, as a CPU tensor so that compiled code draws it at run time.

    How often a function draws may depend on its arguments' shapes and options only, not on the grad mode nor on what an
    earlier call left behind: a checkpointed region, run a second time from the same state of the generator, must come
    to the same noise in every dropout that follows. What needs no seed draws one all the same.
    """
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu")


def pack(
    x: Tensor, bits: int | None, group_size: int = 256, *, rows: bool = False, seed: Tensor | None = None
) -> Packed:
    """Round ``x`` stochastically to ``bits`` (None: keep it as it is), metadata rounded to bfloat16 first."""
    check_bits(bits)
    meta = Meta(bits or 0, group_size, rows, x.shape, x.dtype)
    if bits is None:
        return Packed((x,), meta)
    seed = draw_seed() if seed is None else seed
    return Packed(tuple(torch.ops.graphlossy.pack(x, bits, group_size, rows, seed)), meta)


def pack_tensor(x: Tensor, bits: int, group_size: int, rows: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(packed, scale, offset) of ``x`` by the core's kernel, all as bytes."""
    flat = x.reshape(-1, x.shape[-1]) if rows else x.reshape(1, -1)
    packed, scale, offset = torch.ops.graphlossy.quantize(flat.contiguous(), bits, group_size, True, seed)
    return packed, scale.view(torch.uint8), offset.view(torch.uint8)


def block_rows(shape: Sequence[int], group_size: int, device: torch.device) -> int:
    """Rows of a [R, D] tensor to unpack at a time, so that blocks of flat groups begin and end at a group's border."""
    width = _numel(shape[1:])
    if width == 0:
        return max(1, shape[0])
    align = math.lcm(group_size, 8)  # masks are cut at bytes
    limit = _BLOCK.get(device.type, _DEVICE_BLOCK)
    step = align // math.gcd(width, align)
    return max(step, limit // width // step * step)


def row_blocks(kept: Packed) -> Iterator[tuple[int, int, Tensor]]:
    """Unpack a [R, ...] tensor block by block: (first row, end row, [rows, D] float block)."""
    meta = kept.meta
    count, width = meta.shape[0], _numel(meta.shape[1:])
    step = block_rows(meta.shape, meta.group_size, kept.tensors[0].device)
    for start in range(0, count, step):
        end = min(start + step, count)
        yield start, end, _unpack_range(kept, start, end, width)


def _unpack_range(kept: Packed, start: int, end: int, width: int) -> Tensor:
    meta = kept.meta
    if meta.bits == 0:
        return kept.tensors[0][start:end].reshape(end - start, width)
    if meta.rows:
        return _dequantize([t[start:end] for t in kept.tensors], meta, width)
    packed, scale, offset = kept.tensors
    group, last = meta.group_size, end * width
    first = start * width // group
    # Full groups are contiguous; only the last one of the tensor may be short.
    groups, group_bytes = slice(2 * first, 2 * -(-last // group)), group * meta.bits // 8
    tail = packed.size(1) if end == meta.shape[0] else last // group * group_bytes
    parts = (packed[:, first * group_bytes : tail], scale[:, groups], offset[:, groups])
    return _dequantize(parts, meta, (end - start) * width).view(end - start, width)


def unpack_rows(kept: Packed, index: Tensor) -> Tensor:
    """Rows ``index`` of a tensor packed by rows (or not packed), as floats [len(index), D]."""
    meta = kept.meta
    if meta.bits == 0:
        return kept.tensors[0].index_select(0, index)
    if not meta.rows:
        raise ValueError("single rows can be unpacked only from a tensor packed by rows")
    return _dequantize([t.index_select(0, index) for t in kept.tensors], meta, meta.shape[-1])
