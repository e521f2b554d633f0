"""`benchmark`: the grid from Python, and `Results`, what comes of it."""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from graphlossy.core.budget import parse_bytes
from graphlossy.outliers.runner.bars import GridBars
from graphlossy.outliers.runner.errors import BenchmarkError, one_line
from graphlossy.outliers.runner.grid import Grid, Trial, make_grid
from graphlossy.outliers.runner.limits import Limits
from graphlossy.outliers.runner.observer import Observer
from graphlossy.outliers.runner.pool import LocalPool
from graphlossy.outliers.runner.records import STATUSES, RunFolder, key_of, latest, read_records, read_settings
from graphlossy.outliers.runner.trial import make, versions

__all__ = ["Results", "benchmark"]


class Results:
    """Records of a run, and the tables made of them.

    Attributes:
        records: one dictionary for each trial, as in ``trials.jsonl``, ordered as the grid is.
        datasets: nodes, edges, features, outliers, ... of each data set.
        titles: printed name of each method.
        settings: seed, protocol, threads, options.
        folder: where they are; None where nothing was written.
    """

    def __init__(self, records: Sequence[dict[str, Any]], settings: Mapping[str, Any], folder: Path | None) -> None:
        self.records = list(records)
        self.settings = {
            name: value for name, value in settings.items() if name not in ("format", "datasets", "titles")
        }
        self.datasets: dict[str, Any] = dict(settings["datasets"])
        self.titles: dict[str, str] = dict(settings["titles"])
        self.folder = folder

    @classmethod
    def read(cls, folder: str | Path) -> Results:
        """The results in a folder; another process may still be adding to it.

        Raises:
            BenchmarkError: it is no folder of a run, or damaged.
        """
        folder = Path(folder)
        return cls(read_records(folder), read_settings(folder), folder)

    def table(self, metric: str = "auc", format: str = "text") -> str:
        """Mean±std (max) of each method on each data set; see :func:`graphlossy.outliers.table.render`."""
        from graphlossy.outliers.table import make_table, render

        return render(make_table(self, metric), format)

    def report(self, path: str | Path) -> Path:
        """Writes the page of :func:`graphlossy.outliers.report.render_report` to ``path``."""
        from graphlossy.core._files import write_text
        from graphlossy.outliers.report import render_report

        write_text(Path(path), render_report(self))
        return Path(path)

    def compare(self, format: str = "text") -> str:
        """The paper's figures beside these; see :mod:`graphlossy.outliers.compare`."""
        from graphlossy.outliers.compare import comparison, render_comparison, told_settings

        return render_comparison(comparison(self), format, told_settings(self))

    def __repr__(self) -> str:
        counts = {status: sum(record["status"] == status for record in self.records) for status in STATUSES}
        told = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
        return f"Results({len(self.records)} trials{f': {told}' if told else ''})"


