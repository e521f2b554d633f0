"""Rows of several widths: found by rank, projected to one common width, summed over bags, scored against queries.

Four operators, graphlossy::rank_lookup, multi_size_forward, multi_size_backward and multi_size_scores, with a reference
on every device and kernels on the CPU and on CUDA; `graphlossy.core._multi_size` defines them and how the map is kept.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from graphlossy.core import _cpu, _multi_size
from graphlossy.core._multi_size import LARGEST_CODES, NO_BUCKET, Buckets, bag_of, rank_map, unpack_codes
from graphlossy.core._schemas import LIBRARY, check_bits

__all__ = ["LARGEST_CODES", "NO_BUCKET", "Buckets", "backward", "bag_of", "forward", "lookup", "rank_map", "scores",
           "unpack_codes"]  # fmt: skip

_TABLES = (
    "Tensor[] tables, Tensor[] scales, Tensor[] offsets, Tensor[] projections, int[] which, int[] sizes,"
    " int[] group_sizes, int bits, SymInt dim"
)
_OPS = {
    "rank_lookup": "(Tensor ids, Tensor planes, Tensor counts, SymInt num_tokens) -> (Tensor, Tensor)",
    "multi_size_forward": (
        f"(Tensor bucket, Tensor row, {_TABLES}, ScalarType dtype, Tensor? ends, Tensor? weights, bool mean) -> Tensor"
    ),
    "multi_size_backward": (
        f"(Tensor grad, Tensor bucket, Tensor row, {_TABLES}, Tensor? bag, Tensor? weights, bool[] wanted)"
        " -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "multi_size_scores": (f"(Tensor planes, Tensor counts, SymInt num_tokens, {_TABLES}, Tensor[] queries) -> Tensor"),
}
_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_LOW_BIT = 3
_PARTS = len(Buckets._fields)
_CHUNK = 1024  # kChunk in csrc/multi_size_cpu.cpp


def lookup(ids: Tensor, planes: Tensor, counts: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Bucket and row of every token.

    Args:
        ids: int64 or int32 [N].
        planes, counts: the map, from `rank_map`.
        num_tokens: of the map.

    Returns:
        (bucket, row): uint8 [N], int64 [N].

    Raises:
        IndexError: an id is negative or not below ``num_tokens``.
        TypeError: ``ids`` are no integers.
    """
    return torch.ops.graphlossy.rank_lookup(ids, planes, counts, num_tokens)


def forward(
    bucket: Tensor,
    row: Tensor,
    buckets: Buckets,
    dtype: torch.dtype,
    ends: Tensor | None = None,
    weights: Tensor | None = None,
    mean: bool = False,
) -> Tensor:
    """Rows at their common width, [N, dim]; with ``ends`` their sums over bags, [B, dim].

    Args:
        bucket, row: from `lookup`.
        buckets: the tables.
        dtype: of the result; sums are float32 (float64 for float64 tables).
        ends: int64 [B], one past the last position of each bag; rising, the last one N.
        weights: float [N] of the positions of bags.
        mean: divide by the number of positions of a bag (weights do not count); an empty bag is zero.
    """
    return torch.ops.graphlossy.multi_size_forward(bucket, row, *buckets, dtype, ends, weights, mean)


def backward(
    grad: Tensor,
    bucket: Tensor,
    row: Tensor,
    buckets: Buckets,
    bag: Tensor | None = None,
    weights: Tensor | None = None,
    wanted: Sequence[bool] | None = None,
) -> tuple[Tensor, list[int], Tensor, list[Tensor | None]]:
    """Gradients of the rows that were looked up, one for each position, and of the projections.

    Args:
        grad: [N, dim], or [B, dim] with ``bag``.
        bucket, row, buckets: as for `forward`; positions of bucket `NO_BUCKET` have no gradient.
        bag: int64 [N] the bag of each position.
        weights: float [N] what each position was multiplied with, the division of a mean included.
        wanted: which projections' gradients are needed; None is all.

    Returns:
        (order, counts, values, projections): int64 positions sorted by bucket; how many each bucket has; the
        gradients of their rows, flat; the gradient of each projection, None where it was not wanted.
    """
    wanted = [True] * len(buckets.projections) if wanted is None else list(wanted)
    order, counts, values, sums = torch.ops.graphlossy.multi_size_backward(
        grad, bucket, row, *buckets, bag, weights, wanted
    )
    projections: list[Tensor | None] = []
    at = 0
    for p, want in zip(buckets.projections, wanted, strict=True):
        projections.append(sums[at : at + p.numel()].view(p.shape) if want else None)
        at += p.numel() if want else 0
    return order, counts.tolist(), values, projections


