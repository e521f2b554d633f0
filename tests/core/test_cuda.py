"""The operators on a GPU: parity with the reference, streams, devices; and what happens where kernels cannot be had."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from graphlossy._diagnostics import _same_bits
from graphlossy.core import _cuda, _nvrtc, _reference, kernel_status, quantize

BITS = (1, 2, 3, 4, 8)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.mark.cuda
def test_the_kernels_are_live() -> None:
    status = kernel_status()["cuda"]
    assert status["live"], status["detail"]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_parity_on_a_gpu(bits: int, dtype: torch.dtype) -> None:
    # As in tests/emulator: a thread, several threads, a warp or a block to a group, ragged and misaligned rows.
    shapes = [((1000, 256), 256), ((1, 100_003), 256), ((37, 1500), 2048), ((513, 40), 32), ((999, 25), 8)]
    shapes += [((70, 1024), 1024), ((1, 200_000), 65_536), ((2, 9001), 8192), ((33, 257), 256)]
    for shape, group_size in shapes:
        x = (torch.randn(shape) * 10 ** torch.randn(shape[0], 1)).to(dtype)
        x[0, 3], x[-1, -1] = float("nan"), float("inf")
        for stochastic in (False, True):
            wanted = _reference.quantize(x, bits, group_size, stochastic, 2**62 + 1)
            given = torch.ops.graphlossy.quantize(x.cuda(), bits, group_size, stochastic, 2**62 + 1)
            assert _same_bits(wanted, given)
        back = torch.ops.graphlossy.dequantize(*given, bits, group_size, shape[1], dtype)
        assert _same_bits(_reference.dequantize(*wanted, bits, group_size, shape[1], dtype), back)


@pytest.mark.cuda
def test_the_current_stream_is_used() -> None:
    x = torch.randn(4000, 256, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = x + 1.0  # ready only after the pause
        stored = torch.ops.graphlossy.quantize(late, 8, 256, False, 0)
    stream.synchronize()
    assert _same_bits(_reference.quantize((x + 1.0).cpu(), 8, 256, False, 0), stored)


@pytest.mark.cuda
def test_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    x = torch.randn(100, 256)
    stored = torch.ops.graphlossy.quantize(x.to("cuda:1"), 2, 256, True, 5)
    assert torch.cuda.current_device() == 0 and stored[0].device.index == 1
    assert _same_bits(_reference.quantize(x, 2, 256, True, 5), stored)


@pytest.mark.cuda
def test_a_thread_that_has_not_used_cuda() -> None:
    x = torch.randn(1000, 256, device="cuda")
    torch.ops.graphlossy.quantize(x, 2, 256, True, 5)  # leaves memory for the next one's result with the allocator
    with ThreadPoolExecutor(1) as pool:
        stored = pool.submit(torch.ops.graphlossy.quantize, x, 2, 256, True, 5).result()
    assert _same_bits(_reference.quantize(x.cpu(), 2, 256, True, 5), stored)


FIRST_IN_A_THREAD = """
import threading, torch
from graphlossy.core import kernel_status
x = torch.randn(1000, 256, device="cuda")
torch.empty_like(x).add_(1)  # leaves memory with the allocator
found = []
thread = threading.Thread(target=lambda: found.append(torch.ops.graphlossy.quantize(x, 2, 256, True, 5)))
thread.start(); thread.join()
assert len(found) == 1 and kernel_status()["cuda"]["live"], kernel_status()
"""


@pytest.mark.cuda
def test_the_first_call_of_a_process_comes_from_another_thread() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", FIRST_IN_A_THREAD], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.cuda
def test_in_a_cuda_graph() -> None:
    x = torch.randn(1000, 256, device="cuda")
    quantize(x, 2, seed=0)  # compiled and loaded before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stored = torch.ops.graphlossy.quantize(x, 2, 256, True, 3)
    x.copy_(torch.randn(1000, 256))
    graph.replay()
    torch.cuda.synchronize()
    assert _same_bits(_reference.quantize(x.cpu(), 2, 256, True, 3), stored)


@pytest.fixture
def no_kernels_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "_loaded", {})


def test_why_there_are_no_kernels_is_said_once(no_kernels_yet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise OSError(f"{path}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.warns(RuntimeWarning, match="without its CUDA kernels.*libcuda.so.1: cannot open"):
        assert "libcuda.so.1" in str(_cuda.kernels_for(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "libcuda.so.1" in str(_cuda.kernels_for(0))


def test_a_missing_compiler_is_a_reason_too(no_kernels_yet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(capability: tuple[int, int]) -> str:
        raise _nvrtc.CompileError("NVRTC is not installed")

    monkeypatch.setattr(ctypes, "CDLL", lambda path: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(_nvrtc, "architecture", refuse)
    with pytest.warns(RuntimeWarning, match="NVRTC is not installed"):
        assert _cuda.kernels_for(0) == "NVRTC is not installed"


class FullDriver:
    """A driver that refuses ``refusals`` loads with ``status``, then works."""

    def __init__(self, refusals: int, status: int) -> None:
        self.refusals, self.status = refusals, status

    def cuModuleLoadData(self, *arguments: object) -> int:
        self.refusals -= 1
        return self.status if self.refusals >= 0 else 0

    def __getattr__(self, name: str):
        return lambda *arguments: 0


@pytest.mark.parametrize("refusals", [1, 2])
def test_a_gpu_without_memory_for_a_kernel(refusals: int, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    kernels = _cuda.Kernels(FullDriver(refusals, 2), lambda definition: b"", lambda: 0, ctypes.c_void_p())  # type: ignore[arg-type]
    if refusals == 1:
        kernels.load("one", "")
    else:
        with pytest.raises(torch.OutOfMemoryError, match="could not load a kernel"):
            kernels.load("one", "")
    assert emptied == [True]


def test_a_kernel_that_the_driver_refuses(no_kernels_yet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = _cuda.Kernels(FullDriver(9, 218), lambda definition: b"", lambda: 0, ctypes.c_void_p())  # type: ignore[arg-type]
    monkeypatch.setattr(_cuda, "_loaded", {0: kernels})
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.warns(RuntimeWarning, match="without its CUDA kernels.*error 218"):
        found = _cuda._implementation("unpack_mask")(torch.tensor([5], dtype=torch.uint8), 3)
    assert found.tolist() == [True, False, True]


def test_a_device_without_a_context() -> None:
    class Driver:
        def __getattr__(self, name: str):
            return lambda *arguments: 101 if name == "cuDeviceGet" else 0

    with pytest.raises(OSError, match="no context on device 3 .error 101"):
        _cuda.primary_context(Driver(), 3)  # type: ignore[arg-type]


def test_status_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status = kernel_status()["cuda"]
    assert not status["live"] and ("CUDA" in status["detail"])


@pytest.mark.parametrize("elements", [2**31 - 1, 2**31, 2**33 + 5, 2**40])
def test_grids_of_huge_tensors_are_within_the_limit(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of that size exists here: a tensor without memory, and a driver that only looks at the grid."""
    grids = []

    class Driver:
        def __getattr__(self, name: str):
            return lambda *arguments: grids.append(arguments[1]) or 0 if name == "cuLaunchKernel" else 0

    kernels = _cuda.Kernels(Driver(), lambda definition: b"", lambda: 0, ctypes.c_void_p())  # type: ignore[arg-type]
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda self: 0)
    x = torch.empty(elements, dtype=torch.float16, device="meta")
    packed = kernels.pack_mask(x)
    kernels.unpack_mask(packed, elements)
    kernels.mask_apply(x, packed, 1.0)
    stored = kernels.quantize(x.view(1, -1), 2, 256, True, 0)
    kernels.dequantize(*stored, 2, 256, elements, torch.float16)
    # Elements of a block: 8 for a thread of the masks' kernels (16 where they have a byte each), 32 in quantize, 16 in
    # dequantize at two bits.
    exact = [-(-elements // size) for size in (2048, 4096, 2048, 8192, 4096)]
    assert grids == [min(blocks, 2**31 - 1) for blocks in exact]


def test_a_kernel_that_does_not_compile_gives_way_to_the_reference(
    no_kernels_yet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refuses(_cuda.Kernels):
        def __init__(self) -> None: ...

        def unpack_mask(self, packed: torch.Tensor, *rest: object) -> torch.Tensor:
            raise _nvrtc.CompileError("unknown instruction")

    monkeypatch.setattr(_cuda, "_loaded", {0: Refuses()})
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    packed = torch.tensor([5], dtype=torch.uint8)
    with pytest.warns(RuntimeWarning, match="unknown instruction"):
        assert _cuda._implementation("unpack_mask")(packed, 3).tolist() == [True, False, True]
    assert _cuda.kernels_for(0) == "unknown instruction"
    assert _cuda._implementation("unpack_mask")(packed, 3).tolist() == [True, False, True]  # and no second warning
