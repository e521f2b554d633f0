"""From what a user calls a method to a class that a worker process can import."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphlossy.outliers.runner.errors import BenchmarkError, one_line

__all__ = [
    "LEAK_ROWS", "Method", "accepted_options", "check_names", "check_options", "find_method", "import_class",
    "own_name", "registry",
]  # fmt: skip

# Need no model: what a method must beat to have shown anything.
LEAK_ROWS = ("degree", "norm", "maxrank", "copies", "random")


@dataclass(frozen=True)
class Method:
    """A method of the grid.

    Attributes:
        name: its key in records and on the command line.
        title: how tables print it.
        target: ``"package.module:Class"`` of one that is no part of graphlossy; "" of one that the registry has.
        cls: its class; our own where another engine runs it.
    """

    name: str
    title: str
    target: str
    cls: Any


def registry() -> list[str]:
    """The keys of graphlossy's own methods, in the order of the paper.

    Example:
        >>> "dominant" in registry()
        True
    """
    from graphlossy.outliers.methods import METHODS

    return list(METHODS)


def find_method(method: str | type, engine: str = "native") -> Method:
    """The method that a key, an import path or a class stands for.

    Args:
        method: a key such as ``"dominant"``; ``"package.module:Class"``; or a class, for which graphlossy's own have
            their key.
        engine: ``"native"``, or another engine whose methods are asked for by key.

    Raises:
        BenchmarkError: there is no such method, or no worker could import it.
    """
    if not isinstance(method, (str, type)):
        raise BenchmarkError(f"a method is a key, 'package.module:Class' or a class, got {method!r}")
    if isinstance(method, type) and getattr(method, "name", None) in registry() and _own_class(method.name) is method:
        method = method.name
    if isinstance(method, type):
        if method.__module__ == "__main__" or "<locals>" in method.__qualname__:
            raise BenchmarkError(
                f"{method.__name__} is defined in a script or a function, where worker processes cannot import it; "
                "put it into a module of its own"
            )
        method = f"{method.__module__}:{method.__qualname__}"
    if ":" in method:
        if engine != "native":
            raise BenchmarkError(f"{method} is a class of yours and runs on the native engine only; got {engine!r}")
        cls = import_class(method)
        if getattr(cls, "name", None) in registry():
            raise BenchmarkError(f"{method} has the name of a method of graphlossy, {cls.name!r}; give it another")
        return Method(cls.name, getattr(cls, "title", cls.name), method, cls)
    known = registry()
    name = own_name(method)
    if engine != "native":
        from graphlossy.outliers import engines

        theirs = list(engines.METHODS[engine])
        if name not in theirs:
            raise BenchmarkError(f"engine {engine} has no method {method!r}{_near(name, theirs)}")
    elif name not in known:
        raise BenchmarkError(f"there is no method {method!r}{_near(name, known)}")
    cls = _own_class(name)
    return Method(name, cls.title, "", cls)


def import_class(target: str) -> Any:
    """The class at ``"package.module:Class"``.

    Raises:
        BenchmarkError: it cannot be imported, or does not have what a detector has.
    """
    module, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever a user's module does when it is imported
        raise BenchmarkError(f"cannot import {target!r}: {one_line(error)}") from None
    lacking = [name for name in ("name", "fit", "seeded", "search_space", "fixed") if not hasattr(found, name)]
    if not isinstance(found, type) or lacking:
        raise BenchmarkError(
            f"{target!r} must be a subclass of graphlossy.outliers.Detector; it has no {', '.join(lacking) or 'class'}"
        )
    return found


def accepted_options(cls: Any) -> set[str]:
    """Names of the constructor arguments of a class and its bases; those of our own serve every engine."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base is object or "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break  # nothing is passed on
    return names - {"seed"}  # which the run derives for each trial


def check_names(method: Method, options: Mapping[str, Any]) -> None:
    """Raises BenchmarkError for an option that the method does not have."""
    accepted = accepted_options(method.cls)
    if wrong := [name for name in options if name not in accepted]:
        raise BenchmarkError(f"{method.name} has no option {', '.join(wrong)}; it has {', '.join(sorted(accepted))}")


def check_options(options: Mapping[str, Any]) -> None:
    """Raises BenchmarkError for an option that no method may be given, or a value that a record could not hold."""
    for name, value in options.items():
        if name == "seed":
            raise BenchmarkError("seed is no option of a method; give the seed of the run (--seed, in Python seed=)")
        if not isinstance(value, (str, int, float, type(None))) or value != value or value in (math.inf, -math.inf):
            raise BenchmarkError(f"option {name} must be a finite number, a text, true, false or null; got {value!r}")


def own_name(method: str) -> str:
    """The registry's key for a key, a title or a usual alias; the text itself, in lower case, where it has none."""
    from graphlossy.outliers.methods import _registry_name

    try:
        return _registry_name(method)
    except ValueError:
        return method.strip().lower()


def _own_class(name: str) -> Any:
    from graphlossy.outliers.methods import METHODS

    return METHODS[name]


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}, or package.module:Class"
