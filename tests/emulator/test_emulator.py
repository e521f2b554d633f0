"""The CUDA kernels, run on the host, agree with the reference bit for bit; wrong ones do not."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from graphlossy._diagnostics import Case, _same_bits, cases
from graphlossy.core import _reference, _schemas
from graphlossy.core._cuda import _UNPACK_MASK, Kernels

Guard = Callable[[tuple[Any, ...]], tuple[Any, ...]]
BITS = (1, 2, 3, 4, 8)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# (rows, width, group size): one thread to a group, several, a warp, a block whose registers hold the group and one that
# reads it twice; teams beyond the last group; ragged ends of every kind; rows whose address is not aligned.
SHAPES = [
    (3, 512, 256), (2, 300, 256), (5, 40, 32), (1, 2100, 1032), (2, 1500, 2048), (9, 1, 8), (1, 256, 256), (70, 16, 16),
    (40, 25, 8), (3, 100, 96), (2, 33, 40), (3, 200, 200), (2, 1024, 1024), (2, 1028, 512), (2, 9001, 8192),
    (1, 20_000, 16_384),
]  # fmt: skip


def same(kernels: Kernels, op: str, arguments: tuple[Any, ...]) -> bool:
    return _same_bits(getattr(_reference, op)(*arguments), getattr(kernels, op)(*arguments))


def unusual(x: Tensor) -> Tensor:
    """Every kind of group: constant, NaN, infinite, both zeros, subnormal, beyond bfloat16's range."""
    x = x.clone()
    flat = x.view(-1)
    values = [float("nan"), float("inf"), -float("inf"), 3.4e38, -3.4e38, 0.0, -0.0, 1e-45, -1e-40, 65504.0]
    for i, value in enumerate(values):
        flat[i * max(1, flat.numel() // len(values)) % flat.numel()] = value
    x[-1] = -0.0
    return x


@pytest.mark.parametrize(
    "dtype", [*DTYPES[:2], *(pytest.param(d, marks=pytest.mark.slow) for d in DTYPES[2:])], ids=str
)
@pytest.mark.parametrize("bits", BITS)
def test_rounding(emulated: Kernels, bits: int, dtype: torch.dtype) -> None:
    for rows, width, group_size in SHAPES:
        plain = torch.randn(rows, width) * 10 ** torch.randn(rows, 1)
        for x in (plain.to(dtype), unusual(plain).to(dtype)):
            for stochastic in (False, True):
                assert same(emulated, "quantize", (x, bits, group_size, stochastic, 2**63 - 5))
            stored = _reference.quantize(x, bits, group_size, True, 7)
            for to in (dtype, torch.float16):
                assert same(emulated, "dequantize", (*stored, bits, group_size, width, to))


@pytest.mark.parametrize("skipped", [1, 2, 4, 7])
def test_addresses_that_are_not_aligned(emulated: Kernels, skipped: int) -> None:
    for dtype in DTYPES:
        x = torch.randn(skipped + 3 * 512).to(dtype)[skipped:]
        for bits in BITS:
            assert same(emulated, "quantize", (x.view(3, 512), bits, 256, True, 1))
            packed, scale, offset = _reference.quantize(x.view(3, 512), bits, 256, True, 1)
            packed = torch.cat([packed.flatten()[:skipped], packed.flatten()])[skipped:].view(packed.shape)
            assert same(emulated, "dequantize", (packed, scale, offset, bits, 256, 512, dtype))
        assert same(emulated, "pack_mask", (x,)) and same(emulated, "pack_mask", (x > 0,))
        assert same(emulated, "mask_apply", (x, _reference.pack_mask(x > 0), 1.1))
    bits = _reference.pack_mask(torch.rand(8 * (skipped + 40)) < 0.5)[skipped:]
    assert same(emulated, "unpack_mask", (bits, 320))


def test_what_the_self_test_runs(emulated: Kernels) -> None:
    assert all(same(emulated, case.op, case.arguments) for case in cases())


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 31, 32, 1023, 1024, 1025, 9000])
def test_masks(emulated: Kernels, numel: int) -> None:
    mask = torch.rand(numel) < 0.5
    kinds = [mask, mask.to(torch.uint8), mask.to(torch.int16), mask.int() * -5, mask.long() << 40]
    kinds += [torch.where(mask, torch.nan, -0.0).to(dtype) for dtype in DTYPES]
    kinds += [mask.to(torch.complex64) * 1j]
    assert all(same(emulated, "pack_mask", (kind,)) for kind in kinds)
    packed = _reference.pack_mask(mask)
    assert same(emulated, "unpack_mask", (packed, numel))
    grad = torch.randn(numel)
    grad[::5], grad[1::7] = torch.nan, torch.inf
    assert all(same(emulated, "mask_apply", (grad.to(dtype), packed, 1.1)) for dtype in DTYPES)


