"""``report.html`` of ``graphlossy llm bench-kv``: memory against quality, lines asked for again, speed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from graphlossy.cli._llm_bench_summary import Table, tables
from graphlossy.cli._llm_report import page
from graphlossy.core._files import write_text
from graphlossy.core.budget import format_bytes
from graphlossy.llm.finetune import FinetuneError
from graphlossy.outliers._chart import Curve, legend, log_log
from graphlossy.train._html import legend as swatches
from graphlossy.train._html import show, table
from graphlossy.train._svg import Bar, bar_chart

__all__ = ["render_report", "write_report"]

LEAST = 1e-6  # nats; where a smaller KL is drawn
NOTES = {
    "quality": "The prompt is read at once, the words after it eight at a time; each is predicted from a cache that "
    "holds all before its pass. KL is that of the full cache's next-word distribution to this one's, in nats a word. "
    "Bytes are those at the end of a text if full precision took 2 bytes a number.",
    "needle": "Behind the text come the token before one of its lines and the line's first eight tokens again, which "
    "occur nowhere else in it; the next twelve are predicted from the true ones before them. The row of the line cut "
    "out says what the model knows without it.",
    "speed": "Each row is a process of its own, which reads random tokens and then writes. The peak is that of the "
    "resident set, on CUDA of the bytes that torch's allocator gave out; above the model is what came on top once it "
    "had been loaded and used.",
}


def write_report(content: dict[str, Any], path: Path) -> Path:
    """Writes the page to ``path``, whole or not at all.

    Raises:
        FinetuneError: it cannot be written.
    """
    try:
        write_text(path, render_report(content))
    except OSError as error:
        raise FinetuneError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def render_report(content: dict[str, Any]) -> str:
    """The page as text.

    Args:
        content: of ``results.json``.
    """
    summary, settings = content["summary"], content["settings"]
    title = f"{Path(settings['model']).name}: caches of keys and values"
    drawn = {"quality": _curve, "needle": _bars, "speed": _speed}
    measured = [part for part in drawn if summary[part]]
    sections = [f"<h1>{escape(title)}</h1>"]
    for part, rows in zip(measured, tables(summary), strict=True):
        sections += [_heading(rows), drawn[part](summary[part]), f'<p class="note">{escape(NOTES[part])}</p>']
    about = [[key, show(value)] for key, value in {**settings, **content["versions"]}.items()]
    return page(title, [*sections, "<h2>Settings and versions</h2>", table(about)])


def _heading(rows: Table) -> str:
    return f"<h2>{escape(rows.title)}</h2>" + table([rows.head, *rows.rows], head=True)


def _curve(rows: Sequence[dict[str, Any]]) -> str:
    points = [
        Curve(row["cache"], [(row["times_less"], max(row["kl"], LEAST))], number)
        for number, row in enumerate(row for row in rows if row["cache"] != "plain")
    ]
    return log_log(
        points, "times fewer bytes than the full cache", "KL, nats a word", x_text="{:.3g}".format, x_base=2,
        labelled=True,
    )  # fmt: skip


def _bars(rows: Sequence[dict[str, Any]]) -> str:
    depths = sorted({depth for row in rows for depth in row["right_by_depth"]}, key=float)
    bars = [
        Bar(row["cache"], [row["right_by_depth"].get(depth) for depth in depths],
            [f"{100 * row['right_by_depth'].get(depth, 0):.0f} %" for depth in depths])
        for row in rows
    ]  # fmt: skip
    return swatches([f"{float(depth):.0%} deep" for depth in depths]) + bar_chart(bars, name="tokens predicted right")


def _speed(rows: Sequence[dict[str, Any]]) -> str:
    done = [row for row in rows if row["status"] == "done"]
    names = list(dict.fromkeys(row["cache"] for row in done))
    parts = []
    for batch in sorted({row["batch_size"] for row in done}):
        several = f"{batch} text{'' if batch == 1 else 's'}"
        for key, said, text in (
            ("tokens_per_second", "tokens/s", "{:g}".format),
            ("beyond_bytes", "memory above the model", format_bytes),
        ):
            curves = [
                Curve(name, [(row["length"], row[key]) for row in done
                             if row["cache"] == name and row["batch_size"] == batch and row[key]], number)
                for number, name in enumerate(names)
            ]  # fmt: skip
            if any(curve.points for curve in curves):
                parts.append(
                    legend(curves) + log_log(curves, f"tokens of the prompt, {several}", said, text, 2, x_base=2)
                )
    return "".join(parts)
