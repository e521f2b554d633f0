"""The highest memory use between two moments: of the CUDA allocator, or of the process on Linux."""

from __future__ import annotations

import torch

__all__ = ["PeakMeter"]


class PeakMeter:
    """Starts measuring when it is made. Resets the peak counters that torch (CUDA) or the kernel (Linux) keep.

    On CUDA the figure is ``torch.cuda.max_memory_allocated``. Elsewhere it is the resident set's high-water mark from
    /proc, which counts whole pages, also those of other threads; None where there is no /proc.
    """

    def __init__(self) -> None:
        self._cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        self._base: int | None
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._base = torch.cuda.memory_allocated()
        else:
            self._base = _restart()

    def read(self) -> int | None:
        """Bytes beyond those in use when the meter was made."""
        if self._base is None:
            return None
        now = torch.cuda.max_memory_allocated() if self._cuda else _status("VmHWM")
        return None if now is None else max(0, now - self._base)


def _restart() -> int | None:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(field: str) -> int | None:
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
