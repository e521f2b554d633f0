"""Tables of a run: mean±std (max) of each method on each data set, with the rows that need no model in each of them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphlossy.core.budget import format_bytes
from graphlossy.outliers._labels import left_out
from graphlossy.outliers._paper import PAPER
from graphlossy.outliers.metrics import mean_and_spread
from graphlossy.outliers.runner.errors import BenchmarkError
from graphlossy.outliers.runner.methods import LEAK_ROWS, registry

if TYPE_CHECKING:
    from graphlossy.outliers.runner.benchmark import Results

__all__ = ["FORMATS", "METRICS", "Cell", "Row", "Table", "make_table", "render"]

FORMATS = ("text", "markdown", "latex", "csv")
TYPES = ("contextual", "structural")
_JUDGED = ("auc", "ap", "recall")
_NAMES = {"auc": "ROC-AUC, %", "ap": "average precision, %", "recall": "recall@k, %"}
# What can be asked for, and what it is called.
METRICS = {
    **_NAMES,
    **{f"{metric}:{kind}": f"{name.replace(', %', '')} of {kind} outliers, %" for metric, name in _NAMES.items()
       for kind in TYPES},
    "seconds": "seconds of a trial",
    "epoch_seconds": "seconds of an epoch",
    "peak_bytes": "peak memory of a trial",
    "saved_bytes": "bytes saved for the backward pass",
    "plain_bytes": "bytes saved without compression",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A method on a data set.

    Attributes:
        mean, std, best: of the trials that are done, in the metric's own unit (shares, seconds, bytes); std with n - 1,
            None of one trial; None where no trial is done.
        done: number of trials that have the figure.
        others: number of trials of each other status.
        reasons: why they have it, each reason once.
        constant: number of done trials whose scores are all equal: the method has not told any node from another.
    """

    mean: float | None
    std: float | None
    best: float | None
    done: int
    others: dict[str, int]
    reasons: tuple[str, ...] = ()
    constant: int = 0


@dataclass(frozen=True)
class Row:
    """A method: printed name, key, engine, whether it needs no model, and a cell for each data set (None: not run)."""

    title: str
    method: str
    engine: str
    leak: bool
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Table:
    """One metric of all methods on all data sets; rows that need no model come last."""

    metric: str
    title: str
    datasets: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def make_table(results: Results, metric: str = "auc") -> Table:
    """Gathers the trials of a run.

    Args:
        results: of ``benchmark``, or read from a folder.
        metric: one of ``METRICS``.

    Raises:
        BenchmarkError: the metric is unknown, or there are no trials yet.
    """
    if metric not in METRICS:
        raise BenchmarkError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}")
    if not results.records:
        raise BenchmarkError(f"{results.folder or 'the run'} has no trial yet")
    datasets = tuple(dict.fromkeys(record["dataset"] for record in results.records))
    engines = {record["engine"] for record in results.records if record["method"] not in LEAK_ROWS}
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for record in results.records:
        by_dataset = groups.setdefault((record["method"], record["engine"]), {})
        by_dataset.setdefault(record["dataset"], []).append(record)
    rows = []
    for (method, engine), found in sorted(groups.items(), key=_place):
        leak = method in LEAK_ROWS
        title = results.titles.get(method, method)
        if len(engines) > 1 and not leak:
            title += f" [{engine}]"
        cells = tuple(_cell(found[name], metric) if name in found else None for name in datasets)
        rows.append(Row(title, method, engine, leak, cells))
    notes = _notes(rows, datasets, metric, results.datasets)
    return Table(metric, METRICS[metric], datasets, tuple(rows), tuple(notes))


def render(table: Table, format: str = "text") -> str:
    """The table as text.

    Args:
        table: what `make_table` gives.
        format: ``"text"``, ``"markdown"``, ``"latex"`` (needs the package booktabs) or ``"csv"`` (a line for each cell,
            figures unrounded).

    Raises:
        BenchmarkError: the format is unknown.
    """
    writers: dict[str, Callable[[Table], str]] = {
        "text": _text, "markdown": _markdown, "latex": _latex, "csv": _csv
    }  # fmt: skip
    if format not in writers:
        raise BenchmarkError(f"format must be one of {', '.join(FORMATS)}; got {format!r}")
    return writers[format](table)


