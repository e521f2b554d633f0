"""Which kernels are live on this machine, and why not where they are not."""

from __future__ import annotations

from typing import Any

from graphlossy.core import _cpu

__all__ = ["kernel_status"]


def kernel_status() -> dict[str, dict[str, Any]]:
    """Per device type: ``live`` (a compiled kernel serves the operators) and ``detail`` (which one, or why none).

    Example:
        >>> sorted(kernel_status())
        ['cpu', 'cuda']
    """
    if _cpu.kernels is None:
        cpu = {"live": False, "detail": _cpu.load_error}
    else:
        cpu = {"live": True, "detail": f"C++ kernels, {_cpu.LEVELS[_cpu.kernels.highest]}"}
    return {
        "cpu": cpu,
        "cuda": {"live": False, "detail": "no compiled kernel"},
    }
