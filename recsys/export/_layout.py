"""A table as flat arrays and a few numbers, from which a row follows by gathers and one product: no branch, no loop.

The bits that map a token to its row (see `graphlossy.core._multi_size`) need a rank, which runtimes such as ONNX's do
not have. Here the row is stored: an int32 for each token, its place among the rows of all buckets, one bucket after
the other. The bucket follows from the place, as the buckets' first places rise.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from graphlossy.core import narrow_index
from graphlossy.recsys.export._find import block_rows, core_of, dense_rows, settled
from graphlossy.recsys.multi_size import MultiSizeEmbedding
from graphlossy.recsys.rows import ROW_BITS, FloatRows, LowBitRows

__all__ = ["Layout", "layout_of"]

_ALIGN = 8  # elements: a bucket's codes begin with a byte, whatever their width


class Layout(NamedTuple):
    """A table of K buckets.

    Attributes:
        num_embeddings, dim: V and d.
        dtype: of a looked-up row.
        place: int32 [V] of each token's row among all rows; None: the token itself.
        starts: int64 [K] place of each bucket's first row.
        sizes: int64 [K] elements of a row; 0 is a row of zeros.
        strides: int64 [K] units from one row to the next.
        bases: int64 [K] first unit in ``flat``.
        last: int64 [K] last unit of a row, counted from its first.
        flat: float elements of all rows [units, unit], or their codes, ``8 / bits`` to a byte: uint8 [bytes], the
            first code in the lowest bits.
        unit: elements that are gathered as one: the greatest common divisor of the sizes, 1 for codes.
        bits: width of a code; 0 for floats.
        group_sizes: int64 [K] elements that share a scale; 1 for floats.
        group_bases: int64 [K] first scale of each bucket.
        scale, offset: bfloat16, of the codes: code * scale + offset.
        powers: int64 [8 / bits] by which a byte is divided for its first, second, ... code; empty for floats.
        projections: (size, matrix [size', d]) for rows of ``size``; a size of 0 stands for all below d.
    """

    num_embeddings: int
    dim: int
    dtype: torch.dtype
    place: Tensor | None
    starts: Tensor
    sizes: Tensor
    strides: Tensor
    bases: Tensor
    last: Tensor
    flat: Tensor
    unit: int
    bits: int
    group_sizes: Tensor
    group_bases: Tensor
    scale: Tensor
    offset: Tensor
    powers: Tensor
    projections: list[tuple[int, Tensor]]

    @property
    def width(self) -> int:
        """Elements of the widest row."""
        return int(self.sizes.max())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a graph has to hold."""
        named = {name: value for name, value in self._asdict().items() if isinstance(value, Tensor)}
        return named | {f"projection_{at}": matrix for at, (_, matrix) in enumerate(self.projections)}


@torch.no_grad()
def layout_of(table: Any, bits: int | None = None) -> Layout:
    """The layout of a table on the CPU; one of another kind than multi-size is folded to a dense one first.

    Args:
        table: any compressed or plain table, or a bag of one.
        bits: round float rows to so many bits, in groups of 64 elements.
    """
    if bits is not None and (isinstance(bits, bool) or bits not in ROW_BITS):
        raise ValueError(f"bits must be None (as the table is) or one of {ROW_BITS}, got {bits!r}")
    table = settled(core_of(table))
    if not table.num_embeddings:
        raise ValueError(f"table {getattr(table, 'name', '')!r} has no tokens, so there is nothing to look up")
    if isinstance(table, MultiSizeEmbedding):
        kinds = range(len(table._kinds))
        parts = [(table._width(k), table.tables[table._key(k)] if table._width(k) else None) for k in kinds]
        dtype, place, projections = table.dtype, _places(table, parts), _projections(table, parts)
    else:
        step, count = block_rows(table.embedding_dim), table.num_embeddings
        dense = torch.cat([dense_rows(table, at, min(at + step, count)) for at in range(0, count, step)])
        parts, dtype, place, projections = [(table.embedding_dim, FloatRows(dense))], dense.dtype, None, []
    if bits:
        parts = [
            (size, LowBitRows(rows.dense(), bits) if isinstance(rows, FloatRows) else rows) for size, rows in parts
        ]
    if not any(size for size, _ in parts):  # nothing but zeros
        parts = [(table.embedding_dim, FloatRows(torch.zeros(1, table.embedding_dim, dtype=dtype)))]
        place = torch.zeros(table.num_embeddings, dtype=torch.int32)
    return _assemble(table, parts, dtype, place, projections)


def _row_counts(parts: list[tuple[int, Any]]) -> Tensor:
    return torch.tensor([0, *(rows.shape[0] if rows is not None else 1 for _, rows in parts)], dtype=torch.int64)


def _places(table: MultiSizeEmbedding, parts: list[tuple[int, Any]]) -> Tensor | None:
    if len(parts) == 1 and table._kinds[0]:
        return None
    starts = _row_counts(parts).cumsum(0)[:-1]
    zeros = torch.tensor([rows is None for _, rows in parts])
    ids = torch.arange(table.num_embeddings, device=table.device)
    found = []
    for part in ids.split(1 << 20):
        bucket, row = (x.cpu() for x in table._place(part))
        bucket = bucket.to(torch.int64)
        found.append(narrow_index(starts[bucket] + row.masked_fill(zeros[bucket], 0)))
    return torch.cat(found)


def _projections(table: MultiSizeEmbedding, parts: list[tuple[int, Any]]) -> list[tuple[int, Tensor]]:
    narrow = sorted({size for size, _ in parts} - {0, table.embedding_dim})
    if not narrow:
        return []
    if "nested" in table.projections:
        return [(0, table.projections["nested"].detach()[: narrow[-1]].cpu())]
    return [(size, table.projections[str(size)].detach().cpu()) for size in narrow]


def _assemble(
    table: Any, parts: list[tuple[int, Any]], dtype: torch.dtype, place: Tensor | None, projections: Any
) -> Layout:
    low_bit = [rows for _, rows in parts if isinstance(rows, LowBitRows)]
    bits = low_bit[0].bits if low_bit else 0
    flat, scales, offsets = [], [], []
    strides, bases, group_sizes, group_bases = [], [], [], []
    element = group = 0
    for size, rows in parts:
        stride = rows.group_size if bits and rows is not None and rows.is_trainable else size
        strides.append(stride)
        bases.append(element if size else 0)
        group_sizes.append(rows.group_size if bits and rows is not None else 1)
        group_bases.append(group if size else 0)
        if rows is None:
            continue
        if bits:
            scale, offset = (x.detach().cpu().reshape(-1) for x in rows.metadata())
            codes = functional.pad(_codes(rows), (0, stride - size)).reshape(-1)
            flat.append(functional.pad(codes, (0, -codes.shape[0] % _ALIGN)))
            scales.append(scale)
            offsets.append(offset)
            group += scale.shape[0]
        else:
            flat.append(rows.dense().detach().cpu().reshape(-1))
        element += flat[-1].shape[0]
    empty = torch.empty(0, dtype=torch.bfloat16)
    unit = 1 if bits else math.gcd(*(size for size, _ in parts))
    sizes = [size for size, _ in parts]
    numbers = [torch.tensor(x, dtype=torch.int64) for x in (sizes, strides, bases, group_sizes, group_bases)]
    everything = torch.cat(flat)
    return Layout(
        table.num_embeddings, table.embedding_dim, dtype, place,
        starts=_row_counts(parts).cumsum(0)[:-1].clone(), sizes=numbers[0], strides=numbers[1] // unit,
        bases=numbers[2] // unit, last=(numbers[0] // unit - 1).clamp(min=0),
        flat=_pack(everything, bits) if bits else everything.view(-1, unit),
        unit=unit, bits=bits, group_sizes=numbers[3], group_bases=numbers[4], scale=torch.cat([empty, *scales]),
        offset=torch.cat([empty, *offsets]), powers=2 ** torch.arange(0, 8 if bits else 0, bits or 1),
        projections=projections,
    )  # fmt: skip


def _codes(rows: LowBitRows) -> Tensor:
    """uint8 [rows, size]: the codes themselves, which is what they stand for where the scale is 1 and the offset 0."""
    scale, _ = rows.metadata()
    width = rows.size if rows.is_trainable else rows.rows * rows.size
    numbers = torch.ones_like(scale), torch.zeros_like(scale)
    found = torch.ops.graphlossy.dequantize(rows.packed, *numbers, rows.bits, rows.group_size, width, torch.float32)
    return found.to(torch.uint8).cpu().view(rows.rows, rows.size)


def _pack(codes: Tensor, bits: int) -> Tensor:
    per = 8 // bits
    shifts = torch.arange(per, dtype=torch.uint8) * bits
    return (codes.view(-1, per) << shifts).sum(1, dtype=torch.uint8)
