"""The forms in which a saved tensor is kept, and the way back.

A :class:`Stored` is what a pack hook returns and an unpack hook is given: a view (shape and strides) of a shared
payload, so that one payload serves a tensor that is saved several times, reshaped or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphlossy._compress._storages import cast_like, layout_of
from graphlossy.core import PackedMask, QuantizedTensor, pack_mask, quantize, unpack_mask
from graphlossy.core._memory import MUCH, release_free_memory

__all__ = [
    "Alive",
    "CastAgain",
    "Kept",
    "LowBit",
    "Narrowed",
    "Part",
    "Payload",
    "Recomputed",
    "Regathered",
    "Stored",
    "Turn",
    "TwoValued",
    "Unneeded",
    "ZerosKept",
    "dense_order",
    "squeeze_expanded",
]

# Elements of a mask that exist as bytes at a time, a multiple of 8: few on a CPU, where large pieces that come and go
# fragment the heap; a GPU needs more to be busy.
_MASK_BLOCK = {"cpu": 1 << 20}
_DEVICE_MASK_BLOCK = 1 << 24
# Bytes after which the memory of freed activations goes back to the system.
_FREED_AT_ONCE = 256 * 2**20


def _mask_block(device: torch.device) -> int:
    return _MASK_BLOCK.get(device.type, _DEVICE_MASK_BLOCK)


class Alive:
    """A tensor that lives whatever we do, exact. As autograd does, notices when it was changed before the backward."""

    __slots__ = ("__weakref__", "tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.version = None if tensor.is_inference() else tensor._version

    def unpack(self) -> Tensor:
        if self.version is not None and self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"a saved tensor of shape {tuple(self.tensor.shape)} is at version {self.tensor._version}, expected "
                f"version {self.version}"
            )
        return self.tensor


class CastAgain(Alive):
    """A copy of a parameter in another type, made again from the parameter.

    Args:
        source: the parameter.
        copy: of which only the type and the layout are kept.
    """

    __slots__ = ("_as",)

    def __init__(self, source: Tensor, copy: Tensor) -> None:
        super().__init__(source)
        self._as = copy.dtype, *layout_of(copy)

    def unpack(self) -> Tensor:
        if self.version is not None and self.tensor._version != self.version:
            raise RuntimeError(
                f"a weight of shape {tuple(self.tensor.shape)} was modified by an inplace operation before the "
                "backward pass, so that the copy which autocast made of it cannot be made again: use recompute=False"
            )
        return cast_like(self.tensor, *self._as)


class Kept(Alive):
    """A tensor kept as it is."""

    __slots__ = ()
    nbytes = 0

    def __init__(self, tensor: Tensor) -> None:
        # Without detach, an operation that saves its own output would own itself: output -> node -> output.
        super().__init__(tensor if tensor.grad_fn is None else tensor.detach())


class LowBit:
    """Flat groups of elements in low-bit form.

    Offsets that are all zero, as after a ReLU, are not kept.
    """

    __slots__ = ("__weakref__", "_quantized", "_zero_offset", "floor")

    def __init__(self, flat: Tensor, bits: int, seed: int, group_size: int) -> None:
        self.floor: int | None = None  # a policy that may lower the width says how far
        self._set(flat, bits, seed, group_size)

    def _set(self, flat: Tensor, bits: int, seed: int, group_size: int) -> None:
        quantized = quantize(flat, bits, group_size=group_size, dim=-1, seed=seed)
        # The question costs a wait for the device; where that is a GPU it is not worth the 0.06 bits an element.
        self._zero_offset = quantized.device.type == "cpu" and not bool(quantized.offset.any())
        if self._zero_offset:
            quantized.offset = quantized.offset[:, :0]
        self._quantized = quantized

    @property
    def nbytes(self) -> int:
        return self._quantized.nbytes

    @property
    def device(self) -> torch.device:
        return self._quantized.device

    @property
    def scale(self) -> Tensor:
        """Step of each group."""
        return self._quantized.scale

    @property
    def bits(self) -> int:
        return self._quantized.bits

    @property
    def sure_bits(self) -> int:
        """Width that is not going to be lowered any more."""
        return self.bits if self.floor is None else min(self.bits, self.floor)

    @property
    def numel(self) -> int:
        return self._quantized.numel()

    def unpack(self) -> Tensor:
        if not self._zero_offset:
            return self._quantized.dequantize()
        q = self._quantized
        whole = (q.packed, q.scale, torch.zeros_like(q.scale), q.bits, q.group_size, q.shape, q.dtype, q.dim, q.order)
        return QuantizedTensor(*whole).dequantize()

    def requantize(self, bits: int, seed: int) -> None:
        """Lowers the width in place (the first pass of a byte budget)."""
        self._set(self.unpack(), bits, seed, self._quantized.group_size)


class ZerosKept(LowBit):
    """Low-bit form of a tensor without negative elements that also keeps, in one exact bit, which elements are zero.

    For a tensor that looks like a ReLU's output and is saved for an unknown purpose: its backward may ask ``x > 0``.
    """

    __slots__ = ("_positive",)

    def __init__(self, flat: Tensor, bits: int, seed: int, group_size: int) -> None:
        super().__init__(flat, bits, seed, group_size)
        self._positive = pack_mask(flat)  # none is negative

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._positive.nbytes

    def unpack(self) -> Tensor:
        values = super().unpack()
        values.clamp_min_(torch.finfo(values.dtype).tiny)
        return values.mul_(unpack_mask(self._positive))

    @staticmethod
    def fits(flat: Tensor) -> bool:
        return bool(flat.min() >= 0) and bool((flat == 0).any())


class TwoValued:
    """One exact bit an element, given back as one of two values.

    Args:
        flat: the tensor.
        is_high: makes, of a part of ``flat``, what is nonzero where the element is high; None: ``flat`` is that itself.
        low: value given back for the other elements.
        high: value given back for high elements.
        dtype: of the tensor given back.
    """

    __slots__ = ("__weakref__", "dtype", "high", "low", "mask")

    def __init__(
        self, flat: Tensor, is_high: Callable[[Tensor], Tensor] | None, low: float, high: float, dtype: torch.dtype
    ) -> None:
        self.low, self.high, self.dtype = low, high, dtype
        if is_high is None:
            self.mask = pack_mask(flat)
        else:
            parts = [pack_mask(is_high(part)).bits for part in flat.split(_mask_block(flat.device))]
            self.mask = PackedMask(parts[0] if len(parts) == 1 else torch.cat(parts), tuple(flat.shape))

    @property
    def device(self) -> torch.device:
        return self.mask.device

    @property
    def nbytes(self) -> int:
        return self.mask.nbytes

    def unpack(self) -> Tensor:
        return unpack_mask(self.mask, self.low, self.high, self.dtype)


class Narrowed:
    """64-bit indices kept as 32-bit ones: lossless."""

    __slots__ = ("__weakref__", "index")

    def __init__(self, narrow: Tensor) -> None:
        self.index = narrow

    @property
    def nbytes(self) -> int:
        return self.index.numel() * self.index.element_size()

    def unpack(self) -> Tensor:
        return self.index.to(torch.int64)


class Unneeded:
    """A tensor that torch saves although its backward formula, with these arguments, only looks at the shape."""

    __slots__ = ("__weakref__", "_like")
    nbytes = 0

    def __init__(self, t: Tensor) -> None:
        self._like = t.new_zeros(())

    def unpack(self) -> Tensor:
        return self._like


class Regathered:
    """Rows of another stored tensor: gathered again when they are asked for."""

    __slots__ = ("__weakref__", "_index", "_rows")
    nbytes = 0

    def __init__(self, rows: Stored | Alive, index: Stored | Alive | Tensor) -> None:
        self._rows, self._index = rows, index

    def unpack(self) -> Tensor:
        index = self._index if isinstance(self._index, Tensor) else self._index.unpack()
        return self._rows.unpack().index_select(0, index).view(-1)


class Recomputed:
    """The result of a cheap operation: computed again from tensors that are stored anyway.

    Args:
        func: the operation.
        args: its arguments, tensors as :class:`Part`.
        kwargs: its keyword arguments, likewise.
    """

    __slots__ = ("__weakref__", "_args", "_func", "_kwargs")
    nbytes = 0

    def __init__(self, func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._func, self._args, self._kwargs = func, args, kwargs

    def unpack(self) -> Tensor:
        args = [_value(a) for a in self._args]
        kwargs = {name: _value(a) for name, a in self._kwargs.items()}
        with torch.no_grad(), torch._C.DisableTorchFunction():
            return self._func(*args, **kwargs).reshape(-1)


def _value(argument: Any) -> Any:
    return argument.values() if isinstance(argument, Part) else argument


Payload = Kept | LowBit | TwoValued | Narrowed | Regathered | Recomputed | Unneeded


class Turn:
    """What the tensors of one forward pass share: how much memory it has freed that the C library may still hold."""

    __slots__ = ("_begun", "_freed", "_held")

    def __init__(self) -> None:
        self._begun = False
        self._freed = self._held = 0

    def freed(self, device: torch.device, nbytes: int) -> None:
        """A tensor of the forward pass will be freed, because less is stored: now and then memory is given back."""
        self._freed += nbytes
        if nbytes < MUCH:  # the C library gives larger blocks back by itself
            self._held += nbytes
        if self._held >= _FREED_AT_ONCE:
            self._held = 0
            release_free_memory(device, _FREED_AT_ONCE)

    def before_unpacking(self, device: torch.device) -> None:
        """Gives back, once a pass, the memory that the forward pass and the loss have freed."""
        if not self._begun:
            self._begun = True
            release_free_memory(device, self._freed)


@dataclass(frozen=True, slots=True)
class Stored:
    """A payload and how the saved tensor lies over it.

    Attributes:
        payload: the stored content.
        order: the dimensions from the outermost to the innermost in memory; None for a :class:`Kept` payload.
        shape: the shape without the expanded dimensions.
        expanded: the full shape, where some dimensions have stride 0.
        turn: of the forward pass that stored it.
    """

    payload: Payload
    order: tuple[int, ...] | None
    shape: tuple[int, ...]
    expanded: tuple[int, ...]
    turn: Turn

    def unpack(self) -> Tensor:
        payload = self.payload
        if isinstance(payload, (LowBit, TwoValued)):
            self.turn.before_unpacking(payload.device)
        out = payload.unpack()
        if self.order is None:
            return out
        if isinstance(self.payload, Unneeded):
            return out.expand(self.expanded)
        out = out.view([self.shape[d] for d in self.order])
        if any(d != i for i, d in enumerate(self.order)):
            inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
            out = out.permute(inverse)
        return out if self.shape == self.expanded else out.expand(self.expanded)


@dataclass(frozen=True, slots=True)
class Part:
    """A stored tensor in the shape that an operation was given it in.

    Attributes:
        source: what gives its elements, in row-major order.
        shape: of the tensor.
    """

    source: Stored | Alive
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def values(self) -> Tensor:
        """The numbers."""
        return self.source.unpack().reshape(self.shape)


def squeeze_expanded(t: Tensor) -> Tensor:
    """``t`` with every expanded dimension (stride 0) cut to length 1: the elements that really exist."""
    for dim, (size, stride) in enumerate(zip(t.shape, t.stride(), strict=True)):
        if stride == 0 and size > 1:
            t = t.narrow(dim, 0, 1)
    return t


def dense_order(t: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The elements of ``t`` as one flat tensor, in memory order where that needs no copy, and the dimensions' order."""
    if t.is_contiguous():
        return t.reshape(-1), tuple(range(t.dim()))
    strides = t.stride()
    order = tuple(sorted(range(t.dim()), key=lambda d: (-strides[d], d)))
    permuted = t.permute(order)
    if permuted.is_contiguous():
        return permuted.reshape(-1), order
    return t.reshape(-1), tuple(range(t.dim()))