def test_not_contiguous(emulated: Kernels) -> None:
    x = torch.randn(50, 7).t()
    assert same(emulated, "quantize", (x, 2, 24, True, 1)) and same(emulated, "pack_mask", (x > 0,))
    assert same(emulated, "mask_apply", (x, _reference.pack_mask(x > 0), 2.0))
    stored = [part.t().contiguous().t() for part in _reference.quantize(x, 2, 24, True, 1)]
    assert same(emulated, "dequantize", (*stored, 2, 24, 50, torch.float32))


def test_few_blocks_loop_over_many_groups(emulated: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they must where there are more groups than a grid has blocks."""
    monkeypatch.setattr("graphlossy.core._cuda._MOST_BLOCKS", 2)
    x = torch.randn(70, 64)
    packed = _reference.pack_mask(x > 0)
    assert same(emulated, "quantize", (x, 2, 64, True, 1))
    assert same(emulated, "dequantize", (*_reference.quantize(x, 2, 64, True, 1), 2, 64, 64, torch.float32))
    assert same(emulated, "pack_mask", (torch.rand(40_000) - 0.5 > 0,))
    assert same(emulated, "unpack_mask", (packed, x.numel())) and same(emulated, "mask_apply", (x, packed, 2.0))


def test_a_thread_without_a_context_gets_one(emulated: Kernels) -> None:
    x = torch.randn(9, 256)
    assert same(emulated, "quantize", (x, 2, 256, True, 1))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(same, emulated, "quantize", (x, 2, 256, True, 1)).result()


def test_bad_arguments_are_the_same_errors(emulated: Kernels) -> None:
    with pytest.raises(ValueError, match="bits must be one of"):
        emulated.quantize(torch.randn(2, 8), 5, 8, True, 0)
    with pytest.raises(ValueError, match="needs .* packed bytes"):
        emulated.unpack_mask(torch.zeros(3, dtype=torch.uint8), 5)


def test_an_error_of_the_driver_is_raised(emulated: Kernels) -> None:
    with pytest.raises(OSError, match="named symbol not found .error 500"):
        emulated.load("no_such_kernel", "")


def test_a_wild_address_is_an_error_of_the_launch(emulated: Kernels) -> None:
    out, two = torch.empty(2, dtype=torch.uint8), (ctypes.c_uint8(0), ctypes.c_uint8(1))
    with pytest.raises(OSError, match="illegal memory access .error 700"):
        emulated._launch(*_UNPACK_MASK[1], 1, ctypes.c_void_p(8), out, ctypes.c_int64(16), *two)
    assert same(emulated, "unpack_mask", (torch.tensor([5], dtype=torch.uint8), 8))  # and the next one works


def few(op: str) -> list[Case]:
    """Calls that every wrong kernel below gets wrong somewhere, at as few types and widths as possible."""
    if op == "quantize":
        sizes = [(512, 256), (300, 48), (25, 8), (3000, 2048), (20_000, 16_384)]
        found = [Case(op, (torch.randn(2, w), b, g, True, 3)) for b in (2, 3, 8) for w, g in sizes]
        found += [Case(op, (torch.randn(515)[3:].view(2, 256), 2, 256, True, 3))]  # not aligned
        found += [Case(op, (torch.randn(2, 14), 8, 8, True, 3))]
        ties = (torch.arange(256) % 7 / 2).view(1, 256)  # steps of one: every second value lies half-way
        found += [Case(op, (ties, 2, 256, False, 0)), Case(op, (ties, 2, 64, False, 0))]
        x = torch.randn(6, 256)
        x[0, 200], x[1, 3], x[2, 7] = torch.nan, torch.inf, -torch.inf
        return [*found, Case(op, (x, 2, 256, True, 3))]
    if op == "dequantize":
        sizes = [(512, 256), (300, 48), (25, 8), (3000, 2048)]
        stored = [(_reference.quantize(torch.randn(2, w), b, g, True, 3), b, g, w) for b in (2, 3, 8) for w, g in sizes]
        return [Case(op, (*s, *sizes, torch.float32)) for s, *sizes in stored]
    mask = torch.rand(9001) < 0.5
    mask[-1] = True
    packed = _reference.pack_mask(mask)
    return {
        "pack_mask": [Case(op, (mask,)), Case(op, (mask.float(),)), Case(op, (mask[1:],)), Case(op, (mask[:8999],))],
        "unpack_mask": [
            *(Case(op, (packed, 9001, -1.0, 1 / 0.9, dtype)) for dtype in (None, *_schemas.FLOAT_DTYPES)),
            Case(op, (packed[:3], 17)),
            Case(op, (packed[:6], 48)),
            Case(op, (packed[:3], 17, 0.0, 3.0, torch.float32)),
        ],
        "mask_apply": [
            Case(op, (torch.randn(9001), packed, 1.1)),
            Case(op, (torch.randn(8993)[1:], packed[:1124], 1.1)),
        ],
    }[op]


MUTANTS = [
    ("quantize", "kHalves = 0x80008000u", "kHalves = 0x7fff7fffu"),  # nearest: not one half
    ("quantize", "(hash & 0xffffu) << 7", "(hash & 0xffffu) << 6"),  # noise up to one half only
    ("quantize", "low_noise(hash));", "high_noise(hash));"),  # the halves of a hash
    ("quantize", "(uint64_t)index", "(uint64_t)(index + 1)"),  # a group's noise
    ("quantize", "j + i + k * group.stride);", "j + i + k * kWidth);"),  # an element's noise
    ("quantize", "element < group.length ? element : 0", "element"),  # reads past the end
    ("quantize", "group.element = row * width +", "group.element = row * padded(width) +"),
    ("quantize", "group.byte = row * (padded(width) / 8 * BITS)", "group.byte = row * (width / 8 * BITS)"),
    ("quantize", "group.padding = whole - group.length", "group.padding = 0"),  # codes of the padding
    ("quantize", "group.stride + kWidth - 1) / kWidth", "group.stride) / kWidth"),  # the last unit
    ("quantize", "group.padding == 0 && group.stride % kWidth == 0 && aligned(from, alignof(Four<T>))",
     "group.padding == 0 && group.stride % kWidth == 0"),  # alignment of the values
    ("quantize", "finite != finite", "false"),  # a NaN
    ("quantize", "fmaxf(a.hi, b.hi)", "a.hi"),
    ("quantize", "for (int step = lanes / 2;", "for (int step = lanes / 4;"),  # half a team
    ("quantize", "__shfl_xor_sync(kAllLanes, range.lo, step)", "range.lo"),
    ("quantize", "w < kThreads >> kLogWarp; ++w", "w < kThreads / 64; ++w"),  # half a block
    ("quantize", "BLOCK && group.units > tile", "false"),  # a group that is read twice
    ("quantize", "(code[k] >> 2) <<", "(code[k] >> 1) <<"),  # the third bit
    ("quantize", "first + team >= groups;", "false;"),  # writes past the end
    ("dequantize", "group.stride % kWidth == 0 && aligned(codes, kWidth)", "group.stride % kWidth == 0"),
    ("dequantize", "words[0] >> (8 * i + k * BITS)", "words[0] >> (8 * i + (kPlanes - 1 - k) * BITS)"),
    ("dequantize", "& 1u) << 2", "& 1u) << 1"),  # the third bit
    ("dequantize", "parts == 1 ? first + team", "parts != 0 ? first + team"),  # groups of several parts
    ("dequantize", "(first + team - index * parts) * lanes", "(first + team - index * parts)"),
    ("dequantize", "if (unit >= group.units) continue;", "if (unit > group.units) continue;"),
    ("pack_mask", "const bool wide = aligned(mask, alignof(Words))", "const bool wide = true"),
    ("pack_mask", "kBytes == 2 && count > 8) to", "kBytes == 2) to"),  # writes past the end
    ("pack_mask", "for (int i = 0; i < count; ++i) bits", "for (int i = 0; i + 1 < count; ++i) bits"),
    ("unpack_mask", "elements.at[i] = ((bits >> i) & 1u) != 0 ? high", "elements.at[i] = (bits & 1u) != 0 ? high"),
    ("unpack_mask", "out[begin + i] = ((bits >> i) & 1u) != 0 ? high", "out[begin + i] = (bits & 1u) != 0 ? high"),
    ("unpack_mask", "packed[turn * kBytes];", "packed[turn];"),  # elements of one byte
    ("unpack_mask", "(uint32_t)packed[turn * kBytes + 1] << 8", "0u"),
    ("unpack_mask", "kBytes == 2 && count > 8) bits", "kBytes == 2) bits"),  # reads past the end
    ("mask_apply", "aligned(grad, alignof(Words)) &&", ""),
    ("mask_apply", "const uint32_t bits = packed[turn];", "const uint32_t bits = packed[turn] & 0x7fu;"),
]  # fmt: skip


@pytest.mark.parametrize("op", ["quantize", "dequantize", "pack_mask", "unpack_mask", "mask_apply"])
def test_nothing_is_touched_beyond_a_tensor(op: str, emulated: Kernels, guarded: Guard) -> None:
    assert all(same(emulated, op, guarded(case.arguments)) for case in few(op))


# A third of them in every run: each is compiled.
SOME = [mutant if i % 3 == 0 else pytest.param(*mutant, marks=pytest.mark.slow) for i, mutant in enumerate(MUTANTS)]


@pytest.mark.parametrize(("op", "old", "new"), SOME, ids=lambda text: text[:32])
def test_a_wrong_kernel_is_found(
    op: str,
    old: str,
    new: str,
    emulated: Kernels,
    changed: Callable[..., Kernels],
    guarded: Guard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("graphlossy.core._cuda._MOST_BLOCKS", 3)  # so that every loop goes round
    checks = [(op, arguments) for case in few(op) for arguments in (case.arguments, guarded(case.arguments))]
    assert all(same(emulated, *case) for case in checks)
    wrong = changed(old, new, checks)
    try:
        assert not all(same(wrong, *case) for case in checks)
    except OSError as error:
        assert "illegal memory access" in str(error)
