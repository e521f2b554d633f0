"""Memory on the CPU: freed blocks back to the system, and the peak of the resident set."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["MUCH", "is_out_of_memory", "max_resident", "release_free_memory", "reset_peak", "resident", "trim"]

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_WORDS = (
    "can't allocate memory",
    "out of memory",
    "Unable to allocate",
    "Cannot allocate memory",
    "bad_alloc",
    "Storage size calculation overflowed",
)
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

    glibc keeps freed blocks of up to 32 MiB, some 100 MiB of them in the step of a graph network, a gigabyte in that of
    a language model, and low-bit copies in between keep them from being joined. Where little is saved that is most of
    the peak. Memory that is used again has to be asked for again, so it is worth doing now and then, not before every
    tensor.

    Returns:
        Whether the tensor was large enough for it.
    """
    if device.type != "cpu" or nbytes < MUCH:
        return False
    trim()
    return True


def trim() -> None:
    """Has the C library give freed memory back to the system, or later work would hide in it."""
    give_back = _malloc_trim()
    if give_back is not None:
        give_back(0)


def reset_peak() -> bool:
    """Lets the high-water mark of the resident set fall to what is resident; False where there is none (not Linux)."""
    try:
        _CLEAR.write_text("5")
        return resident("VmHWM") > 0
    except (OSError, ValueError):
        return False


def resident(field: str) -> int:
    """Bytes of ``VmRSS``, resident now, or of ``VmHWM``, its peak."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{_STATUS} has no field {field}")


def max_resident() -> int:
    """The highest resident set of this process so far, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # not POSIX
        return 0
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def is_out_of_memory(error: BaseException | str) -> bool:
    """Whether an exception, or what a process said when it ended, tells of memory that could not be had."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in _WORDS)
