"""Peak memory of one training step, beyond what was in use when it began."""

from __future__ import annotations

import torch

from graphlossy.core._memory import reset_peak, resident, trim

__all__ = ["PEAK_KINDS", "PeakMeter"]

PEAK_KINDS = {
    "allocated": "bytes given out by the CUDA allocator",
    "resident": "resident set of the process",
    "saved": "bytes saved for backward that were alive (this system does not report the resident set's peak)",
}


class PeakMeter:
    """Measures the highest memory between :meth:`start` and :meth:`stop`.

    On a CUDA device it asks torch's allocator; on Linux it resets and reads the kernel's high-water mark of the
    resident set (``/proc/self/clear_refs``); elsewhere :meth:`stop` returns None.

    Args:
        device: where the step runs.

    Example:
        >>> import torch
        >>> meter = PeakMeter(torch.device("cpu"))
        >>> meter.start()
        >>> block = torch.ones(4_000_000)  # 16 MB
        >>> peak = meter.stop()
        >>> peak is None or peak > 12_000_000
        True
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = "allocated" if device.type == "cuda" else "resident" if reset_peak() else "saved"
        self._base = 0

    def start(self) -> None:
        """Takes what is in use now as the base."""
        if self.kind == "allocated":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._base = torch.cuda.memory_allocated(self.device)
        elif self.kind == "resident":
            # Freed blocks that the C library holds back would hide the next step's use of them.
            trim()
            reset_peak()
            self._base = resident("VmHWM")

    def stop(self) -> int | None:
        """Peak bytes beyond the base; None where it cannot be measured."""
        if self.kind == "allocated":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - self._base
        if self.kind == "resident":
            return max(0, resident("VmHWM") - self._base)
        return None
