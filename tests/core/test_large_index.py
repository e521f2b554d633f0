"""Beyond 2^31 elements: index arithmetic on memory that is never filled, hashes of large indices, and a real run."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from graphlossy.core import _cpu, _reference, pack_mask, quantize, unpack_mask

needs_kernels = pytest.mark.skipif(_cpu.kernels is None, reason=f"no CPU kernels: {_cpu.load_error}")
SOURCES = Path(_cpu.__file__).with_name("csrc")
MASK32 = 2**32 - 1
# Indices of groups around every place where 32 bits, signed or not, would wrap.
GROUPS = [0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**32 + 1, 2**33 + 5, 2**40, 2**62 + 12345]
SEEDS = [0, 1, -1, 2**32, 2**63 - 1, -(2**63), 0x0123_4567_89AB_CDEF]


def mix32(x: int) -> int:
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = ((x ^ (x >> shift)) * factor) & MASK32
    return x ^ (x >> 15)


def group_key(seed: int, group: int) -> int:
    """The key by Python's integers, which never wrap."""
    seed %= 2**64
    h = mix32((seed & MASK32) ^ mix32(((seed >> 32) + 0x9E3779B9) & MASK32))
    return mix32(mix32(h ^ (group & MASK32)) ^ (group >> 32) ^ 0x85EBCA6B)


def test_the_reference_hashes_64_bit_group_indices() -> None:
    for seed in SEEDS:
        keys = _reference.group_key(seed, torch.tensor(GROUPS)).tolist()
        assert keys == [group_key(seed, group) for group in GROUPS]
        assert len(set(keys)) == len(GROUPS)  # nothing wraps onto another


def test_the_kernels_header_hashes_64_bit_group_indices(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    source = tmp_path / "index.cpp"
    source.write_text(
        '#include "group_math.h"\nextern "C" {\n'
        "unsigned key(uint64_t seed, uint64_t group) { return lossy::group_key(lossy::seed_hash(seed), group); }\n"
        "int64_t length(int64_t w, int64_t s, int64_t g) { return lossy::group_length(w, s, g); }\n"
        "int64_t padded(int64_t n) { return lossy::padded(n); }\n}\n"
    )
    library = tmp_path / "index.so"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", f"-I{SOURCES}"]
    subprocess.run([*compiler.split(), *flags, str(source), "-o", str(library)], check=True, capture_output=True)
    header = ctypes.CDLL(str(library))
    header.key.argtypes, header.key.restype = (ctypes.c_uint64, ctypes.c_uint64), ctypes.c_uint32
    header.length.argtypes, header.length.restype = (ctypes.c_int64,) * 3, ctypes.c_int64
    header.padded.argtypes, header.padded.restype = (ctypes.c_int64,), ctypes.c_int64
    for seed in SEEDS:
        assert [header.key(seed % 2**64, group) for group in GROUPS] == [group_key(seed, group) for group in GROUPS]
    width = 2**40 + 13
    assert header.length(width, 256, 2**32) == 13 and header.length(width, 256, 2**32 - 1) == 256
    assert header.padded(width) == 2**40 + 16


def never_filled(dtype: torch.dtype, numel: int) -> torch.Tensor:
    """Zeros that take address space but no memory until they are written to."""
    size = numel * torch.empty(0, dtype=dtype).element_size()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, size, flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)  # reading then costs an interruption per 2 MiB
    return torch.frombuffer(memory, dtype=dtype)


@needs_kernels
@pytest.mark.skipif(not hasattr(mmap, "MAP_PRIVATE"), reason="no private mappings on this system")
@pytest.mark.parametrize(("rows", "width"), [(2**21 + 3, 1032), (3, 2**30 - 8)], ids=["many rows", "long rows"])
def test_quantize_finds_rows_beyond_2_31_elements(rows: int, width: int) -> None:
    """The values lie at both ends and around element 2^31; all other groups are zero."""
    assert rows * width > 2**31
    x = never_filled(torch.bfloat16, rows * width).view(rows, width)
    count = -(-width // 2048)
    places = [(r, g) for r in {0, 2**31 // width, rows - 1} for g in {0, count // 2, count - 1, 2**31 % width // 2048}]
    for r, g in places:
        x[r, g * 2048 : (g + 1) * 2048] = torch.randn(min(2048, width - g * 2048)).bfloat16()
    packed, scale, _ = torch.ops.graphlossy.quantize(x, 1, 2048, True, 77)
    assert packed.shape == (rows, -(-width // 8)) and int((scale != 0).sum()) == len(set(places))
    nonzero = 0
    for r, g in set(places):
        part = x[r : r + 1, g * 2048 : (g + 1) * 2048]
        expected = _reference._quantize_groups(part, 1, True, 77, torch.tensor([r * count + g]))
        assert torch.equal(packed[r, g * 256 : (g + 1) * 256], expected[0][0]) and scale[r, g] == expected[1][0]
        nonzero += int(expected[0].count_nonzero())
    assert np.count_nonzero(packed.numpy().view(bool)) == nonzero > 0  # and nothing was written anywhere else


@needs_kernels
@pytest.mark.skipif(not hasattr(mmap, "MAP_PRIVATE"), reason="no private mappings on this system")
def test_pack_mask_finds_elements_beyond_2_31() -> None:
    n = 2**31 + 70_003
    mask = never_filled(torch.uint8, n)
    places = [0, 5, 2**30, 2**31 - 1, 2**31, 2**31 + 1, 2**31 + 65_536, n - 1]
    mask[places] = 1
    packed = torch.ops.graphlossy.pack_mask(mask)
    found = packed.nonzero().squeeze(1)
    bits = [int(at) * 8 + bit for at in found for bit in range(8) if int(packed[at]) >> bit & 1]
    assert bits == places


def available_bytes() -> int:
    try:
        return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


@pytest.mark.slow
@pytest.mark.skipif(available_bytes() < 14 * 2**30, reason="needs 14 GiB of free memory")
@needs_kernels
def test_more_than_2_31_elements_for_real() -> None:
    rows, width = 2**15 + 1, 2**16 + 8
    block = torch.randn(64, width).half()
    x = block.repeat(rows // 64 + 1, 1)[:rows]
    assert x.numel() > 2**31
    q = quantize(x, 1, 512, "nearest")
    out = q.dequantize()
    expected = quantize(block, 1, 512, "nearest").dequantize()
    for r in range(0, rows, 64):
        assert torch.equal(out[r : r + 64], expected[: rows - r]), r
    del q
    mask = pack_mask(x)
    assert mask.nbytes == -(-x.numel() // 8)
    masked = torch.ops.graphlossy.mask_apply(out, mask.bits, 2.0)
    kept = block != 0
    for r in range(0, rows, 64):
        assert torch.equal(masked[r : r + 64], torch.where(kept, expected * 2, 0)[: rows - r]), r
    del masked, out
    set_bits = unpack_mask(mask)
    for r in range(0, rows, 64):
        assert torch.equal(set_bits[r : r + 64], kept[: rows - r]), r
