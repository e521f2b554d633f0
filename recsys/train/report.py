"""``report.html``: one page with the table, the trade-off curve and the sizes; it loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from graphlossy.core.budget import format_bytes
from graphlossy.recsys.train._chart import Series, chart, legend
from graphlossy.recsys.train._summary import HEAD, notes, table_rows

__all__ = ["render_report", "size_series", "tradeoff_series"]

Row = dict[str, Any]
LEVELS = ("full", "bias")


def render_report(study: Row) -> str:
    """The page as text.

    Args:
        study: what `Study.summary` gives.
    """
    rows, settings, data = study["rows"], study["settings"], study["data"]
    tradeoff, sizes = tradeoff_series(rows), size_series(study["cells"])
    title = f"{data['name']}, {settings['model']}: what smaller embedding tables cost"
    parts = {
        "title": escape(title),
        "intro": escape(_intro(study)),
        "notes": "".join(f"<p><strong>{escape(note)}</strong></p>" for note in notes(rows, data["note"])),
        "table": _table([list(HEAD), *table_rows(rows)]),
        "tradeoff": legend(tradeoff) + chart(tradeoff, "bytes of all tables", "test AUC", format_bytes),
        "sizes": _sizes(sizes),
        "fields": _table(
            [["field", "kind", "tokens"], *([f["name"], f["kind"], f"{f['num_tokens']:,}"] for f in data["fields"])]
        ),
        "settings": _table([["setting", "value"], *([name, _show(value)] for name, value in _flat(settings))]),
        "versions": _table([["", "version"], *([name, value] for name, value in study["versions"].items())]),
    }
    page = files("graphlossy.recsys.train").joinpath("templates/report.html").read_text(encoding="utf-8")
    return Template(page).substitute(parts)


def tradeoff_series(rows: Sequence[Row]) -> list[Series]:
    """AUC against bytes, a curve for every method; full and bias are levels too."""
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        if row["status"] == "done":
            by_label.setdefault(row["label"], []).append(row)
    return [
        Series(
            label,
            [(row["bytes"], row["auc"], row["auc_std"] or 0.0) for row in found],
            colour,
            level=label in LEVELS,
        )
        for colour, (label, found) in enumerate(by_label.items())
    ]


def size_series(cells: Sequence[Row]) -> list[Series]:
    """Mean width of a token against how often it was seen, of the first seed of every method that gives sizes."""
    found: dict[str, Series] = {}
    for cell in cells:
        label = f"{cell['label']} at {cell['budget_label']}"
        bins = (cell.get("sizes") or {}).get("by_count")
        if bins and cell["budget_label"] is not None and label not in found:
            points = [(max(entry["count"], 0.5), entry["mean_size"], 0.0) for entry in bins]
            found[label] = Series(label, points, len(found))
    return list(found.values())


def _sizes(series: list[Series]) -> str:
    if not series:
        return '<p class="note">No method of this study gives tokens sizes of their own.</p>'
    text = legend(series) + chart(
        series, "times a token was seen in training (0 is drawn at 0.5)", "mean width", base=4
    )
    return f'{text}<p class="note">Tokens of all fields together, first-order weights left out, by powers of two.</p>'


def _intro(study: Row) -> str:
    data, settings, seeds = study["data"], study["settings"], study["seeds"]
    rows = ", ".join(
        f"{data[name]:,} {word}" for name, word in (("train", "training"), ("valid", "validation"), ("test", "test"))
    )
    tokens = sum(field["num_tokens"] for field in data["fields"])
    return (
        f"{rows} rows; {len(data['fields'])} fields with {tokens:,} tokens; {settings['model']}, embeddings of width "
        f"{settings['config']['embedding_dim']}, first-order weights among the tables; full tables take "
        f"{format_bytes(study['full_bytes'])}. {len(seeds)} seed{'' if len(seeds) == 1 else 's'}, at most "
        f"{settings['config']['epochs']} epochs on {settings['config']['device']}."
    )


def _flat(settings: Row) -> list[tuple[str, Any]]:
    found = []
    for name, value in settings.items():
        found += list(value.items()) if isinstance(value, dict) else [(name, value)]
    return found


def _table(rows: list[list[str]]) -> str:
    parts = []
    for i, row in enumerate(rows):
        tag = "td" if i else "th"
        parts.append("<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in row) + "</tr>")
    return '<div class="scroll"><table>' + "".join(parts) + "</table></div>"


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_show(entry)}" for name, entry in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    return "-" if value is None else str(value)
