"""Bytes of a multi-size table, exactly, from how many tokens have which size: nothing is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphlossy.core._multi_size import WORD, WORDS
from graphlossy.core._schemas import check_group_size, groups_per_row, row_bytes
from graphlossy.recsys.rows import ROW_BITS

__all__ = ["BITS_WHEN", "PROJECTIONS", "Storage", "multi_size_bytes"]

BITS_WHEN = ("after", "training")
_META = 5 * 8  # of low-bit rows: their bits, group, shape and whether they are trainable, int64
PROJECTIONS = ("nested", "per_size")


@dataclass(frozen=True)
class Storage:
    """How a `MultiSizeEmbedding` stores its rows.

    Attributes:
        embedding_dim: common width d.
        element_bytes: of a float element; 4 for float32.
        bits: width of a code, 0 for float rows.
        group_size: elements that share a scale and an offset; not used by ``bits_when="training"``, where a row is a
            group.
        bits_when: rounded ``"after"`` training, or at every step of ``"training"``.
        projection: ``"nested"`` or ``"per_size"``.
        shared_rows, shared_size: hashed rows for tokens of size 0; a ``shared_size`` of 0 is the smallest other size.

    Raises:
        ValueError: a value is not allowed.

    Example:
        >>> Storage(8).nbytes([0, 0, 3, 0, 0, 0, 0, 0, 2])  # 3 rows of 2, 2 of 8, a projection [2, 8], the map
        176
    """

    embedding_dim: int
    element_bytes: int = 4
    bits: int = 0
    group_size: int = 64
    bits_when: str = "after"
    projection: str = "nested"
    shared_rows: int = 0
    shared_size: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (0, *ROW_BITS):
            raise ValueError(f"bits of rows must be 0 (float) or one of {ROW_BITS}, got {self.bits!r}")
        if self.bits_when not in BITS_WHEN:
            raise ValueError(f"bits_when must be one of {BITS_WHEN}, got {self.bits_when!r}")
        if self.projection not in PROJECTIONS:
            raise ValueError(f"projection must be one of {PROJECTIONS}, got {self.projection!r}")
        if isinstance(self.shared_rows, bool) or not isinstance(self.shared_rows, int) or self.shared_rows < 0:
            raise ValueError(f"shared_rows must be an int of at least 0, got {self.shared_rows!r}")
        if not 0 <= self.shared_size <= self.embedding_dim:
            raise ValueError(
                f"shared_size must be from 0 (the smallest size) to {self.embedding_dim}, got {self.shared_size!r}"
            )
        check_group_size(self.group_size)

    def nbytes(self, tokens: Sequence[int]) -> int:
        """Bytes of the finished module, where ``tokens[s]`` tokens have the size s, s = 0 .. d."""
        sizes = [s for s, count in enumerate(tokens) if count] or [self.embedding_dim]
        total = 4 * len(sizes)  # bucket_sizes
        if len(sizes) > 1:
            count = sum(tokens)
            words = -(-count // WORD)
            entry = 8 if count > 2**31 - 1 else 4
            total += 8 * words * (len(sizes) - 1).bit_length() + entry * -(-words // WORDS) * len(sizes)
        widths = []
        for size in sizes:
            count, width = (tokens[size], size) if size else (self.shared_rows, self._shared_width(sizes))
            if width:
                total += self._table(count, width)
                widths.append(width)
        narrow = {width for width in widths if width < self.embedding_dim}
        rows = max(narrow, default=0) if self.projection == "nested" else sum(narrow)
        return total + rows * self.embedding_dim * self.element_bytes

    def of(self, sizes: Tensor) -> int:
        """Bytes of the finished module for the sizes [V]."""
        found = torch.bincount(sizes.to(torch.int64), minlength=self.embedding_dim + 1)
        return self.nbytes(found.tolist())

    def of_one_size(self, num_embeddings: int, size: int) -> int:
        """Bytes of the finished module whose tokens all have one size."""
        tokens = [0] * (self.embedding_dim + 1)
        tokens[size] = num_embeddings
        return self.nbytes(tokens)

    def row_cost(self, size: int) -> float:
        """Bytes of one more row of ``size``; scales and offsets are shared out to the elements of their group."""
        if not self.bits:
            return size * self.element_bytes
        if self.bits_when == "training":
            return row_bytes(size, self.bits) + 4 if size else 0
        return size * (self.bits / 8 + 4 / self.group_size)

    def _shared_width(self, sizes: Sequence[int]) -> int:
        if not self.shared_rows:
            return 0
        return self.shared_size or next((s for s in sizes if s), self.embedding_dim)

    def _table(self, rows: int, width: int) -> int:
        if not self.bits:
            return rows * width * self.element_bytes
        if self.bits_when == "training":
            return rows * (row_bytes(width, self.bits) + 4) + _META
        elements = rows * width
        group = min(self.group_size, -(-max(elements, 1) // 8) * 8)
        return row_bytes(elements, self.bits) + 4 * groups_per_row(elements, group) + _META


def multi_size_bytes(
    sizes: Sequence[int] | Tensor,
    embedding_dim: int,
    bits: int = 0,
    group_size: int = 64,
    projection: str = "nested",
    shared_rows: int = 0,
    shared_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    bits_when: str = "after",
) -> int:
    """Bytes of a `MultiSizeEmbedding` with these sizes, its map, projections and scales included.

    The number is that of the module's ``nbytes``, after ``quantize_(bits, group_size)`` where bits are given.

    Args:
        sizes: width of every token's row, [V], from 0 to ``embedding_dim``.
        embedding_dim: common width d.
        bits: 1, 2, 4 or 8 for low-bit rows, 0 for float ones.
        group_size: elements that share a scale and an offset.
        projection: ``"nested"`` or ``"per_size"``.
        shared_rows, shared_size: hashed rows for the tokens of size 0.
        dtype: of float rows and projections.
        bits_when: ``"after"`` training, or rows that are trained in low bits (``"training"``).

    Raises:
        ValueError: a size is not from 0 to ``embedding_dim``, or another argument is not allowed.

    Example:
        >>> from graphlossy.recsys import MultiSizeEmbedding
        >>> sizes = [8, 8, 2, 2, 2, 0]
        >>> multi_size_bytes(sizes, 8), MultiSizeEmbedding(6, 8, sizes=sizes).nbytes
        (192, 192)
    """
    found = torch.as_tensor(sizes, dtype=torch.int64)
    if found.numel() and not 0 <= int(found.min()) <= int(found.max()) <= embedding_dim:
        raise ValueError(f"sizes must be from 0 to embedding_dim = {embedding_dim}, got {found.min()} to {found.max()}")
    shared = int(shared_size or 0) if shared_rows else 0
    storage = Storage(embedding_dim, dtype.itemsize, bits, group_size, bits_when, projection, shared_rows, shared)
    return storage.of(found)
