"""The same method from another library: PyGOD 1.1 or PyOD 3, beside our own implementation.

Which to use, and why a method was written or wrapped, is in docs/outliers.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphlossy.outliers._base import Detector
from graphlossy.outliers.engines import _adapter, pygod, pyod
from graphlossy.outliers.methods import METHODS as NATIVE
from graphlossy.outliers.methods import make_method

__all__ = ["METHODS", "available", "make", "takes"]

METHODS: dict[str, tuple[str, ...]] = {
    "native": tuple(NATIVE),
    "pygod": tuple(pygod.SPECS),
    "pyod": tuple(pyod.SPECS),
}


def available() -> dict[str, str | None]:
    """Version of each engine, None where its package is not installed; nothing is imported.

    Example:
        >>> sorted(available())
        ['native', 'pygod', 'pyod']
    """
    import graphlossy

    return {"native": graphlossy.__version__, "pygod": _adapter.installed("pygod"), "pyod": _adapter.installed("pyod")}


def takes(engine: str, method: str) -> set[str]:
    """Names of our constructor arguments, but for the seed, that have an effect with an engine.

    Example:
        >>> "weight_decay" in takes("pygod", "dominant"), "weight_decay" in takes("pyod", "dominant")
        (True, False)
    """
    if engine == "native":
        return _adapter.native_arguments(method)
    specs = {"pygod": pygod.SPECS, "pyod": pyod.SPECS}[engine]
    return {*specs[method].names, "contamination"}


def make(engine: str, method: str, params: Mapping[str, Any] | None = None, seed: int | None = None) -> Detector:
    """A detector that has not been fitted.

    Args:
        engine: ``"native"``, ``"pygod"`` or ``"pyod"``.
        method: key of the method, one of ``METHODS[engine]``.
        params: constructor arguments under *our* names, for every engine. What is not given is the library's default.
            Arguments of ours that the other library has no counterpart of are left out and named in ``.dropped``.
        seed: of everything that is drawn in ``fit``; None: drawn from torch's generator.

    Raises:
        ValueError: an unknown engine, or a method that the engine does not have.
        TypeError: a parameter that the method does not have.
        ModuleNotFoundError: the engine's package is not installed.

    Example:
        >>> make("native", "degree", seed=0).name
        'degree'
        >>> make("pyod", "gaan")
        Traceback (most recent call last):
        ...
        ValueError: engine 'pyod' has no method 'gaan'; it has ...
    """
    if engine not in METHODS:
        raise ValueError(f"engine is {engine!r}; allowed: {', '.join(METHODS)}")
    if method not in METHODS[engine]:
        have = [name for name, names in METHODS.items() if method in names]
        hint = f"; {method!r} is in engine {', '.join(have)}" if have else ""
        raise ValueError(f"engine {engine!r} has no method {method!r}; it has {', '.join(METHODS[engine])}{hint}")
    params = params or {}
    if engine == "native":
        return make_method(method, **params, seed=seed)
    if engine == "pygod":
        return pygod.PyGODDetector(method, pygod.SPECS[method], params, seed)
    return pyod.PyODDetector(method, pyod.SPECS[method], params, seed)
