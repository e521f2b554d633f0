"""Freed memory back to the system: what the C library holds back counts towards a process's peak."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch

__all__ = ["release_free_memory"]

MUCH = 32 * 2**20  # bytes; smaller tensors are not worth the milliseconds


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):  # another C library
        return None


def release_free_memory(device: torch.device, nbytes: int) -> None:
    """Before a tensor of ``nbytes`` is made on the CPU: has the C library give back the memory of freed ones.

    glibc keeps freed blocks of up to 32 MiB, some 100 MiB of them in a training step, and low-bit copies in between
    keep them from being joined. Where little is saved that is a good part of the peak. It takes about a millisecond.
    """
    if device.type != "cpu" or nbytes < MUCH:
        return
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
