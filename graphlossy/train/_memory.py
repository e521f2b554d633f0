"""Peak memory of one training step, beyond what was in use when it began."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

__all__ = ["PEAK_KINDS", "PeakMeter"]

PEAK_KINDS = {
    "allocated": "bytes given out by the CUDA allocator",
    "resident": "resident set of the process",
    "saved": "bytes saved for backward that were alive (this system does not report the resident set's peak)",
}
_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


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
        self.kind = "allocated" if device.type == "cuda" else "resident" if _reset_high_water() else "saved"
        self._base = 0

    def start(self) -> None:
        """Takes what is in use now as the base."""
        if self.kind == "allocated":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._base = torch.cuda.memory_allocated(self.device)
        elif self.kind == "resident":
            # Freed blocks that the C library holds back would hide the next step's use of them.
            _trim()
            _reset_high_water()
            self._base = _status("VmHWM")

    def stop(self) -> int | None:
        """Peak bytes beyond the base; None where it cannot be measured."""
        if self.kind == "allocated":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - self._base
        if self.kind == "resident":
            return max(0, _status("VmHWM") - self._base)
        return None


def _trim() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_high_water() -> bool:
    try:
        _CLEAR.write_text("5")
        return _status("VmHWM") > 0
    except (OSError, ValueError):
        return False


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{_STATUS} has no field {field}")
