"""Large tensors on the CPU: freed memory back to the system, new memory in huge pages."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["in_huge_pages", "release_free_memory"]

MUCH = 32 * 2**20  # bytes; smaller tensors are not worth the milliseconds


_HUGE_PAGE, _MADV_HUGEPAGE = 2 * 2**20, 14


@cache
def _libc(name: str) -> Any:
    """A function of glibc; None where there is another C library."""
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None


def release_free_memory(device: torch.device, nbytes: int) -> bool:
    """Before a tensor of ``nbytes`` is made on the CPU: has the C library give back the memory of freed ones.

    glibc keeps freed blocks of up to 32 MiB, some 100 MiB of them in a training step, and low-bit copies in between
    keep them from being joined. Where little is saved that is a good part of the peak. Memory that is used again has to
    be asked for again, so it is worth doing once a step, not before every tensor.

    Returns:
        Whether the tensor was large enough for it.
    """
    if device.type != "cpu" or nbytes < MUCH:
        return False
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)
    return True


def in_huge_pages(new: Tensor) -> Tensor:
    """A CPU tensor that was just allocated, its memory asked for in huge pages: first writes are several times faster.

    Nothing happens to small ones, nor where the system has no such pages.
    """
    size = new.numel() * new.element_size()
    advise = _libc("madvise") if new.device.type == "cpu" and size >= MUCH else None
    if advise is not None:
        first = -(-new.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
        length = (new.data_ptr() + size - first) // _HUGE_PAGE * _HUGE_PAGE
        advise(ctypes.c_void_p(first), ctypes.c_size_t(length), _MADV_HUGEPAGE)
    return new
