"""Peak memory between two moments: resident set of the process (Linux), or CUDA's allocator."""

from __future__ import annotations

import ctypes
import gc
import time
from typing import Any

import torch

__all__ = ["CudaMeter", "ResidentMeter", "meter_for"]


class ResidentMeter:
    """VmRSS and VmHWM of /proc; freed memory that the C library holds back is returned to the system first."""

    kind = "peak resident set of the process (VmHWM), beyond VmRSS before the step"

    def __init__(self) -> None:
        try:
            self._trim: Any = ctypes.CDLL("libc.so.6").malloc_trim
        except (OSError, AttributeError):
            self._trim = None
        self._base = 0

    def settle(self) -> int:
        """Bytes resident now, nothing unused among them as far as can be helped."""
        gc.collect()
        if self._trim is not None:
            self._trim(0)
        return _status("VmRSS")

    def start(self) -> None:
        self.settle()
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the high-water mark falls to what is resident now
        self._base = _status("VmRSS")

    def peak(self) -> int:
        return max(0, _status("VmHWM") - self._base)

    def clock(self) -> float:
        return time.perf_counter()


class CudaMeter:
    """torch.cuda.max_memory_allocated and device-synchronous time."""

    kind = "torch.cuda.max_memory_allocated, beyond memory_allocated before the step"

    def __init__(self) -> None:
        self._base = 0

    def settle(self) -> int:
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    def start(self) -> None:
        self._base = self.settle()
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - self._base

    def clock(self) -> float:
        torch.cuda.synchronize()
        return time.perf_counter()


def meter_for(device: torch.device) -> ResidentMeter | CudaMeter:
    """The meter of a device."""
    return CudaMeter() if device.type == "cuda" else ResidentMeter()


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
