"""From the cells of a study to its table: means over seeds, and the figures as text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from graphlossy.core.budget import format_bytes

__all__ = ["HEAD", "SHORT_HEAD", "notes", "summarize", "table_rows"]

Row = dict[str, Any]
MEANS = (
    "bytes", "ratio", "auc", "logloss", "valid_auc", "search_seconds", "epoch_seconds", "search_epochs",
    "search_peak_bytes", "peak_bytes", "state_bytes", "lookup_ms", "epochs",
)  # fmt: skip
HEAD = (
    "method", "budget", "bytes", "ratio", "AUC", "logloss", "search s", "epoch s", "search / epoch", "search peak",
    "training peak", "tables in training", "lookup ms",
)  # fmt: skip
SHORT_HEAD = tuple(name for name in HEAD if name not in ("search peak", "tables in training"))


def summarize(cells: Sequence[Row]) -> list[Row]:
    """One row for every method and budget, in the order of their first cells.

    A row has ``status`` ``"done"`` or ``"unreachable"``, the ``seeds`` that are in it, and for every figure its mean
    over them and, with ``_std`` behind its name, the standard deviation (None for one seed).

    Example:
        >>> cell = {"label": "pme", "budget_label": "1/8", "status": "done", "seed": 0, "auc": 0.75}
        >>> row, = summarize([cell, {**cell, "seed": 1, "auc": 0.77}])
        >>> row["seeds"], round(row["auc"], 4), round(row["auc_std"], 4)
        ([0, 1], 0.76, 0.0141)
    """
    groups: dict[tuple[str, str | None], list[Row]] = {}
    for cell in cells:
        groups.setdefault((cell["label"], cell["budget_label"]), []).append(cell)
    found = []
    for (label, budget), group in groups.items():
        done = [cell for cell in group if cell["status"] == "done"]
        row: Row = {
            "label": label,
            "budget_label": budget,
            "budget": group[0].get("budget"),
            "status": "done" if done else "unreachable",
            "seeds": [cell["seed"] for cell in done],
            "minimum": max((cell["minimum"] for cell in group if cell.get("minimum") is not None), default=None),
        }
        for name in MEANS:
            values = [cell[name] for cell in done if cell.get(name) is not None]
            row[name] = statistics.fmean(values) if values else None
            row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
        row["size_stability"] = next((cell["size_stability"] for cell in group if cell.get("size_stability")), None)
        found.append(row)
    return found


def table_rows(rows: Sequence[Row], head: Sequence[str] = HEAD) -> list[list[str]]:
    """The rows of `summarize` as text, in the columns ``head``: those of `HEAD` or some of them."""
    return [[cell for name, cell in zip(HEAD, _cells(row), strict=True) if name in head] for row in rows]


def notes(rows: Sequence[Row], data_note: str) -> list[str]:
    """What has to be read with the table."""
    found = [data_note] if data_note else []
    done = [row for row in rows if row["status"] == "done"]
    small = [row for row in done if row["label"] not in ("full", "bias")]
    best = max(small, key=lambda row: row["auc"], default=None)
    full = next((row for row in done if row["label"] == "full"), None)
    bias = next((row for row in done if row["label"] == "bias"), None)
    if full is not None and bias is not None:
        gain = full["auc"] - bias["auc"]
        found.append(f"full is {abs(gain):.4f} AUC {'above' if gain >= 0 else 'BELOW'} biases alone")
    if full is not None and best is not None and best["auc"] > full["auc"]:
        at = best["budget_label"] or "its own size"
        found.append(f"{best['label']} at {at} has a higher AUC than full, by {best['auc'] - full['auc']:.4f}")
    stable = [row for row in done if row.get("size_stability") is not None]
    if stable:
        listed = ", ".join(f"{row['label']} at {row['budget_label']} {row['size_stability']:.2f}" for row in stable)
        found.append(f"rank correlation of sizes between seeds: {listed}")
    if {len(row["seeds"]) for row in done} == {1}:
        found.append("one seed: differences of a few thousandths mean nothing; give --seeds 5")
    return found


def _cells(row: Row) -> list[str]:
    budget = row["budget_label"] or "-"
    if row["status"] != "done":
        least = "-" if row["minimum"] is None else f"least {format_bytes(row['minimum'])}"
        return [row["label"], budget, least, "-", "cannot reach", *["-"] * (len(HEAD) - 5)]
    return [
        row["label"],
        budget,
        format_bytes(row["bytes"]),
        f"{row['ratio']:.1f}x",
        _spread(row, "auc"),
        _spread(row, "logloss"),
        _number(row["search_seconds"], "{:.2f}"),
        _number(row["epoch_seconds"], "{:.2f}"),
        _number(row["search_epochs"], "{:.2f}"),
        _size(row["search_peak_bytes"]),
        _size(row["peak_bytes"]),
        _size(row["state_bytes"]),
        _number(row["lookup_ms"], "{:.3f}"),
    ]


def _spread(row: Row, name: str) -> str:
    spread = row[f"{name}_std"]
    return f"{row[name]:.4f}" + ("" if spread is None else f" ± {spread:.4f}")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _size(value: float | None) -> str:
    return "-" if value is None else format_bytes(value)