def cell_text(cell: Cell | None, metric: str) -> str:
    """How a cell is printed: ``82.7±5.6 (84.3)``, a figure alone of one trial, or the status of what is not done.

    Example:
        >>> cell_text(Cell(0.827, 0.056, 0.843, 20, {}), "auc"), cell_text(Cell(None, None, None, 0, {"OOM": 3}), "auc")
        ('82.7±5.6 (84.3)', 'OOM')
    """
    if cell is None:
        return ""
    if cell.mean is None or cell.best is None:
        return max(cell.others, key=lambda status: cell.others[status], default="-")
    show = _shower(metric)
    text = show(cell.mean)
    if cell.std is not None:
        text += f"±{show(cell.std)} ({show(cell.best)})"
    return text + "*" * bool(cell.others)


def best_rows(table: Table) -> list[set[int]]:
    """For each data set, numbers of the rows with the best mean as printed, the rows without a model left out."""
    show, sign = _shower(table.metric), 1 if is_share(table.metric) else -1
    found = []
    for column in range(len(table.datasets)):
        means: dict[int, float] = {}
        for i, row in enumerate(table.rows):
            cell = row.cells[column]
            if not row.leak and cell is not None and cell.mean is not None:
                means[i] = cell.mean
        top = max((sign * mean for mean in means.values()), default=0.0)
        found.append({i for i, mean in means.items() if show(mean) == show(sign * top)})
    return found


def is_share(metric: str) -> bool:
    """Whether a metric is a share, printed in percent, and more of it is better."""
    return metric.partition(":")[0] in _JUDGED


def value_of(record: dict[str, Any], metric: str) -> float | None:
    """The figure of a record; None where it has none."""
    name, _, kind = metric.partition(":")
    return (record["by_type"].get(kind, {}) if kind else record).get(name)


def _cell(records: Sequence[dict[str, Any]], metric: str) -> Cell:
    done = [record for record in records if record["status"] == "done"]
    values = [value for value in (value_of(record, metric) for record in done) if value is not None]
    others = Counter(record["status"] for record in records if record["status"] != "done")
    reasons = tuple(dict.fromkeys(str(r["reason"]) for r in records if r["status"] != "done"))
    if not values:
        return Cell(None, None, None, 0, dict(others), reasons)
    mean, std = mean_and_spread(values)
    constant = sum(record.get("distinct_scores") == 1 for record in done)
    return Cell(mean, std, max(values), len(values), dict(others), reasons, constant)


