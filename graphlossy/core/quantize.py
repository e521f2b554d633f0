"""Low-bit copies of float tensors: groups of values share a bfloat16 scale and offset; rounding can be unbiased.

Quantisation by groups with stochastic rounding is the activation compression of ActNN (Chen et al. 2021, section 3) and
EXACT (Liu et al. 2022, eq. 3); the exact arithmetic is in `graphlossy.core._reference`.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from graphlossy.core import _schemas

__all__ = ["QuantizedTensor", "draw_seed", "quantize", "seed_or_draw"]

_FORMAT = 1  # version of the metadata written by QuantizedTensor.to_tensors
_FLAT = -(2**31)  # how dim=None is written there
_ROUNDINGS = ("stochastic", "nearest")


def draw_seed() -> int:
    """A 63-bit seed from torch's global generator, so that torch.manual_seed governs it."""
    return int(torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu"))


def seed_or_draw(seed: int | None) -> int:
    """``seed``, or one drawn where it is None.

    Raises:
        TypeError: ``seed`` is no integer.
    """
    if seed is None:
        return draw_seed()
    try:
        if not isinstance(seed, bool):
            return operator.index(seed)
    except (TypeError, ValueError):  # a tensor of floats, or of several numbers
        pass
    raise TypeError(f"seed must be an int or None, got {type(seed).__name__} {seed!r}")


def quantize(
    x: Tensor,
    bits: int,
    group_size: int = 256,
    rounding: str = "stochastic",
    dim: int | None = -1,
    seed: int | None = None,
) -> QuantizedTensor:
    """Round ``x`` to ``bits`` bits an element with a scale and an offset for every group of elements.

    Element i of a group with offset o and scale s becomes the code floor((x_i - o) / s + u_i): u_i is uniform in [0, 1)
    for stochastic rounding, which makes the expected value x_i (u_i has 16 bits: up to s / 2**16), and 1/2 for nearest.
    Groups draw 32-bit keys of a common counter: within one tensor of very many groups (2**20 and more) a few have noise
    in common, which leaves expected values as they are. The error is below s (stochastic;
    variance at most s**2 / 4) or at most about s / 2 (nearest), where s is about (max - min) / (2**bits - 1) of the
    group. A group with a NaN, an infinity or a range beyond bfloat16's comes back as NaN. The sign of zero is lost.

    Args:
        x: float32, float16, bfloat16 or float64, any shape; values are handled as float32.
        bits: 1, 2, 3, 4 or 8.
        group_size: elements that share one scale and offset (4 bytes together); a multiple of 8 up to 2**28.
        rounding: ``"stochastic"`` (unbiased) or ``"nearest"`` (smaller error, biased).
        dim: groups run along this dimension, the last one of each row shorter; None: they run over the whole tensor in
            memory order, which costs the least metadata.
        seed: of the stochastic rounding; None draws one from torch's global generator. Equal seeds give equal codes on
            every device.

    Raises:
        TypeError: ``x`` is no float tensor, or is sparse; ``dim`` or ``seed`` is no int.
        ValueError: ``bits``, ``group_size``, ``rounding`` or ``dim`` is not allowed.

    Example:
        >>> x = torch.linspace(-1, 1, 1024).view(4, 256)
        >>> q = quantize(x, bits=2, seed=0)
        >>> q.nbytes, q.bits_per_element
        (272, 2.125)
        >>> bool((q.dequantize() - x).abs().max() < 0.5 / 3 + 0.01)
        True
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"x must be a dense tensor, got layout {x.layout}; quantise its values() instead")
    _schemas.check_float("x", x.dtype)
    _schemas.check_bits(bits)
    _schemas.check_group_size(group_size)
    if rounding not in _ROUNDINGS:
        raise ValueError(f"rounding must be one of {_ROUNDINGS}, got {rounding!r}")
    if dim is not None:
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"dim must be an int or None, got {type(dim).__name__}")
        if not -max(1, x.dim()) <= dim < max(1, x.dim()):
            raise ValueError(f"dim must be None or in [{-max(1, x.dim())}, {max(1, x.dim()) - 1}], got {dim!r}")
    stochastic = rounding == "stochastic"
    seed = seed_or_draw(0 if seed is None and not stochastic else seed)
    x = x.detach()
    order = _memory_order(x)
    rows, width, layout = _layout(tuple(x.shape), order, dim)
    group_size = min(group_size, -(-max(width, 1) // 8) * 8)
    flat = x.permute(layout).reshape(rows, width).contiguous()
    packed, scale, offset = torch.ops.graphlossy.quantize(flat, bits, group_size, stochastic, _signed(seed))
    return QuantizedTensor(packed, scale, offset, bits, group_size, tuple(x.shape), x.dtype, dim, order)


def _signed(seed: int) -> int:
    """The 64 low bits of ``seed`` as a signed number, which an operator's argument must be."""
    return (seed + 2**63) % 2**64 - 2**63


def _memory_order(x: Tensor) -> tuple[int, ...]:
    """The dimensions of a dense tensor from the outermost to the innermost in memory."""
    if x.is_contiguous():  # also what full-graph compilation with dynamic shapes can decide
        return tuple(range(x.dim()))
    strides = x.stride()
    order = tuple(sorted(range(x.dim()), key=lambda d: (-strides[d], d)))
    return order if x.permute(order).is_contiguous() else tuple(range(x.dim()))


def _layout(shape: tuple[int, ...], order: tuple[int, ...], dim: int | None) -> tuple[int, int, tuple[int, ...]]:
    """(rows, width, permutation of the dimensions) of the matrix whose rows are cut into groups."""
    numel = 1
    for size in shape:
        numel *= size
    if dim is None or not shape:
        return 1, numel, order
    dim %= len(shape)
    rows = 1
    for d, size in enumerate(shape):
        rows *= size if d != dim else 1
    return rows, shape[dim], (*(d for d in order if d != dim), dim)


class QuantizedTensor:
    """A float tensor in low-bit form: what `quantize` returns.

    Attributes:
        packed: uint8 [rows, bytes of a row]: the codes.
        scale: bfloat16 [rows, G]: step between two codes, NaN in a poisoned group.
        offset: bfloat16 [rows, G]: value of code 0.
        bits: width of a code.
        group_size: elements of a group (the last one of a row may be shorter).
        shape: of the original tensor.
        dtype: of the original tensor, and of what `dequantize` returns.
        dim: dimension along which the groups run; None for groups over the whole tensor.
        order: dimensions of the original from the outermost to the innermost in memory.

    Example:
        >>> q = quantize(torch.ones(2, 8), bits=4, seed=0)
        >>> QuantizedTensor.from_tensors(q.to_tensors("h."), "h.").dequantize().sum()
        tensor(16.)
    """

    __slots__ = ("__weakref__", "bits", "dim", "dtype", "group_size", "offset", "order", "packed", "scale", "shape")

    def __init__(
        self,
        packed: Tensor,
        scale: Tensor,
        offset: Tensor,
        bits: int,
        group_size: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        dim: int | None,
        order: tuple[int, ...],
    ) -> None:
        self.packed, self.scale, self.offset = packed, scale, offset
        self.bits, self.group_size, self.dim = bits, group_size, dim
        self.shape, self.dtype, self.order = torch.Size(shape), dtype, tuple(order)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The approximate values, with the original's shape and memory order.

        Args:
            dtype: of the result; None is the original's.
        """
        rows, width, layout = _layout(tuple(self.shape), self.order, self.dim)
        stored = (self.packed, self.scale, self.offset)
        flat = torch.ops.graphlossy.dequantize(*stored, self.bits, self.group_size, width, dtype or self.dtype)
        out = _inverse_permute(flat.view([self.shape[d] for d in layout]), layout)
        if layout == self.order:
            return out
        return _inverse_permute(out.permute(self.order).contiguous(), self.order)

    @property
    def device(self) -> torch.device:
        """Where the codes and metadata are stored."""
        return self.packed.device

    @property
    def nbytes(self) -> int:
        """Bytes of codes, padding, scales and offsets."""
        return sum(t.numel() * t.element_size() for t in (self.packed, self.scale, self.offset))

    @property
    def bits_per_element(self) -> float:
        """Bits stored for an element of the original, metadata included; 0 for an empty tensor."""
        return 8 * self.nbytes / self.numel() if self.numel() else 0.0

    def numel(self) -> int:
        """Elements of the original tensor."""
        return self.shape.numel()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> QuantizedTensor:
        """The same values stored on ``device``; itself if they are there already.

        Raises:
            TypeError: ``device`` is none; another float type is chosen in `dequantize`.
        """
        device = _schemas.as_device(device)
        packed, scale, offset = (
            t.to(device, non_blocking=non_blocking) for t in (self.packed, self.scale, self.offset)
        )
        return self if packed is self.packed else QuantizedTensor(packed, scale, offset, *self._constants())

    def to_tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Everything as named tensors (for safetensors): packed, scale, offset and a small int64 ``meta``."""
        dim = _FLAT if self.dim is None else self.dim
        dtype = _schemas.FLOAT_DTYPES.index(self.dtype)
        meta = [_FORMAT, self.bits, self.group_size, dtype, dim, *self.shape, *self.order]
        named = {
            "packed": self.packed,
            "scale": self.scale,
            "offset": self.offset,
            "meta": torch.tensor(meta, device="cpu"),
        }
        return {prefix + name: tensor for name, tensor in named.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], prefix: str = "") -> QuantizedTensor:
        """The inverse of `to_tensors`; other names in ``tensors`` are ignored.

        Raises:
            KeyError: a tensor of this prefix is missing.
            TypeError: a tensor has another dtype than `to_tensors` gave it.
            ValueError: the metadata is of an unknown version or damaged, or does not fit the tensors.
        """
        missing = [prefix + name for name in ("packed", "scale", "offset", "meta") if prefix + name not in tensors]
        if missing:
            raise KeyError(f"tensors has no {', '.join(missing)}; give the prefix given to to_tensors (got {prefix!r})")
        meta = tensors[prefix + "meta"]
        if meta.dtype != torch.int64:
            raise TypeError(f"{prefix}meta must be int64, got {meta.dtype}; store it as to_tensors gave it")
        numbers = meta.flatten().tolist()
        if numbers and numbers[0] != _FORMAT:
            raise ValueError(
                f"{prefix}meta has version {numbers[0]}; this graphlossy reads {_FORMAT}: update graphlossy"
            )
        damaged = ValueError(f"{prefix}meta is damaged: {numbers}; write the tensors again with to_tensors")
        if len(numbers) < 5 or len(numbers) % 2 == 0:
            raise damaged
        _, bits, group_size, dtype, dim, *sizes = numbers
        half = len(sizes) // 2
        shape, order = tuple(sizes[:half]), tuple(sizes[half:])
        sound = sorted(order) == list(range(half)) and min(shape, default=0) >= 0
        sound = sound and (dim == _FLAT or -max(1, half) <= dim < max(1, half))
        if not sound or not 0 <= dtype < len(_schemas.FLOAT_DTYPES):
            raise damaged
        packed, scale, offset = (tensors[prefix + name] for name in ("packed", "scale", "offset"))
        along = None if dim == _FLAT else dim
        rows, width, _ = _layout(shape, order, along)
        _schemas.check_dequantize(packed, scale, offset, bits, group_size, width, _schemas.FLOAT_DTYPES[dtype])
        if packed.shape[0] != rows:
            raise ValueError(f"{prefix}packed must have {rows} rows for shape {shape}, got {packed.shape[0]}")
        return cls(packed, scale, offset, bits, group_size, shape, _schemas.FLOAT_DTYPES[dtype], along, order)

    def _constants(self) -> tuple[Any, ...]:
        return self.bits, self.group_size, tuple(self.shape), self.dtype, self.dim, self.order

    def __reduce__(self) -> tuple[Any, ...]:
        return QuantizedTensor, (self.packed, self.scale, self.offset, *self._constants())

    def __repr__(self) -> str:
        return (
            f"QuantizedTensor(shape={tuple(self.shape)}, dtype={str(self.dtype).removeprefix('torch.')}, "
            f"bits={self.bits}, group_size={self.group_size}, dim={self.dim}, {self.nbytes} bytes, "
            f"{self.bits_per_element:.2f} bits/element, {self.device})"
        )


def _inverse_permute(x: Tensor, order: tuple[int, ...]) -> Tensor:
    return x.permute(sorted(range(x.dim()), key=order.__getitem__))


torch.serialization.add_safe_globals([QuantizedTensor])  # torch.load(..., weights_only=True) reads it
