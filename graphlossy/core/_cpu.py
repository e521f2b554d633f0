"""The operators on the CPU: C++17/OpenMP kernels in a torch-free library, called through ctypes.

The library is built when the package is installed. Where it is missing (no compiler) or stale, the reference stays
registered and `load_error` says why.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from graphlossy.core import _schemas, _weighted_sample
from graphlossy.core._random import _key

__all__ = ["LEVELS", "Kernels", "kernels", "load_error"]

ABI = 8  # lossy_abi() in csrc/quantize_cpu.cpp
LIBRARY_FILE = Path(__file__).with_name("_lossy_cpu.so")
LEVELS = ("baseline", "AVX2", "AVX-512")  # instruction sets the library may have been compiled for

_P, _I, _L, _U, _D = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_uint64, ctypes.c_double
_SIGNATURES = {
    "lossy_quantize": (_P, _I, _P, _P, _P, _L, _L, _L, _I, _I, _U, _I, _I),
    "lossy_dequantize": (_P, _P, _P, _P, _I, _L, _L, _L, _I, _I, _I),
    "lossy_pack_mask": (_P, _I, _P, _L, _I, _I),
    "lossy_unpack_mask": (_P, _P, _L, _I, _P, _I, _I),
    "lossy_mask_apply": (_P, _I, _P, _P, _L, _D, _I, _I),
    "lossy_count_neighbors": (_P, _I, _L, _L, _P, _L, _P, _I, _L, _I, _P, _I),
    "lossy_sample_neighbors": (_P, _I, _L, _L, _P, _L, _P, _P, _I, _L, _I, _U, _P, _P, _P, _P, _I),
    "lossy_relabel": (_P, _L, _P, _L, _L, _P, _P),
    "lossy_read_elements": (_I, _L, _I, _P, _L, _P, _I),
    "lossy_weighted_sums": (_P, _I, _L, _D, _D, _P, _L, _I, _I),
    "lossy_weighted_buckets": (_U, _L, _I, _P, _I, _I),
    "lossy_weighted_count": (_P, _I, _L, _D, _D, _L, _P, _P, _L, _U, _I, _P, _P, _P, _P, _I, _I),
    "lossy_rank_lookup": (_P, _L, _P, _P, _I, _L, _L, _I, _I, _P, _P, _I, _I),
    "lossy_multi_size_forward": (_P, _L, _P, _P, _L, _P, _P, _L, _L, _I, _I, _I, _P, _I, _I, _I),
    "lossy_multi_size_order": (_P, _L, _P, _L, _P, _P),
    "lossy_multi_size_backward": (_P, _L, *[_P] * 9, _L, _L, _I, _I, _P, _P, _L, _I, _I),
    "lossy_multi_size_scores": (_P, _P, _I, _L, _L, _I, _I, _P, _P, _L, _I, _I, _P, _I, _I),
    "lossy_packed_attention": (_P, _P, _P, _I, _I, _L, _L, _P, _I, _P, _P, _P, _D, _D, _P, _P, _P, _I, _I),
    "lossy_weighted_fill": (_P, _L, _L, _P, _P, _P, _L, _I, _I),
}
_FLOATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
_SAMPLE_BLOCK = 1 << 14  # weights: their running sum and counts stay in a processor's own cache
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
        library.lossy_weighted_count.restype = _L
        library.lossy_count_neighbors.restype = library.lossy_relabel.restype = library.lossy_read_elements.restype = _L
        library.lossy_rank_lookup.restype = _L
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

    def weighted_sample(self, weights: Tensor, num_samples: int, seed: int) -> tuple[Tensor, Tensor]:
        """graphlossy::weighted_sample; beside the result, one byte for every weight is needed."""
        largest = _weighted_sample.check_draws(weights, num_samples)
        if largest == 0:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        if weights.dtype not in (torch.float32, torch.float64):
            weights = weights.to(torch.float64)
        weights = weights.contiguous()
        run = torch.get_num_threads(), self.level
        n, block = weights.numel(), _SAMPLE_BLOCK if weights.numel() > 64 * _SAMPLE_BLOCK else 256
        source = weights.data_ptr(), int(weights.dtype == torch.float64), n
        sums = torch.empty((n + block - 1) // block, dtype=torch.int64)

        def total(exponent: int) -> int:
            factors = _weighted_sample.unit_factors(exponent)
            self._library.lossy_weighted_sums(*source, *factors, sums.data_ptr(), block, *run)
            return int(sums.sum())

        exponent, whole = _weighted_sample.exponent_for(n, largest, total)
        starts = torch.nn.functional.pad(sums.cumsum(0), (1, 0))
        high = _weighted_sample.buckets(num_samples)
        ends = torch.zeros(2**high + 1, dtype=torch.int64)
        self._library.lossy_weighted_buckets(_key(seed, 1), num_samples, high, ends[1:].data_ptr(), *run)
        ends = ends.cumsum(0)
        counts, found = torch.empty(n, dtype=torch.uint8), torch.empty_like(sums)
        large = torch.empty((2, min(n, num_samples // 255)), dtype=torch.int64)
        pointers = starts.data_ptr(), ends.data_ptr(), whole, _key(seed, 2), high, counts.data_ptr(), found.data_ptr()
        many = self._library.lossy_weighted_count(
            *source, *_weighted_sample.unit_factors(exponent), block, *pointers, large[0].data_ptr(),
            large[1].data_ptr(), *run
        )  # fmt: skip
        index = torch.empty(int(found.sum()), dtype=torch.int64)
        times = torch.empty_like(index)
        offsets = found.cumsum(0) - found
        pointers = counts.data_ptr(), n, block, offsets.data_ptr(), index.data_ptr(), times.data_ptr(), index.numel()
        self._library.lossy_weighted_fill(*pointers, *run)
        at, large_times = large[:, :many]
        times[torch.searchsorted(index, at)] = large_times
        return index, times


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
    for _name in _schemas.OPS | _schemas.SAMPLE_OPS:
        _schemas.LIBRARY.impl(_name, getattr(kernels, _name), "CPU")
