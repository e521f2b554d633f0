"""The CPU kernels against the reference, bit for bit, at every instruction level and number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from graphlossy.core import _cpu, _reference, _schemas

pytestmark = pytest.mark.skipif(_cpu.kernels is None, reason=f"no CPU kernels: {_cpu.load_error}")

BITS = (1, 2, 3, 4, 8)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LEVELS = range(3 if _cpu.kernels is None else _cpu.kernels.highest + 1)
SEED = 0x1234_5678_9ABC_DEF0
# (rows, width, group size): widths below, at and over a group; ragged tails of every kind; over 1024 wide; groups
# beyond the kernels' buffers on the stack (1024 and 4096 elements); enough elements for more than one block of work.
SHAPES = [
    (1, 1, 8), (7, 5, 8), (4, 8, 8), (9, 9, 8), (3, 100, 8), (2, 1025, 8), (9, 37, 24), (5, 48, 24), (40, 1, 256),
    (3, 256, 256), (9, 257, 256), (9, 511, 256), (9, 1030, 256), (2, 5000, 256), (2, 72, 64), (9, 1000, 1000),
    (3, 2007, 1000), (2, 1024, 1024), (2, 1100, 1032), (2, 4096, 4096), (2, 4097, 4096), (2, 9001, 4104),
    (1, 10_003, 2**20), (300, 257, 256), (35_000, 1, 8), (2, 66_001, 40),
]  # fmt: skip


def levels_and_threads() -> Iterator[tuple[str, _cpu.Kernels]]:
    """Kernels of every level this processor runs, with one thread and with two."""
    before = torch.get_num_threads()
    try:
        for level in LEVELS:
            kernels = _cpu.Kernels(_cpu.LIBRARY_FILE, level)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                yield f"{_cpu.LEVELS[level]}, {threads} threads", kernels
    finally:
        torch.set_num_threads(before)


def pattern(x: torch.Tensor) -> torch.Tensor:
    """The bits of ``x`` as integers: NaN equals NaN, and -0 differs from 0."""
    if not x.is_floating_point():
        return x
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def assert_same(found: object, expected: object, what: object) -> None:
    found, expected = (t if isinstance(t, tuple) else (t,) for t in (found, expected))
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, what
        assert torch.equal(pattern(a), pattern(b)), what


def numbers(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of every kind in turn: plain, huge, tiny, constant, subnormal, signed zeros, with NaN, with infinities."""
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        x[1::9] *= 1e38
        x[2::9] *= 1e-38  # some of them below the normal range
        x[3::9] = -1.2345
        x[4::9] *= 1e-44
        x[5::9] = torch.where(x[5::9] > 0, 0.0, -0.0)
        x[6::9] = torch.where(x[6::9] > 1, torch.nan, x[6::9])
        x[7::9] = torch.where(x[7::9] > 1, torch.inf, x[7::9])
        x[8::9] = torch.where(x[8::9] > 1, -torch.inf, x[8::9])
    return x.to(dtype)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quantize_and_dequantize(bits: int, dtype: torch.dtype) -> None:
    cases = []
    for rows, width, group in SHAPES:
        x = numbers(rows, width, dtype)
        for stochastic in (True, False):
            stored = _reference.quantize(x, bits, group, stochastic, SEED)
            back = _reference.dequantize(*stored, bits, group, width, dtype)
            cases.append(((bits, group, stochastic), x, stored, back))
    for name, kernels in levels_and_threads():
        for (b, group, stochastic), x, stored, back in cases:
            what = name, tuple(x.shape), group, stochastic
            assert_same(kernels.quantize(x, b, group, stochastic, SEED), stored, what)
            assert_same(kernels.dequantize(*stored, b, group, x.shape[1], dtype), back, what)


