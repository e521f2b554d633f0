"""The operators on CUDA: compiled for the device at the first call, launched through the driver on torch's stream.

Where that does not work (no NVRTC, an unknown device), the plain-torch reference runs on the device and one warning
says why. Importing this module neither initialises CUDA nor loads a library.
"""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphlossy.core import _nvrtc, _reference, _schemas

__all__ = ["Kernels", "kernels_for"]

THREADS, WARPS = 256, 8  # of a block: kThreads and kWarps in csrc/lossy_cuda.cu
_MOST_BLOCKS = 2**31 - 1
# A block handles at least this many elements of a mask; with more elements than _MOST_BLOCKS blocks take, it loops.
_PACKED_BY_A_BLOCK = WARPS * 1024

_LONG, _INT, _UNSIGNED, _DOUBLE = ctypes.c_int64, ctypes.c_int, ctypes.c_uint64, ctypes.c_double
_FLOATS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float64: "float64"}
_INTEGERS = {1: "int8", 2: "int16", 4: "int32", 8: "int64"}


class Kernels:
    """The operators on top of one loaded module.

    Args:
        driver: the CUDA driver library.
        image: what NVRTC compiled.
        stream: gives the stream to launch on.

    Raises:
        OSError: the driver cannot load the image.
    """

    def __init__(self, driver: ctypes.CDLL, image: bytes, stream: Callable[[], int]) -> None:
        self._driver, self._stream = driver, stream
        self._module = ctypes.c_void_p()
        self._functions: dict[str, ctypes.c_void_p] = {}
        self._check(driver.cuModuleLoadData(ctypes.byref(self._module), image))

    def _check(self, status: int) -> None:
        if status:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(text))
            raise OSError(f"CUDA driver: {(text.value or b'unknown error').decode()} (error {status})")

    def _launch(self, name: str, blocks: int, *arguments: Any) -> None:
        function = self._functions.get(name)
        if function is None:
            function = ctypes.c_void_p()
            self._check(self._driver.cuModuleGetFunction(ctypes.byref(function), self._module, name.encode()))
            self._functions[name] = function
        held = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments]
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))
        grid, block = (min(blocks, _MOST_BLOCKS), 1, 1), (THREADS, 1, 1)
        stream = ctypes.c_void_p(self._stream())
        self._check(self._driver.cuLaunchKernel(function, *grid, *block, 0, stream, pointers, None))

    def quantize(self, x: Tensor, bits: int, group_size: int, stochastic: bool, seed: int) -> tuple[Tensor, ...]:
        """graphlossy::quantize."""
        stored = _schemas.FAKES["quantize"](x, bits, group_size, stochastic, seed)
        x = x.contiguous()
        groups = stored[1].numel()
        if groups:
            sizes = _LONG(groups), _LONG(x.shape[1]), _LONG(group_size), _INT(stochastic), _UNSIGNED(seed % 2**64)
            self._launch(f"quantize_{_FLOATS[x.dtype]}_{bits}", -(-groups // WARPS), x, *stored, *sizes)
        return stored

    def dequantize(
        self, packed: Tensor, scale: Tensor, offset: Tensor, bits: int, group_size: int, width: int, dtype: torch.dtype
    ) -> Tensor:
        """graphlossy::dequantize."""
        out = _schemas.FAKES["dequantize"](packed, scale, offset, bits, group_size, width, dtype)
        stored = packed.contiguous(), scale.contiguous(), offset.contiguous()
        groups = scale.numel()
        if groups:
            sizes = _LONG(groups), _LONG(width), _LONG(group_size)
            self._launch(f"dequantize_{_FLOATS[dtype]}_{bits}", -(-groups // WARPS), *stored, out, *sizes)
        return out

    def pack_mask(self, mask: Tensor) -> Tensor:
        """graphlossy::pack_mask."""
        out = _schemas.FAKES["pack_mask"](mask)
        kind = _FLOATS.get(mask.dtype)
        if kind is None:
            if mask.dtype.is_floating_point or mask.dtype.is_complex:
                mask = mask != 0
            kind = _INTEGERS[mask.element_size()]
        mask, numel = mask.contiguous(), mask.numel()
        if numel:
            self._launch(f"pack_mask_{kind}", -(-numel // _PACKED_BY_A_BLOCK), mask, out, _LONG(numel))
        return out

    def unpack_mask(self, packed: Tensor, numel: int) -> Tensor:
        """graphlossy::unpack_mask."""
        out = _schemas.FAKES["unpack_mask"](packed, numel)
        if numel:
            self._launch("unpack_mask", -(-numel // THREADS), packed.contiguous(), out, _LONG(numel))
        return out

    def mask_apply(self, grad: Tensor, packed: Tensor, scale: float) -> Tensor:
        """graphlossy::mask_apply."""
        out = _schemas.FAKES["mask_apply"](grad, packed, scale)
        grad, packed, numel = grad.contiguous(), packed.contiguous(), grad.numel()
        if numel:
            arguments = grad, packed, out, _LONG(numel), _DOUBLE(scale)
            self._launch(f"mask_apply_{_FLOATS[grad.dtype]}", -(-numel // THREADS), *arguments)
        return out


_loaded: dict[int, Kernels | str] = {}
_lock = threading.Lock()


def kernels_for(index: int) -> Kernels | str:
    """The kernels of CUDA device ``index``, compiled and loaded if they are not yet; or why there are none."""
    with _lock:
        found = _loaded.get(index)
        if found is None:
            found = _loaded[index] = _load(index)
            if isinstance(found, str):
                warnings.warn(
                    f"graphlossy runs without its CUDA kernels, several times slower: {found}",
                    RuntimeWarning,
                    stacklevel=3,
                )
        return found


def _load(index: int) -> Kernels | str:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        arch = _nvrtc.architecture(torch.cuda.get_device_capability(index))
        image = _nvrtc.compile_source(*_nvrtc.sources(), arch)
        with torch.cuda.device(index):  # the module belongs to the device's context
            torch.empty(1, device="cuda")  # makes that context, if nothing has yet
            return Kernels(driver, image, lambda: torch.cuda.current_stream(index).cuda_stream)
    except (OSError, _nvrtc.CompileError) as error:
        return str(error)


def _implementation(name: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        device = next(a.device for a in arguments if isinstance(a, Tensor))
        with torch.cuda.device(device):
            found = kernels_for(torch.cuda.current_device())
            return getattr(found if isinstance(found, Kernels) else _reference, name)(*arguments)

    return run


for _name in _schemas.OPS:
    _schemas.LIBRARY.impl(_name, _implementation(_name), "CUDA")
