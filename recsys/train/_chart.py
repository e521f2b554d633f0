"""Charts with a logarithmic axis as inline SVG text, with nothing but the standard library.

Colours come from the CSS variables ``--c0`` ... ``--c7``, ``--soft`` and ``--faint`` of the page around the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["COLOURS", "Series", "chart", "legend"]

COLOURS = 8
DASHES = ("", "6 3", "2 3")
LEFT, RIGHT, TOP, BOTTOM = 70, 34, 14, 42


@dataclass(frozen=True)
class Series:
    """One curve with its points.

    Attributes:
        label: in the legend, and shown when the pointer rests on a point.
        points: (x, y, spread of y) triples; x must be positive.
        colour: number of the curve: first the colour changes, then the dashes.
        level: draw a horizontal line at the y of the first point instead, for a reference.
    """

    label: str
    points: Sequence[tuple[float, float, float]]
    colour: int = 0
    level: bool = False


def chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    x_text: Callable[[float], str] = "{:g}".format,
    base: int = 2,
    width: int = 760,
    height: int = 380,
) -> str:
    """An ``<svg>`` element: y against the logarithm of x, points joined from left to right.

    Args:
        series: the curves.
        x_label, y_label: of the axes.
        x_text: how a tick of the x axis, a power of ``base``, is written.
        base: of the ticks.
        width, height: of the picture's own units; it is scaled to the page.

    Example:
        >>> picture = chart([Series("pme", [(1024, 0.78, 0.01), (4096, 0.8, 0.0)])], "bytes", "AUC")
        >>> picture.count("<circle"), picture.count("<polyline"), picture.startswith("<svg")
        (2, 1, True)
    """
    points = [p for one in series for p in one.points if p[0] > 0 and math.isfinite(p[1])]
    if not points:
        return '<p class="note">nothing to draw</p>'
    x_ticks = _powers(min(p[0] for p in points), max(p[0] for p in points), base)
    y_ticks = _ticks(min(p[1] - p[2] for p in points), max(p[1] + p[2] for p in points))
    low, high = math.log(x_ticks[0]), math.log(x_ticks[-1])

    def across(x: float) -> float:
        return (math.log(x) - low) / (high - low) * (width - LEFT - RIGHT) + LEFT

    def down(y: float) -> float:
        return (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0]) * (height - TOP - BOTTOM) + TOP

    name = escape(f"{y_label} by {x_label}")
    parts = [f'<svg viewBox="0 0 {width} {height}" font-size="12" role="img" aria-label="{name}">']
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    every = -(-len(x_ticks) // 9)
    for x in x_ticks[::every]:
        parts.append(
            f'<line class="grid" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        )
        parts.append(f'<text x="{across(x):.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{x_text(x)}</text>')
    middle = TOP + (height - TOP - BOTTOM) / 2
    parts.append(
        f'<text x="{(LEFT + width - RIGHT) / 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>')
    for one in series:
        placed = sorted(p for p in one.points if p[0] > 0 and math.isfinite(p[1]))
        if not placed:
            continue
        stroke = f'stroke="{_colour(one.colour)}"'
        title = f"<title>{escape(one.label)}</title>"
        if one.level:
            y = down(placed[0][1])
            ends = f'x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
            parts.append(f'<line class="level" {ends} {stroke}>{title}</line>')
        if len(placed) > 1:
            path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y, _ in placed)
            dash = DASHES[one.colour // COLOURS % len(DASHES)]
            dashed = f' stroke-dasharray="{dash}"' if dash else ""
            parts.append(f'<polyline fill="none" {stroke}{dashed} points="{path}">{title}</polyline>')
        for x, y, spread in placed:
            if spread > 0:
                ends = (
                    f'x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{down(y - spread):.1f}" y2="{down(y + spread):.1f}"'
                )
                parts.append(f'<line class="spread" {ends} {stroke}/>')
            said = escape(f"{one.label}: {x_text(x)}, {y:.4f}" + (f" ± {spread:.4f}" if spread else ""))
            place = f'cx="{across(x):.1f}" cy="{down(y):.1f}"'
            parts.append(f'<circle {place} r="4" fill="{_colour(one.colour)}"><title>{said}</title></circle>')
    return "".join([*parts, "</svg>"])


def legend(series: Sequence[Series]) -> str:
    """A list of the curves' names in their colours."""
    items = []
    for one in series:
        border = ("solid", "dashed", "dotted")[one.colour // COLOURS % len(DASHES)]
        style = f"border-top: 3px {border} {_colour(one.colour)}"
        items.append(f'<li><i style="{style}"></i>{escape(one.label)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _colour(number: int) -> str:
    return f"var(--c{number % COLOURS})"


def _powers(low: float, high: float, base: int) -> list[float]:
    first = math.floor(math.log(low, base) + 1e-9)
    last = math.ceil(math.log(high, base) - 1e-9)
    return [float(base) ** k for k in range(first, max(last, first + 1) + 1)]


def _ticks(low: float, high: float, count: int = 6) -> list[float]:
    if high - low < 1e-9:
        low, high = low - 0.005, high + 0.005
    rough = (high - low) / (count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, digits) for k in range(first, max(last, first + 1) + 1)]
