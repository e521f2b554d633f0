"""Every detector by name, one file and one class a method; a class is imported when it is first asked for.

>>> from graphlossy.outliers.methods import METHODS, make_method
>>> METHODS["lof"].title, len(METHODS)
('LOF', 21)
>>> make_method("lof", n_neighbors=10).n_neighbors
10
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from graphlossy.outliers._base import Detector

# Registry name -> (file, class), in the order of the benchmark paper, then the later ones, then those without a model.
_WHERE: dict[str, tuple[str, str]] = {
    "lof": ("lof", "LOF"),
    "if": ("isolation_forest", "IsolationForest"),
    "mlpae": ("mlpae", "MLPAE"),
    "scan": ("scan", "SCAN"),
    "radar": ("radar", "Radar"),
    "anomalous": ("anomalous", "ANOMALOUS"),
    "gcnae": ("gcnae", "GCNAE"),
    "dominant": ("dominant", "DOMINANT"),
    "done": ("done", "DONE"),
    "adone": ("adone", "AdONE"),
    "anomalydae": ("anomalydae", "AnomalyDAE"),
    "gaan": ("gaan", "GAAN"),
    "guide": ("guide", "GUIDE"),
    "conad": ("conad", "CONAD"),
    "cola": ("cola", "CoLA"),
    "ocgnn": ("ocgnn", "OCGNN"),
    "degree": ("degree", "Degree"),
    "norm": ("feature_norm", "FeatureNorm"),
    "maxrank": ("max_rank", "MaxRank"),
    "copies": ("copies", "FeatureCopies"),
    "random": ("random_score", "RandomScore"),
}
# Other spellings in use, after lower-casing and without "-", "_" and spaces.
_ALIASES = {"iforest": "if", "isolationforest": "if", "gae": "gcnae", "featurenorm": "norm", "randomscore": "random"}
_CLASSES = {cls: name for name, (_, cls) in _WHERE.items()}

__all__ = [
    "ANOMALOUS",
    "AdONE",
    "AnomalyDAE",
    "CONAD",
    "CoLA",
    "DOMINANT",
    "DONE",
    "Degree",
    "FeatureCopies",
    "FeatureNorm",
    "GAAN",
    "GCNAE",
    "GUIDE",
    "IsolationForest",
    "LOF",
    "METHODS",
    "MLPAE",
    "MaxRank",
    "OCGNN",
    "Radar",
    "RandomScore",
    "SCAN",
    "make_method",
]


class _Methods(Mapping[str, type[Detector]]):
    """Name -> class; reading an entry imports its file, listing the names imports nothing."""

    def __getitem__(self, name: str) -> type[Detector]:
        file, cls = _WHERE[name]
        return getattr(importlib.import_module(f"{__name__}.{file}"), cls)

    def __contains__(self, name: object) -> bool:
        return name in _WHERE

    def __iter__(self) -> Iterator[str]:
        return iter(_WHERE)

    def __len__(self) -> int:
        return len(_WHERE)

    def __repr__(self) -> str:
        return f"METHODS({', '.join(_WHERE)})"


METHODS: Mapping[str, type[Detector]] = _Methods()


def _near(given: str, known: list[str]) -> str:
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""


def _registry_name(name: str) -> str:
    """The registry's name for what a user wrote: any case, titles and common aliases."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a method's name, a str, got {type(name).__name__}")
    plain = name.lower()
    for mark in "-_ ":
        plain = plain.replace(mark, "")
    plain = _ALIASES.get(plain, plain)
    if plain in _WHERE:
        return plain
    hint = _near(plain, list(_WHERE))
    raise ValueError(f"there is no method {name!r}: {hint}The methods are {', '.join(_WHERE)}")


def make_method(name: str, **options: Any) -> Detector:
    """The detector of this name, made with these constructor arguments.

    Args:
        name: one of ``METHODS`` in any case, or what the papers call it: ``"AdONE"``, ``"IForest"``, ``"GAE"``.
        **options: the constructor's arguments; ``METHODS[name].parameter_names()`` lists them.

    Raises:
        ValueError: there is no such method; the message names near ones.
        TypeError: the method has no such argument; the message names near ones.

    Example:
        >>> make_method("LOF", contamination=0.05).contamination
        0.05
        >>> make_method("lofe")
        Traceback (most recent call last):
        ValueError: there is no method 'lofe': did you mean 'lof'? The methods are lof, if, mlpae, scan, ...
    """
    cls = METHODS[_registry_name(name)]
    known = list(cls.parameter_names())
    for option in options:
        if option not in known:
            hint = _near(option, known)
            raise TypeError(f"{cls.title} has no argument {option!r}: {hint}It takes {', '.join(known)}")
    return cls(**options)


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return METHODS[_CLASSES[name]]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
