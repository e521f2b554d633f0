"""What the detectors of other libraries share behind our interface: names of arguments, seeds, missing packages."""

from __future__ import annotations

import importlib
import random
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphlossy.outliers._base import Detector
from graphlossy.outliers._checks import Graph
from graphlossy.outliers._deep import seeded
from graphlossy.outliers.methods import METHODS

__all__ = ["EngineDetector", "Spec", "installed", "library", "native_arguments", "seeded_globally", "translate"]


@dataclass(frozen=True)
class Spec:
    """One method of another library.

    Args:
        cls: name of its class, in ``module``.
        module: where that class is imported from.
        names: our constructor argument -> theirs, or -> (theirs, function of our value).
        given: what is always handed over.
    """

    cls: str
    module: str
    names: Mapping[str, str | tuple[str, Callable[[Any], Any]]]
    given: Mapping[str, Any] = field(default_factory=dict)


def installed(package: str) -> str | None:
    """Version of a package; None where it is not installed. Nothing is imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def library(module: str) -> ModuleType:
    """Imports a module of PyGOD or PyOD.

    Raises:
        ModuleNotFoundError: it, or something it needs, is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        missing = (error.name or package).partition(".")[0]
        raise ModuleNotFoundError(
            f"engine {package!r} needs the package {missing}, which is not installed: "
            "pip install 'graphlossy[outlier-engines]', or use engine='native'",
            name=error.name,
        ) from error


def native_arguments(method: str) -> set[str]:
    """Names that the constructor of our own implementation takes, but for the seed."""
    return set(METHODS[method].parameter_names()) - {"seed"}


def translate(spec: Spec, method: str, params: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Our arguments as the other library's.

    Returns:
        its keyword arguments, and the names of ours that it has no counterpart of.

    Raises:
        TypeError: an argument that our own implementation does not have either.
    """
    theirs, dropped = dict(spec.given), []
    known = native_arguments(method)
    if unknown := sorted(set(params) - known):
        raise TypeError(
            f"{METHODS[method].title} has no argument {', '.join(unknown)}; it takes {', '.join(sorted(known))}"
        )
    for name, value in params.items():
        target = spec.names.get(name)
        if target is None:
            dropped.append(name)
        elif isinstance(target, str):
            theirs[target] = value
        else:
            theirs[target[0]] = target[1](value)
    return theirs, tuple(dropped)


@contextmanager
def seeded_globally(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Inside, the global generators of torch, NumPy and Python start from ``seed``; afterwards they are as before.

    The other libraries draw from these and take no seed of their own.

    Example:
        >>> with seeded_globally(3):
        ...     first = random.random()
        >>> with seeded_globally(3):
        ...     random.random() == first
        True
    """
    before = np.random.get_state(), random.getstate()
    try:
        with seeded(seed, device):
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])


class EngineDetector(Detector):
    """A detector of another library; made by :func:`graphlossy.outliers.engines.make`.

    Input is checked and duplicate edges are joined as for our own methods; threshold and labels are computed in the
    same way from the library's scores.

    Attributes:
        engine: ``"pygod"`` or ``"pyod"``.
        arguments: what the library's class was given.
        dropped: our parameters that it has no counterpart of and that had no effect.
    """

    engine: str = ""
    memory = "see the library"

    def __init__(self, method: str, spec: Spec, params: Mapping[str, Any], seed: int | None) -> None:
        own = {name: value for name, value in params.items() if name == "contamination"}
        super().__init__(**own, seed=seed)
        native = METHODS[method]
        # What is a class's for our own methods is the object's here: one class stands for a library.
        self.__dict__.update(name=method, title=native.title, paper=native.paper, seeded=native.seeded)
        self.__dict__.update(needs=native.needs)
        self.spec = spec
        self.arguments, self.dropped = translate(spec, method, {k: v for k, v in params.items() if k not in own})
        library(spec.module)  # says at once what is missing

    def _score(self, graph: Graph) -> Tensor:
        with seeded_globally(self.seed_, graph.device):
            return self._run(graph)

    def get_params(self) -> dict[str, Any]:
        """What the library's class is given, under its names."""
        return {**self.arguments, "contamination": self.contamination}

    @abstractmethod
    def _run(self, graph: Graph) -> Tensor:
        """Scores [N] of the library's detector; torch's, NumPy's and Python's generators are seeded."""

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{self.engine}.{self.spec.cls}({inside})"
