"""The CUDA kernels of rows of several widths beyond 2^31 tokens and elements, on memory that is never filled."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from graphlossy.core import _cuda_multi_size, multi_size
from graphlossy.core import _multi_size as reference
from graphlossy.core._cuda import THREADS, Kernels
from graphlossy.core._cuda_multi_size import CudaOps
from graphlossy.core.multi_size import Buckets

EDGE = 2**31
ROWS, SIZE, DIM = 2**27 + 70, 16, 20
TOKENS, BATCH = 2**28 + 70, 9
Call = tuple[str, tuple[Any, ...]]


def never_filled(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor | None = None) -> Tensor:
    """Zeros that take address space but no memory until they are written to."""
    numel = torch.Size(shape).numel()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        memory = mmap.mmap(-1, numel * torch.empty(0, dtype=dtype).element_size(), flags=flags)
    except OSError as error:
        pytest.skip(f"no address space: {error}")
    return torch.frombuffer(memory, dtype=dtype).view(shape)


@pytest.fixture(autouse=True)
def _results_are_never_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda_multi_size, "_empty", lambda shape, dtype, like: never_filled(tuple(shape), dtype))
    monkeypatch.setattr(multi_size, "_prepared", {})


@contextlib.contextmanager
def only_last_blocks(kernels: Kernels, elements: int, of_a_block: int) -> Iterator[slice]:
    """Which elements the last two blocks of a launch handle; only these run."""
    last = -(-elements // of_a_block)
    kernels._driver.emulator_blocks(last - 2, last)
    try:
        yield slice((last - 2) * of_a_block, elements)
    finally:
        kernels._driver.emulator_blocks(0, 2**32 - 1)


def one_table(stored: Sequence[Tensor], size: int, group_size: int, bits: int, dim: int) -> Buckets:
    table, scale, offset = stored
    projections = [torch.randn(size, dim)] if size < dim else []
    return Buckets([table], [scale], [offset], projections, [0 if projections else -1], [size], [group_size], bits, dim)


NONE = torch.empty(0, dtype=torch.bfloat16)


def check_lookup(kernels: Kernels) -> bool:
    tokens = EDGE + 5000
    planes, counts = never_filled((-(-tokens // 64),), torch.int64), never_filled((-(-tokens // 512), 2), torch.int64)
    for token in (5, EDGE - 1, EDGE, EDGE + 700):
        planes[token // 64] |= -(2**63) if token % 64 == 63 else 1 << token % 64
    ids = torch.tensor([5, 6, EDGE - 2, EDGE - 1, EDGE, EDGE + 1, EDGE + 700, EDGE + 701, tokens - 1])
    for block in (ids // 512).unique().tolist():
        counts[block] = torch.tensor([block * 512, 3])
    found = CudaOps(kernels).rank_lookup(ids, planes, counts, tokens)
    return all(map(torch.equal, found, reference.lookup(ids, planes, counts, tokens)))


def check_rows(kernels: Kernels) -> bool:
    """Rows near the end of tables: floats, codes in groups over a table and over each row."""
    row = torch.tensor([3, ROWS - 3, EDGE // SIZE - 1, EDGE // SIZE, ROWS - 1])
    floats = never_filled((ROWS, SIZE), torch.float16)
    floats[row] = torch.randn(5, SIZE).half()
    flat = (
        never_filled((1, ROWS * SIZE // 8), torch.uint8),
        *(never_filled((1, ROWS // 4 + 1), NONE.dtype) for _ in "ab"),
    )
    lines = never_filled((ROWS, SIZE), torch.uint8), *(never_filled((ROWS, 1), NONE.dtype) for _ in "ab")
    for packed, scale, offset in (flat, lines):
        for r in row.tolist():  # of the codes over the table, 64 elements to a group
            at = (r, slice(None)) if packed is lines[0] else (0, slice(r * SIZE // 64 * 8, r * SIZE // 64 * 8 + 8))
            packed[at] = torch.randint(256, packed[at].shape).to(torch.uint8)
            place = (r, 0) if packed is lines[0] else (0, r * SIZE // 64)
            scale[place], offset[place] = 0.5 + r % 7, r % 5
    bucket, good = torch.zeros(5, dtype=torch.uint8), True
    for table, bits, group in (((floats, NONE, NONE), 0, 0), (flat, 1, 64), (lines, 8, 64)):
        buckets = one_table(table, SIZE, group, bits, DIM)
        rest = torch.float32, None, None, False
        found = CudaOps(kernels).multi_size_forward(bucket, row, *buckets, *rest)
        good &= torch.equal(found, reference.forward(bucket, row, buckets, *rest))
    return good


def check_outputs(kernels: Kernels) -> bool:
    table = torch.randn(50, SIZE).half()
    bucket, row = never_filled((ROWS,), torch.uint8), never_filled((ROWS,), torch.int64)
    buckets, rest = one_table((table, NONE, NONE), SIZE, 0, 0, DIM), (torch.float32, None, None, False)
    with only_last_blocks(kernels, ROWS, THREADS // 8) as at:  # eight threads to a position
        row[at] = torch.randint(0, 50, row[at].shape)
        found = CudaOps(kernels).multi_size_forward(bucket, row, *buckets, *rest)
    return torch.equal(found[at], reference.forward(bucket[at], row[at], buckets, *rest))


def check_values(kernels: Kernels) -> bool:
    """The kernel alone: sorting as many positions would take their memory."""
    grad, order = never_filled((ROWS, DIM), torch.float16), never_filled((ROWS,), torch.int64)
    bucket, values = never_filled((ROWS,), torch.uint8), never_filled((ROWS * SIZE,), torch.float32)
    buckets, zeros = one_table((torch.randn(50, SIZE), NONE, NONE), SIZE, 0, 0, DIM), torch.zeros(2, dtype=torch.int64)
    words = _cuda_multi_size._words(multi_size._Held(buckets), buckets, order)
    name = "multi_size_values_float16"
    null, numbers = _cuda_multi_size._NULL, (_cuda_multi_size._LONG(ROWS), _cuda_multi_size._LONG(DIM))
    with only_last_blocks(kernels, ROWS, THREADS // reference.LANES) as at:
        order[at] = torch.arange(at.start, at.stop)
        grad[at] = torch.randn(at.stop - at.start, DIM).half()
        arguments = words, grad, null, null, order, bucket, zeros, zeros, values, *numbers
        kernels._launch(name, f"LOSSY_MULTI_SIZE_VALUES(half_bits,{name})", -(-ROWS // 16), *arguments)
    found = values.view(ROWS, SIZE)[at]
    return torch.equal(found, reference._dot(grad[at].float(), buckets.projections[0]))


def check_scores(kernels: Kernels) -> bool:
    table, queries = never_filled((TOKENS, 1), torch.float16), [torch.randn(1, BATCH)]
    planes, counts = torch.empty(0, dtype=torch.int64), torch.empty((0, 0), dtype=torch.int32)
    buckets = one_table((table, NONE, NONE), 1, 0, 0, 1)
    with only_last_blocks(kernels, 2 * TOKENS, THREADS) as turns:  # two parts: eight queries and the last one
        at = slice(turns.start - TOKENS, TOKENS)
        table[at] = torch.randn(at.stop - at.start, 1).half()
        found = CudaOps(kernels).multi_size_scores(planes, counts, TOKENS, *buckets, queries)
    return torch.equal(found[8, at], table[at, 0].float() * queries[0][0, 8])


def small() -> list[Call]:
    """Calls that need the kernels of the checks."""
    bucket, row, rest = torch.zeros(3, dtype=torch.uint8), torch.arange(3), (torch.float32, None, None, False)
    planes, counts = multi_size.rank_map(bucket, 1)
    buckets = one_table((torch.randn(3, SIZE).half(), NONE, NONE), SIZE, 0, 0, DIM)
    stored = torch.ops.graphlossy.quantize(torch.randn(3, SIZE), 8, 64, False, 0)
    codes = one_table(stored, SIZE, 64, 8, DIM)
    return [
        ("rank_lookup", (row, planes, counts, 3)),
        ("multi_size_forward", (bucket, row, *buckets, *rest)),
        ("multi_size_forward", (bucket, row, *codes, *rest)),
        ("multi_size_backward", (torch.randn(3, DIM).half(), bucket, row, *buckets, None, None, [True])),
        ("multi_size_scores", (planes, counts, 3, *buckets, [torch.randn(SIZE, BATCH)])),
    ]


@pytest.fixture(scope="module")
def kernels(emulate: Callable[[list[Call]], Kernels]) -> Kernels:
    return emulate(small())


@pytest.mark.parametrize("check", [check_lookup, check_rows, check_outputs, check_values, check_scores])
def test_beyond_2_31(check: Callable[[Kernels], bool], kernels: Kernels) -> None:
    assert check(kernels)


NARROW = [
    (check_lookup, "block = id / (kWord * kWords)", "block = (int32_t)id / (kWord * kWords)"),
    (check_rows, "row * bucket.size + first)", "(int32_t)(row * bucket.size) + first)"),
    (check_rows, "first += row * bucket.size;", "first += (int32_t)(row * bucket.size);"),
    (check_rows, "row * (padded(width_) / 8 * bits)", "(int32_t)(row * (padded(width_) / 8 * bits))"),
    (check_outputs, "out + index * dim + j", "out + (int32_t)(index * dim + j)"),
    (check_values, "(bag == nullptr ? n : bag[n]) * dim", "(int32_t)((bag == nullptr ? n : bag[n]) * dim)"),
    (check_values, "at[k] + (place - starts[k]) * b.size", "(int32_t)(at[k] + (place - starts[k]) * b.size)"),
    (check_scores, "out[(q + t) * rank.tokens + id]", "out[(int32_t)((q + t) * rank.tokens + id)]"),
]
SOME = [narrow if i % 4 == 1 else pytest.param(*narrow, marks=pytest.mark.slow) for i, narrow in enumerate(NARROW)]


@pytest.mark.parametrize(("check", "old", "new"), SOME)
def test_an_index_of_32_bits_is_found(
    check: Callable[[Kernels], bool], old: str, new: str, changed: Callable[..., Kernels]
) -> None:
    wrong = changed(old, new, small())
    try:
        assert not check(wrong)
    except OSError as error:
        assert "illegal memory access" in str(error)
