"""The CUDA source, and changed copies of it, compiled as host libraries."""

from __future__ import annotations

import ctypes
import mmap
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graphlossy.core import _nvrtc, _schemas, packed_attention
from graphlossy.core._cuda import Kernels, primary_context
from graphlossy.core._cuda_multi_size import CudaOps

HERE = Path(__file__).parent
Calls = Iterable[tuple[str, tuple[Any, ...]]]
# An access that is not aligned traps, see cuda_on_cpu.h.
FLAGS = ["-O1", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", "-fsanitize=alignment"]
FLAGS += ["-fsanitize-undefined-trap-on-error"]


class Recorder(Kernels):
    """Computes nothing; notes which kernels would run, and by which macro each is defined."""

    def __init__(self) -> None:
        super().__init__(ctypes.CDLL(None), lambda definition: b"", lambda: 0, ctypes.c_void_p())
        self.definitions: dict[str, str] = {}

    def _launch(self, name: str, definition: str, blocks: int, *arguments: Any) -> None:
        self.definitions[name] = definition


def every_definition() -> dict[str, str]:
    """All kernels, by running every operator for every type, number of bits and size of group."""
    recorder = Recorder()
    for dtype in _schemas.FLOAT_DTYPES:
        x = torch.zeros(1, 2048, dtype=dtype)
        for bits in _schemas.BITS:
            for group_size in (256, 2048):
                stored = recorder.quantize(x, bits, group_size, True, 0)
                recorder.dequantize(*stored, bits, group_size, 2048, dtype)
        recorder.mask_apply(x, recorder.pack_mask(x), 1.0)
    for integer in (torch.bool, torch.int16, torch.int32, torch.int64):
        recorder.pack_mask(torch.zeros(1, dtype=integer))
    for dtype in (torch.bool, *_schemas.FLOAT_DTYPES):
        recorder.unpack_mask(torch.zeros(1, dtype=torch.uint8), 1, 0.0, 1.0, dtype)
    return recorder.definitions


def definitions_of(calls: Calls) -> dict[str, str]:
    """The kernels that some calls need."""
    recorder = Recorder()
    for op, arguments in calls:
        if op == "packed_attention":
            packed_attention._on_cuda(recorder, *arguments)
            continue
        getattr(recorder if hasattr(recorder, op) else CudaOps(recorder), op)(*arguments)
    return recorder.definitions


def build(folder: Path, include: Path, definitions: dict[str, str]) -> Kernels:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    main, library = folder / "main.cpp", folder / "kernels.so"
    kernels, names = "\n".join(definitions.values()), "\n".join(f"EMULATED({name})" for name in definitions)
    main.write_text(
        f'#include "cuda_on_cpu.h"\n#define LOSSY_KERNELS\n#include "{_nvrtc.SOURCE}"\n{kernels}\n{names}\n'
    )
    command = [compiler, *FLAGS, f"-I{include}", f"-I{HERE}", str(main), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    driver = ctypes.CDLL(str(library))
    return Kernels(driver, lambda definition: b"", lambda: 0, primary_context(driver, 0))


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """The operators on CPU tensors, by the text of the CUDA kernels and the code that launches them."""
    return build(tmp_path_factory.mktemp("emulator"), _nvrtc.CSRC, every_definition())


@pytest.fixture(scope="session")
def emulate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Calls], Kernels]:
    """The kernels that some calls need, and no others."""
    return lambda calls: build(tmp_path_factory.mktemp("emulator"), _nvrtc.CSRC, definitions_of(calls))


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Kernels]:
    """Kernels of the source in which one text stands for another: only those that some calls need."""

    def make(old: str, new: str, calls: Calls) -> Kernels:
        places = 0
        for name in (_nvrtc.SOURCE, *_nvrtc.HEADERS):
            text = (_nvrtc.CSRC / name).read_text()
            places += len(re.findall(re.escape(old), text))
            (tmp_path / name).write_text(text.replace(old, new))
        assert places == 1, f"{places} places with {old!r}"
        return build(tmp_path, tmp_path, definitions_of(calls))

    return make


def _before_a_wall(tensor: Tensor) -> Tensor:
    """A copy whose last byte is the last one of a page; the page behind it must not be touched."""
    size = tensor.numel() * tensor.element_size()
    if not size:
        return tensor
    room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + mmap.PAGESIZE)
    wall = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + room
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(wall), ctypes.c_size_t(mmap.PAGESIZE), 0):
        pytest.skip(f"mprotect: error {ctypes.get_errno()}")
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=room - size)
    return copy.view(tensor.shape).copy_(tensor)


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Arguments whose tensors end before a wall; so do the results of the operators."""

    def walled(values: Any) -> Any:
        if isinstance(values, tuple):
            return tuple(map(walled, values))
        return _before_a_wall(values) if isinstance(values, Tensor) else values

    for name, allocate in _schemas.FAKES.items():
        monkeypatch.setitem(_schemas.FAKES, name, lambda *given, allocate=allocate: walled(allocate(*given)))
    return walled
