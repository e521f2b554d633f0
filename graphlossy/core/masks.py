"""Exact one-bit masks (ReLU signs, dropout) and 32-bit copies of 64-bit indices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphlossy.core import _schemas

__all__ = ["PackedMask", "mask_apply", "narrow_index", "pack_mask", "unpack_mask"]


class PackedMask:
    """A boolean tensor at one bit an element: element i of the flattened mask is bit i & 7 of byte i >> 3.

    Attributes:
        bits: uint8 [ceil(numel / 8)].
        shape: of the mask.

    Example:
        >>> pack_mask(torch.tensor([True, False, True]))
        PackedMask(shape=(3,), 1 bytes, cpu)
    """

    __slots__ = ("__weakref__", "bits", "shape")

    def __init__(self, bits: Tensor, shape: tuple[int, ...]) -> None:
        self.bits, self.shape = bits, torch.Size(shape)

    @property
    def device(self) -> torch.device:
        """Where the bits are stored."""
        return self.bits.device

    @property
    def nbytes(self) -> int:
        """Bytes stored."""
        return self.bits.numel()

    def numel(self) -> int:
        """Elements of the mask."""
        return self.shape.numel()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedMask:
        """The same mask stored on ``device``; itself if it is there already.

        Raises:
            TypeError: ``device`` is none.
        """
        moved = self.bits.to(_schemas.as_device(device), non_blocking=non_blocking)
        return self if moved is self.bits else PackedMask(moved, self.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedMask, (self.bits, tuple(self.shape))

    def __repr__(self) -> str:
        return f"PackedMask(shape={tuple(self.shape)}, {self.nbytes} bytes, {self.device})"


def pack_mask(mask: Tensor) -> PackedMask:
    """Pack a mask to one bit an element, exactly.

    Args:
        mask: bool, or numbers of which every nonzero one (NaN too) is True; any shape.

    Raises:
        TypeError: ``mask`` is no dense tensor.

    Example:
        >>> m = pack_mask(torch.tensor([[0.0, 2.0], [-1.0, 0.0]]))
        >>> unpack_mask(m)
        tensor([[False,  True],
                [ True, False]])
    """
    if not isinstance(mask, Tensor) or mask.layout != torch.strided:
        kind = mask.layout if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a dense torch.Tensor, got {kind}")
    return PackedMask(torch.ops.graphlossy.pack_mask(mask.detach()), tuple(mask.shape))


def unpack_mask(mask: PackedMask, low: float = 0.0, high: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
    """The boolean tensor that was packed, or one of two values in its place; contiguous.

    Args:
        mask: from `pack_mask`.
        low: value where the mask is not set, rounded to ``dtype``.
        high: value where it is.
        dtype: bool (also None), float32, float16, bfloat16 or float64.

    Raises:
        TypeError: ``mask`` is no `PackedMask`, or ``dtype`` is another type.

    Example:
        >>> unpack_mask(pack_mask(torch.tensor([1, 0, 1])), high=2.5, dtype=torch.float32)
        tensor([2.5000, 0.0000, 2.5000])
    """
    _check_mask(mask)
    return torch.ops.graphlossy.unpack_mask(mask.bits, mask.numel(), low, high, dtype).view(mask.shape)


def mask_apply(grad: Tensor, mask: PackedMask, scale: float = 1.0) -> Tensor:
    """``grad * scale`` where the mask is set, else 0 (for NaN and infinite ``grad`` too); the type is kept.

    Args:
        grad: float32, float16, bfloat16 or float64 with as many elements as the mask.
        mask: on the device of ``grad``.
        scale: 1 / (1 - p) for dropout.

    Raises:
        TypeError: ``grad`` is no float tensor or ``mask`` no `PackedMask`.
        ValueError: the sizes or the devices differ.

    Example:
        >>> mask_apply(torch.ones(3), pack_mask(torch.tensor([1, 0, 1])), scale=2.0)
        tensor([2., 0., 2.])
    """
    _check_mask(mask)
    if not isinstance(grad, Tensor):
        raise TypeError(f"grad must be a torch.Tensor, got {type(grad).__name__}")
    if grad.numel() != mask.numel():
        raise ValueError(
            f"grad and mask must have equally many elements, got {tuple(grad.shape)} and {tuple(mask.shape)}"
        )
    return torch.ops.graphlossy.mask_apply(grad, mask.bits, scale)


def _check_mask(mask: PackedMask) -> None:
    if not isinstance(mask, PackedMask):
        raise TypeError(f"mask must be a PackedMask, got {type(mask).__name__}; make it with pack_mask")


def narrow_index(index: Tensor) -> Tensor:
    """An int64 tensor as int32 if every value fits (half the bytes, exact), else ``index`` itself.

    Any other type comes back as it is. On a GPU this waits for the values.

    Example:
        >>> narrow_index(torch.tensor([0, 7])).dtype, narrow_index(torch.tensor([2**31])).dtype
        (torch.int32, torch.int64)
    """
    if not isinstance(index, Tensor):
        raise TypeError(f"index must be a torch.Tensor, got {type(index).__name__}")
    if index.dtype != torch.int64:
        return index
    if index.numel():
        low, high = torch.aminmax(index)
        info = torch.iinfo(torch.int32)
        if int(low) < info.min or int(high) > info.max:
            return index
    return index.to(torch.int32)


torch.serialization.add_safe_globals([PackedMask])  # torch.load(..., weights_only=True) reads it
