"""The rows of the tables of ``graphlossy llm bench-kv``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from graphlossy.core.budget import format_bytes

__all__ = ["CONTROL", "PARTS", "Table", "summarize", "tables"]

CONTROL = "full, line cut out"  # stands where the name of a cache does
# The parts, and what tells a cell of each from every other.
PARTS = {
    "quality": ("part", "cache", "text"),
    "needle": ("part", "cache", "text"),
    "speed": ("part", "cache", "length", "batch_size"),
}
Cell = dict[str, Any]


class Table(NamedTuple):
    """A table as text: its title, the names of its columns, and its rows."""

    title: str
    head: list[str]
    rows: list[list[str]]


def summarize(cells: Sequence[Cell]) -> dict[str, list[dict[str, Any]]]:
    """For each part its rows: quality and needle over all texts, a row for every cache; speed, one for every cell.

    KL is in nats a word; bytes are those at 2 bytes a number, means over texts; what a row of quality is compared with
    is the full cache on the same texts.

    Raises:
        KeyError, TypeError, ValueError: a cell is none.
    """
    parts: dict[str, list[Cell]] = {part: [] for part in PARTS}
    for cell in cells:
        parts[cell["part"]].append(cell)
    speed = [{name: value for name, value in cell.items() if name != "part"} for cell in parts["speed"]]
    speed.sort(key=lambda row: (row["length"], row["batch_size"]))  # and caches in the order of the run
    return {"quality": _quality(parts["quality"]), "needle": _needle(parts["needle"]), "speed": speed}


def _by_cache(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell["cache"], []).append(cell)
    return found


def _quality(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    plain = {cell["text"]: cell for cell in cells if cell["cache"] == "plain"}
    rows = []
    for cache, found in _by_cache(cells).items():
        words = sum(cell["tokens"] for cell in found)
        nll, full = sum(cell["nll"] for cell in found), sum(plain[cell["text"]]["nll"] for cell in found)
        held, whole = sum(cell["bytes_16"] for cell in found), sum(cell["plain_16"] for cell in found)
        rows.append(
            {
                "cache": cache,
                "texts": len(found),
                "words": words,
                "perplexity": math.exp(nll / words),
                "perplexity_change": math.exp((nll - full) / words) - 1,
                "kl": sum(cell["kl"] for cell in found) / words,
                "agreement": sum(cell["agreement"] for cell in found) / words,
                "bytes_16": held / len(found),
                "times_less": whole / held,
            }
        )
    return rows


def _needle(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    rows = []
    for cache, found in _by_cache(cells).items():
        answers = [answer for cell in found for answer in cell["answers"]]
        depths = sorted({answer["depth"] for answer in answers})
        by_depth = {str(d): _right([answer for answer in answers if answer["depth"] == d]) for d in depths}
        rows.append(
            {
                "cache": cache,
                "lines": len(answers),
                "right": _right(answers),
                "whole": sum(answer["right"] == answer["tokens"] for answer in answers) / max(1, len(answers)),
                "right_by_depth": by_depth,
            }
        )
    return rows


def _right(answers: Sequence[Cell]) -> float:
    return sum(answer["right"] for answer in answers) / max(1, sum(answer["tokens"] for answer in answers))


def tables(summary: dict[str, list[dict[str, Any]]]) -> list[Table]:
    """The tables of the parts that were measured."""
    makers = (("quality", _quality_table), ("needle", _needle_table), ("speed", _speed_table))
    return [make(summary[part]) for part, make in makers if summary[part]]


def _quality_table(rows: Sequence[dict[str, Any]]) -> Table:
    head = ["cache", "texts", "words", "perplexity", "change", "KL to full", "same top word", "bytes a text", "fewer"]
    cells = [
        [row["cache"], str(row["texts"]), f"{row['words']:,}", f"{row['perplexity']:.3f}",
         f"{100 * row['perplexity_change']:+.2f} %", f"{row['kl']:.5f}", f"{100 * row['agreement']:.1f} %",
         format_bytes(row["bytes_16"]), f"{row['times_less']:.2f}x"]
        for row in rows
    ]  # fmt: skip
    return Table("Quality against the full cache; bytes at 2 a number", head, cells)


def _needle_table(rows: Sequence[dict[str, Any]]) -> Table:
    depths = sorted({depth for row in rows for depth in row["right_by_depth"]}, key=float)
    head = ["cache", "lines", "tokens right", "whole lines", *(f"{float(depth):.0%} deep" for depth in depths)]
    cells = [
        [row["cache"], str(row["lines"]), _percent(row["right"]), _percent(row["whole"]),
         *(_percent(row["right_by_depth"].get(depth)) for depth in depths)]
        for row in rows
    ]  # fmt: skip
    return Table("Lines of the text asked for again: tokens predicted right", head, cells)


def _speed_table(rows: Sequence[dict[str, Any]]) -> Table:
    head = ["prompt", "texts", "cache", "prefill", "tokens/s", "peak", "above model", "cache bytes"]
    cells = []
    for row in rows:
        place = [f"{row['length']:,}", str(row["batch_size"]), row["cache"]]
        if row["status"] != "done":
            cells.append([*place, row["status"], *["-"] * 4])
            continue
        sizes = [row[name] for name in ("peak_bytes", "beyond_bytes", "cache_bytes")]
        told = ["-" if size is None else format_bytes(size) for size in sizes]
        cells.append([*place, f"{row['prefill_seconds']:.2f} s", f"{row['tokens_per_second']:.1f}", *told])
    return Table("Speed and memory", head, cells)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
