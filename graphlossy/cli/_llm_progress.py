"""The progress bar of a fine-tuning run."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import TaskID

from graphlossy.cli._bars import bars_with_news
from graphlossy.core.budget import format_bytes
from graphlossy.llm.finetune import Finetuning, Observer

__all__ = ["FinetuneBar"]


class FinetuneBar(Observer):
    """Draws a bar on ``console`` from the first step until the context is left.

    Args:
        console: where to draw; nothing is animated when it is no terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: TaskID | None = None
        self._valid = ""
        self._progress = bars_with_news(console)

    def __enter__(self) -> FinetuneBar:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._progress.stop()

    def say(self, words: str) -> None:
        """Prints a line as it is."""
        self.console.print(words, markup=False, highlight=False, soft_wrap=True)

    def started(self, run: Finetuning) -> None:
        """Says what is trained and draws the bar, moved on to where a resumed run stands."""
        held_out = 0 if run.valid is None else len(run.valid)
        trained = sum(weight.numel() for weight in run.model.parameters() if weight.requires_grad)
        self.say(
            f"{type(run.model).__name__}: {trained:,} weights to train, on {run.device} (CPU threads: "
            f"{run.config.threads})\n{len(run.train):,} sequences of {run.train.length} tokens, {held_out:,} held out; "
            f"{run.steps:,} steps of {run.batches.step_size} sequences\nrun folder: {run.folder.path}"
        )
        self._bar = self._progress.add_task("steps", total=run.steps, completed=run.step, news="")
        self._progress.start()

    def step(self, line: dict[str, Any]) -> None:
        """Moves the bar, or shows the evaluation before the first step."""
        if "valid_loss" in line:
            self._valid = f"  held-out {line['valid_loss']:.4f}"
        if self._bar is None:
            return
        news = self._valid.strip()
        if "loss" in line:
            news = f"loss {line['loss']:.4f}{self._valid}  saved {format_bytes(line['saved_bytes'])}"
        self._progress.update(self._bar, completed=line["step"], news=news)

    def stopping(self) -> None:
        """Says that the step under way is finished first."""
        self.say("stopping as soon as this step is done (press Ctrl-C again to stop at once) ...")