def benchmark(
    datasets: Sequence[str] | Mapping[str, Any] | str,
    methods: Sequence[str | type] | str | None = None,
    trials: int = 20,
    protocol: str = "bond",
    seed: int = 0,
    out: str | Path | None = None,
    jobs: int | str = 1,
    time_limit: float | None = None,
    memory_limit: int | str | None = None,
    engine: str | Sequence[str] = "native",
    options: Mapping[str, Any] | None = None,
    progress: bool | Observer = True,
    *,
    root: str | Path | None = None,
    threads: int = 1,
    save_scores: bool = False,
    retry: Sequence[str] = (),
) -> Results:
    """Runs methods on data sets, trial by trial, each in a process of its own, and keeps a record of every trial.

    A trial's seed and hyper-parameters follow from ``seed`` and its place in the grid alone, and all processes use the
    same number of threads: the scores do not depend on ``jobs``, on the rest of the grid or on interruptions. In a
    folder that holds trials already, only the others are run.

    Args:
        datasets: names (``graphlossy outliers datasets``) or paths; or a dictionary of names and PyG ``Data``.
        methods: keys (``graphlossy outliers methods``), ``"package.module:Class"``, or classes; None: all. The rows
            that need no model (degree, feature norm, their maximum rank, copies, random) are always added.
        trials: of each method on each data set; one of what is deterministic.
        protocol: ``"bond"``: hyper-parameters drawn anew in every trial; ``"fixed"``: the published defaults.
        seed: of the whole run.
        out: folder of the results; None: they are returned and not kept.
        jobs: worker processes; ``"auto"``: as many as there are cores for this process; ``"ray"`` or ``"ray:N"``: N
            actors of a Ray cluster, each with ``threads`` cores, and a GPU of its own where ``device`` asks for one.
        time_limit: seconds of one fit; beyond it the trial is recorded as TLE.
        memory_limit: bytes, or a text such as ``"4GiB"``, above the process before the fit; beyond it OOM.
        engine: whose implementations: ``"native"``, ``"pygod"``, ``"pyod"``, or several.
        options: constructor arguments by method, or under ``"*"`` for all that take them:
            ``{"*": {"bits": 2}, "dominant": {"epoch": 50}}``.
        progress: draw bars on standard error; or an observer that is told instead.
        root: folder of the data sets.
        threads: of each process.
        save_scores: keep the scores of every trial, ``out/scores/*.npy``.
        retry: statuses whose trials are run again: ``"failed"``, ``"TLE"``, ``"OOM"``.

    Returns:
        The results of this grid, those of earlier runs of the folder among them.

    Raises:
        BenchmarkError: what is asked for cannot be run, before anything has run; or the folder cannot be used.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> rays = torch.stack([torch.zeros(39, dtype=torch.long), torch.arange(1, 40)])
        >>> star = Data(x=torch.eye(40), edge_index=rays, y=(torch.arange(40) == 0).long())
        >>> found = benchmark({"star": star}, ["degree"], trials=1, progress=False)
        >>> found, found.records[0]["auc"]
        (Results(5 trials: 5 done), 1.0)
    """
    engines = [engine] if isinstance(engine, str) else list(engine)
    if isinstance(methods, str):
        methods = [methods]
    limits = Limits(_seconds(time_limit), None if memory_limit is None else _bytes(memory_limit))
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise BenchmarkError(f"threads must be a whole number of at least 1, got {threads!r}")
    unknown = [status for status in retry if status not in STATUSES or status == "done"]
    if unknown:
        raise BenchmarkError(f"retry may hold {', '.join(STATUSES[1:])}; got {unknown[0]!r}")
    ray = isinstance(jobs, str) and jobs.startswith("ray")
    if isinstance(datasets, Mapping) and ray:
        raise BenchmarkError("graphs in memory are on this machine only; for a cluster save them and give their paths")
    with contextlib.ExitStack() as stack:
        sources = stack.enter_context(_as_sources(datasets))
        grid = make_grid(sources, methods, trials, protocol, seed, engines, options, _goes_on(out, options))
        _try_out(grid, here=not ray)
        settings = {
            "seed": seed,
            "protocol": protocol,
            "threads": threads,
            "options": {name: dict(values) for name, values in (options or {}).items()},
            "titles": grid.titles,
            "versions": versions(),
        }
        pool = stack.enter_context(
            _pool(
                jobs,
                {"limits": limits, "threads": threads, "root": None if root is None else str(root), "seed": seed},
                gpu=any(str(trial.params.get("device", "cpu")).startswith("cuda") for trial in grid.trials),
            )
        )
        folder = stack.enter_context(RunFolder(None if out is None else Path(out), settings))
        there = {key_of(r) for r in latest(folder.records) if r["status"] not in retry}
        left = [trial for trial in grid.trials if trial.key not in there]
        # All of them: records that are there already may be of another graph of that name.
        probed = pool.probe(_probing_order(grid, left))
        for label in grid.sources:
            folder.learn(label, probed[label])
        observer = stack.enter_context(_observed(progress))
        used = {label: folder.facts[label] for label in grid.sources}
        observer.started(left, len(grid.trials) - len(left), used)
        for record, scores in pool.run(left, observer):
            folder.add(record, scores if save_scores else None)
            observer.finished(record)
        found = {key_of(record): record for record in folder.records}
        records = [found[trial.key] for trial in grid.trials]
        return Results(records, {**folder.settings, "datasets": used}, folder.path)


