"""Large tensors on the CPU: freed memory back to the system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch

__all__ = ["release_free_memory"]

MUCH = 32 * 2**20  # bytes; smaller tensors are not worth the milliseconds


@cache
def _malloc_trim() -> Any:
    """That function of glibc; None where there is another C library."""
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
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
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
    return True
