"""The CUDA kernels of rows of several widths, run on the host: bit for bit the reference; wrong ones are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphlossy.core import _cuda_multi_size, multi_size, quantize
from graphlossy.core import _multi_size as reference
from graphlossy.core._cuda import Kernels
from graphlossy.core._cuda_multi_size import CudaOps
from graphlossy.core.multi_size import NO_BUCKET, Buckets

Guard = Callable[[tuple[Any, ...]], tuple[Any, ...]]
Call = tuple[str, tuple[Any, ...]]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# (type, bits of a code, groups over each table or each row)
KINDS = [(dtype, 0, "") for dtype in FLOATS] + [
    (torch.float32, b, how) for b in (1, 2, 4, 8) for how in ("flat", "rows")
]
# (sizes, dim): full width alone, with narrow ones, without; four columns to a thread, ragged or not, and more threads.
SHAPES = (
    ([7], 7), ([3, 7], 7), ([0, 1, 2, 5, 16, 33], 33), ([1, 8, 40], 40), ([0], 7), ([0, 40], 40), ([6], 33),
    ([4, 16], 16), (list(range(13)), 16), ([5, 140], 140),
)  # fmt: skip
TOKENS = (1, 63, 64, 65, 511, 512, 513, 1025)  # at the ends of words (64) and blocks (512)


@pytest.fixture(autouse=True)
def _nothing_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multi_size, "_prepared", {})


@pytest.fixture(scope="module")
def kernels(emulate: Callable[[list[Call]], Kernels]) -> Kernels:
    return emulate([call for dtype, bits, how in KINDS[:4] for call in calls([4, 16], 16, 70, 20, dtype, bits, how)])


def make_buckets(
    codes: Tensor, sizes: list[int], dim: int, dtype: torch.dtype, bits: int, how: str, group_size: int, nested: bool
) -> Buckets:
    """Random tables for bucket numbers ``codes``."""
    empty = torch.empty(0, dtype=torch.bfloat16)
    parts: list[tuple[Tensor, Tensor, Tensor, int]] = []
    for k, size in enumerate(sizes):
        values = torch.randn(int((codes == k).sum()), size)
        if bits and size:
            q = quantize(values, bits, group_size, rounding="nearest", dim=None if how == "flat" else -1)
            parts.append((q.packed, q.scale, q.offset, q.group_size))
        else:
            parts.append((values.to(dtype), empty, empty, 0))
    tables, scales, offsets, groups = map(list, zip(*parts, strict=True))
    narrow = sorted({s for s in sizes if 0 < s < dim})
    heights = narrow[-1:] if nested else narrow
    which = [-1 if s not in narrow else 0 if nested else narrow.index(s) for s in sizes]
    projections = [torch.randn(s, dim).to(dtype) for s in heights]
    return Buckets(tables, scales, offsets, projections, which, list(sizes), groups, bits, dim)


def calls(
    sizes: list[int], dim: int, tokens: int, positions: int, dtype: torch.dtype, bits: int = 0, how: str = "flat",
    group_size: int = 24, nested: bool = True, batch: int = 3, seed: int = 0,
) -> list[Call]:  # fmt: skip
    """Calls of every operator on one random table: positions alone, bags with weights, means."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, len(sizes), (tokens,), generator=generator)
    codes[: len(sizes)] = torch.arange(len(sizes))[:tokens]
    planes, counts = multi_size.rank_map(codes.to(torch.uint8), len(sizes))
    buckets = make_buckets(codes, sizes, dim, dtype, bits, how, group_size, nested)
    ids = torch.randint(0, tokens, (positions,), generator=generator)
    ids[::2] = (tokens - 1 - torch.arange(len(ids[::2]))) % tokens  # the last rows of every table
    bucket, row = reference.lookup(ids, planes, counts, tokens)
    ends = torch.sort(torch.randint(0, positions + 1, (6,), generator=generator)).values
    ends = torch.cat([ends, torch.tensor([positions, positions])])
    bag, weights = multi_size.bag_of(ends, positions), torch.randn(positions)
    masked = bucket.clone()
    masked[::7] = NO_BUCKET
    wanted = [k % 2 == 0 for k in range(len(buckets.projections))]
    found: list[Call] = [("rank_lookup", (kind, planes, counts, tokens)) for kind in (ids, ids.int())]
    for bags, out in zip(((None, None, False), (ends, weights, False), (ends, None, True)), FLOATS, strict=True):
        found += [("multi_size_forward", (bucket, row, *buckets, out, *bags))]
    for kind, rest in ((FLOATS[seed % 3], (None, None, wanted)), (dtype, (bag, weights, [True] * len(wanted)))):
        grad = torch.randn(positions if rest[0] is None else len(ends), dim).to(kind)
        found += [("multi_size_backward", (grad, masked, row, *buckets, *rest))]
    queries = [torch.randn(size, batch) for size in sizes]
    return [*found, ("multi_size_scores", (planes, counts, tokens, *buckets, queries))]


