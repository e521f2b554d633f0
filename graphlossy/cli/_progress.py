"""Progress bars of a training experiment, one per scheme."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID

from graphlossy.cli._bars import bars_with_news
from graphlossy.train import Experiment, Observer, Task, format_size
from graphlossy.train._format import counted

__all__ = ["ProgressBars"]


class ProgressBars(Observer):
    """Draws one bar per scheme on ``console`` from the start of training until the context is left.

    Args:
        console: where to draw; nothing is animated when it is no terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: dict[str, TaskID] = {}
        self._valid: dict[str, str] = {}  # the last evaluation of each scheme
        self._progress = bars_with_news(console)

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bars:
            self._progress.stop()

    def started(self, experiment: Experiment, task: Task) -> None:
        """Says what is trained and draws the bars, moved on to where a resumed experiment stands."""
        config, size = experiment.config, task.describe()
        self.console.print(
            f"[bold]{escape(str(size['name']))}[/]: {size['nodes']:,} nodes, {size['edges']:,} edges, "
            f"{size['features']:,} features\n"
            f"[bold]{config.model}[/]: {config.layers} layers of {config.hidden}, {counted(config.seeds, 'seed')} of "
            f"{config.epochs} epochs, on {experiment.device} (CPU threads: {config.threads})",
            highlight=False,
        )
        for note in _training(experiment, task):
            self.console.print(note, markup=False, highlight=False, soft_wrap=True)
        self.console.print(f"run folder: {experiment.folder.path}", markup=False, highlight=False, soft_wrap=True)
        for scheme in config.comparison():
            done = sum(result["epochs"] for result in experiment.results if result["run"] == scheme.label)
            done += sum(run.epoch for run in experiment.active if run.scheme == scheme)
            total = config.epochs * config.seeds
            self._bars[scheme.label] = self._progress.add_task(scheme.label, total=total, completed=done, news="")
        self._progress.start()

    def epoch(self, line: dict[str, Any]) -> None:
        """Moves the bar of the run by one epoch."""
        bar = self._bars[line["run"]]
        if "loss" not in line:
            self._progress.update(bar, news=f"seed {line['seed']}: {line['status']}")
            return
        if line["valid"] is not None:
            self._valid[line["run"]] = f"  valid {100 * line['valid']:.1f}"
        valid = self._valid.get(line["run"], "")
        news = f"seed {line['seed']}{valid}  saved {format_size(line['saved_bytes'])}"
        self._progress.update(bar, advance=1, news=news)

    def stopping(self) -> None:
        """Says that the running epoch is finished first."""
        self.console.print("stopping as soon as this step is done (press Ctrl-C again to stop at once) ...")


def _training(experiment: Experiment, task: Task) -> list[str]:
    """What is trained on, where it is not the whole graph at once."""
    config, size, notes = experiment.config, task.describe(), []
    if experiment.rank.world_size > 1:
        shared = "the loss is shared" if config.sampler is None else "the batches are shared"
        bits = "float32" if config.gradient_bits is None else f"{config.gradient_bits} bits"
        notes.append(f"{experiment.rank.world_size} processes: {shared}, gradients travel in {bits}")
    elif config.gradient_bits is not None:
        notes.append("one process: gradients do not travel, and gradient_bits changes nothing")
    if size["synthetic"]:
        notes.append(f"synthetic stand-in for {size['reference']}" if size["reference"] else "synthetic graph")
    if task.sparsify_seconds is not None:
        share = 100 * size["train_edges"] / max(size["edges"], 1)
        notes.append(
            f"{config.sparsify}: {size['train_edges']:,} of {size['edges']:,} edges kept ({share:.1f} %), "
            f"in {task.sparsify_seconds:.2g} s"
        )
    if config.sampler is not None and experiment.active:
        notes.append(f"{config.sampler}: {counted(len(experiment.active[0].batches), 'batch')} an epoch")
    return notes
