"""The CUDA kernels beyond 2^31 elements: the blocks around that element and the last ones, on memory never filled."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from graphlossy.core import _reference
from graphlossy.core._cuda import THREADS, Kernels

EDGE = 2**31
MASK = EDGE + 70_003  # elements
ROWS, WIDTH, GROUP, BITS, SEED = 2**23 + 5, 264, 256, 1, 77  # two groups a row
TEAMS = THREADS // 8  # groups of 256 elements that a block quantises at one bit, eight threads each


def never_filled(dtype: torch.dtype, *shape: int) -> Tensor:
    """Zeros that take address space but no memory until they are written to."""
    numel = torch.Size(shape).numel()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, numel * torch.empty(0, dtype=dtype).element_size(), flags=flags)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


@contextlib.contextmanager
def only_blocks(kernels: Kernels, first: int, last: int) -> Iterator[None]:
    kernels._driver.emulator_blocks(first, last)
    try:
        yield
    finally:
        kernels._driver.emulator_blocks(0, 2**32 - 1)


def run(kernels: Kernels, blocks: tuple[int, int], op: str, *arguments: Any) -> Any:
    with only_blocks(kernels, *blocks):
        try:
            return getattr(kernels, op)(*arguments)
        except RuntimeError as error:
            if "memory" in str(error) and not isinstance(error, OSError):
                pytest.skip(f"no address space for the result: {error}")
            raise


def around(elements: int, of_a_block: int) -> Iterator[tuple[tuple[int, int], slice]]:
    """Blocks (first, end) and the elements that they handle: those around element 2^31, and the last ones."""
    last = -(-elements // of_a_block)
    for first, end in ((EDGE // of_a_block - 1, EDGE // of_a_block + 1), (last - 2, last)):
        yield (first, end), slice(first * of_a_block, min(elements, end * of_a_block))


def check_quantize(kernels: Kernels) -> bool:
    x = never_filled(torch.bfloat16, ROWS, WIDTH)
    edge_row = EDGE // WIDTH
    for start in (edge_row - TEAMS, ROWS - TEAMS):
        x[start : start + 2 * TEAMS] = torch.randn(x[start : start + 2 * TEAMS].shape).bfloat16()
    good = True
    for row in (edge_row, ROWS - 1):
        group = 2 * row
        stored = run(kernels, (group // TEAMS, group // TEAMS + 1), "quantize", x, BITS, GROUP, True, SEED)
        part = x[row : row + 1]
        for g, columns, places in ((0, slice(0, 256), slice(0, 32)), (1, slice(256, 264), slice(32, 33))):
            wanted = _reference._quantize_groups(part[:, columns], BITS, True, SEED, torch.tensor([group + g]))
            found = (stored[0][row, places], stored[1][row, g], stored[2][row, g])
            good &= all(torch.equal(a.view(-1), b.view(-1)) for a, b in zip(found, wanted, strict=True))
    return good


def check_dequantize(kernels: Kernels) -> bool:
    packed = never_filled(torch.uint8, ROWS, WIDTH // 8)
    scale, offset = never_filled(torch.bfloat16, ROWS, 2), never_filled(torch.bfloat16, ROWS, 2)
    good = True
    for row in (EDGE // WIDTH, ROWS - 1):
        packed[row] = torch.arange(WIDTH // 8) * 37 % 256
        scale[row], offset[row] = torch.tensor([0.5, 2.0]), torch.tensor([-1.0, 3.0])
        stored = packed[row : row + 1], scale[row : row + 1], offset[row : row + 1]
        wanted = _reference.dequantize(*stored, BITS, GROUP, WIDTH, torch.float16)
        block = 2 * row // TEAMS
        out = run(kernels, (block, block + 1), "dequantize", packed, scale, offset, BITS, GROUP, WIDTH, torch.float16)
        good &= torch.equal(out[row], wanted[0])
    return good


def check_pack_mask(kernels: Kernels) -> bool:
    mask = never_filled(torch.uint8, MASK)
    good = True
    for blocks, at in around(MASK, THREADS * 16):
        mask[at] = torch.rand(at.stop - at.start) < 0.5
        packed = run(kernels, blocks, "pack_mask", mask)
        good &= torch.equal(packed[at.start // 8 : -(-at.stop // 8)], _reference.pack_mask(mask[at]))
    return good


def check_unpack_mask(kernels: Kernels) -> bool:
    packed = never_filled(torch.uint8, -(-MASK // 8))
    good = True
    for blocks, at in around(MASK, THREADS * 16):
        part = packed[at.start // 8 : -(-at.stop // 8)]
        part.copy_(torch.randint(256, part.shape))
        found = run(kernels, blocks, "unpack_mask", packed, MASK)[at]
        good &= torch.equal(found, _reference.unpack_mask(part, at.stop - at.start))
    return good


def check_mask_apply(kernels: Kernels) -> bool:
    packed, grad = never_filled(torch.uint8, -(-MASK // 8)), never_filled(torch.float16, MASK)
    good = True
    for blocks, at in around(MASK, THREADS * 8):
        part = packed[at.start // 8 : -(-at.stop // 8)]
        part.copy_(torch.randint(256, part.shape))
        grad[at] = torch.randn(at.stop - at.start).half()
        found = run(kernels, blocks, "mask_apply", grad, packed, 1.5)[at]
        good &= torch.equal(found, _reference.mask_apply(grad[at], part, 1.5))
    return good


CHECKS = {
    "quantize": check_quantize,
    "dequantize": check_dequantize,
    "pack_mask": check_pack_mask,
    "unpack_mask": check_unpack_mask,
    "mask_apply": check_mask_apply,
}


@pytest.mark.parametrize("op", CHECKS)
def test_elements_beyond_2_31(op: str, emulated: Kernels) -> None:
    assert CHECKS[op](emulated)


NARROW = [
    ("quantize", "group.element = row * width +", "group.element = (int32_t)(row * width) +"),
    ("dequantize", "group.element = row * width +", "group.element = (int32_t)(row * width) +"),
    ("pack_mask", "const int64_t start = turn * kElements", "const int64_t start = (int32_t)(turn * kElements)"),
    ("unpack_mask", "const int64_t begin = turn * kElements", "const int64_t begin = (int32_t)(turn * kElements)"),
    ("mask_apply", "const int64_t start = turn * 8;", "const int64_t start = (int32_t)(turn * 8);"),
]


@pytest.mark.parametrize(("op", "old", "new"), NARROW, ids=lambda text: text[:32])
def test_an_index_of_32_bits_is_found(op: str, old: str, new: str, changed: Callable[..., Kernels]) -> None:
    x = torch.zeros(1, 264, dtype=torch.bfloat16)
    stored = _reference.quantize(x, BITS, GROUP, True, SEED)
    small = {
        "quantize": (x, BITS, GROUP, True, SEED),
        "dequantize": (*stored, BITS, GROUP, 264, torch.float16),
        "pack_mask": (x.flatten().to(torch.uint8),),
        "unpack_mask": (torch.zeros(1, dtype=torch.uint8), 8),
        "mask_apply": (x.flatten().half(), torch.zeros(33, dtype=torch.uint8), 1.0),
    }
    wrong = changed(old, new, [(op, small[op])])
    try:
        assert not CHECKS[op](wrong)
    except OSError as error:
        assert "illegal memory access" in str(error)
