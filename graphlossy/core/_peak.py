"""Peak memory between two moments: of CUDA's allocator, of the resident set on Linux, else of the process."""

from __future__ import annotations

import gc

import torch

from graphlossy.core._memory import max_resident, reset_peak, resident, trim

__all__ = ["PeakMeter"]


class PeakMeter:
    """The highest memory since it was made, or since `start`, beyond what was in use when it was made.

    On CUDA the bytes that torch's allocator gave out; on Linux the resident set of the process, whose high-water mark
    is reset (``/proc/self/clear_refs``; it counts whole pages, also those of other threads); elsewhere the process's
    peak so far (`resource.getrusage`), which can only grow, so that only the first measurement of a process means
    something and later ones are None unless they are higher.

    Args:
        device: where the work is done; None: CUDA if this process uses it, else the CPU.

    Attributes:
        kind: ``"allocated"``, ``"resident"`` or ``"process"``: which of the three it is.

    Example:
        >>> meter = PeakMeter(torch.device("cpu"))
        >>> block = torch.ones(4_000_000)  # 16 MB
        >>> peak = meter.read()
        >>> peak is None or peak > 12_000_000
        True
    """

    def __init__(self, device: torch.device | None = None) -> None:
        if device is None:
            device = torch.device("cuda" if torch.cuda.is_available() and torch.cuda.is_initialized() else "cpu")
        self.device = device
        gc.collect(1)  # young cycles would be given back in the middle of what is measured; models are in none
        # Blocks of any size are served from freed memory that the C library holds back: they would not be seen.
        trim()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            self.kind, self._base = "allocated", torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
        elif reset_peak():
            self.kind, self._base = "resident", resident("VmRSS")
        else:
            self.kind, self._base = "process", max_resident()

    def start(self) -> None:
        """The peak is taken from now on; the base stays what it was."""
        trim()
        if self.kind == "allocated":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.kind == "resident":
            reset_peak()

    def read(self) -> int | None:
        """Bytes; None where it cannot be said."""
        if self.kind == "allocated":
            torch.cuda.synchronize(self.device)
            return max(0, torch.cuda.max_memory_allocated(self.device) - self._base)
        if self.kind == "resident":
            return max(0, resident("VmHWM") - self._base)
        return max_resident() - self._base or None
