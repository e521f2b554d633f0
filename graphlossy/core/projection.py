"""Random projection to fewer dimensions: an optional second stage of compression, off by default everywhere."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from graphlossy.core import _schemas
from graphlossy.core._random import random_signs
from graphlossy.core._weighted_sample import check_count
from graphlossy.core.quantize import QuantizedTensor, quantize, seed_or_draw

__all__ = ["ProjectedTensor", "random_projection"]

_CHUNK = 1 << 22  # numbers of the projections made at a time
_STREAM = 3


class ProjectedTensor:
    """Rows projected to ``rank`` dimensions by `random_projection`, and the seed that makes the projection again.

    Attributes:
        projected: [..., rank], a tensor in the original's dtype or a `QuantizedTensor` of one.
        shape, dtype: of the original.
        seed: of the projection.
        block_rows: rows that share a projection; None is all.
    """

    __slots__ = ("__weakref__", "block_rows", "dtype", "projected", "seed", "shape")

    def __init__(
        self,
        projected: Tensor | QuantizedTensor,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        seed: int,
        block_rows: int | None,
    ) -> None:
        self.projected, self.shape, self.dtype = projected, torch.Size(shape), dtype
        self.seed, self.block_rows = seed, block_rows

    @property
    def rank(self) -> int:
        """Dimensions stored of each row."""
        return self.projected.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the projected rows are stored."""
        return self.projected.device

    @property
    def nbytes(self) -> int:
        """Bytes of the projected rows (their metadata if quantised) and of the seed."""
        y = self.projected
        return 8 + (y.nbytes if isinstance(y, QuantizedTensor) else y.numel() * y.element_size())

    def reconstruct(self) -> Tensor:
        """y P^T, whose expected value over seeds is the original; same shape and dtype."""
        y = self.projected.dequantize() if isinstance(self.projected, QuantizedTensor) else self.projected
        out = _project(y.reshape(-1, self.rank), self.shape[-1], self.rank, self.seed, self.block_rows, back=True)
        return out.view(self.shape)

    def quantize(self, bits: int, group_size: int = 256, seed: int | None = None) -> ProjectedTensor:
        """The same with the projected rows rounded to ``bits`` bits as well: EXACT's compressor (ICLR 2022, section 3).

        Args:
            bits, group_size: see `graphlossy.core.quantize`; groups run over all rows, in memory order.
            seed: of the stochastic rounding; None draws one from torch's global generator.

        Raises:
            TypeError: the rows are quantised already.
        """
        if isinstance(self.projected, QuantizedTensor):
            raise TypeError(f"the projected rows are quantised already, to {self.projected.bits} bits")
        low = quantize(self.projected, bits, group_size, dim=None, seed=seed)
        return ProjectedTensor(low, tuple(self.shape), self.dtype, self.seed, self.block_rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ProjectedTensor:
        """The same stored on ``device``; itself if it is there already."""
        moved = self.projected.to(device, non_blocking=non_blocking)
        if moved is self.projected:
            return self
        return ProjectedTensor(moved, tuple(self.shape), self.dtype, self.seed, self.block_rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return ProjectedTensor, (self.projected, tuple(self.shape), self.dtype, self.seed, self.block_rows)

    def __repr__(self) -> str:
        return (
            f"ProjectedTensor(shape={tuple(self.shape)}, dtype={str(self.dtype).removeprefix('torch.')}, "
            f"rank={self.rank}, block_rows={self.block_rows}, {self.nbytes} bytes, {self.device})"
        )


def random_projection(x: Tensor, rank: int, seed: int | None = None, block_rows: int | None = None) -> ProjectedTensor:
    """Project every row h of ``x`` to y = h P, P [D, rank] with entries +1 / sqrt(rank) and -1 / sqrt(rank) at random.

    E[P P^T] = I, so that y P^T is an unbiased estimate of h (EXACT, Liu et al., ICLR 2022, section 3.1; Achlioptas
    2003), with error E||(P P^T - I) h||^2 = (D - 1) / rank * ||h||^2. At rank = D / 8 the error is thus about 8 times
    the row itself: at equal bytes 2-bit rounding is better by one to four orders of magnitude, which is why no default
    uses this. Neither does it average out over the rows of a gradient X^T G: with one P for all rows the estimate is
    P P^T (X^T G), as wrong as a single row. ``block_rows`` gives every block of rows a P of its own, so that the
    noise averages over blocks.

    P is made from the seed when it is needed and never stored.

    Args:
        x: [..., D] float; float16 and bfloat16 are multiplied in float32.
        rank: dimensions R kept, 1 to D.
        seed: of P; None draws one from torch's global generator. The signs are equal on every device.
        block_rows: rows (leading dimensions flattened) that share a P; None is all. Making P costs D * rank a block.

    Raises:
        TypeError: ``x`` is no dense float tensor, or a number no int.
        ValueError: ``rank`` is not in 1 .. D, ``block_rows`` is below 1, or ``x`` has no dimension.

    Example:
        >>> x = torch.ones(100, 64)
        >>> y = random_projection(x, rank=16, seed=0)
        >>> y.projected.shape, y.nbytes, y.reconstruct().shape
        (torch.Size([100, 16]), 6408, torch.Size([100, 64]))
        >>> y.quantize(bits=2, seed=0).nbytes
        436
    """
    if not isinstance(x, Tensor) or x.layout != torch.strided:
        kind = x.layout if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a dense torch.Tensor, got {kind}")
    _schemas.check_float("x", x.dtype)
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension, got a scalar")
    check_count("rank", rank, 1)
    if rank > x.shape[-1]:
        raise ValueError(f"rank must be at most D = {x.shape[-1]}, the last dimension of x; got {rank}")
    if block_rows is not None:
        check_count("block_rows", block_rows, 1)
    seed = seed_or_draw(seed)
    x = x.detach()
    y = _project(x.reshape(-1, x.shape[-1]), x.shape[-1], rank, seed, block_rows, back=False)
    return ProjectedTensor(y.view(*x.shape[:-1], rank), tuple(x.shape), x.dtype, seed, block_rows)


def _project(rows: Tensor, width: int, rank: int, seed: int, block_rows: int | None, back: bool) -> Tensor:
    """rows @ P, or rows @ P^T if ``back``: [N, width] <-> [N, rank]."""
    out = rows.new_empty(rows.shape[0], width if back else rank)
    wide = torch.promote_types(rows.dtype, torch.float32)
    # The signs are exact in every dtype and 1 / sqrt(rank) is not: it is applied in the wide one.
    norm = 1 / math.sqrt(rank)
    if block_rows is None or block_rows >= rows.shape[0]:
        p = _signs(0, 1, width, rank, seed, rows.device)[0].to(wide)
        p = p.t() if back else p
        step = max(1, _CHUNK // width)
        for start in range(0, rows.shape[0], step):
            out[start : start + step] = (rows[start : start + step].to(wide) @ p).mul_(norm)
        return out
    blocks = -(-rows.shape[0] // block_rows)
    step = max(1, _CHUNK // (width * max(rank, block_rows)))
    for first in range(0, blocks, step):
        count = min(step, blocks - first)
        part = rows[first * block_rows : (first + count) * block_rows].to(wide)
        size = part.shape[0]
        part = pad(part, (0, 0, 0, count * block_rows - size)).view(count, block_rows, -1)
        p = _signs(first, count, width, rank, seed, rows.device).to(wide)
        part = torch.bmm(part, p.transpose(1, 2) if back else p).mul_(norm)
        out[first * block_rows : first * block_rows + size] = part.flatten(0, 1)[:size]
    return out


def _signs(first: int, count: int, width: int, rank: int, seed: int, device: torch.device) -> Tensor:
    """The signs of P of blocks ``first`` .. ``first + count - 1``: float32 [count, width, rank]."""
    words = -(-width * rank // 64)
    signs = random_signs(seed, count * words, first * words, _STREAM, device)
    return signs.view(count, words * 64)[:, : width * rank].unflatten(1, (width, rank))


torch.serialization.add_safe_globals([ProjectedTensor])  # torch.load(..., weights_only=True) reads it
