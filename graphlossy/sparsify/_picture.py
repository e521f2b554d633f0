"""The degree distribution before and after, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphlossy.sparsify._report import Report

__all__ = ["check_picture", "draw_degrees"]


def check_picture(path: Path) -> str:
    """The format of a picture of that name; raises as `Report.picture`, before any work is done."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'pictures need matplotlib, which is not installed: pip install "graphlossy[plot]"', name="matplotlib"
        ) from None
    known = FigureCanvasAgg.get_supported_filetypes()
    ending = path.suffix.lower().lstrip(".")
    if ending not in known:
        raise ValueError(f"{path}: a picture's name ends in one of {', '.join('.' + name for name in sorted(known))}")
    return ending


def draw_degrees(found: Report, path: Path) -> Path:
    """Draws ``found``'s degrees to ``path``; see `Report.picture`."""
    ending = check_picture(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    lows = sorted({low for low, _ in (*found.degrees_before, *found.degrees_after)})
    for bins, name, shift in ((found.degrees_before, "before", -0.2), (found.degrees_after, "after", 0.2)):
        counts = {low: count for low, count in bins}
        places = [i + shift for i in range(len(lows))]
        axes.bar(places, [counts.get(low, 0) for low in lows], width=0.4, label=name)
    axes.set_yscale("symlog", linthresh=1)
    names = [str(low) if low < 2 else f"{low}-{2 * low - 1}" for low in lows]
    axes.set_xticks(range(len(lows)), names, rotation=45, ha="right")
    axes.set_xlabel("degree")
    axes.set_ylabel("nodes")
    axes.set_title(f"{found.edges_before:,} -> {found.edges_after:,} edges ({100 * found.share:.1f} % kept)")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format=ending)
    return path