@pytest.mark.parametrize("bits", BITS)
def test_every_code_decodes_to_every_type(bits: int) -> None:
    """Metadata that quantize never stores, but a file may: infinite, NaN, negative and huge; every byte of codes."""
    width, group = 8 * 256 // bits // 8 * 8, 2048
    packed = torch.arange(256, dtype=torch.uint8)[: width // 8 * bits].repeat(64, 1)
    generator = torch.Generator().manual_seed(3)
    patterns = torch.randint(-(2**15), 2**15, (2, 64, 1), generator=generator, dtype=torch.int16)
    unusual = torch.tensor([0x7F81, 0xFFC3, 0x7F80, 0xFF80, 0, 0x8000, 0x3F80], dtype=torch.int32).to(torch.int16)
    patterns[0, :49, 0], patterns[1, :49, 0] = unusual.repeat_interleave(7), unusual.repeat(7)  # every pair of them
    stored = patterns.view(torch.bfloat16)
    for kind in DTYPES:
        expected = _reference.dequantize(packed, stored[0], stored[1], bits, group, width, kind)
        for name, kernels in levels_and_threads():
            found = kernels.dequantize(packed, stored[0], stored[1], bits, group, width, kind)
            assert_same(found, expected, (name, kind))


def test_tensors_that_are_not_contiguous() -> None:
    x = numbers(64, 60, torch.float32)[::2, ::3]
    assert not x.is_contiguous()
    expected = _reference.quantize(x.contiguous(), 2, 8, True, 5)
    spread = [torch.stack([t, t], dim=-1)[..., 0] for t in expected]
    back = _reference.dequantize(*expected, 2, 8, 20, torch.float32)
    for name, kernels in levels_and_threads():
        assert_same(kernels.quantize(x, 2, 8, True, 5), expected, name)
        assert_same(kernels.dequantize(*spread, 2, 8, 20, torch.float32), back, name)
        assert_same(kernels.pack_mask(x), _reference.pack_mask(x), name)
        mask = _reference.pack_mask(x)
        assert_same(kernels.mask_apply(x, mask, 2.0), _reference.mask_apply(x, mask, 2.0), name)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    x = torch.empty(shape)
    expected = _reference.quantize(x, 2, 8, True, 0)
    for name, kernels in levels_and_threads():
        stored = kernels.quantize(x, 2, 8, True, 0)
        assert_same(stored, expected, name)
        assert kernels.dequantize(*stored, 2, 8, shape[1], torch.float32).shape == shape
        mask = kernels.pack_mask(x)
        assert mask.shape == (0,) and kernels.unpack_mask(mask, 0).shape == (0,)
        assert kernels.mask_apply(x, mask, 1.0).shape == shape


MASKS = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64, torch.float8_e5m2,
]  # fmt: skip


@pytest.mark.parametrize("dtype", MASKS, ids=str)
def test_masks_of_every_type(dtype: torch.dtype) -> None:
    for n in (1, 7, 8, 9, 1000, 1024, 1031, 65_536, 140_003):
        x = torch.randint(-2, 3, (n,), generator=torch.Generator().manual_seed(n)).to(torch.float32)
        if dtype.is_floating_point:
            x[3::7], x[4::7], x[5::7] = torch.nan, -0.0, 2.0**-16 if dtype == torch.float8_e5m2 else 6e-8
        x = (x < 0) if dtype == torch.bool else x.abs().to(dtype) if dtype == torch.uint8 else x.to(dtype)
        expected = _reference.pack_mask(x)
        truth = x.to(torch.float32) != 0 if dtype == torch.float8_e5m2 else x != 0
        assert torch.equal(_reference.unpack_mask(expected, n), truth)
        for name, kernels in levels_and_threads():
            assert_same(kernels.pack_mask(x), expected, (name, n))
            assert_same(kernels.unpack_mask(expected, n), truth, (name, n))


