"""Progress of a grid on a terminal: one bar over all trials, and what has just come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphlossy.outliers._labels import left_out
from graphlossy.outliers.runner.grid import Trial
from graphlossy.outliers.runner.observer import Observer

__all__ = ["GridBars"]


class GridBars(Observer):
    """Draws on ``console`` from the first trial until the context is left.

    Args:
        console: a ``rich.console.Console``; nothing is animated when it is no terminal. None: one on standard error.
    """

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = console or Console(stderr=True)
        self._bar: Any = None
        self._progress = Progress(
            TextColumn("trials"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[news]}"),
            TimeRemainingColumn(),
            console=self.console,
            expand=True,
        )

    def __enter__(self) -> GridBars:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._progress.stop()

    def started(self, trials: Sequence[Trial], done: int, facts: Mapping[str, Any]) -> None:
        """Says what the data sets are and draws the bar, moved on to where a resumed run stands."""
        for name, fact in facts.items():
            found = f"no labels{left_out(fact['note'])}, scores only"
            if fact["outliers"] is not None:
                found = f"{fact['outliers']:,} outliers"
            self._say(
                f"{name}: {fact['nodes']:,} nodes, {fact['edges']:,} edges, {fact['features']:,} features, {found}"
            )
        if done:
            self._say(f"{done:,} trials are there already")
        if trials:
            self._bar = self._progress.add_task("trials", total=len(trials) + done, completed=done, news="")
            self._progress.start()

    def news(self, trial: Trial, message: tuple[Any, ...]) -> None:
        """Shows which trial runs, and its epoch."""
        epoch = f", epoch {message[1]}" if message[0] == "epoch" else ""
        self._update(news=f"{trial.dataset} {trial.method} {trial.trial}{epoch}")

    def finished(self, record: Mapping[str, Any]) -> None:
        """Moves the bar; what went wrong is said above it."""
        name = f"{record['dataset']} {record['method']} {record['trial']}"
        if record["status"] != "done":
            self._say(f"{name}: {record['status']}: {record['reason']}")
        shown = record["status"] if record["auc"] is None else f"AUC {record['auc']:.3f}"
        self._update(advance=1, news=f"{name} {shown}")

    def _update(self, **fields: Any) -> None:
        if self._bar is not None:
            self._progress.update(self._bar, **fields)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
