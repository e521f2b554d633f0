"""Pictures of the report as inline SVG text: curves on two logarithmic axes, and critical-difference diagrams.

Colours come from the CSS variables ``--c0`` ... ``--c7``, ``--ink``, ``--soft`` and ``--faint`` of the page around.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from graphlossy.outliers.ranks import Ranking

__all__ = ["Curve", "critical_diagram", "legend", "log_log"]

COLOURS = 8
DASHES = ("", "7 3", "2 3")
LEFT, RIGHT, TOP, BOTTOM = 84, 20, 14, 42


@dataclass(frozen=True)
class Curve:
    """Points (x, y), both positive, of one method; ``colour`` is its number: first colours change, then dashes."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0


def log_log(
    curves: Sequence[Curve],
    x_label: str,
    y_label: str,
    y_text: Callable[[float], str] = "{:g}".format,
    y_base: int = 10,
    width: int = 760,
    height: int = 400,
    x_text: Callable[[float], str] = "{:,.0f}".format,
    x_base: int = 10,
    labelled: bool = False,
) -> str:
    """An ``<svg>`` element: both axes logarithmic, points joined from left to right.

    Args:
        curves: what to draw; points that are not positive are left out.
        x_label, y_label: of the axes.
        y_text: how a tick of the y axis, a power of ``y_base``, is written.
        y_base: of the ticks of the y axis.
        width, height: of the picture's own units; it is scaled to the page.
        x_text, x_base: the same of the x axis.
        labelled: write the name of a curve beside its last point.

    Example:
        >>> picture = log_log([Curve("LOF", [(1000, 0.5), (10000, 50.0)])], "nodes", "seconds")
        >>> picture.count("<circle"), picture.count("<polyline"), picture.startswith("<svg")
        (2, 1, True)
    """
    points = [p for curve in curves for p in curve.points if p[0] > 0 and p[1] > 0]
    if not points:
        return '<p class="note">nothing to draw</p>'
    x_ticks, y_ticks = _powers([x for x, _ in points], x_base), _powers([y for _, y in points], y_base)
    across = _scale(x_ticks, LEFT, width - RIGHT)
    down = _scale(y_ticks, height - BOTTOM, TOP)
    parts = [_open(width, height, f"{y_label} by {x_label}")]
    for y in y_ticks[:: -(-len(y_ticks) // 9)]:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down(y) + 4:.1f}" text-anchor="end">{escape(y_text(y))}</text>')
    for x in x_ticks:
        at = f"{across(x):.1f}"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts.append(f'<text x="{at}" y="{height - BOTTOM + 16}" text-anchor="middle">{x_text(x)}</text>')
    middle = TOP + (height - TOP - BOTTOM) / 2
    parts.append(
        f'<text x="{(LEFT + width - RIGHT) / 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>')
    for curve in curves:
        placed = sorted(p for p in curve.points if p[0] > 0 and p[1] > 0)
        stroke, dash = f'stroke="{_colour(curve.colour)}"', DASHES[curve.colour // COLOURS % len(DASHES)]
        if len(placed) > 1:
            path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in placed)
            dashed = f' stroke-dasharray="{dash}"' if dash else ""
            title = f"<title>{escape(curve.label)}</title>"
            parts.append(f'<polyline fill="none" {stroke}{dashed} points="{path}">{title}</polyline>')
        for x, y in placed:
            title = f"<title>{escape(f'{curve.label}: {x_text(x)}, {y_text(y)}')}</title>"
            place = f'cx="{across(x):.1f}" cy="{down(y):.1f}"'
            parts.append(f'<circle {place} r="3.5" fill="{_colour(curve.colour)}">{title}</circle>')
    if labelled:
        ends = [(curve.label, [p for p in curve.points if p[0] > 0 and p[1] > 0]) for curve in curves]
        last = [(label, *max(placed)) for label, placed in ends if placed]
        parts += _names([(label, across(x), down(y)) for label, x, y in last], width)
    return "".join([*parts, "</svg>"])


def _names(marks: Sequence[tuple[str, float, float]], width: int) -> list[str]:
    """Text on the right or left of each point, some lines higher or lower where another is in the way."""
    taken = [(x - 4, x + 4, y - 4, y + 4) for _, x, y in marks]
    parts = []
    for label, x, y in marks:
        room = 6.8 * len(label)
        places = [(side, y + 4 + 13 * lines) for lines in (0, -1, 1, -2, 2, -3, 3) for side in (x + 8, x - 8 - room)]
        boxes = [(left, left + room, bottom - 10, bottom + 2) for left, bottom in places]
        free = [
            place
            for place, (a, b, c, d) in zip(places, boxes, strict=True)
            if a > LEFT and b < width and not any(a < f and e < b and c < h and g < d for e, f, g, h in taken)
        ]
        left, bottom = (free or places)[0]
        taken.append((left, left + room, bottom - 10, bottom + 2))
        parts.append(f'<text x="{left:.1f}" y="{bottom:.1f}">{escape(label)}</text>')
    return parts


def legend(curves: Sequence[Curve]) -> str:
    """A list of the curves' names in their colours."""
    items = []
    for curve in curves:
        border = ("solid", "dashed", "dotted")[curve.colour // COLOURS % len(DASHES)]
        style = f"border-top: 3px {border} {_colour(curve.colour)}"
        items.append(f'<li><i style="{style}"></i>{escape(curve.label)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def critical_diagram(ranking: Ranking, width: int = 760, label_width: int = 190) -> str:
    """An ``<svg>`` element: methods on an axis of mean ranks, those that do not differ joined by a bar.

    The best method is on the left (Demšar, JMLR 7, 2006, figure 1); the bar above the axis is the critical difference.

    Example:
        >>> ranking = Ranking(("A", "B", "C"), (1.0, 2.2, 2.8), ("x", "y"), 2.34, 0.2, (), ((0, 2),))
        >>> picture = critical_diagram(ranking)
        >>> picture.count('class="join"'), picture.count("<circle")  # the scale of the difference, and one group
        (2, 3)
    """
    count = len(ranking.ranks)
    left, right, axis = label_width, width - label_width, 56

    def across(value: float) -> float:
        return left + (value - 1) / max(count - 1, 1) * (right - left)

    half = (count + 1) // 2
    first_line = axis + 26 + 9 * len(ranking.groups)
    height = first_line + 19 * half + 8
    parts = [_open(width, height, "critical difference diagram of mean ranks")]
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{axis}" y2="{axis}"/>')
    for tick in range(1, count + 1):
        at = f"{across(tick):.1f}"
        parts.append(f'<line class="axis" x1="{at}" x2="{at}" y1="{axis - 5}" y2="{axis}"/>')
        parts.append(f'<text x="{at}" y="{axis - 9}" text-anchor="middle">{tick}</text>')
    if ranking.difference is not None:
        end = min(across(1 + ranking.difference), float(right))
        parts.append(f'<line class="join" x1="{left}" x2="{end:.1f}" y1="18" y2="18"/>')
        parts.append(f'<text x="{left}" y="11">critical difference {ranking.difference:.2f}</text>')
    for number, (first, last) in enumerate(ranking.groups):
        y = axis + 10 + 9 * number
        start, stop = across(ranking.ranks[first]) - 3, across(ranking.ranks[last]) + 3
        parts.append(f'<line class="join" x1="{start:.1f}" x2="{stop:.1f}" y1="{y}" y2="{y}"/>')
    for number, (title, mean) in enumerate(zip(ranking.titles, ranking.ranks, strict=True)):
        on_left = number < half
        line = number if on_left else count - 1 - number
        y, place = first_line + 19 * line, f"{across(mean):.1f}"
        edge, anchor, text = (left - 8, "end", left - 12) if on_left else (right + 8, "start", right + 12)
        name = escape(f"{title} ({mean:.2f})")
        parts.append(f'<polyline class="lead" fill="none" points="{place},{axis} {place},{y} {edge},{y}"/>')
        parts.append(f'<circle class="mark" cx="{place}" cy="{axis}" r="3"/>')
        parts.append(f'<text class="name" x="{text}" y="{y + 4}" text-anchor="{anchor}">{name}</text>')
    return "".join([*parts, "</svg>"])


def _scale(ticks: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    low, high = math.log(ticks[0]), math.log(ticks[-1])
    return lambda value: start + (math.log(value) - low) / (high - low) * (end - start)


def _powers(values: Sequence[float], base: int) -> list[float]:
    first = math.floor(math.log(min(values), base) + 1e-9)
    last = math.ceil(math.log(max(values), base) - 1e-9)
    return [float(base) ** k for k in range(first, max(last, first + 1) + 1)]


def _colour(number: int) -> str:
    return f"var(--c{number % COLOURS})"


def _open(width: int, height: float, name: str) -> str:
    return f'<svg viewBox="0 0 {width} {height:g}" font-size="12" role="img" aria-label="{escape(name)}">'
