"""Which kernels are live on this machine, and why not where they are not."""

from __future__ import annotations

from typing import Any

__all__ = ["kernel_status"]


def kernel_status() -> dict[str, dict[str, Any]]:
    """Per device type: ``live`` (a compiled kernel serves the operators) and ``detail`` (which one, or why none).

    Example:
        >>> sorted(kernel_status())
        ['cpu', 'cuda']
    """
    return {
        "cpu": {"live": False, "detail": "no compiled kernel"},
        "cuda": {"live": False, "detail": "no compiled kernel"},
    }