@pytest.mark.parametrize("dtype", [torch.bool, *DTYPES], ids=str)
def test_masks_unpacked_to_two_values(dtype: torch.dtype) -> None:
    for n in (0, 1, 7, 9, 1000, 1031, 140_003):
        packed = _reference.pack_mask(torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.5)
        for low, high in ((0.0, 1.0), (1.0, 0.0), (-1.0, 1 / 0.9), (torch.nan, -torch.inf)):
            expected = _reference.unpack_mask(packed, n, low, high, dtype)
            for name, kernels in levels_and_threads():
                assert_same(kernels.unpack_mask(packed, n, low, high, dtype), expected, (name, n, low, high))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mask_apply(dtype: torch.dtype) -> None:
    for rows, width in ((1, 1), (9, 113), (70, 1030)):
        grad = numbers(rows, width, dtype)
        mask = _reference.pack_mask(torch.randn(rows, width, generator=torch.Generator().manual_seed(1)) > 0)
        for scale in (1.0, 1 / 0.9, -3.0, 1e30, 0.0):
            expected = _reference.mask_apply(grad, mask, scale)
            for name, kernels in levels_and_threads():
                assert_same(kernels.mask_apply(grad, mask, scale), expected, (name, rows, width, scale))


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 257), (torch.float16, 1031), (torch.float64, 2500)])
def test_large_results_in_new_and_in_used_memory(dtype: torch.dtype, width: int) -> None:
    """Results over 32 MiB are streamed past the cache if their memory was used before: the same numbers."""
    blocks = 2**25 // (width * torch.finfo(dtype).bits // 8 * 64) + 1
    x = torch.randn(64, width, generator=torch.Generator().manual_seed(2)).to(dtype)
    block = _reference.quantize(x, 3, 1024, True, 1)
    expected = _reference.dequantize(*block, 3, 1024, width, dtype)
    stored = tuple(t.repeat(blocks, 1) for t in block)
    kept = x > 0
    mask = _reference.pack_mask(kept).repeat(blocks)
    masked = torch.where(kept, expected * 2, 0)
    for name, kernels in levels_and_threads():
        fresh = kernels.dequantize(*stored, 3, 1024, width, dtype)
        used = kernels.dequantize(*stored, 3, 1024, width, dtype, out=torch.full_like(fresh, torch.nan))
        for out in (fresh, used):
            assert bool((out.view(blocks, 64, width) == expected).all()), name
        del fresh
        out = kernels.mask_apply(used, mask, 2.0)
        assert bool((out.view(blocks, 64, width) == masked).all()), name
        assert bool((kernels.unpack_mask(mask, out.numel()).view(blocks, 64, width) == kept).all()), name


def test_denormals_survive_a_thread_that_flushes_them() -> None:
    x = torch.full((2, 16), 1e-40)
    x[:, 0] = -1e-40
    expected = _reference.quantize(x, 4, 8, False, 0)
    back = _reference.dequantize(*expected, 4, 8, 16, torch.float32)
    assert torch.set_flush_denormal(True) or pytest.skip("this processor does not flush denormals")
    try:
        for name, kernels in levels_and_threads():
            assert_same(kernels.quantize(x, 4, 8, False, 0), expected, name)
            assert_same(kernels.dequantize(*expected, 4, 8, 16, torch.float32), back, name)
    finally:
        torch.set_flush_denormal(False)


def test_the_operators_run_these_kernels() -> None:
    for name in _schemas.OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"graphlossy::{name}", "CPU"), name


def test_a_wrong_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing.so"):
        _cpu.Kernels(tmp_path / "nothing.so")
    import ctypes.util

    other = ctypes.util.find_library("m")
    if other is None:
        pytest.skip("no other shared library to load")
    with pytest.raises(OSError, match="no kernel library of graphlossy"):
        _cpu.Kernels(Path(other))


def test_a_stale_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu, "ABI", _cpu.ABI + 1)
    with pytest.raises(OSError, match="is stale .*install graphlossy again"):
        _cpu.Kernels(_cpu.LIBRARY_FILE)


@contextmanager
def one_wrong_bit(kernels: _cpu.Kernels) -> Iterator[None]:
    right = kernels.quantize

    def wrong(*arguments: object) -> tuple[torch.Tensor, ...]:
        packed, scale, offset = right(*arguments)
        packed.view(-1)[-1] ^= 1
        return packed, scale, offset

    kernels.quantize = wrong  # type: ignore[method-assign]
    try:
        yield
    finally:
        kernels.quantize = right  # type: ignore[method-assign]


def test_the_comparison_finds_a_single_bit() -> None:
    x = torch.randn(4, 100)
    kernels = _cpu.Kernels(_cpu.LIBRARY_FILE)
    expected = _reference.quantize(x, 1, 8, True, 0)
    assert_same(kernels.quantize(x, 1, 8, True, 0), expected, "")
    with one_wrong_bit(kernels), pytest.raises(AssertionError):
        assert_same(kernels.quantize(x, 1, 8, True, 0), expected, "")
    with pytest.raises(AssertionError):
        assert_same(torch.tensor([0.0]), torch.tensor([-0.0]), "")