def pattern(x: Tensor) -> Tensor:
    """Bits of ``x``, those of every NaN the same."""
    if not x.is_floating_point():
        return x
    x = torch.where(x.isnan(), torch.full_like(x, torch.nan), x)
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(pattern(a), pattern(b))


def same(kernels: Kernels, op: str, arguments: tuple[Any, ...]) -> bool:
    """Whether the kernel and the reference give the same, an error for ids included."""
    results: list[Any] = []
    for run in (getattr(CudaOps(kernels), op), multi_size._REFERENCES[op]):
        try:
            found = run(*arguments)
            results.append(found if isinstance(found, tuple) else (found,))
        except IndexError as error:
            results.append(str(error))
    if isinstance(results[0], str) or isinstance(results[1], str):
        return results[0] == results[1]
    if op == "multi_size_backward":  # a product of matrices
        (*a, x), (*b, y) = results
        atol = 2e-5 * max(1.0, float(y.abs().max())) if y.numel() else 0.0
        return x.shape == y.shape and torch.allclose(x, y, rtol=0, atol=atol) and all(map(same_bits, a, b))
    return all(map(same_bits, *results))


@pytest.mark.parametrize(("dtype", "bits", "how"), KINDS, ids=str)
def test_every_kind_of_row(kernels: Kernels, dtype: torch.dtype, bits: int, how: str) -> None:
    at = KINDS.index((dtype, bits, how))
    for n, (sizes, dim) in list(enumerate(SHAPES))[at % 2 :: 2]:
        groups, nested, batch = (24, 64, 8)[n % 3], n % 2 == 0, (1, 8, 11)[n % 3]
        for op, arguments in calls(sizes, dim, 90 + 70 * n, 40, dtype, bits, how, groups, nested, batch, seed=n):
            assert same(kernels, op, arguments), (op, sizes, dim)


@given(
    tokens=st.sampled_from(TOKENS),
    sizes=st.lists(st.integers(0, 19), min_size=1, max_size=9, unique=True),
    kind=st.sampled_from(KINDS),
    group_size=st.sampled_from([8, 24, 64, 256]),
    positions=st.integers(0, 40),
    batch=st.integers(0, 10),
    nested=st.booleans(),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=20)
def test_any_sizes(
    kernels: Kernels, tokens: int, sizes: list[int], kind: tuple[torch.dtype, int, str], group_size: int,
    positions: int, batch: int, nested: bool, seed: int,
) -> None:  # fmt: skip
    multi_size._prepared.clear()
    sizes = sorted(sizes)
    for op, arguments in calls(sizes, 19, tokens, positions, *kind, group_size, nested, batch, seed):
        assert same(kernels, op, arguments), op


@pytest.mark.parametrize("kinds", [1, 2, 9, 255])
def test_every_token_is_found(kernels: Kernels, kinds: int) -> None:
    for tokens in TOKENS:
        planes, counts = multi_size.rank_map(torch.randint(0, kinds, (tokens,)).to(torch.uint8), kinds)
        for wide in (counts, counts.long()):
            assert same(kernels, "rank_lookup", (torch.arange(tokens), planes, wide, tokens))


