"""Low-bit storage of the keys or the values of one layer: equal chunks of tokens, appended to each row of the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.core.quantize import QuantizedTensor, quantize
from graphlossy.core.symmetric import offset_of, quantize_symmetric

__all__ = ["PARTS", "Chunks", "writable"]

PARTS = ("codes", "scale", "offset")
_GROWTH = 16  # chunks of room at most, else a thirty-second of what there is


def writable(t: Tensor) -> Tensor:
    """Itself, or a copy of a tensor that was made under ``inference_mode`` and cannot be written outside it."""
    return t.clone() if t.is_inference() and not torch.is_inference_mode_enabled() else t


class Chunks:
    """Chunks [I, J] of every row and head in low-bit form, groups along J, rounded to the nearest code.

    A chunk of keys is [D, G]: G tokens of one channel share a scale (per channel); one of values is [G, D]: channels of
    one token share it (per token), as in KIVI (Liu et al., ICML 2024, section 3).

    Args:
        bits: 1, 2, 3, 4 or 8.
        group_size: elements of J that share a scale and an offset, 2 bytes each.
        symmetric: groups have a scale alone, of :func:`graphlossy.core.symmetric.quantize_symmetric`.

    Attributes:
        count: chunks of the longest row.
    """

    def __init__(self, bits: int, group_size: int, symmetric: bool = False) -> None:
        self.bits, self.group_size, self.symmetric = bits, group_size, symmetric
        self.count = 0
        self._shape: tuple[int, int] = (0, 0)  # I, J
        self._parts: tuple[Tensor, ...] = ()  # codes [B, H, C, I, bytes], scale (and offset) [B, H, C, I, groups]

    @property
    def nbytes(self) -> int:
        """Bytes of the storages, room for more chunks included."""
        return sum(part.numel() * part.element_size() for part in self._parts)

    @property
    def metadata_nbytes(self) -> int:
        """Bytes of scales and offsets."""
        return sum(part.numel() * part.element_size() for part in self._parts[1:])

    def write(self, chunks: Tensor, rows: list[int], first: int, batch: int) -> None:
        """Stores ``chunks`` [len(rows), H, c, I, J] as chunks ``first`` and following of these rows.

        Args:
            chunks: floats.
            rows: of the batch.
            first: number of the first chunk.
            batch: rows in all.
        """
        heads, c, i, j = chunks.shape[1:]
        new = self._packed(chunks)
        if not self._parts:
            self._shape = i, j
            self._parts = tuple(t.new_zeros((batch, heads, 0, *t.shape[3:])) for t in new)
        self._reserve(first + c)
        self._parts = tuple(writable(part) for part in self._parts)
        everywhere = len(rows) == batch
        where = None if everywhere else torch.tensor(rows, device=chunks.device)
        for part, piece in zip(self._parts, new, strict=True):
            if where is None:
                part[:, :, first : first + c] = piece
            else:
                part[where, :, first : first + c] = piece
        self.count = max(self.count, first + c)

    def replace(self, row: int, chunks: Tensor, changed: Tensor) -> None:
        """Stores those of the first chunks [H, c, I, J] of a row that ``changed`` [H, c] names; the others stay."""
        count = chunks.shape[1]
        self._parts = tuple(writable(part) for part in self._parts)
        for part, piece in zip(self._parts, self._packed(chunks[None]), strict=True):
            part[row, :, :count] = torch.where(changed[..., None, None], piece[0], part[row, :, :count])

    def emptied(self) -> Chunks:
        """Another one for the same, without any."""
        return Chunks(self.bits, self.group_size, self.symmetric)

    def _packed(self, chunks: Tensor) -> tuple[Tensor, ...]:
        if self.symmetric:
            return quantize_symmetric(chunks, self.bits, self.group_size)
        found = quantize(chunks.contiguous(), self.bits, self.group_size, rounding="nearest")
        return tuple(t.view(*chunks.shape[:4], -1) for t in (found.packed, found.scale, found.offset))

    def _reserve(self, count: int) -> None:
        room = self._parts[0].shape[2]
        if count > room:
            more = max(count - room, min(_GROWTH, max(1, count // 32)))
            self._parts = tuple(
                torch.cat([part, part.new_zeros((*part.shape[:2], more, *part.shape[3:]))], 2) for part in self._parts
            )

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Codes, scales and offsets [B, H, chunks, I, .], and room for more; empty at first."""
        if self.symmetric and self._parts:
            return *self._parts, offset_of(self._parts[1], self.bits)
        return self._parts

    def read(self, dtype: torch.dtype) -> Tensor:
        """Floats [B, H, count, I, J]; what a row has not is whatever lies there."""
        codes, scale, offset = (part[:, :, : self.count] for part in self.parts)
        shape = (*codes.shape[:3], *self._shape)
        flat = (t.reshape(-1, t.shape[-1]) for t in (codes, scale, offset))
        group = min(self.group_size, -(-self._shape[1] // 8) * 8)
        order = tuple(range(len(shape)))
        return QuantizedTensor(*flat, self.bits, group, shape, dtype, -1, order).dequantize()

    def keep(self, count: int) -> None:
        """Forgets the chunks after the first ``count`` of every row."""
        self.count = min(self.count, count)

    def select(self, rows: Tensor) -> None:
        """Takes the rows of the batch that ``rows`` [B'] names."""
        self._parts = tuple(part.index_select(0, rows.to(part.device)) for part in self._parts)

    def to(self, device: torch.device) -> None:
        """Moves the storage."""
        self._parts = tuple(part.to(device) for part in self._parts)

    def state(self) -> dict[str, Tensor]:
        """Tensors for :meth:`load`, without the room."""
        return {name: part[:, :, : self.count] for name, part in zip(PARTS, self._parts, strict=False)}

    def load(self, state: dict[str, Tensor], shape: tuple[int, int]) -> None:
        """Gives :meth:`state` back; ``shape`` is [I, J] of a chunk.

        Raises:
            KeyError: some of its tensors are missing.
        """
        self._parts = tuple(state[name] for name in PARTS[: 2 if self.symmetric else 3]) if state else ()
        self._shape, self.count = shape, self._parts[0].shape[2] if self._parts else 0
