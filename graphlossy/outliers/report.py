"""``report.html``: the tables, whether methods differ, how they scale; one page that loads nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from graphlossy.core.budget import format_bytes
from graphlossy.outliers._chart import Curve, critical_diagram, legend, log_log
from graphlossy.outliers.compare import comparison, render_reasons, told_options, told_settings
from graphlossy.outliers.ranks import Ranking, rank
from graphlossy.outliers.runner.errors import BenchmarkError
from graphlossy.outliers.table import METRICS, Table, best_rows, cell_text, make_table

if TYPE_CHECKING:
    from graphlossy.outliers.runner.benchmark import Results

__all__ = ["curves", "exponent", "render_report"]


def render_report(results: Results) -> str:
    """The page as text.

    Args:
        results: of ``benchmark``, or read from a folder.

    Raises:
        BenchmarkError: there are no trials yet.
    """
    tables = {metric: make_table(results, metric) for metric in METRICS}
    title = f"node outliers on {_counted(len(tables['auc'].datasets), 'graph')}: " + ", ".join(tables["auc"].datasets)
    parts = {
        "title": escape(title),
        "intro": escape(_intro(results)),
        "tables": "".join(_section(table, open=metric == "auc") for metric, table in tables.items() if _has_any(table)),
        "ranks": _ranks(rank(tables["auc"])),
        "scaling": _scaling(results),
        "paper": _paper(results),
        "failures": _failures(tables["auc"]),
        "data": _data(results),
        "settings": _settings(results),
    }
    page = files("graphlossy.outliers").joinpath("templates/report.html").read_text(encoding="utf-8")
    return Template(page).substitute(parts)


def curves(results: Results, metric: str) -> list[Curve]:
    """Median of a metric over the trials that are done against the nodes of the graph, a curve for every method.

    Args:
        results: of a run.
        metric: one of ``METRICS``, a positive quantity such as ``"seconds"``.
    """
    found = []
    for colour, row in enumerate(make_table(results, metric).rows):
        by_size: dict[int, list[float]] = {}
        for record in results.records:
            value = record.get(metric)
            fact = results.datasets.get(record["dataset"])
            mine = (record["method"], record["engine"]) == (row.method, row.engine)
            if mine and record["status"] == "done" and value and fact:
                by_size.setdefault(fact["nodes"], []).append(value)
        points = [(float(nodes), sorted(values)[len(values) // 2]) for nodes, values in sorted(by_size.items())]
        if points:
            found.append(Curve(row.title, points, colour))
    return found


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """Slope of the line through the logarithms, by least squares: about 1 of what is linear; None of fewer than three.

    Example:
        >>> round(exponent([(1e3, 2.0), (1e4, 20.0), (1e5, 200.0)]), 3)
        1.0
    """
    if len({x for x, _ in points}) < 3:
        return None
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    mx, my = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    top = math.fsum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True))
    return top / math.fsum((x - mx) ** 2 for x in xs)


def _section(table: Table, open: bool) -> str:
    best, lines = best_rows(table), []
    for i, row in enumerate(table.rows):
        kind = ("plain first" if i and not table.rows[i - 1].leak else "plain") if row.leak else ""
        cells = [f"<td>{escape(row.title)}</td>"]
        for column, cell in enumerate(row.cells):
            mark = ' class="best"' if i in best[column] else ""
            cells.append(f"<td{mark}>{escape(cell_text(cell, table.metric))}</td>")
        lines.append(f'<tr class="{kind}">{"".join(cells)}</tr>')
    head = "".join(f"<th>{escape(name)}</th>" for name in ["", *table.datasets])
    body = f'<div class="scroll"><table class="figures"><tr>{head}</tr>{"".join(lines)}</table></div>'
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes if not note.startswith("*"))
    return f"<details{' open' * open}><summary>{escape(table.title)}</summary>{body}{notes}</details>"


def _ranks(ranking: Ranking | None) -> str:
    if ranking is None:
        return '<p class="note">Two methods or more on the same data sets are needed.</p>'
    datasets = ", ".join(ranking.datasets)
    said = [
        f"Mean ranks by ROC-AUC on {_counted(len(ranking.datasets), 'data set')} ({datasets}); Friedman's test that "
        f"all are alike: p = {ranking.p:.3g}.",
        "Methods joined by a bar do not differ at the 5 % level (Nemenyi's test)."
        if ranking.difference is not None
        else "There are more methods than the test has a table for.",
    ]
    if len(ranking.datasets) < 5:
        said.append("With so few data sets the test can tell very little apart.")
    if ranking.left_out:
        said.append(f"Left out, not done on all of these: {', '.join(ranking.left_out)}.")
    return critical_diagram(ranking) + f'<p class="note">{escape(" ".join(said))}</p>'


def _scaling(results: Results) -> str:
    if len({fact["nodes"] for fact in results.datasets.values()}) < 2:
        return '<p class="note">Graphs of at least two sizes are needed.</p>'
    parts = []
    for metric, base, show in (("seconds", 10, "{:g}".format), ("peak_bytes", 16, format_bytes)):
        drawn = curves(results, metric)
        parts.append(legend(drawn) + log_log(drawn, "nodes", METRICS[metric], show, base))
        slopes = [(curve.label, exponent(curve.points)) for curve in drawn]
        told = ", ".join(f"{label} {slope:.2f}" for label, slope in slopes if slope is not None)
        if told:
            parts.append(
                f'<p class="note">Exponents of the number of nodes, by least squares (1: linear): {escape(told)}.</p>'
            )
    parts.append('<p class="note">Medians over the trials that are done; graphs differ in edges and features too.</p>')
    return "".join(parts)


def _paper(results: Results) -> str:
    try:
        rows = comparison(results)
    except BenchmarkError:
        return '<p class="note">None of these cells is in the table of the paper.</p>'
    lines = [["data set", "method", "paper", "ours", "difference", "verdict", "reason"]]
    for r in rows:
        lines.append([r.dataset, r.title, r.paper, r.ours, r.points, r.verdict, r.reason])
    said = [text for text in (told_settings(results), *render_reasons(rows)) if text]
    notes = "".join(f'<p class="note">{escape(text)}</p>' for text in said)
    return f"<details><summary>{len(rows)} cells</summary>{_table(lines)}</details>{notes}"


def _failures(table: Table) -> str:
    notes = [note[2:] for note in table.notes if note.startswith("*")]
    if not notes:
        return '<p class="note">Nothing: every trial is done.</p>'
    return "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"


def _data(results: Results) -> str:
    rows = [["data set", "nodes", "edge_index columns", "features", "outliers", "of which", "source"]]
    for name, fact in results.datasets.items():
        outliers = "no labels" if fact["outliers"] is None else f"{fact['outliers']:,}"
        types = ", ".join(f"{count:,} {kind}" for kind, count in fact["types"].items())
        sizes = [f"{fact[key]:,}" for key in ("nodes", "edges", "features")]
        rows.append([name, *sizes, outliers, types, fact["note"] or ""])
    return _table(rows)


def _settings(results: Results) -> str:
    rows = [["setting", "value"]]
    for name, value in results.settings.items():
        if name == "options":
            value = told_options(value)
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {entry}" for key, entry in value.items())
        rows.append([name, str(value) or "-"])
    return _table(rows)


def _intro(results: Results) -> str:
    records = results.records
    methods = {(r["method"], r["engine"]) for r in records}
    trials = max(r["trial"] for r in records) + 1
    protocol, seed = results.settings["protocol"], results.settings["seed"]
    meaning = {"bond": "hyper-parameters drawn anew in every trial", "fixed": "published defaults"}[protocol]
    return (
        f"{_counted(len(methods), 'method')}, up to {_counted(trials, 'trial')} each, {len(records):,} in all; "
        f"protocol {protocol}: {meaning}; seed {seed}, "
        f"{_counted(results.settings['threads'], 'thread')} a process."
    )


def _has_any(table: Table) -> bool:
    return any(cell is not None and cell.mean is not None for row in table.rows for cell in row.cells)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def _table(rows: Sequence[Sequence[Any]]) -> str:
    parts = []
    for i, row in enumerate(rows):
        tag = "td" if i else "th"
        parts.append("<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in row) + "</tr>")
    return '<div class="scroll"><table>' + "".join(parts) + "</table></div>"