@pytest.mark.parametrize("wrong", [-1, 100, 2**31, 2**62, -(2**63)])
def test_ids_that_are_no_tokens(kernels: Kernels, wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    planes, counts = multi_size.rank_map(torch.arange(100).to(torch.uint8) % 3, 3)
    ids = torch.zeros(700, dtype=torch.int64)
    ids[300], ids[600] = wrong, 100
    with pytest.raises(IndexError, match=f"from 0 to 99, got {wrong}$"):
        CudaOps(kernels).rank_lookup(ids, planes, counts, 100)
    monkeypatch.setattr(_cuda_multi_size, "_is_capturing", lambda tensor: True)
    with pytest.raises(RuntimeError, match="ids must be below 100 and not negative"):
        CudaOps(kernels).rank_lookup(ids, planes, counts, 100)
    bucket, row = CudaOps(kernels).rank_lookup(ids[:300], planes, counts, 100)
    assert not bucket.any() and not row.any()


def test_few_blocks_loop(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphlossy.core._cuda._MOST_BLOCKS", 2)
    assert all(same(kernels, *call) for call in calls([0, 3, 8], 40, 1300, 700, torch.float32, batch=17))


def test_values_that_are_no_numbers(kernels: Kernels) -> None:
    for op, arguments in calls([2, 8], 8, 60, 60, torch.float32):
        if op == "multi_size_forward":
            tables = arguments[2]
            tables[0][1], tables[1][2, 3], tables[1][4, :4] = torch.nan, torch.inf, -0.0
            assert same(kernels, op, arguments)


def test_in_parts(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of projections are gathered a part at a time; a part is not seen in the result."""
    monkeypatch.setattr(_cuda_multi_size, "_GATHERED", 100)
    assert all(same(kernels, *call) for call in calls([0, 3, 8], 8, 300, 200, torch.float32) if "backward" in call[0])


@pytest.fixture
def walled(guarded: Guard, monkeypatch: pytest.MonkeyPatch) -> Callable[[Call], Call]:
    """Calls whose tensors end before a wall, as their results do."""
    empty = _cuda_multi_size._empty
    monkeypatch.setattr(_cuda_multi_size, "_empty", lambda *given: guarded((empty(*given),))[0])

    def one(value: Any) -> Any:
        return [one(v) for v in value] if isinstance(value, list) else guarded((value,))[0]

    return lambda call: (call[0], tuple(map(one, call[1])))


def few(op: str) -> Iterator[Call]:
    """Calls that every wrong kernel below gets wrong somewhere, at as few types as possible."""
    if op == "rank_lookup":
        planes, counts = multi_size.rank_map(torch.randint(0, 5, (600,)).to(torch.uint8), 5)
        ids = torch.arange(600)
        yield op, (ids, planes, counts, 600)
        for first, second in ((-1, 600), (600, -(2**63))):
            ids = ids.clone()
            ids[5], ids[590] = first, second
            yield op, (ids, planes, counts, 600)
        return
    floats, *codes = [(torch.float32, 0, ""), (torch.float32, 2, "flat"), (torch.float32, 2, "rows")]
    cases = [(*shape, floats) for shape in (([0, 3, 7], 7), ([0, 5, 30, 140], 140), ([1, 8], 16))]
    if op == "multi_size_forward":
        cases += [([0, 3, 30, 31], 31, kind) for kind in codes]
    for sizes, dim, kind in cases:
        for name, arguments in calls(sizes, dim, 150, 60, *kind, batch=11):
            if name == op == "multi_size_forward":
                bucket, row, *rest = arguments
                rest[0][-1][:4] *= 1 if kind[1] else -0.0  # zeros of both signs
                rest[3] = [torch.cat([p.flatten()[:1], p.flatten()])[1:].view(p.shape) for p in rest[3]]  # not aligned
                yield name, (torch.where(bucket == 1, NO_BUCKET, bucket), row, *rest)
                yield name, (bucket, row, *rest[:9], torch.float32, *rest[10:])
            elif name == op:
                yield name, arguments


@pytest.mark.parametrize("op", multi_size._OPS)
def test_nothing_is_touched_beyond_a_tensor(op: str, kernels: Kernels, walled: Callable[[Call], Call]) -> None:
    assert all(same(kernels, *walled(call)) for call in few(op))


MUTANTS = [
    ("rank_lookup", "rest < kWords ? (int)rest : kWords", "kWords"),  # the last block
    ("rank_lookup", "~(uint64_t)0 : ((uint64_t)1 << at) - 1", "~(uint64_t)0 : ((uint64_t)2 << at) - 1"),  # itself
    ("rank_lookup", "^ ((uint64_t)(code >> b & 1) - 1)", ""),  # tokens of other buckets
    ("rank_lookup", "for (int w = 0; w <= word; ++w)", "for (int w = 0; w < word; ++w)"),
    ("rank_lookup", "block * rank.codes + code", "block * rank.bits + code"),
    ("rank_lookup", "(uint64_t)id < (uint64_t)rank.tokens", "id < rank.tokens"),  # negative ids
    ("rank_lookup", "atomicMin(wrong, (unsigned long long)i)", "*wrong = (unsigned long long)i"),  # which one
    ("multi_size_forward", "first += row * bucket.size;", "first += row * (bucket.size + 1);"),
    ("multi_size_forward", "described_ = row * groups(width_ + bucket.group_size - 1)", "described_ = row"),
    ("multi_size_forward", "codes_ += row * (padded(width_) / 8 * bits)", "codes_ += row * (width_ * bits / 8)"),
    ("multi_size_forward", "shift_ = position / plane_ * bits_", "shift_ = 0"),
    ("multi_size_forward", "if (++byte_ == plane_) {", "if (++byte_ > plane_) {"),
    ("multi_size_forward", "left_ = length - position", "left_ = length"),  # the next group
    ("multi_size_forward", "(padded(length) / 8) * bits_", "(length / 8 + 1) * bits_"),  # a whole group
    ("multi_size_forward", "== 0 && aligned(bucket.projection, alignof(Four<float>))", "== 0"),
    ("multi_size_forward", "const bool wide = dim % kWidth == 0;", "const bool wide = true;"),
    ("multi_size_forward", "t < count ? p[t] : 0.0f", "p[t]"),  # reads past the end
    ("multi_size_forward", "t < count ? elements.next() : 0.0f", "elements.next()"),
    ("multi_size_forward", "if (t < count) to[t] = four.at[t]", "to[t] = four.at[t]"),  # writes past the end
    ("multi_size_forward", "ends == nullptr ? value[t] : add_rn", "add_rn"),  # the sign of a zero
    ("multi_size_forward", "index == 0 ? 0 : ends[index - 1]", "index == 0 ? 0 : ends[index - 1] + 1"),
    ("multi_size_forward", "mean != 0 && end > begin", "mean != 0"),  # no positions
    ("multi_size_forward", "k < codes && buckets[k].size != 0", "buckets[k].size != 0"),  # no bucket
    ("multi_size_forward", "j += (int64_t)kWidth << log_lanes", "j += (int64_t)kWidth << (log_lanes + 1)"),
    ("multi_size_backward", "0xffffu << (threadIdx.x & kDotLanes)", "kAllLanes"),  # waits for others
    ("multi_size_backward", "half = kDotLanes / 2", "half = kDotLanes / 4"),
    ("multi_size_backward", "(place - starts[k]) * b.size", "place * b.size"),
    ("multi_size_backward", "if (r < rows) sum[r]", "sum[r]"),  # reads past the end
    ("multi_size_backward", "lane == r && r < rows", "lane == r"),  # writes past the end
    ("multi_size_backward", "bag == nullptr ? n : bag[n]", "n"),
    ("multi_size_backward", "to[j] = mul_rn(weight, to_float(from[j]))", "to[j] = to_float(from[j])"),
    ("multi_size_backward", "add_rn(sum[r], mul_rn(g, p[r * dim + j]))", "add_rn(mul_rn(g, p[r * dim + j]), 0.0f)"),
    ("multi_size_scores", "queries + begins[place.code] + q", "queries + begins[place.code]"),
    ("multi_size_scores", "id = turn - part * rank.tokens", "id = turn - part"),
    ("multi_size_scores", "++i, query += batch", "++i, query += kQueries"),
    ("multi_size_scores", "if (t < count) sum[t] = add_rn", "sum[t] = add_rn"),  # reads past the end
    ("multi_size_scores", "if (t < count) out[", "out["),  # writes past the end
]  # fmt: skip
# A fifth of them in every run: each is compiled.
SOME = [mutant if i % 5 == 2 else pytest.param(*mutant, marks=pytest.mark.slow) for i, mutant in enumerate(MUTANTS)]


@pytest.mark.parametrize(("op", "old", "new"), SOME, ids=lambda text: text[:40])
def test_a_wrong_kernel_is_found(
    op: str, old: str, new: str, kernels: Kernels, changed: Callable[..., Kernels], walled: Callable[[Call], Call],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("graphlossy.core._cuda._MOST_BLOCKS", 3)  # so that every loop goes round
    checks = [some for call in few(op) for some in (call, walled(call))]
    assert all(same(kernels, *call) for call in checks)
    wrong = changed(old, new, checks)
    try:
        assert not all(same(wrong, *call) for call in checks)
    except OSError as error:
        assert "illegal memory access" in str(error)
