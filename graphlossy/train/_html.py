"""Pieces of the pages that runs write."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

__all__ = ["legend", "show", "table"]


def legend(labels: Sequence[str]) -> str:
    """Names with the colours of their lines."""
    items = "".join(
        f'<li><i style="background:var(--c{i % 6})"></i>{escape(name)}</li>' for i, name in enumerate(labels)
    )
    return f'<ul class="legend">{items}</ul>'


def table(rows: Sequence[Sequence[str]], head: bool = False) -> str:
    """A table that scrolls; with ``head`` the first row is its head."""
    parts = []
    for i, row in enumerate(rows):
        tag = "th" if head and i == 0 else "td"
        parts.append("<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in row) + "</tr>")
    return '<div class="scroll"><table>' + "".join(parts) + "</table></div>"


def show(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return "-" if value is None else str(value)
