"""What ``python -m graphlossy`` reports: versions, live kernels, and every operator compared with its reference.

>>> from graphlossy._diagnostics import versions
>>> versions()["graphlossy"]
'0.1.0'
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import graphlossy
from graphlossy.core import _reference, kernel_status

# What each extra of the package adds: distribution -> extra.
OPTIONAL = {
    "nvidia-cuda-nvrtc": "cuda",
    "nvidia-cuda-nvrtc-cu12": "cuda12",
    "ogb": "ogb",
    "pygod": "outliers",
    "pandas": "recsys",
    "transformers": "llm",
    "datasets": "llm",
    "safetensors": "llm",
    "torch-scatter": None,  # used by PyTorch Geometric where it is installed, never required
}
# The CUDA compiler: package -> major version of CUDA.
NVRTC = {"nvidia-cuda-nvrtc": 13, "nvidia-cuda-nvrtc-cu12": 12}
REQUIRED = ("torch", "torch-geometric", "numpy", "click", "rich")

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_BITS = (1, 2, 3, 4, 8)
_SEED = 0x9E3779B97F4A7C15 - 2**64  # all 64 bits in use


class Case(NamedTuple):
    """One call of an operator: its name and arguments."""

    op: str
    arguments: tuple[Any, ...]


def versions() -> dict[str, str | None]:
    """Installed versions of graphlossy, Python and every required and optional package; None where absent."""
    found: dict[str, str | None] = {"graphlossy": graphlossy.__version__, "python": platform.python_version()}
    for name in (*REQUIRED, *OPTIONAL):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def devices() -> list[torch.device]:
    """The CPU and every CUDA device there is."""
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]


def cases() -> Iterator[Case]:
    """Every operator at every width, type and rounding, with ragged groups, constants and non-finite values."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(7, 333, generator=generator)
    plain[2] = 1.25
    odd = plain.clone()
    odd[0, 5], odd[1, 6], odd[3, 7], odd[4, 8] = float("nan"), float("inf"), -float("inf"), 65504.0
    for dtype in _DTYPES:
        for x in (plain.to(dtype), odd.to(dtype), plain[:, :0].to(dtype)):
            for bits in _BITS:
                for group_size in (32, 256):
                    for stochastic in (False, True):
                        yield Case("quantize", (x, bits, group_size, stochastic, _SEED))
                    stored = _reference.quantize(x, bits, group_size, True, _SEED)
                    yield Case("dequantize", (*stored, bits, group_size, x.shape[1], dtype))
    wide = torch.randn(3, 2100, generator=generator)  # groups that take a whole block of a GPU
    for bits in _BITS:
        yield Case("quantize", (wide, bits, 2048, True, _SEED))
        yield Case("dequantize", (*_reference.quantize(wide, bits, 2048, True, _SEED), bits, 2048, 2100, wide.dtype))
    for numel in (0, 1, 8, 1003):
        mask = torch.rand(numel, generator=generator) < 0.5
        packed = _reference.pack_mask(mask)
        yield Case("pack_mask", (mask,))
        yield Case("pack_mask", (mask * torch.tensor(float("nan")),))
        yield Case("unpack_mask", (packed, numel))
        for dtype in _DTYPES:
            yield Case("unpack_mask", (packed, numel, -1.0, 1 / 0.9, dtype))
            yield Case("mask_apply", (torch.randn(numel, generator=generator).to(dtype), packed, 1.25))


def self_test(device: torch.device) -> dict[str, dict[str, int]]:
    """Runs every operator on ``device`` and compares it with the reference, bit for bit.

    Args:
        device: where the operators run; the reference runs on the CPU.

    Returns:
        For each operator the number of ``cases`` and how many ``differ``.
    """
    counts: dict[str, dict[str, int]] = {}
    for op, arguments in cases():
        wanted = getattr(_reference, op)(*arguments)
        given = getattr(torch.ops.graphlossy, op)(*(_to(value, device) for value in arguments))
        count = counts.setdefault(op, {"cases": 0, "differ": 0})
        count["cases"] += 1
        count["differ"] += not _same_bits(wanted, given)
    return counts


def report() -> dict[str, Any]:
    """Everything as one JSON-ready dictionary; ``ok`` says whether every operator agreed on every device."""
    tests = {str(device): self_test(device) for device in devices()}
    return {
        "versions": versions(),
        "cuda": None if torch.version.cuda is None else int(torch.version.cuda.split(".")[0]),
        "kernels": kernel_status(),
        "self_test": tests,
        "ok": not any(count["differ"] for ops in tests.values() for count in ops.values()),
    }


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _same_bits(wanted: Any, given: Any) -> bool:
    if isinstance(wanted, Tensor):
        same_kind = wanted.shape == given.shape and wanted.dtype == given.dtype
        return same_kind and torch.equal(_bytes(wanted), _bytes(given.cpu()))  # NaN equals NaN, 0 is not -0
    return len(wanted) == len(given) and all(map(_same_bits, wanted, given))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
