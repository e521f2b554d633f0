"""The CUDA kernels, run on the host, agree with the reference bit for bit; wrong ones do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from graphlossy._diagnostics import Case, _same_bits, cases
from graphlossy.core import _reference
from graphlossy.core._cuda import Kernels

BITS = (1, 2, 3, 4, 8)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# (rows, width, group size): groups of 256 that stay in registers, shorter and longer ones, ragged ends, one element.
SHAPES = [(3, 512, 256), (2, 300, 256), (5, 40, 32), (1, 2100, 1032), (2, 1500, 2048), (9, 1, 8), (1, 256, 256)]


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
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


def test_bad_arguments_are_the_same_errors(emulated: Kernels) -> None:
    with pytest.raises(ValueError, match="bits must be one of"):
        emulated.quantize(torch.randn(2, 8), 5, 8, True, 0)
    with pytest.raises(ValueError, match="needs .* packed bytes"):
        emulated.unpack_mask(torch.zeros(3, dtype=torch.uint8), 5)


def test_an_error_of_the_driver_is_raised(emulated: Kernels) -> None:
    with pytest.raises(OSError, match="named symbol not found .error 500"):
        emulated._launch("no_such_kernel", 1)


def few(op: str) -> list[Case]:
    if op == "quantize":
        # float32 in registers and not, with padding, every width.
        found = [Case(op, (torch.randn(2, w), b, g, True, 3)) for b in BITS for w, g in ((512, 256), (300, 48))]
        ties = (torch.arange(256) % 7 / 2).view(1, 256)  # steps of one: every second value lies half-way
        found += [Case(op, (ties, 2, 256, False, 0)), Case(op, (ties, 2, 64, False, 0))]
        return [*found, Case(op, (unusual(torch.randn(4, 256)), 2, 256, True, 3))]
    if op == "dequantize":
        return [
            Case(op, (*_reference.quantize(torch.randn(2, w), b, g, True, 3), b, g, w, torch.float32))
            for b in BITS
            for w, g in ((512, 256), (300, 48))
        ]
    mask = torch.rand(9001) < 0.5
    mask[-1] = True
    packed = _reference.pack_mask(mask)
    return {
        "pack_mask": [Case(op, (mask,))],
        "unpack_mask": [Case(op, (packed, 9001))],
        "mask_apply": [Case(op, (torch.randn(9001), packed, 1.1))],
    }[op]


MUTANTS = [
    ("quantize", "0x80008000u", "0x7fff7fffu"),  # nearest: not one half
    ("quantize", "h & 0xffffu : h >> 16", "h >> 16 : h & 0xffffu"),  # the halves of a hash
    ("quantize", "if (i >= length) return 0;", "if (i > length) return 0;"),  # padding
    ("quantize", "row * (padded(width) / 8 * bits)", "row * (width / 8 * bits)"),  # a row's bytes
    ("quantize", "hi > r.hi ? hi : r.hi", "r.hi"),  # a lane's own maximum
    ("quantize", "m = kLanes / 2", "m = kLanes / 4"),  # half a warp
    ("quantize", "(uint64_t)g", "(uint64_t)(g + 1)"),  # a group's noise
    ("quantize", "store_planes<1>(packed + kRegisterGroup / 4, code, 2, lane)",
     "store_planes<1>(packed + kRegisterGroup / 4, code, 1, lane)"),  # the third bit
    ("dequantize", "code[b + k * BITS] |=", "code[k + b * (8 / BITS)] |="),  # interleaved, not planar
    ("dequantize", "for (; i >= plane; i -= plane) ++k;", "for (; i > plane; i -= plane) ++k;"),
    ("pack_mask", "i < numel && is_set(mask[i])", "i + 1 < numel && is_set(mask[i])"),
    ("pack_mask", "byte < (numel + 7) / 8", "byte < numel / 8"),  # the last byte
    ("unpack_mask", "(packed[i / 8] >> (i % 8)) & 1;", "(packed[i / 8] >> (7 - i % 8)) & 1;"),  # bit order
    ("mask_apply", "i += thread_count()) {", "i += thread_count() + 1) {"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "old", "new"), MUTANTS, ids=lambda text: text[:32])
def test_a_wrong_kernel_is_found(
    op: str,
    old: str,
    new: str,
    emulated: Kernels,
    changed: Callable[[str, str], Kernels],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("graphlossy.core._cuda._MOST_BLOCKS", 3)  # so that every loop goes round
    checks = few(op)
    assert all(same(emulated, *case) for case in checks)
    wrong = changed(old, new)
    assert not all(same(wrong, *case) for case in checks)
