"""Numbers as people read them, the same in the terminal and in the report."""

from __future__ import annotations

from typing import Any

from graphlossy.core.budget import format_bytes

__all__ = ["METRIC_NAMES", "comparison_notes", "comparison_rows", "counted", "format_size"]

METRIC_NAMES = {"accuracy": "test accuracy, %", "rocauc": "test ROC-AUC, %"}


def format_size(size: float | None) -> str:
    """Bytes with a binary unit; a dash for what was not measured.

    Example:
        >>> format_size(3 * 2**20 + 2**19), format_size(900), format_size(None)
        ('3.5 MiB', '900 B', '-')
    """
    return "-" if size is None else format_bytes(size)


def comparison_rows(summary: dict[str, Any]) -> list[list[str]]:
    """The closing table: a head, then a row per figure and a column per scheme, with the ratio to the baseline.

    Example:
        >>> scheme = dict(run="2-bit", status="done", seeds=3, test_mean=0.7, test_std=0.01, saved_bytes=1024,
        ...               peak_bytes=None, seconds_per_epoch=0.5, ratio=dict(test_mean=0.99, saved_bytes=0.1,
        ...               peak_bytes=None, seconds_per_epoch=1.1))
        >>> comparison_rows({"metric": "accuracy", "schemes": [scheme]})[2]
        ['saved for backward', '1.0 KiB (0.100x)']
    """
    schemes = summary["schemes"]
    rows = [["", *(scheme["run"] for scheme in schemes)]]
    rows.append([METRIC_NAMES[summary["metric"]], *(_metric(scheme) for scheme in schemes)])
    reference = summary.get("reference")
    if reference is not None:
        figure = f"{100 * reference['test']:.2f} ± {100 * reference['std']:.2f}"
        cell = figure if reference["comparable"] else f"({figure}: not comparable)"
        rows.append(["OGB leaderboard, %", *(cell for _ in schemes)])
    for name, key in (("saved for backward", "saved_bytes"), ("peak during the step", "peak_bytes")):
        rows.append([name, *(format_size(scheme[key]) + _ratio(scheme, key, 3) for scheme in schemes)])
    rows.append(["seconds per epoch", *(_seconds(scheme) for scheme in schemes)])
    return rows


def comparison_notes(summary: dict[str, Any]) -> list[str]:
    """What must be read with the table: what the leaderboard's figure is, and that data are generated.

    Example:
        >>> reference = dict(dataset="ogbn-arxiv", model="gcn", method="full batch", test=0.7174, std=0.0029,
        ...                  comparable=False, remark="synthetic stand-in: not comparable")
        >>> data = dict(name="synth-arxiv", synthetic=True, reference="ogbn-arxiv")
        >>> for note in comparison_notes(dict(data=data, reference=reference)):
        ...     print(note)
        synth-arxiv is a synthetic stand-in for ogbn-arxiv: its scores say nothing of the scores there.
        OGB leaderboard: ogbn-arxiv, gcn, full batch, 71.74 ± 0.29 (synthetic stand-in: not comparable).
    """
    data, reference, notes = summary["data"], summary.get("reference"), []
    if data.get("synthetic"):
        of = f" stand-in for {data['reference']}" if data.get("reference") else " graph"
        there = "there" if data.get("reference") else "on real data"
        notes.append(f"{data['name']} is a synthetic{of}: its scores say nothing of the scores {there}.")
    if reference is not None:
        figure = f"{100 * reference['test']:.2f} ± {100 * reference['std']:.2f}"
        remark = f" ({reference['remark']})" if reference["remark"] else ""
        what = f"{reference['dataset']}, {reference['model']}, {reference['method']}"
        notes.append(f"OGB leaderboard: {what}, {figure}{remark}.")
    return notes


def _metric(scheme: dict[str, Any]) -> str:
    if scheme["test_mean"] is None:
        return str(scheme["status"])
    spread = "" if scheme["test_std"] is None else f" ± {100 * scheme['test_std']:.2f}"
    return f"{100 * scheme['test_mean']:.2f}{spread}{_ratio(scheme, 'test_mean', 3)}"


def _seconds(scheme: dict[str, Any]) -> str:
    value = scheme["seconds_per_epoch"]
    return "-" if value is None else f"{value:.3g}{_ratio(scheme, 'seconds_per_epoch', 2)}"


def _ratio(scheme: dict[str, Any], key: str, digits: int) -> str:
    ratio = scheme["ratio"]
    if ratio is None or ratio[key] is None or scheme["run"] == "baseline":
        return ""
    return f" ({ratio[key]:.{digits}f}x)"


def counted(number: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``; a noun in -ch takes -es.

    Example:
        >>> counted(1, "batch"), counted(1200, "batch"), counted(2, "seed")
        ('1 batch', '1,200 batches', '2 seeds')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("ch") else "s")
