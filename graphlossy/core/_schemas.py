"""Schemas, argument checks and fake (shape-only) kernels of the core's five operators.

One place says what an operator takes and gives back; `_reference`, `_cpu` and `_cuda` only say how.

Layout of a quantised [R, D] tensor: every row is cut into G = ceil(D / group_size) groups, the last one ragged; each
group is padded to a multiple of 8 elements and takes ``bits`` bytes for every 8 of them. Since ``group_size`` is a
multiple of 8, a row takes ``bits * ceil(D / 8)`` bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["BITS", "FLOAT_DTYPES", "LIBRARY", "OPS", "SAMPLE_OPS", "groups_per_row", "mask_bytes", "row_bytes"]

BITS = (1, 2, 3, 4, 8)
LARGEST_GROUP = 2**28  # elements: within a group the kernels count bits in 32-bit integers
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

LIBRARY = torch.library.Library("graphlossy", "FRAGMENT")
OPS = {
    "quantize": "(Tensor x, int bits, int group_size, bool stochastic, SymInt seed) -> (Tensor, Tensor, Tensor)",
    "dequantize": (
        "(Tensor packed, Tensor scale, Tensor offset, int bits, int group_size, SymInt width, ScalarType dtype)"
        " -> Tensor"
    ),
    "pack_mask": "(Tensor mask) -> Tensor",
    "unpack_mask": "(Tensor packed, SymInt numel, float low=0.0, float high=1.0, ScalarType? dtype=None) -> Tensor",
    "mask_apply": "(Tensor grad, Tensor packed, float scale) -> Tensor",
}
# Operators whose result has a size that depends on the data; on CUDA their definition runs.
SAMPLE_OPS = {
    "weighted_sample": "(Tensor weights, SymInt num_samples, SymInt seed) -> (Tensor, Tensor)",
}


def groups_per_row(width: int, group_size: int) -> int:
    """Groups in a row of ``width`` elements."""
    return (width + group_size - 1) // group_size


def row_bytes(width: int, bits: int) -> int:
    """Packed bytes of a row of ``width`` elements, padding included."""
    return (width + 7) // 8 * bits


def mask_bytes(numel: int) -> int:
    """Bytes of a packed mask of ``numel`` elements."""
    return (numel + 7) // 8


def check_bits(bits: int) -> None:
    """Raises ValueError unless ``bits`` is a supported width."""
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in BITS:
        raise ValueError(f"bits must be one of {BITS}, got {bits!r}")


def check_group_size(group_size: int) -> None:
    """Raises ValueError unless ``group_size`` is a multiple of 8 from 8 to `LARGEST_GROUP`."""
    if (
        isinstance(group_size, bool)
        or not isinstance(group_size, int)
        or not 8 <= group_size <= LARGEST_GROUP
        or group_size % 8
    ):
        allowed = f"a multiple of 8 (elements), 8 to {LARGEST_GROUP}"
        raise ValueError(f"group_size must be {allowed}, got {group_size!r}; try 256")


def as_device(device: torch.device | str | int) -> torch.device:
    """``device`` as a torch.device; raises TypeError for anything else, a dtype above all."""
    if isinstance(device, bool) or not isinstance(device, (torch.device, str, int)):
        raise TypeError(f"device must be a torch.device or its name, got {device!r}; only the place can be changed")
    return torch.device(device)


def check_float(name: str, dtype: torch.dtype) -> None:
    """Raises TypeError unless ``dtype`` is a supported float type."""
    if dtype not in FLOAT_DTYPES:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in FLOAT_DTYPES)
        raise TypeError(f"{name} must be one of {allowed}, got {str(dtype).removeprefix('torch.')}; convert it first")


def check_quantize(x: Tensor, bits: int, group_size: int) -> None:
    """Checks the arguments of graphlossy::quantize."""
    check_bits(bits)
    check_group_size(group_size)
    check_float("x", x.dtype)
    if x.dim() != 2:
        raise ValueError(f"x must have 2 dimensions [rows, width], got shape {tuple(x.shape)}")


def check_dequantize(
    packed: Tensor, scale: Tensor, offset: Tensor, bits: int, group_size: int, width: int, dtype: torch.dtype
) -> None:
    """Checks the arguments of graphlossy::dequantize."""
    check_bits(bits)
    check_group_size(group_size)
    check_float("dtype", dtype)
    if packed.dtype != torch.uint8 or scale.dtype != torch.bfloat16 or offset.dtype != torch.bfloat16:
        raise TypeError(
            "packed, scale and offset must be uint8, bfloat16 and bfloat16, "
            f"got {packed.dtype}, {scale.dtype} and {offset.dtype}"
        )
    if packed.device != scale.device or packed.device != offset.device:
        raise ValueError(
            f"packed, scale and offset must be on one device, got {packed.device}, {scale.device} and {offset.device}"
        )
    if packed.dim() != 2:
        raise ValueError(f"packed must have 2 dimensions [rows, row bytes], got shape {tuple(packed.shape)}")
    groups = (packed.shape[0], groups_per_row(width, group_size))
    if packed.shape[1] != row_bytes(width, bits) or tuple(scale.shape) != groups or tuple(offset.shape) != groups:
        raise ValueError(
            f"a width of {width} at {bits} bits in groups of {group_size} needs packed [rows, {row_bytes(width, bits)}]"
            f" and scale and offset [rows, {groups[1]}], got "
            f"{tuple(packed.shape)}, {tuple(scale.shape)} and {tuple(offset.shape)}"
        )


def check_packed_mask(packed: Tensor, numel: int) -> None:
    """Checks that ``packed`` holds ``numel`` bits."""
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed must be uint8, got {packed.dtype}; make it with pack_mask")
    if packed.dim() != 1 or packed.shape[0] != mask_bytes(numel):
        raise ValueError(
            f"a mask of {numel} elements needs {mask_bytes(numel)} packed bytes, got shape {tuple(packed.shape)}"
        )


def check_two_values(dtype: torch.dtype | None) -> torch.dtype:
    """The type of an unpacked mask: bool for None; raises TypeError unless it is bool or a supported float type."""
    if dtype is None or dtype == torch.bool:
        return torch.bool
    check_float("dtype", dtype)
    return dtype


def two_values(low: float, high: float, dtype: torch.dtype | None) -> Tensor:
    """[2] the values that an unpacked mask takes, rounded to its type, on the CPU."""
    return torch.tensor([low, high], dtype=torch.float64, device="cpu").to(check_two_values(dtype))


def check_mask_apply(grad: Tensor, packed: Tensor) -> None:
    """Checks the arguments of graphlossy::mask_apply."""
    check_float("grad", grad.dtype)
    check_packed_mask(packed, grad.numel())
    if packed.device != grad.device:
        raise ValueError(f"grad and packed must be on one device, got {grad.device} and {packed.device}")


def _quantize(x: Tensor, bits: int, group_size: int, stochastic: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    check_quantize(x, bits, group_size)
    rows, width = x.shape
    groups = groups_per_row(width, group_size)
    packed = x.new_empty((rows, row_bytes(width, bits)), dtype=torch.uint8)
    scale = x.new_empty((rows, groups), dtype=torch.bfloat16)
    return packed, scale, torch.empty_like(scale)


def _dequantize(
    packed: Tensor, scale: Tensor, offset: Tensor, bits: int, group_size: int, width: int, dtype: torch.dtype
) -> Tensor:
    check_dequantize(packed, scale, offset, bits, group_size, width, dtype)
    return packed.new_empty((packed.shape[0], width), dtype=dtype)


def _pack_mask(mask: Tensor) -> Tensor:
    return mask.new_empty((mask_bytes(mask.numel()),), dtype=torch.uint8)


def _unpack_mask(
    packed: Tensor, numel: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype | None = None
) -> Tensor:
    check_packed_mask(packed, numel)
    return packed.new_empty((numel,), dtype=check_two_values(dtype))


def _mask_apply(grad: Tensor, packed: Tensor, scale: float) -> Tensor:
    check_mask_apply(grad, packed)
    return grad.new_empty(grad.shape)


def _weighted_sample(weights: Tensor, num_samples: int, seed: int) -> tuple[Tensor, Tensor]:
    index = weights.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.int64)
    return index, torch.empty_like(index)


FAKES: dict[str, Callable[..., Any]] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "pack_mask": _pack_mask,
    "unpack_mask": _unpack_mask,
    "mask_apply": _mask_apply,
}

SAMPLE_FAKES: dict[str, Callable[..., Any]] = {
    "weighted_sample": _weighted_sample,
}

for _name, _schema in (OPS | SAMPLE_OPS).items():
    LIBRARY.define(f"{_name}{_schema}", tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"graphlossy::{_name}", (FAKES | SAMPLE_FAKES)[_name], lib=LIBRARY)
