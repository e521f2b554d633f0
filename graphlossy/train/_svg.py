"""Line charts and bar charts as inline SVG text, with nothing but the standard library.

Colours come from CSS variables (``--c0`` ... ``--c5``, ``--soft``, ``--faint``) of the page around the picture, so that
it follows a light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "Line", "bar_chart", "line_chart", "nice_ticks"]

COLOURS = 6
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 36


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        label: shown when the pointer rests on it.
        points: (x, y) pairs, left to right.
        colour: number of a CSS colour variable.
        strong: a thick line, as for a mean; otherwise thin and faint.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    strong: bool = False


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart: a name and one value per series, in the order of the series (None: no bar)."""

    label: str
    values: Sequence[float | None]
    texts: Sequence[str]


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, width: int = 640, height: int = 300) -> str:
    """An ``<svg>`` element with axes, ticks and curves.

    Example:
        >>> chart = line_chart([Line("run", [(1, 0.5), (2, 0.8)])], "epoch", "accuracy")
        >>> chart.startswith("<svg") and "polyline" in chart
        True
    """
    points = [point for line in lines for point in line.points if math.isfinite(point[1])]
    if not points:
        return '<p class="note">nothing to draw</p>'
    x_ticks = nice_ticks(min(x for x, _ in points), max(x for x, _ in points), whole=True)
    y_ticks = nice_ticks(min(y for _, y in points), max(y for _, y in points))
    x0, x1 = min(x_ticks[0], min(x for x, _ in points)), max(x_ticks[-1], max(x for x, _ in points))
    y0, y1 = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0 or 1) * (width - LEFT - RIGHT) + LEFT
        down = (1 - (y - y0) / (y1 - y0 or 1)) * (height - TOP - BOTTOM) + TOP
        return across, down

    parts = [_open(width, height, f"{y_label} by {x_label}")]
    for y in y_ticks:
        down = place(x0, y)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{down:.1f}" y2="{down:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in x_ticks:
        across = place(x, y0)[0]
        parts.append(f'<text x="{across:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
    middle = TOP + (height - TOP - BOTTOM) / 2
    parts.append(
        f'<text x="{(LEFT + width - RIGHT) / 2}" y="{height - 4}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>')
    for line in sorted(lines, key=lambda line: line.strong):
        placed = [place(x, y) for x, y in line.points if math.isfinite(y)]
        kind = "strong" if line.strong else "thin"
        colour = f"var(--c{line.colour % COLOURS})"
        if len(placed) == 1:  # a polyline of one point shows nothing
            across, down = placed[0]
            parts.append(f'<circle class="{kind}" cx="{across:.1f}" cy="{down:.1f}" r="4" fill="{colour}">')
            parts.append(f"<title>{escape(line.label)}</title></circle>")
            continue
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in placed)
        parts.append(f'<polyline class="{kind}" fill="none" stroke="{colour}" points="{path}">')
        parts.append(f"<title>{escape(line.label)}</title></polyline>")
    return "".join([*parts, "</svg>"])


def bar_chart(
    bars: Sequence[Bar], width: int = 860, label_width: int = 230, thickness: int = 13, name: str = "bytes by layer"
) -> str:
    """An ``<svg>`` element with horizontal bars, the series of a row below each other and their text at the end.

    Example:
        >>> chart = bar_chart([Bar("conv1 linear", [100.0, 7.0], ["100 B", "7 B"])])
        >>> chart.count("<rect")
        2
    """
    highest = max((value for bar in bars for value in bar.values if value is not None), default=0.0)
    if highest <= 0:
        return '<p class="note">nothing to draw</p>'
    room = width - label_width - 90
    parts, down = [], 4
    for bar in bars:
        start = down
        for series, (value, text) in enumerate(zip(bar.values, bar.texts, strict=True)):
            if value is None:
                continue
            length = max(value / highest * room, 0.5)
            colour = f"var(--c{series % COLOURS})"
            parts.append(
                f'<rect x="{label_width}" y="{down}" width="{length:.1f}" height="{thickness - 2}" fill="{colour}"/>'
            )
            parts.append(f'<text x="{label_width + length + 5:.1f}" y="{down + thickness - 4}">{escape(text)}</text>')
            down += thickness
        middle = (start + down) / 2 + 3
        parts.append(f'<text x="{label_width - 8}" y="{middle:.1f}" text-anchor="end">{escape(bar.label)}</text>')
        down += 7
    return "".join([_open(width, down, name), *parts, "</svg>"])


def nice_ticks(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
    """About ``count`` round numbers that span ``low`` to ``high``.

    Example:
        >>> nice_ticks(0.13, 0.78)
        [0.0, 0.2, 0.4, 0.6, 0.8]
        >>> nice_ticks(1, 60, whole=True)
        [0, 20, 40, 60]
    """
    if high <= low:
        pad = abs(low) * 0.05 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    if whole:
        step = max(1, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [int(i * step) if whole else round(i * step, digits) for i in range(first, last + 1)]


def _open(width: int, height: float, name: str) -> str:
    return f'<svg viewBox="0 0 {width} {height:g}" font-size="12" role="img" aria-label="{escape(name)}">'
