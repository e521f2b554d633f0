"""Rows of several widths: the map, and the CPU kernels against the reference at every level and number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.core import _cpu, multi_size, quantize
from graphlossy.core import _multi_size as reference
from graphlossy.core.multi_size import NO_BUCKET, Buckets

LEVELS = range(0 if _cpu.kernels is None else _cpu.kernels.highest + 1)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
needs_kernels = pytest.mark.skipif(_cpu.kernels is None, reason=f"no CPU kernels: {_cpu.load_error}")
# At, before and after the ends of words (64) and blocks (512).
TOKENS = (1, 63, 64, 65, 128, 511, 512, 513, 1023, 1024, 1025, 1500)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@cache
def kernels_of(level: int) -> multi_size._CpuOps:
    return multi_size._CpuOps(_cpu.Kernels(_cpu.LIBRARY_FILE, level))


def every_kernel() -> Iterator[tuple[str, multi_size._CpuOps]]:
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for level in LEVELS:
            ops = kernels_of(level)
            yield f"{_cpu.LEVELS[level]}, {threads} threads", ops


def pattern(x: torch.Tensor) -> torch.Tensor:
    """Bits of ``x``, those of every NaN the same."""
    if not x.is_floating_point():
        return x
    x = torch.where(x.isnan(), torch.full_like(x, torch.nan), x)
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def assert_same(found: torch.Tensor, expected: torch.Tensor, what: object) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype, what
    assert torch.equal(pattern(found), pattern(expected)), what


def make_buckets(
    codes: torch.Tensor, sizes: list[int], dim: int, dtype: torch.dtype, bits: int = 0, how: str = "flat",
    nested: bool = True, group_size: int = 24,
) -> Buckets:  # fmt: skip
    """Random tables for bucket numbers ``codes``; codes in groups over each table (``how="flat"``) or row."""
    tables, scales, offsets, groups = [], [], [], []
    for k, size in enumerate(sizes):
        values = torch.randn(int((codes == k).sum()), size)
        if not bits or not size:
            tables.append(values.to(dtype))
            groups.append(0)
            scales.append(torch.empty(0, dtype=torch.bfloat16))
            offsets.append(scales[-1])
            continue
        q = quantize(values, bits, group_size, rounding="nearest", dim=None if how == "flat" else -1)
        for to, value in zip(
            (tables, scales, offsets, groups), (q.packed, q.scale, q.offset, q.group_size), strict=True
        ):
            to.append(value)
    narrow = sorted({s for s in sizes if 0 < s < dim})
    if nested:
        projections = [torch.randn(narrow[-1], dim).to(dtype)] if narrow else []
        which = [0 if 0 < s < dim else -1 for s in sizes]
    else:
        projections = [torch.randn(s, dim).to(dtype) for s in narrow]
        which = [narrow.index(s) if s in narrow else -1 for s in sizes]
    return Buckets(tables, scales, offsets, projections, which, list(sizes), groups, bits, dim)


def example(tokens: int, sizes: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(codes, planes, counts); every bucket has a token where there are enough."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, len(sizes), (tokens,), generator=generator)
    codes[: min(tokens, len(sizes))] = torch.arange(len(sizes))[:tokens]
    return codes, *multi_size.rank_map(codes.to(torch.uint8), len(sizes))


# The map.


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("kinds", [1, 2, 5, 8, 9, 255])
def test_lookup_is_the_rank(tokens: int, kinds: int) -> None:
    codes, planes, counts = example(tokens, [1] * kinds)
    assert torch.equal(multi_size.unpack_codes(planes, tokens), codes.to(torch.uint8))
    ids = torch.cat([torch.arange(tokens), torch.randint(0, tokens, (50,))])
    one_hot = torch.nn.functional.one_hot(codes, kinds)
    rank = (one_hot.cumsum(0) - one_hot)[torch.arange(tokens), codes]
    for some in (ids, ids.int()):
        bucket, row = multi_size.lookup(some, planes, counts, tokens)
        assert bucket.dtype == torch.uint8 and torch.equal(bucket.long(), codes[ids]) and torch.equal(row, rank[ids])
    assert_same(reference.lookup(ids, planes, counts, tokens)[1], rank[ids], "reference")
    for name, ops in every_kernel():
        bucket, row = ops.rank_lookup(ids, planes, counts, tokens)
        assert torch.equal(bucket.long(), codes[ids]) and torch.equal(row, rank[ids]), name


def test_map_is_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, planes, counts = example(5000, [1] * 6)
    monkeypatch.setattr(reference, "_CHUNK", 1024)
    again = multi_size.rank_map(codes.to(torch.uint8), 6)
    assert torch.equal(again[0], planes) and torch.equal(again[1], counts)
    assert torch.equal(multi_size.unpack_codes(planes, 5000).long(), codes)


@pytest.mark.parametrize("kinds", [2, 7, 8])
def test_map_takes_few_bits(kinds: int) -> None:
    _, planes, counts = example(512 * 200, [1] * kinds)
    bits = (planes.numel() * 8 + counts.numel() * 4) * 8 / (512 * 200)
    assert bits == (kinds - 1).bit_length() + kinds * 32 / 512
    if kinds == 7:
        assert bits < 3.5


def test_ids_beyond_int32() -> None:
    """A map of 2**31 + 5,000 tokens, written down directly: all in bucket 0 but for a few."""
    tokens = 2**31 + 5000
    words, blocks = -(-tokens // 64), -(-tokens // 512)
    planes, counts = torch.zeros(words, dtype=torch.int64), torch.zeros((blocks, 2), dtype=torch.int64)
    counts[:, 0] = torch.arange(blocks) * 512
    ones = [5, 2**31 - 1, 2**31, 2**31 + 700, tokens - 1]
    for i in ones:
        planes[i // 64] |= -(2**63) if i % 64 == 63 else 1 << i % 64
        counts[i // 512 + 1 :, 1] += 1
        counts[i // 512 + 1 :, 0] -= 1
    ids = [0, 5, 6, 2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, 2**31 + 699, 2**31 + 700, 2**31 + 4000, tokens - 1]
    for bucket, row in (
        multi_size.lookup(torch.tensor(ids), planes, counts, tokens),
        reference.lookup(torch.tensor(ids), planes, counts, tokens),
    ):
        assert bucket.tolist() == [int(i in ones) for i in ids]
        assert row.tolist() == [sum(o < i for o in ones) if i in ones else i - sum(o < i for o in ones) for i in ids]
    with pytest.raises(IndexError, match=f"got {tokens}"):
        multi_size.lookup(torch.tensor([tokens]), planes, counts, tokens)


@pytest.mark.parametrize("wrong", [-1, 100, 2**31, 2**62, -(2**63)])
def test_ids_that_are_no_tokens(wrong: int) -> None:
    for kinds in (1, 3):
        _, planes, counts = example(100, [1] * kinds)
        for at in (0, 2000):
            ids = torch.zeros(4000, dtype=torch.int64)
            ids[at] = wrong
            with pytest.raises(IndexError, match=f"from 0 to 99, got {wrong}"):
                multi_size.lookup(ids, planes, counts, 100)
            with pytest.raises(IndexError, match=f"from 0 to 99, got {wrong}"):
                multi_size._reference_lookup(ids, planes, counts, 100)
            for _, ops in every_kernel():
                with pytest.raises(IndexError, match=f"got {wrong}"):
                    ops.rank_lookup(ids, planes, counts, 100)


def test_bad_arguments() -> None:
    _, planes, counts = example(100, [2, 4])
    with pytest.raises(TypeError, match="ids must be int32 or int64, got float32"):
        multi_size.lookup(torch.zeros(3), planes, counts, 100)
    with pytest.raises(ValueError, match="one dimension"):
        multi_size.lookup(torch.zeros((3, 3), dtype=torch.int64), planes, counts, 100)
    with pytest.raises(IndexError, match="the table is empty"):
        multi_size.lookup(torch.zeros(3, dtype=torch.int64), planes[:0], counts[:0], 0)
    bucket, row = torch.zeros(3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    table, matrix = torch.randn(5, 2), torch.randn(2, 4)
    for wrong, message in (
        (Buckets([table], [], [], [matrix], [0], [3], [0], 0, 4), "table of size 3"),
        (Buckets([table], [], [], [matrix], [0], [2], [0], 0, 5), "need a projection"),
        (Buckets([table], [], [], [matrix], [-1], [2], [0], 0, 4), "need a projection"),
        (Buckets([table], [], [], [matrix], [0, 0], [2], [0], 0, 4), "one entry for each"),
        (Buckets([], [], [], [], [], [], [], 0, 4), "1 to 255 buckets"),
        (Buckets([table], [], [], [matrix], [0], [2], [8], 3, 4), "3 bits"),
    ):
        with pytest.raises(ValueError, match=message):
            multi_size.forward(bucket, row, wrong, torch.float32)
        with pytest.raises(ValueError, match=message):
            multi_size._reference_forward(bucket, row, *wrong, torch.float32, None, None, False)


# The kernels against the reference.

LOW_BITS = [(bits, how) for bits in (1, 2, 4, 8) for how in ("flat", "rows")]
CASES = [
    *[pytest.param(dtype, 0, "", id=str(dtype).removeprefix("torch.")) for dtype in FLOATS],
    *[pytest.param(torch.float32, bits, how, id=f"{bits} bits, {how}") for bits, how in LOW_BITS],
]
# (sizes, dim): rows of full width alone, with narrow ones, without any; widths below, at and over 16 columns; many.
SHAPES = (
    ([7], 7), ([3, 7], 7), ([0, 1, 2, 5, 16, 33], 33), ([1, 8, 40], 40), ([6], 33), ([0], 7), ([0, 40], 40),
    (list(range(13)), 16),
)  # fmt: skip


@needs_kernels
@pytest.mark.parametrize(("dtype", "bits", "how"), CASES)
def test_forward_kernel(dtype: torch.dtype, bits: int, how: str) -> None:
    cases = []
    ends = torch.tensor([0, 3, 3, 3, 150, 151, 260, 320])
    bags = (
        (None, None, False),
        (ends, None, False),
        (torch.arange(1, 81) * 4, torch.randn(320), False),
        (ends, None, True),
    )
    for at, (sizes, dim) in enumerate(SHAPES[:5] if bits else SHAPES):
        codes, planes, counts = example(700, sizes)
        buckets = make_buckets(codes, sizes, dim, dtype, bits, how, at % 2 == 0, (24, 64)[at % 2])
        place = multi_size.lookup(torch.randint(0, 700, (320,)), planes, counts, 700)
        for n, bag in enumerate(bags):
            rest = *buckets, FLOATS[(at + n) % 3], *bag
            cases.append((*place, rest, reference.forward(*place, buckets, *rest[-4:])))
    for name, ops in every_kernel():
        for bucket, row, rest, expected in cases:
            assert_same(ops.multi_size_forward(bucket, row, *rest), expected, (name, rest[5:]))


@needs_kernels
@pytest.mark.parametrize(("dtype", "bits", "how"), CASES)
def test_backward_kernel(dtype: torch.dtype, bits: int, how: str) -> None:
    cases, bag = [], torch.arange(1500) // 5
    for at, (sizes, dim) in enumerate(SHAPES[:5] if bits else SHAPES):
        codes, planes, counts = example(700, sizes)
        buckets = make_buckets(codes, sizes, dim, dtype, bits, how, at % 2 == 0)
        bucket, row = multi_size.lookup(torch.randint(0, 700, (1500,)), planes, counts, 700)
        bucket[::7] = NO_BUCKET
        some = [k % 2 == 1 for k in range(len(buckets.projections))]
        for rest in ((None, None, [True] * len(some)), (bag, torch.randn(1500), some)):
            grad = torch.randn(1500 if rest[0] is None else 300, dim).to(dtype)
            expected = reference.backward(grad, bucket, row, buckets, *rest)
            cases.append(((grad, bucket, row, *buckets, *rest), expected))
    for name, ops in every_kernel():
        for args, expected in cases:
            found = ops.multi_size_backward(*args)
            for a, b in zip(found[:3], expected[:3], strict=True):
                assert_same(a, b, (name, args[8:]))
            atol = 2e-5 * max(1.0, float(expected[3].abs().max())) if expected[3].numel() else 0.0
            torch.testing.assert_close(found[3], expected[3], rtol=0, atol=atol)


@needs_kernels
@pytest.mark.parametrize(("dtype", "bits", "how"), CASES)
def test_scores_kernel(dtype: torch.dtype, bits: int, how: str) -> None:
    cases = []
    batches = ((700, 1), (512, 3), (65, 64), (1500, 65), (13, 130), (700, 0), (511, 7), (513, 63))
    for (tokens, batch), (sizes, dim) in zip(batches[: 5 if bits else None], SHAPES, strict=not bits):
        codes, planes, counts = example(tokens, sizes)
        buckets = make_buckets(codes, sizes, dim, dtype, bits, how)
        queries = [torch.randn(size, batch) for size in sizes]
        args = planes, counts, tokens, *buckets, queries
        cases.append((args, reference.scores(planes, tokens, buckets, queries)))
    for name, ops in every_kernel():
        for args, expected in cases:
            assert_same(ops.multi_size_scores(*args), expected, (name, args[8:-1]))


@needs_kernels
@pytest.mark.parametrize("bits", [0, 4])
@pytest.mark.parametrize("tokens", [8192, 8193, 20_000])
def test_scores_of_more_tokens_than_a_thread_takes_at_a_time(tokens: int, bits: int) -> None:
    sizes = [0, 1, 4, 8]
    codes, planes, counts = example(tokens, sizes)
    buckets = make_buckets(codes, sizes, 8, torch.float32, bits)
    for batch in (2, 17):
        queries = [torch.randn(size, batch) for size in sizes]
        expected = reference.scores(planes, tokens, buckets, queries)
        for name, ops in every_kernel():
            assert_same(ops.multi_size_scores(planes, counts, tokens, *buckets, queries), expected, (name, batch))


@needs_kernels
def test_rows_of_nan_stay_where_they_are() -> None:
    sizes = [0, 3, 8]
    codes, planes, counts = example(600, sizes)
    buckets = make_buckets(codes, sizes, 8, torch.float32)
    nan = [int((codes == 1).nonzero()[4]), int((codes == 2).nonzero()[9])]
    buckets.tables[1][4], buckets.tables[2][9, 3] = torch.nan, torch.nan
    place = multi_size.lookup(torch.arange(600), planes, counts, 600)
    expected = reference.forward(*place, buckets, torch.float32, None, None, False)
    queries = [torch.randn(size, 5) for size in sizes]
    for name, ops in every_kernel():
        assert_same(ops.multi_size_forward(*place, *buckets, torch.float32, None, None, False), expected, name)
        assert expected.isnan().any(1).nonzero().flatten().tolist() == sorted(nan)
        found = ops.multi_size_scores(planes, counts, 600, *buckets, queries)
        assert found.isnan().any(0).nonzero().flatten().tolist() == sorted(nan), name


@pytest.mark.parametrize("dtype", FLOATS + (torch.float64,), ids=str)
def test_no_positions_and_no_bags(dtype: torch.dtype) -> None:
    codes, planes, counts = example(100, [0, 2, 8])
    buckets = make_buckets(codes, [0, 2, 8], 8, dtype)
    empty = torch.empty(0, dtype=torch.int64)
    bucket, row = multi_size.lookup(empty, planes, counts, 100)
    assert multi_size.forward(bucket, row, buckets, dtype).shape == (0, 8)
    assert multi_size.forward(bucket, row, buckets, dtype, empty).shape == (0, 8)
    zeros = multi_size.forward(bucket, row, buckets, dtype, torch.zeros(4, dtype=torch.int64), None, True)
    assert zeros.shape == (4, 8) and not zeros.any()
    order, numbers, values, matrices = multi_size.backward(torch.empty(0, 8, dtype=dtype), bucket, row, buckets)
    assert order.numel() == values.numel() == 0 and numbers == [0, 0, 0] and not matrices[0].any()


@given(
    tokens=st.sampled_from(TOKENS),
    sizes=st.lists(st.integers(0, 19), min_size=1, max_size=9, unique=True),
    dtype=st.sampled_from(FLOATS + (torch.float64,)),
    positions=st.sampled_from([0, 1, 100]),
    seed=st.integers(0, 2**20),
)
def test_forward_is_a_table_times_a_projection(
    tokens: int, sizes: list[int], dtype: torch.dtype, positions: int, seed: int
) -> None:
    """Against the sentence that defines it: row of rank r of the token's table, times its projection."""
    sizes = sorted(sizes)
    codes, planes, counts = example(tokens, sizes, seed)
    buckets = make_buckets(codes, sizes, 19, dtype)
    full = torch.zeros(tokens, 19, dtype=torch.float64)
    for k, size in enumerate(sizes):
        rows = buckets.tables[k].double()
        p = torch.eye(19, dtype=torch.float64) if size in (0, 19) else buckets.projections[0].double()
        full[codes == k] = rows @ p[:size]
    ids = torch.randint(0, tokens, (positions,))
    place = multi_size.lookup(ids, planes, counts, tokens)
    bound = torch.finfo(dtype).eps * 100
    torch.testing.assert_close(multi_size.forward(*place, buckets, dtype).double(), full[ids], rtol=bound, atol=bound)
    queries = torch.randn(3, 19, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    found = multi_size.scores(planes, counts, tokens, buckets, queries)
    torch.testing.assert_close(found.double(), queries.double() @ full.T, rtol=1e-4, atol=1e-3)
