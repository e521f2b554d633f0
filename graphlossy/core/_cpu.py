"""The operators on the CPU: C++17/OpenMP kernels in a torch-free library, called through ctypes.

The library is built when the package is installed. Where it is missing (no compiler) or stale, the reference stays
registered and `load_error` says why.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from graphlossy.core import _schemas

__all__ = ["LEVELS", "Kernels", "kernels", "load_error"]

ABI = 2  # lossy_abi() in csrc/quantize_cpu.cpp
LIBRARY_FILE = Path(__file__).with_name("_lossy_cpu.so")
LEVELS = ("baseline", "AVX2", "AVX-512")  # instruction sets the library may have been compiled for

_P, _I, _L, _U, _D = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_uint64, ctypes.c_double
_SIGNATURES = {
    "lossy_quantize": (_P, _I, _P, _P, _P, _L, _L, _L, _I, _I, _U, _I, _I),
    "lossy_dequantize": (_P, _P, _P, _P, _I, _L, _L, _L, _I, _I, _I),
    "lossy_pack_mask": (_P, _I, _P, _L, _I, _I),
    "lossy_unpack_mask": (_P, _P, _L, _I, _P, _I, _I),
    "lossy_mask_apply": (_P, _I, _P, _P, _L, _D, _I, _I),
}
_FLOATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
_INTEGER_SIZES = {1: 4, 2: 5, 4: 6, 8: 7}


class Kernels:
    """The operators on top of one loaded library.

    Args:
        path: the shared library.
        level: instruction set, an index into `LEVELS`; -1 is the best this processor has.

    Raises:
        OSError: the library cannot be loaded, or is of another version.
    """

    def __init__(self, path: Path, level: int = -1) -> None:
        library = ctypes.CDLL(str(path))
        try:
            found = library.lossy_abi()
        except AttributeError:
            raise OSError(f"{path} is no kernel library of graphlossy") from None
        if found != ABI:
            raise OSError(f"{path} is stale (version {found}, needs {ABI}); install graphlossy again")
        for name, argtypes in _SIGNATURES.items():
            getattr(library, name).argtypes = argtypes
        self.path, self.highest, self.level = path, int(library.lossy_level()), level
        self._library = library

    def quantize(self, x: Tensor, bits: int, group_size: int, stochastic: bool, seed: int) -> tuple[Tensor, ...]:
        """graphlossy::quantize."""
        packed, scale, offset = _schemas.FAKES["quantize"](x, bits, group_size, stochastic, seed)
        x = x.contiguous()
        pointers = x.data_ptr(), _FLOATS[x.dtype], packed.data_ptr(), scale.data_ptr(), offset.data_ptr()
        sizes = *x.shape, group_size, bits, stochastic, seed % 2**64
        self._library.lossy_quantize(*pointers, *sizes, torch.get_num_threads(), self.level)
        return packed, scale, offset

    def dequantize(
        self,
        packed: Tensor,
        scale: Tensor,
        offset: Tensor,
        bits: int,
        group_size: int,
        width: int,
        dtype: torch.dtype,
        out: Tensor | None = None,
    ) -> Tensor:
        """graphlossy::dequantize; ``out`` is contiguous memory to write to."""
        if out is None:
            out = _schemas.FAKES["dequantize"](packed, scale, offset, bits, group_size, width, dtype)
        packed, scale, offset = packed.contiguous(), scale.contiguous(), offset.contiguous()
        pointers = packed.data_ptr(), scale.data_ptr(), offset.data_ptr(), out.data_ptr(), _FLOATS[dtype]
        sizes = packed.shape[0], width, group_size, bits
        self._library.lossy_dequantize(*pointers, *sizes, torch.get_num_threads(), self.level)
        return out

    def pack_mask(self, mask: Tensor) -> Tensor:
        """graphlossy::pack_mask."""
        out = _schemas.FAKES["pack_mask"](mask)
        kind = _FLOATS.get(mask.dtype)
        if kind is None:
            if mask.dtype.is_floating_point or mask.dtype.is_complex:
                mask = mask != 0
            kind = _INTEGER_SIZES[mask.element_size()]
        mask = mask.contiguous()
        pointers = mask.data_ptr(), kind, out.data_ptr()
        self._library.lossy_pack_mask(*pointers, mask.numel(), torch.get_num_threads(), self.level)
        return out

    def unpack_mask(
        self, packed: Tensor, numel: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype | None = None
    ) -> Tensor:
        """graphlossy::unpack_mask."""
        out = _schemas.FAKES["unpack_mask"](packed, numel, low, high, dtype)
        packed, values = packed.contiguous(), _schemas.two_values(low, high, dtype)
        pointers = packed.data_ptr(), out.data_ptr()
        sizes = numel, out.element_size(), values.data_ptr()
        self._library.lossy_unpack_mask(*pointers, *sizes, torch.get_num_threads(), self.level)
        return out

    def mask_apply(self, grad: Tensor, packed: Tensor, scale: float) -> Tensor:
        """graphlossy::mask_apply."""
        out = _schemas.FAKES["mask_apply"](grad, packed, scale)
        grad, packed = grad.contiguous(), packed.contiguous()
        pointers = grad.data_ptr(), _FLOATS[grad.dtype], packed.data_ptr(), out.data_ptr()
        self._library.lossy_mask_apply(*pointers, grad.numel(), scale, torch.get_num_threads(), self.level)
        return out


kernels: Kernels | None = None
load_error = ""
if not LIBRARY_FILE.exists():
    load_error = "the kernel library was not built: install graphlossy again where there is a C++ compiler"
else:
    try:
        kernels = Kernels(LIBRARY_FILE)
    except OSError as error:
        load_error = str(error)
if kernels is not None:
    for _name in _schemas.OPS:
        _schemas.LIBRARY.impl(_name, getattr(kernels, _name), "CPU")