def _goes_on(out: str | Path | None, options: Mapping[str, Any] | None) -> bool:
    """Whether a folder holds a run with these options, which are for methods of its other trials too."""
    try:
        return out is not None and read_settings(Path(out))["options"] == (options or {})
    except BenchmarkError:  # it is to be made, or is no folder of a run, which is told where it is opened
        return False


def _try_out(grid: Grid, here: bool) -> None:
    """Makes each detector once: a value that it does not take is told before anything runs.

    Args:
        grid: the trials.
        here: whether this machine runs them; others may have the device that it lacks.
    """
    for trial in grid.trials:
        if trial.engine == "native" and trial.trial == 0:
            try:
                make(trial, {name: value for name, value in trial.params.items() if here or name != "device"})
            except (TypeError, ValueError) as error:
                raise BenchmarkError(f"{trial.method}: {error}") from None
            except Exception as error:
                raise BenchmarkError(f"{trial.method} cannot be made: {one_line(error)}") from None


def _probing_order(grid: Grid, left: Sequence[Trial]) -> dict[str, str]:
    """Sources by label, backwards: a process keeps the data that it loaded last, and its first trial needs them."""
    needed = dict.fromkeys(trial.dataset for trial in left)
    order = [label for label in grid.sources if label not in needed] + list(needed)[::-1]
    return {label: grid.sources[label] for label in order}


@contextlib.contextmanager
def _observed(progress: bool | Observer) -> Iterator[Observer]:
    if progress is True:
        with GridBars() as bars:
            yield bars
    else:
        yield progress if isinstance(progress, Observer) else Observer()


@contextlib.contextmanager
def _as_sources(datasets: Sequence[str] | Mapping[str, Any] | str) -> Iterator[list[str]]:
    """Names and paths; graphs in memory are saved for the worker processes to read."""
    if isinstance(datasets, str):
        yield [datasets]
    elif isinstance(datasets, Mapping):
        from torch_geometric.data import Data

        from graphlossy.outliers.data import labels, save_npz

        with tempfile.TemporaryDirectory(prefix="graphlossy-") as folder:
            for name, data in datasets.items():
                if not isinstance(name, str) or not name or "/" in name or "#" in name:
                    raise BenchmarkError(f"a data set cannot be called {name!r}; use letters, digits, - and _")
                try:
                    if isinstance(data, Data) and getattr(data, "note", None) is None:
                        data = copy.copy(data)
                        data.note = "given in memory"  # not the path of a file that is gone afterwards
                    save_npz(data, Path(folder) / f"{name}.npz")
                    if getattr(data, "y", None) is not None:
                        labels(data)  # class numbers would be left out in silence, as those of a file are
                except (TypeError, ValueError) as error:
                    raise BenchmarkError(f"{name}: {error}") from None
            yield [str(Path(folder) / f"{name}.npz") for name in datasets]
    else:
        if hasattr(datasets, "edge_index") or not all(isinstance(source, (str, Path)) for source in datasets):
            raise BenchmarkError(
                'datasets must be names or paths, such as ["inj_wordnet"], or a dictionary that names each graph, such '
                f'as {{"mine": data}}; got {type(datasets).__name__}'
            )
        yield [str(source) for source in datasets]


def _pool(jobs: int | str, settings: dict[str, Any], gpu: bool = False) -> Any:
    if jobs == "auto":
        jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not isinstance(jobs, str):
        return LocalPool(jobs, settings)
    from graphlossy.outliers.runner.ray_pool import RayPool

    kind, _, number = jobs.partition(":")
    if kind != "ray" or (number and not number.isdigit()) or number == "0":
        raise BenchmarkError(f"jobs must be a number of processes, 'auto', 'ray' or 'ray:N'; got {jobs!r}")
    return RayPool(settings, int(number) if number else None, gpu)


def _seconds(limit: float | None) -> float | None:
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit < float("inf"):
        raise BenchmarkError(f"time_limit must be a number of seconds above 0, got {limit!r}")
    return float(limit)


def _bytes(limit: int | str) -> int:
    try:
        found = parse_bytes(limit)
    except (TypeError, ValueError) as error:
        raise BenchmarkError(f"memory_limit: {error}") from None
    if found < 2**20:
        raise BenchmarkError(f"memory_limit must be at least 1 MiB, got {limit!r}")
    return found
