"""``report.html`` of fine-tuning runs: curves, bytes by operation, settings; it loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from graphlossy.core._files import write_text
from graphlossy.core.budget import format_bytes
from graphlossy.llm.finetune import FinetuneError, RunFolder
from graphlossy.train._html import legend, show, table
from graphlossy.train._svg import Bar, Line, bar_chart, line_chart

__all__ = ["FinishedRun", "figures", "page", "read_run", "render_report", "write_report"]


class FinishedRun(NamedTuple):
    """One run that is done.

    Attributes:
        name: of its folder.
        result: contents of ``result.json``.
        lines: of ``metrics.jsonl``.
    """

    name: str
    result: dict[str, Any]
    lines: list[dict[str, Any]]


def read_run(path: Path) -> FinishedRun:
    """The run in a folder.

    Raises:
        FinetuneError: there is none, or it is not done.
    """
    folder = RunFolder(path)
    folder.read_config()
    result = folder.read_result()
    if result is None:
        raise FinetuneError(f"the run in {path} is not done: graphlossy llm finetune --resume {path}")
    return FinishedRun(path.resolve().name, result, folder.read_metrics())


def write_report(runs: Sequence[FinishedRun], path: Path) -> Path:
    """Writes the page to ``path``, whole or not at all."""
    try:
        write_text(path, render_report(runs))
    except OSError as error:
        raise FinetuneError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def render_report(runs: Sequence[FinishedRun]) -> str:
    """The page as text."""
    several = len(runs) > 1
    first = runs[0].result
    title = f"{Path(first['model']).name}: {'fine-tuning runs' if several else runs[0].name}"
    text = (
        f"{first['sequences']:,} sequences of {first['length']} tokens, {first['held_out_sequences']:,} held out; "
        f"{first['parameters']:,} weights. Held-out losses come from exact forward passes. Saved bytes are those of "
        f"the step that keeps most; the peak is that of the {first['peak_measured_as']} beyond what was in use when a "
        "step began, gradients included; seconds are the median of the steps."
    )
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{escape(text)}</p>',
        table([["", *(run.name for run in runs)], *figures([run.result for run in runs])], head=True),
        "<h2>Losses</h2>",
        legend([run.name for run in runs]) if several else "",
        '<div class="charts">',
        line_chart(_curves(runs, "loss"), "step", "training loss"),
        line_chart(_curves(runs, "valid_loss"), "step", "held-out loss"),
        line_chart(_curves(runs, "lr"), "step", "learning rate"),
        line_chart(_curves(runs, "grad_norm"), "step", "norm of the gradient"),
        "</div>",
        *(_operations(run) for run in runs),
        "<h2>Settings and versions</h2>",
        *(_settings(run) for run in runs),
    ]
    return page(title, sections)


def page(title: str, sections: Sequence[str]) -> str:
    """A page that loads nothing from elsewhere, in the style of the training report."""
    style = files("graphlossy.train").joinpath("templates/report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>graphlossy: {escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def figures(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The rows of the closing table: a name, then a cell for every run."""

    def row(name: str, *keys: str, digits: int = 4) -> list[str] | None:
        found = [[result[key] for key in keys] for result in results]
        if all(value is None for values in found for value in values):
            return None
        cells = [" to ".join("-" if value is None else f"{value:,.{digits}f}" for value in values) for values in found]
        return [name, *cells]

    def sizes(name: str, key: str) -> list[str]:
        return [name, *("-" if result[key] is None else format_bytes(result[key]) for result in results)]

    ratios = [result["plain_bytes"] / result["saved_bytes"] for result in results]
    rows = [
        row("held-out loss", "first_valid_loss", "valid_loss"),
        row("perplexity", "perplexity", digits=2),
        row("held-out accuracy", "valid_accuracy"),
        row("training loss, last tenth", "train_loss"),
        ["steps", *(f"{result['steps']:,}" for result in results)],
        ["trained weights", *(f"{result['trained_parameters']:,}" for result in results)],
        sizes("saved for backward", "saved_bytes"),
        sizes("torch keeps by itself", "plain_bytes"),
        ["ratio", *(f"{ratio:.2f}x" for ratio in ratios)],
        sizes("peak during a step, gradients included", "step_peak_bytes"),
        row("seconds per step", "seconds_per_step", digits=3),
    ]
    return [cells for cells in rows if cells is not None]


def _curves(runs: Sequence[FinishedRun], key: str) -> list[Line]:
    return [
        Line(run.name, [(line["step"], line[key]) for line in run.lines if key in line], colour, strong=True)
        for colour, run in enumerate(runs)
    ]


def _operations(run: FinishedRun) -> str:
    rows = run.result["by_operation"]
    bars = [
        Bar(row["op"], [row["plain_bytes"], row["saved_bytes"]],
            [format_bytes(row["plain_bytes"]), format_bytes(row["saved_bytes"])])
        for row in rows
        if row["plain_bytes"] or row["saved_bytes"]
    ]  # fmt: skip
    head = ["operation", "tensors", "torch by itself", "saved", "gradients"]
    cells = [
        [row["op"], str(row["tensors"]), format_bytes(row["plain_bytes"]), format_bytes(row["saved_bytes"]),
         ", ".join(row["gradients"])]
        for row in rows
    ]  # fmt: skip
    return (
        f"<h2>{escape(run.name)}: bytes by operation, the forward pass that keeps most</h2>"
        + legend(["torch by itself", "saved"])
        + bar_chart(bars)
        + f"<details><summary>as a table</summary>{table([head, *cells], head=True)}</details>"
    )


def _settings(run: FinishedRun) -> str:
    result = run.result
    rows = [
        [key, show(value)] for part in ("about", "settings", "versions") for key, value in (result[part] or {}).items()
    ]
    return f"<details><summary>{escape(run.name)}</summary>{table(rows)}</details>"
