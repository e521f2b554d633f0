"""Train the same graph network in a fraction of the memory, and see exactly what was lost.

>>> import graphlossy
>>> graphlossy.__version__
'0.1.0'

The public names are loaded on first use, so importing the package costs nothing and touches no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Ledger", "QuantizedTensor", "__version__", "compress", "plan", "quantize", "restore"]

_HOME = {
    "Ledger": "graphlossy._compress",
    "QuantizedTensor": "graphlossy.core",
    "compress": "graphlossy._compress",
    "plan": "graphlossy._plan",
    "quantize": "graphlossy.core",
    "restore": "graphlossy._compress",
}
_SUBPACKAGES = frozenset({"core", "datasets", "llm", "nn", "outliers", "recsys", "sampler", "sparsify"})

if TYPE_CHECKING:
    from graphlossy._compress import Ledger, compress, restore
    from graphlossy._plan import plan
    from graphlossy.core.quantize import QuantizedTensor, quantize


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _SUBPACKAGES:
        return importlib.import_module(f"graphlossy.{name}")
    raise AttributeError(f"module 'graphlossy' has no attribute {name!r}; its public names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