def _notes(
    rows: Sequence[Row], datasets: Sequence[str], metric: str, facts: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    notes = []
    if is_share(metric):
        for column, name in enumerate(datasets):
            notes += _leak_note(rows, column, name, metric)
            if name in facts and facts[name]["outliers"] is None:
                notes.append(
                    f"{name} has no labels{left_out(facts[name]['note'])}, so there are no figures; the scores: "
                    "--save-scores, or the command score"
                )
        if metric == "auc":
            notes += _inverted_notes(rows, datasets)
        notes += [
            f"{row.title} on {name}: in {cell.constant} of {cell.done} trials every node has the same score"
            for row in rows
            for name, cell in zip(datasets, row.cells, strict=True)
            if cell is not None and cell.constant
        ]
    for row in rows:
        for name, cell in zip(datasets, row.cells, strict=True):
            if cell is not None and cell.others:
                counts = ", ".join(f"{count} {status}" for status, count in cell.others.items())
                more = f" (and {len(cell.reasons) - 1} other reasons)" if len(cell.reasons) > 1 else ""
                notes.append(f"* {row.title} on {name}: {cell.done} done, {counts}: {cell.reasons[0]}{more}")
    return notes


def _inverted_notes(rows: Sequence[Row], datasets: Sequence[str]) -> list[str]:
    """Isolation Forest on the paper's data sets, where the paper has the AUC of scores that are high for inliers."""
    found = []
    for row in rows:
        for name, cell in zip(datasets, row.cells, strict=True):
            paper = PAPER.get(("if", name)) if row.method == "if" else None
            if paper is not None and paper.mean is not None and cell is not None and cell.mean is not None:
                found.append(
                    f"{row.title} on {name}: the paper's {paper.mean} is of the inverted score; compare it with "
                    f"{100 * (1 - cell.mean):.1f}, 100 minus ours"
                )
    return found


def _leak_note(rows: Sequence[Row], column: int, name: str, metric: str) -> list[str]:
    """How many methods do better than what needs no model."""
    plain: list[tuple[float, str]] = []
    models: list[float] = []
    for row in rows:
        cell = row.cells[column]
        if row.method == "random":
            continue  # with few outliers it is often above something, which says nothing
        if cell is not None and cell.mean is not None and row.leak:
            plain.append((cell.mean, row.title))
        elif cell is not None and cell.mean is not None:
            models.append(cell.mean)
    if not plain or not models:
        return []
    top, title = max(plain)
    above = sum(mean > top for mean in models)
    show = _shower(metric)
    return [f"{name}: {above} of {len(models)} methods are above {title} ({show(top)}), which needs no model"]


def _shower(metric: str) -> Callable[[float], str]:
    if is_share(metric):
        return lambda value: f"{100 * value:.1f}"
    return format_bytes if metric.endswith("bytes") else lambda value: f"{value:.3g}"


def _place(group: tuple[tuple[str, str], Any]) -> tuple[bool, int, str, str]:
    method, engine = group[0]
    order = registry()
    return method in LEAK_ROWS, order.index(method) if method in order else len(order), method, engine


def _lines(table: Table) -> list[list[str]]:
    return [[row.title, *(cell_text(cell, table.metric) for cell in row.cells)] for row in table.rows]


def _text(table: Table) -> str:
    rows = [["", *table.datasets], *_lines(table)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(text.ljust(width) if i == 0 else text.rjust(width) for i, (text, width) in
                  enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    models = sum(not row.leak for row in table.rows)
    parts = [f"{table.title}: mean±std (max) over trials", lines[0], rule, *lines[1 : models + 1]]
    if models < len(table.rows):
        parts += [rule, *lines[models + 1 :]]
    return "\n".join([*parts, "", *table.notes]).rstrip() + "\n"


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    best = best_rows(table)
    rows = []
    for i, cells in enumerate(_lines(table)):
        marked = [f"**{text}**" if i in best[column] else text for column, text in enumerate(cells[1:])]
        rows.append(line([f"*{cells[0]}*" if table.rows[i].leak else cells[0], *marked]))
    head = [line([table.title, *table.datasets]), line(["---", *("---:" for _ in table.datasets)])]
    notes = [f"- {note.replace('*', chr(92) + '*', 1)}" if note[0] == "*" else f"- {note}" for note in table.notes]
    said = "Mean±std (max) over trials; best mean in bold; methods in italics need no model."
    return "\n".join([*head, *rows, "", said, *([""] if notes else []), *notes]) + "\n"


def _latex(table: Table) -> str:
    best = best_rows(table)
    lines = [
        f"% {table.title}: mean±std (max) over trials",
        f"\\begin{{tabular}}{{l{'r' * len(table.datasets)}}}",
        "\\toprule",
        " & ".join(["", *map(_escaped, table.datasets)]) + r" \\",
        "\\midrule",
    ]
    for i, cells in enumerate(_lines(table)):
        if table.rows[i].leak and i and not table.rows[i - 1].leak:
            lines.append("\\midrule")
        marked = [
            f"\\textbf{{{_escaped(text)}}}" if i in best[column] else _escaped(text)
            for column, text in enumerate(cells[1:])
        ]
        lines.append(" & ".join([_escaped(cells[0]), *marked]) + r" \\")
    notes = [f"% {note}" for note in table.notes]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", *notes]) + "\n"


def _csv(table: Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["dataset", "method", "engine", "needs_model", "metric", "trials", "mean", "std", "max", "not_done"]
    )
    for row in table.rows:
        for name, cell in zip(table.datasets, row.cells, strict=True):
            if cell is not None:
                figures = ["" if v is None else repr(v) for v in (cell.mean, cell.std, cell.best)]
                others = " ".join(f"{status}:{count}" for status, count in cell.others.items())
                writer.writerow([name, row.method, row.engine, not row.leak, table.metric, cell.done, *figures, others])
    return out.getvalue()


def _escaped(text: str) -> str:
    return text.translate(
        {**{ord(sign): f"\\{sign}" for sign in "&%$#_{}"}, ord("\\"): r"\textbackslash{}", ord("±"): r"$\pm$"}
    )
