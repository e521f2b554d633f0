"""Which kernels are live on this machine, and why not where they are not."""

from __future__ import annotations

from typing import Any

import torch

from graphlossy.core import _cpu, _cuda, _nvrtc

__all__ = ["kernel_status"]


def kernel_status() -> dict[str, dict[str, Any]]:
    """Per device type: ``live`` (a compiled kernel serves the operators) and ``detail`` (which one, or why none).

    On a machine with a GPU this compiles the CUDA kernels, unless they are in the cache.

    Example:
        >>> sorted(kernel_status())
        ['cpu', 'cuda']
    """
    return {"cpu": _cpu_status(), "cuda": _cuda_status()}


def _cpu_status() -> dict[str, Any]:
    if _cpu.kernels is None:
        return {"live": False, "detail": _cpu.load_error}
    return {"live": True, "detail": f"C++, {_cpu.LEVELS[_cpu.kernels.highest]}, {torch.get_num_threads()} threads"}


def _cuda_status() -> dict[str, Any]:
    if not torch.cuda.is_available():
        reason = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        return {"live": False, "detail": reason}
    found = _cuda.kernels_for(torch.cuda.current_device())
    if isinstance(found, str):
        return {"live": False, "detail": found}
    major, minor = _nvrtc.nvrtc_version()
    arch = _nvrtc.architecture(torch.cuda.get_device_capability())
    return {"live": True, "detail": f"CUDA C++, {arch}, compiled by NVRTC {major}.{minor}"}
