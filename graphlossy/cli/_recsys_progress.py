"""Progress bars of a study of embedding tables: one over the cells, one over the epochs of the cell that runs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import TaskID

from graphlossy.cli._bars import bars_with_news
from graphlossy.core.budget import format_bytes
from graphlossy.recsys.train import Cell, Observer, Study

__all__ = ["StudyBars"]


class StudyBars(Observer):
    """Draws on ``console`` from the first cell until the context is left.

    Args:
        console: where to draw; nothing is animated when it is no terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._cells: TaskID | None = None
        self._epochs: TaskID | None = None
        self._progress = bars_with_news(console)

    def __enter__(self) -> StudyBars:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._cells is not None:
            self._progress.stop()

    def started(self, study: Study, waiting: int) -> None:
        """Says what is compared and draws the bars."""
        data = study.describe_data()
        tokens = sum(field["num_tokens"] for field in data["fields"])
        self._say(
            f"{data['name']}: {data['train']:,} training rows, {len(data['fields'])} fields, {tokens:,} tokens\n"
            f"{study.model}: full tables take {format_bytes(study.full_bytes)}\nfolder: {study.folder}"
        )
        if data["note"]:
            self._say(data["note"])
        total = len(study.cells)
        if not waiting:
            self._say("everything is there already; --fresh computes it again")
            return
        self._cells = self._progress.add_task("cells", total=total, completed=total - waiting, news="")
        self._epochs = self._progress.add_task("epochs", total=study.config.epochs, news="")
        self._progress.start()

    def cell(self, cell: Cell) -> None:
        """Shows which cell runs."""
        at = "" if cell.budget_label is None else f" at {cell.budget_label}"
        self._update(self._cells, news=f"{cell.label}{at}, seed {cell.seed}")
        self._update(self._epochs, completed=0, news="")

    def epoch(self, cell: Cell, line: dict[str, float]) -> None:
        """Moves the bar of the epochs."""
        self._update(self._epochs, completed=line["epoch"], news=f"validation AUC {line['auc']:.4f}")

    def done(self, cell: Cell, row: dict[str, Any]) -> None:
        """Moves the bar of the cells."""
        if self._cells is not None:
            self._progress.advance(self._cells)

    def _update(self, bar: TaskID | None, **fields: Any) -> None:
        if bar is not None:
            self._progress.update(bar, **fields)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
