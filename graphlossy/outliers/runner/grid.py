"""The grid: every trial with its seed and its hyper-parameters, known before the first one runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphlossy.outliers.protocol import PROTOCOLS, derive_seed, trial_count, trial_params
from graphlossy.outliers.runner.errors import BenchmarkError
from graphlossy.outliers.runner.methods import (
    LEAK_ROWS,
    Method,
    accepted_options,
    check_names,
    check_options,
    find_method,
    own_name,
    registry,
)

__all__ = ["Grid", "Trial", "check_engine", "label_of", "make_grid"]

Key = tuple[str, str, str, int]
_ENDINGS = re.compile(r"(\.pt\.zip|\.pt|\.npz|\.zip)$", re.IGNORECASE)


@dataclass(frozen=True)
class Trial:
    """One cell of the grid: a fit and its scores.

    Attributes:
        dataset: name of the data set in the results.
        source: name or path that it is loaded from.
        method: key of the method.
        engine: whose implementation.
        trial: number, from 0.
        seed: from 0 to 2^31 - 1; follows from the run's seed and the four above without ``engine``.
        params: constructor arguments that the engine has.
        target: import path of a class that is no part of graphlossy.
    """

    dataset: str
    source: str
    method: str
    engine: str
    trial: int
    seed: int
    params: dict[str, Any] = field(default_factory=dict)
    target: str = ""

    @property
    def key(self) -> Key:
        """What tells it from every other trial of a folder."""
        return self.dataset, self.method, self.engine, self.trial


@dataclass(frozen=True)
class Grid:
    """All trials, data set by data set, and what tables need to know of the methods."""

    trials: list[Trial]
    sources: dict[str, str]
    titles: dict[str, str]


def label_of(source: str) -> str:
    """Name of a data set in the results: a path loses its folder, its ending and what stands behind ``#``.

    Example:
        >>> label_of("Inj_Cora"), label_of("data/mine.pt.zip"), label_of("shop.npz#fraud")
        ('inj_cora', 'mine', 'shop')
    """
    from graphlossy.outliers.data import names

    path, _, _ = source.partition("#")
    if path.lower() in names():
        return path.lower()
    return _ENDINGS.sub("", Path(path).name) or path


def make_grid(
    datasets: Sequence[str],
    methods: Sequence[str | type] | None,
    trials: int,
    protocol: str,
    seed: int,
    engines: Sequence[str] = ("native",),
    options: Mapping[str, Any] | None = None,
    goes_on: bool = False,
) -> Grid:
    """Every trial, in the order it is run: data sets outside, then methods, then trials.

    The rows that need no model (degree, feature norm, their maximum rank, copies, random scores) are in every grid, and
    run first: the table of a grid that is not done has what the others are to be compared with.

    Args:
        datasets: names or paths.
        methods: keys, import paths or classes; None: all that each engine has.
        trials: of each method; a method that neither draws nor uses its seed has one.
        protocol: ``"bond"`` or ``"fixed"``.
        seed: of the run.
        engines: whose implementations; every one that has a method runs it.
        options: constructor arguments that overrule the protocol, by method, or under ``"*"`` for every method that
            takes them.
        goes_on: the grid joins trials with the same options, so that some may be for methods that only those have.

    Raises:
        BenchmarkError: something in it is unknown, twice there or out of range.
    """
    if not datasets:
        raise BenchmarkError("no data set is given; `graphlossy outliers datasets` lists what there is")
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise BenchmarkError(f"trials must be a whole number of at least 1, got {trials!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise BenchmarkError(f"seed must be a whole number of at least 0, got {seed!r}")
    if protocol not in PROTOCOLS:
        raise BenchmarkError(f"protocol must be one of {', '.join(PROTOCOLS)}; got {protocol!r}")
    sources: dict[str, str] = {}
    for source in dict.fromkeys(datasets):
        label = label_of(source)
        if label in sources:
            raise BenchmarkError(f"{sources[label]} and {source} would both be called {label!r}; rename one of them")
        sources[label] = source
    rows = _rows(methods, engines)
    overrules = _overrules(rows, dict(options or {}), goes_on)
    cells = [
        Trial(
            label,
            source,
            method.name,
            engine,
            number,
            derive_seed(seed, label, method.name, number),
            _effective(
                {
                    **trial_params(method.cls, method.name, label, number, protocol, seed),
                    **overrules.get((method.name, engine), {}),
                },
                known,
            ),
            method.target,
        )
        for label, source in sources.items()
        for method, engine, known in ((method, engine, _takes(method, engine)) for method, engine in rows)
        for number in range(trial_count(method.cls, label, protocol, trials, known))
    ]
    return Grid(cells, sources, {method.name: method.title for method, _ in rows})


def _takes(method: Method, engine: str) -> set[str] | None:
    """Parameters that another engine has a counterpart of; None of our own, which has all."""
    if engine == "native":
        return None
    from graphlossy.outliers import engines

    return engines.takes(engine, method.name)


def _effective(params: dict[str, Any], known: set[str] | None) -> dict[str, Any]:
    """Those that change something: a record must not tell of others."""
    return {name: value for name, value in params.items() if known is None or name in known}


def _rows(methods: Sequence[str | type] | None, engines: Sequence[str]) -> list[tuple[Method, str]]:
    if not engines:
        raise BenchmarkError("no engine is given; native is always there")
    if methods is not None and not len(methods):
        raise BenchmarkError("no method is given; `graphlossy outliers methods` lists what there is")
    rows: dict[tuple[str, str], tuple[Method, str]] = {}
    served: set[str] = set()
    refusals: dict[str, BenchmarkError] = {}
    for engine in engines:
        check_engine(engine)
        wanted: Sequence[str | type] | None = methods
        if wanted is None:
            wanted = [name for name in _all_of(engine) if name not in LEAK_ROWS]
        for asked in wanted:
            if engine != "native" and isinstance(asked, str) and asked.strip().lower() in LEAK_ROWS:
                continue  # they have one implementation
            try:
                method = find_method(asked, engine)
            except BenchmarkError as error:
                refusals.setdefault(repr(asked), error)
                continue
            served.add(repr(asked))
            rows.setdefault((method.name, engine), (method, engine))
    for asked, error in refusals.items():
        if asked not in served:  # of several engines each runs what it has
            raise error
    plain = {(name, "native"): (find_method(name), "native") for name in LEAK_ROWS}
    return list((plain | rows).values())


def check_engine(engine: str) -> None:
    """Raises BenchmarkError for an engine that is unknown or not installed."""
    if engine == "native":
        return
    from graphlossy.outliers import engines

    available = engines.available()
    if engine not in available:
        raise BenchmarkError(f"engine must be one of {', '.join(available)}; got {engine!r}")
    if available[engine] is None:
        raise BenchmarkError(f"engine {engine} is not installed: pip install {engine}")


def _all_of(engine: str) -> list[str]:
    if engine == "native":
        return registry()
    from graphlossy.outliers import engines

    return list(engines.METHODS[engine])


def _overrules(
    rows: Sequence[tuple[Method, str]], options: dict[str, Any], goes_on: bool
) -> dict[tuple[str, str], dict[str, Any]]:
    """What ``options`` says for each row; an option that no row takes is an error, unless the grid ``goes_on``."""
    for name, values in options.items():
        if not isinstance(values, Mapping):
            raise BenchmarkError(f"options[{name!r}] must be a dictionary of constructor arguments, got {values!r}")
        check_options(values)
    known = {method.name for method, _ in rows}
    options = {name if name in known or name == "*" else own_name(name): values for name, values in options.items()}
    unknown = [name for name in options if name != "*" and name not in known]
    if unknown and not goes_on:
        raise BenchmarkError(f"options are given for {', '.join(unknown)}, which this grid does not have")
    general, used = dict(options.get("*", {})), set()
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for method, engine in rows:
        accepted, own = accepted_options(method.cls), dict(options.get(method.name, {}))
        check_names(method, own)
        taken = {name: value for name, value in general.items() if name in accepted}
        used |= set(taken)
        found[method.name, engine] = {**taken, **own}
    unused = [name for name in general if name not in used]
    if unused and not goes_on:
        raise BenchmarkError(f"no method of this grid has the option {', '.join(unused)}")
    return found