def scores(planes: Tensor, counts: Tensor, num_tokens: int, buckets: Buckets, queries: Tensor) -> Tensor:
    """Products [B, V] of ``queries`` [B, dim] with the row of every token, none of which is made at full width.

    A query is projected to the width of each bucket once; a token then costs as many products as its row is wide.
    """
    queries, narrow = queries.to(buckets.compute_dtype()), []
    with torch.autocast(queries.device.type, enabled=False):  # it would round the products
        for k, size in enumerate(buckets.sizes):
            p = buckets.projection(k)
            narrow.append((queries.T[:size] if p is None else p @ queries.T).contiguous())
    return torch.ops.graphlossy.multi_size_scores(planes, counts, num_tokens, *buckets, narrow)


def _check_ids(ids: Tensor, planes: Tensor, counts: Tensor) -> None:
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f"ids must be int32 or int64, got {str(ids.dtype).removeprefix('torch.')}; convert with .long()"
        )
    if ids.dim() != 1:
        raise ValueError(f"ids must have one dimension, got shape {tuple(ids.shape)}; flatten them first")
    if ids.device != planes.device or ids.device != counts.device:
        raise ValueError(f"ids and the table must be on one device, got {ids.device} and {planes.device}")


def _wrong_id(value: int, num_tokens: int) -> IndexError:
    allowed = f"from 0 to {num_tokens - 1}" if num_tokens else "none: the table is empty"
    return IndexError(f"ids must be {allowed}, got {value}")


def _check_buckets(buckets: Buckets) -> None:
    if len({len(x) for x in (buckets.tables, buckets.which, buckets.sizes, buckets.group_sizes)}) != 1:
        raise ValueError("tables, which, sizes and group_sizes must have one entry for each bucket")
    if not 1 <= len(buckets.sizes) <= LARGEST_CODES:
        raise ValueError(f"there must be 1 to {LARGEST_CODES} buckets, got {len(buckets.sizes)}")
    if buckets.bits:
        check_bits(buckets.bits)
        if buckets.bits == 3:
            raise ValueError("rows of 3 bits cannot be looked up; take 2 or 4")
    for size, table, which in zip(buckets.sizes, buckets.tables, buckets.which, strict=True):
        if size and not buckets.bits and (table.dim() != 2 or table.shape[1] != size):
            raise ValueError(f"a table of size {size} must be [rows, {size}], got shape {tuple(table.shape)}")
        shape = buckets.projections[which].shape if which >= 0 else (buckets.dim, buckets.dim)
        if size and (shape[1] != buckets.dim or shape[0] < size or (which < 0 and size != buckets.dim)):
            raise ValueError(f"rows of size {size} need a projection [{size} or more, {buckets.dim}]")


