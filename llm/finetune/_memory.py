"""Peak memory of a training step: of the CUDA allocator, or of the process."""

from __future__ import annotations

import torch

from graphlossy.core._memory import reset_peak, resident, trim

__all__ = ["PEAK_KINDS", "StepMemory"]

PEAK_KINDS = {
    "allocated": "bytes given out by the CUDA allocator",
    "resident": "resident set of the process",
    "": "not measured: this system does not report the resident set's peak",
}


class StepMemory:
    """Measures the highest memory between :meth:`start` and :meth:`stop`.

    Args:
        device: where the steps run.

    Attributes:
        kind: a key of `PEAK_KINDS`.

    Example:
        >>> memory = StepMemory(torch.device("cpu"))
        >>> memory.start(exact=True)
        >>> block = torch.ones(4_000_000)  # 16 MB
        >>> peak, beyond = memory.stop()
        >>> beyond is None or beyond > 12_000_000
        True
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = "allocated" if device.type == "cuda" else "resident" if reset_peak() else ""
        self._base: int | None = None

    def start(self, exact: bool) -> None:
        """Begins a step.

        Args:
            exact: measure what the step needs beyond what is in use now, too. On the CPU freed memory then goes back to
                the system first, which costs time.
        """
        self._base = None
        if self.kind == "allocated":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._base = torch.cuda.memory_allocated(self.device)
        elif self.kind:
            if exact:
                trim()
            reset_peak()
            self._base = resident("VmHWM") if exact else None

    def stop(self) -> tuple[int | None, int | None]:
        """(peak, peak beyond what was in use at the start) in bytes; None for what was not measured."""
        if not self.kind:
            return None, None
        peak = torch.cuda.max_memory_allocated(self.device) if self.kind == "allocated" else resident("VmHWM")
        return peak, None if self._base is None else max(0, peak - self._base)
