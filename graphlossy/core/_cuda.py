"""The operators on CUDA: each kernel compiled for the device at its first call, launched on torch's stream.

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

__all__ = ["Kernels", "LoadError", "kernels_for", "primary_context", "with_reference"]

# As in csrc/quantize.cuh: threads of a block and of a warp, positions of a unit, elements that a thread of quantize
# keeps in registers, rows ("planes") that a group is seen as at each number of bits.
THREADS, WARP, UNIT, KEPT = 256, 32, 4, 32
PLANES = {1: 8, 2: 4, 3: 8, 4: 2, 8: 2}
_MOST_BLOCKS = 2**31 - 1  # of a grid; where that is too few, the kernels loop
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY

_LONG, _INT, _UNSIGNED, _DOUBLE = ctypes.c_int64, ctypes.c_int, ctypes.c_uint64, ctypes.c_double
_FLOATS = {
    torch.float32: ("float32", "float"),
    torch.float16: ("float16", "half_bits"),
    torch.bfloat16: ("bfloat16", "bfloat16_bits"),
    torch.float64: ("float64", "double"),
}
_INTEGERS = {1: ("int8", "uint8_t"), 2: ("int16", "uint16_t"), 4: ("int32", "uint32_t"), 8: ("int64", "uint64_t")}
# The same as torch reads them (signed) and as an argument of a kernel.
_WORDS = {
    1: (torch.int8, ctypes.c_uint8),
    2: (torch.int16, ctypes.c_uint16),
    4: (torch.int32, ctypes.c_uint32),
    8: (torch.int64, ctypes.c_uint64),
}


class LoadError(OSError):
    """The driver refuses the code of a kernel."""


class Kernels:
    """The operators on top of a CUDA driver.

    Args:
        driver: the driver library.
        image: gives the code of a kernel, from a macro of csrc/lossy_cuda.cu that defines it.
        stream: gives the stream to launch on.
        context: the device's context, in which the kernels live.
    """

    def __init__(
        self,
        driver: ctypes.CDLL,
        image: Callable[[str], bytes],
        stream: Callable[[], int],
        context: ctypes.c_void_p,
    ) -> None:
        self._driver, self._image, self._stream, self._context = driver, image, stream, context
        self._functions: dict[str, ctypes.c_void_p] = {}
        self._lock = threading.Lock()

    def _check(self, status: int) -> None:
        if status:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(text))
            raise OSError(f"CUDA driver: {(text.value or b'unknown error').decode()} (error {status})")

    def _enter(self) -> None:
        """Makes the device's context current in a thread where torch has not yet: torch does so when it must itself."""
        current = ctypes.c_void_p()
        self._check(self._driver.cuCtxGetCurrent(ctypes.byref(current)))
        if current.value != self._context.value:
            self._check(self._driver.cuCtxSetCurrent(self._context))

    def load(self, name: str, definition: str) -> ctypes.c_void_p:
        """The kernel ``name``, compiled and loaded if it is not yet."""
        with self._lock:
            function = self._functions.get(name)
            if function is None:
                self._enter()
                module, function = ctypes.c_void_p(), ctypes.c_void_p()  # a module lives as long as the process
                image = self._image(definition)
                status = self._driver.cuModuleLoadData(ctypes.byref(module), image)
                if status == _OUT_OF_MEMORY:  # torch's allocator may hold all of it
                    torch.cuda.empty_cache()
                    status = self._driver.cuModuleLoadData(ctypes.byref(module), image)
                if status == _OUT_OF_MEMORY:
                    raise torch.OutOfMemoryError("CUDA out of memory: graphlossy could not load a kernel")
                try:
                    self._check(status)
                    self._check(self._driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
                except OSError as error:
                    raise LoadError(*error.args) from None
                self._functions[name] = function
            return function

    def _launch(self, name: str, definition: str, blocks: int, *arguments: Any) -> None:
        function = self._functions.get(name) or self.load(name, definition)
        held = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments]
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))
        grid, block = (min(blocks, _MOST_BLOCKS), 1, 1), (THREADS, 1, 1)
        stream = ctypes.c_void_p(self._stream())
        self._enter()
        self._check(self._driver.cuLaunchKernel(function, *grid, *block, 0, stream, pointers, None))

    def quantize(self, x: Tensor, bits: int, group_size: int, stochastic: bool, seed: int) -> tuple[Tensor, ...]:
        """graphlossy::quantize."""
        stored = _schemas.FAKES["quantize"](x, bits, group_size, stochastic, seed)
        x = x.contiguous()
        groups, width = stored[1].numel(), x.shape[1]
        if groups:
            threads = -(-_units(width, group_size, bits) // (KEPT // (UNIT * PLANES[bits])))
            block = threads > WARP  # a group is too long for a warp's registers: it takes a whole block
            log_lanes = _log2(THREADS if block else threads)
            kind, c_type = _FLOATS[x.dtype]
            name = f"quantize_{kind}_{bits}{'_block' if block else ''}"
            definition = f"LOSSY_QUANTIZE({c_type},{name},{bits},{'true' if block else 'false'})"
            sizes = _LONG(groups), _LONG(_schemas.groups_per_row(width, group_size)), _LONG(width), _LONG(group_size)
            rest = _INT(log_lanes), _INT(stochastic), _UNSIGNED(seed % 2**64)
            self._launch(name, definition, -(-groups // (THREADS >> log_lanes)), x, *stored, *sizes, *rest)
        return stored

    def dequantize(
        self, packed: Tensor, scale: Tensor, offset: Tensor, bits: int, group_size: int, width: int, dtype: torch.dtype
    ) -> Tensor:
        """graphlossy::dequantize."""
        out = _schemas.FAKES["dequantize"](packed, scale, offset, bits, group_size, width, dtype)
        stored = packed.contiguous(), scale.contiguous(), offset.contiguous()
        groups = scale.numel()
        if groups:
            units = _units(width, group_size, bits)
            log_lanes = _log2(min(WARP, units))
            parts = -(-units >> log_lanes)
            kind, c_type = _FLOATS[dtype]
            name = f"dequantize_{kind}_{bits}"
            definition = f"LOSSY_DEQUANTIZE({c_type},{name},{bits})"
            sizes = _LONG(groups), _LONG(_schemas.groups_per_row(width, group_size)), _LONG(width), _LONG(group_size)
            blocks = -(-groups * parts // (THREADS >> log_lanes))
            self._launch(name, definition, blocks, *stored, out, *sizes, _INT(log_lanes), _LONG(parts))
        return out

    def pack_mask(self, mask: Tensor) -> Tensor:
        """graphlossy::pack_mask."""
        out = _schemas.FAKES["pack_mask"](mask)
        if mask.dtype not in _FLOATS and (mask.dtype.is_floating_point or mask.dtype.is_complex):
            mask = mask != 0
        kind, c_type = _FLOATS.get(mask.dtype) or _INTEGERS[mask.element_size()]
        mask, numel = mask.contiguous(), mask.numel()
        if numel:
            name = f"pack_mask_{kind}"
            blocks = -(-numel // (THREADS * (16 if mask.element_size() == 1 else 8)))
            self._launch(name, f"LOSSY_PACK_MASK({c_type},{name})", blocks, mask, out, _LONG(numel))
        return out

    def unpack_mask(
        self, packed: Tensor, numel: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype | None = None
    ) -> Tensor:
        """graphlossy::unpack_mask."""
        out = _schemas.FAKES["unpack_mask"](packed, numel, low, high, dtype)
        if numel:
            size = out.element_size()
            word, c_type = _WORDS[size]
            values = (c_type(v) for v in _schemas.two_values(low, high, dtype).view(word).tolist())
            blocks = -(-numel // (THREADS * (16 if size == 1 else 8)))
            self._launch(*_UNPACK_MASK[size], blocks, packed.contiguous(), out, _LONG(numel), *values)
        return out

    def mask_apply(self, grad: Tensor, packed: Tensor, scale: float) -> Tensor:
        """graphlossy::mask_apply."""
        out = _schemas.FAKES["mask_apply"](grad, packed, scale)
        grad, packed, numel = grad.contiguous(), packed.contiguous(), grad.numel()
        if numel:
            kind, c_type = _FLOATS[grad.dtype]
            name = f"mask_apply_{kind}"
            arguments = grad, packed, out, _LONG(numel), _DOUBLE(scale)
            self._launch(name, f"LOSSY_MASK_APPLY({c_type},{name})", -(-numel // (THREADS * 8)), *arguments)
        return out


# By bytes of an element: the kernel's name and definition.
_UNPACK_MASK = {
    size: (f"unpack_mask_{kind}", f"LOSSY_UNPACK_MASK({c_type},unpack_mask_{kind})")
    for size, (kind, c_type) in _INTEGERS.items()
}


def _units(width: int, group_size: int, bits: int) -> int:
    """Units (`UNIT` positions of every plane) of the longest group of a row."""
    stride = -(-min(width, group_size) // 8) * 8 // PLANES[bits]
    return -(-stride // UNIT)


def _log2(number: int) -> int:
    """Of the least power of two that is not below ``number``."""
    return (number - 1).bit_length()


_loaded: dict[int, Kernels | str] = {}
_lock = threading.Lock()


def kernels_for(index: int) -> Kernels | str:
    """The kernels of CUDA device ``index``, or why there are none. The first call compiles one to see that it works."""
    with _lock:
        found = _loaded.get(index)
        if found is None:
            found = _loaded[index] = _load(index)
            if isinstance(found, str):
                _warn(found)
        return found


def primary_context(driver: ctypes.CDLL, index: int) -> ctypes.c_void_p:
    """The context that torch uses on a device, made if nothing has yet; kept as long as the process lives.

    What is current in a thread tells too little: a thread that has not used CUDA has none, and a tensor served from
    torch's cache makes none.
    """
    device, context = ctypes.c_int(), ctypes.c_void_p()
    for status in (
        driver.cuInit(0),
        driver.cuDeviceGet(ctypes.byref(device), index),
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
    ):
        if status:
            raise OSError(f"CUDA driver: no context on device {index} (error {status})")
    return context


def _load(index: int) -> Kernels | str:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        arch = _nvrtc.architecture(torch.cuda.get_device_capability(index))
        torch.cuda.init()
        with torch.cuda.device(index):
            kernels = Kernels(
                driver,
                lambda definition: _nvrtc.compile_source(*_nvrtc.sources(), arch, f"LOSSY_KERNELS={definition}"),
                lambda: torch.cuda.current_stream(index).cuda_stream,
                primary_context(driver, index),
            )
            kernels.load(*_UNPACK_MASK[1])
            return kernels
    except (OSError, _nvrtc.CompileError) as error:
        return str(error)


def _warn(reason: str) -> None:
    text = f"graphlossy runs without its CUDA kernels, several times slower: {reason}"
    warnings.warn(text, RuntimeWarning, stacklevel=4)


def with_reference(kernel: Callable[..., Any], reference: Callable[..., Any]) -> Callable[..., Any]:
    """An operator: ``kernel(kernels, *arguments)`` where the device has kernels, else ``reference(*arguments)``."""

    def run(*arguments: Any) -> Any:
        device = next(a.device for a in arguments if isinstance(a, Tensor))
        with torch.cuda.device(device):
            index = torch.cuda.current_device()
            found = kernels_for(index)
            if isinstance(found, Kernels):
                try:
                    return kernel(found, *arguments)
                except (_nvrtc.CompileError, LoadError) as error:  # a kernel that NVRTC or the driver refuses
                    _loaded[index] = str(error)
                    _warn(str(error))
            return reference(*arguments)

    return run


def _implementation(name: str) -> Callable[..., Any]:
    return with_reference(lambda kernels, *arguments: getattr(kernels, name)(*arguments), getattr(_reference, name))


for _name in _schemas.OPS:
    _schemas.LIBRARY.impl(_name, _implementation(_name), "CUDA")