def _reference_lookup(ids: Tensor, planes: Tensor, counts: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    _check_ids(ids, planes, counts)
    ids = ids.to(torch.int64)
    wrong = (ids < 0) | (ids >= num_tokens)
    if bool(wrong.any()):
        raise _wrong_id(int(ids[wrong][0]), num_tokens)
    return _multi_size.lookup(ids, planes, counts, num_tokens)


def _reference_forward(bucket: Tensor, row: Tensor, *rest: Any) -> Tensor:
    buckets = Buckets(*rest[:_PARTS])
    _check_buckets(buckets)
    return _multi_size.forward(bucket, row, buckets, *rest[_PARTS:])


def _reference_backward(grad: Tensor, bucket: Tensor, row: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _multi_size.backward(grad, bucket, row, Buckets(*rest[:_PARTS]), *rest[_PARTS:])


def _reference_scores(planes: Tensor, counts: Tensor, num_tokens: int, *rest: Any) -> Tensor:
    return _multi_size.scores(planes, num_tokens, Buckets(*rest[:_PARTS]), rest[_PARTS])


def _fake_lookup(ids: Tensor, planes: Tensor, counts: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    _check_ids(ids, planes, counts)
    return ids.new_empty(ids.shape, dtype=torch.uint8), ids.new_empty(ids.shape, dtype=torch.int64)


def _fake_forward(bucket: Tensor, row: Tensor, *rest: Any) -> Tensor:
    buckets, dtype, ends = Buckets(*rest[:_PARTS]), rest[_PARTS], rest[_PARTS + 1]
    return row.new_empty(((row if ends is None else ends).shape[0], buckets.dim), dtype=dtype)


def _fake_backward(grad: Tensor, bucket: Tensor, row: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    buckets, wanted, context = Buckets(*rest[:_PARTS]), rest[_PARTS + 2], torch.library.get_ctx()
    order = row.new_empty((context.new_dynamic_size(),))
    values = grad.new_empty((context.new_dynamic_size(),), dtype=buckets.compute_dtype())
    sums = sum(p.numel() for p, want in zip(buckets.projections, wanted, strict=True) if want)
    return order, row.new_empty((len(buckets.sizes),)), values, values.new_empty((sums,))


def _fake_scores(planes: Tensor, counts: Tensor, num_tokens: int, *rest: Any) -> Tensor:
    return planes.new_empty((rest[_PARTS][0].shape[1], num_tokens), dtype=Buckets(*rest[:_PARTS]).compute_dtype())


class _Held:
    """The tables as the kernels take them (`Bucket` in csrc/multi_size_cpu.cpp).

    Attributes:
        array: nine words for each bucket.
        count: of the buckets.
        kind: of the tables' elements.
        copies: tensors that had to be made and are pointed to.
    """

    def __init__(self, buckets: Buckets) -> None:
        self.kind, self.count = _LOW_BIT if buckets.bits else 0, len(buckets.sizes)
        self.copies: list[Tensor] = []
        matrices = [self._at(p.to(torch.float32), p) for p in buckets.projections]
        words: list[int] = []
        for k, size in enumerate(buckets.sizes):
            if not size:
                words += (0,) * 9
                continue
            table, which = buckets.tables[k], buckets.which[k]
            matrix, at = matrices[which] if which >= 0 else 0, self._at(table, table)
            if not buckets.bits:
                self.kind = _KINDS[table.dtype]
                words += (at, 0, 0, matrix, table.shape[0], 0, size, 0, -1)
                continue
            scale, offset, group_size = buckets.scales[k], buckets.offsets[k], buckets.group_sizes[k]
            flat, rows = _multi_size.is_flat(table), table.shape[0]
            if flat:  # as many rows as the padded codes hold: the last group has the same padded length
                rows = table.shape[1] // buckets.bits * 8 // size
            shift = group_size.bit_length() - 1 if group_size & (group_size - 1) == 0 else -1
            pointers = at, self._at(scale, scale), self._at(offset, offset), matrix
            words += (*pointers, rows, group_size, size, int(flat), shift)
        self.array = (ctypes.c_int64 * len(words))(*words)

    def _at(self, tensor: Tensor, given: Tensor) -> int:
        tensor = tensor.contiguous()
        if tensor.data_ptr() != given.data_ptr():
            self.copies.append(tensor)
        return tensor.data_ptr()


_prepared: dict[tuple[Any, ...], _Held] = {}
_MOST_PREPARED = 64


def _prepare(buckets: Buckets) -> _Held | None:
    """The tables as the kernels take them, checked; None where only the reference does: float64, or several types.

    What was made for the same memory is used again: a lookup of few ids would mostly be this work. It keeps no tensor
    alive.
    """
    key = tuple([(t.data_ptr(), t.shape, t.dtype, t.is_contiguous()) for part in buckets[:4] for t in part]) + (
        *buckets.sizes, *buckets.which, *buckets.group_sizes, buckets.bits, buckets.dim,
    )  # fmt: skip
    held = _prepared.get(key)
    if held is None:
        _check_buckets(buckets)
        if buckets.compute_dtype() == torch.float64:  # a table without rows makes the result float64 too
            return None
        kinds = {t.dtype for t, size in zip(buckets.tables, buckets.sizes, strict=True) if size}
        if not buckets.bits and (len(kinds) > 1 or not kinds <= set(_KINDS)):
            return None
        held = _Held(buckets)
        if not held.copies:
            if len(_prepared) >= _MOST_PREPARED:
                _prepared.clear()
            _prepared[key] = held
    return held


def _plain(*tensors: Tensor | None) -> list[Any]:
    """In order in memory, floats as float32: what a kernel reads."""
    return [t if t is None else (t.float() if t.is_floating_point() else t).contiguous() for t in tensors]


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class _CpuOps:
    """The operators on the CPU kernels."""

    def __init__(self, kernels: _cpu.Kernels) -> None:
        self._library, self._level = kernels._library, kernels.level

    def _run(self) -> tuple[int, int]:
        return torch.get_num_threads(), self._level

    def rank_lookup(self, ids: Tensor, planes: Tensor, counts: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """graphlossy::rank_lookup."""
        bucket, row = _fake_lookup(ids, planes, counts, num_tokens)
        ids = ids.to(torch.int64).contiguous()
        place = *self._map(planes, counts, num_tokens), bucket.data_ptr(), row.data_ptr()
        wrong = self._library.lossy_rank_lookup(ids.data_ptr(), ids.shape[0], *place, *self._run())
        if wrong >= 0:
            raise _wrong_id(int(ids[wrong]), num_tokens)
        return bucket, row

    @staticmethod
    def _map(planes: Tensor, counts: Tensor, num_tokens: int) -> tuple[Any, ...]:
        words = -(-num_tokens // _multi_size.WORD)
        wide = int(counts.dtype == torch.int64)
        bits = planes.shape[0] // words if words else 0
        return planes.data_ptr(), counts.data_ptr(), wide, words, num_tokens, bits, max(1, counts.shape[1])

    def multi_size_forward(self, bucket: Tensor, row: Tensor, *rest: Any) -> Tensor:
        """graphlossy::multi_size_forward."""
        buckets, (dtype, ends, weights, mean) = Buckets(*rest[:_PARTS]), rest[_PARTS:]
        held = _prepare(buckets)
        if held is None or dtype not in _KINDS:
            return _reference_forward(bucket, row, *rest)
        out = torch.empty(((row if ends is None else ends).shape[0], buckets.dim), dtype=dtype)
        bucket, row, ends, weights = _plain(bucket, row, ends, weights)
        self._library.lossy_multi_size_forward(
            held.array, held.count, bucket.data_ptr(), row.data_ptr(), row.shape[0], _pointer(ends),
            _pointer(weights), out.shape[0], buckets.dim, held.kind, buckets.bits, mean, out.data_ptr(), _KINDS[dtype],
            *self._run(),
        )  # fmt: skip
        return out

    def multi_size_backward(self, grad: Tensor, bucket: Tensor, row: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        """graphlossy::multi_size_backward."""
        buckets, (bag, weights, wanted) = Buckets(*rest[:_PARTS]), rest[_PARTS:]
        held, many = _prepare(buckets), len(buckets.sizes)
        if held is None:
            return _reference_backward(grad, bucket, row, *rest)
        grad, bucket, row, bag, weights = _plain(grad, bucket, row, bag, weights)
        counts, order = torch.empty(many, dtype=torch.int64), torch.empty_like(row)
        self._library.lossy_multi_size_order(
            held.array, many, bucket.data_ptr(), row.shape[0], counts.data_ptr(), order.data_ptr()
        )
        sizes = torch.tensor(buckets.sizes)
        ends, value_ends = counts.cumsum(0), (counts * sizes).cumsum(0)
        starts, at = ends - counts, value_ends - counts * sizes
        used, length = int(ends[-1]), int(value_ends[-1])
        elements = [p.numel() if want else 0 for p, want in zip(buckets.projections, wanted, strict=True)]
        total = sum(elements)
        begins = [sum(elements[:k]) if wanted[k] else -1 for k in range(len(elements))]
        matrix = torch.tensor([begins[which] if which >= 0 else -1 for which in buckets.which], dtype=torch.int64)
        values = torch.empty(length, dtype=torch.float32)
        sums = torch.zeros((max(1, -(-used // _CHUNK)), total), dtype=torch.float32)
        self._library.lossy_multi_size_backward(
            held.array, many, grad.data_ptr(), _pointer(bag), _pointer(weights), order.data_ptr(), bucket.data_ptr(),
            row.data_ptr(), starts.data_ptr(), at.data_ptr(), matrix.data_ptr(), used, buckets.dim, held.kind,
            buckets.bits, values.data_ptr(), sums.data_ptr(), total, *self._run(),
        )  # fmt: skip
        return order[:used].clone(), counts, values, sums[0].clone()

    def multi_size_scores(self, planes: Tensor, counts: Tensor, num_tokens: int, *rest: Any) -> Tensor:
        """graphlossy::multi_size_scores."""
        buckets, queries = Buckets(*rest[:_PARTS]), rest[_PARTS]
        held = _prepare(buckets)
        if held is None:
            return _reference_scores(planes, counts, num_tokens, *rest)
        out = _fake_scores(planes, counts, num_tokens, *rest)
        queries = _plain(*queries)
        pointers = (ctypes.c_void_p * len(queries))(*(q.data_ptr() for q in queries))
        self._library.lossy_multi_size_scores(
            *self._map(planes, counts, num_tokens), held.array, pointers, out.shape[0], held.kind, buckets.bits,
            out.data_ptr(), *self._run(),
        )  # fmt: skip
        return out


_FAKES: dict[str, Callable[..., Any]] = {
    "rank_lookup": _fake_lookup,
    "multi_size_forward": _fake_forward,
    "multi_size_backward": _fake_backward,
    "multi_size_scores": _fake_scores,
}
_REFERENCES: dict[str, Callable[..., Any]] = {
    "rank_lookup": _reference_lookup,
    "multi_size_forward": _reference_forward,
    "multi_size_backward": _reference_backward,
    "multi_size_scores": _reference_scores,
}


def _register() -> None:
    kernels = _cpu.kernels
    for name, schema in _OPS.items():
        LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"graphlossy::{name}", _FAKES[name], lib=LIBRARY)
        LIBRARY.impl(name, _REFERENCES[name], "CompositeExplicitAutograd")
        if kernels is not None:
            LIBRARY.impl(name, getattr(_CpuOps(kernels), name), "CPU")


_register()

from graphlossy.core import _cuda_multi_size  # noqa: E402,F401  registers the CUDA kernels
