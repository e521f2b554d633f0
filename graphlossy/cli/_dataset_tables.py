"""What ``graphlossy datasets`` prints, and the picture of a degree distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from graphlossy.datasets import DatasetError, Entry, Finding, Statistics

__all__ = [
    "console",
    "disk_size",
    "finding_line",
    "list_table",
    "save_picture",
    "show_entry",
    "show_rows",
    "show_statistics",
]

_LARGEST = 10  # classes that are listed by their sizes


def console() -> Console:
    """Stdout; a file or a pipe, which has no width to fit into, gets 140 columns."""
    found = Console()
    return found if found.is_terminal else Console(width=140)


def disk_size(size: int) -> str:
    """Bytes in powers of ten, as publishers give the sizes of their archives.

    Example:
        >>> disk_size(572_444), disk_size(60_300_000_000), disk_size(0)
        ('572 kB', '60.3 GB', '-')
    """
    if size <= 0:
        return "-"
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} B"


def list_table(rows: list[tuple[Entry, str]]) -> Table:
    """The catalogue; beside each entry, whether it is here."""
    table = Table(title="Data sets for node classification", title_justify="left")
    table.add_column("name", no_wrap=True)
    for name in ("nodes", "edges", "features", "classes"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("metric", "licence"):
        table.add_column(name)
    table.add_column("on disk", justify="right", no_wrap=True)
    table.add_column("here")
    for entry, here in rows:
        sizes = [f"{value:,}" for value in (entry.nodes, entry.edges, entry.features, entry.classes)]
        table.add_row(entry.name, *sizes, entry.metric, entry.licence, disk_size(entry.disk_bytes), here)
    return table


def show_entry(out: Console, entry: Entry, here: str, generated: str | None = None) -> None:
    """What the catalogue knows of one data set; ``generated`` names the stand-in that lies in its place."""
    rows = {
        "name": entry.name,
        "what": entry.source,
        "sizes": f"{entry.nodes:,} nodes, {entry.edges:,} edges, {entry.features:,} features, {entry.classes} classes",
        "metric": entry.metric,
        "split": _split_words(entry),
        "licence": entry.licence,
        "on disk": disk_size(entry.disk_bytes),
        "here": here,
    }
    if entry.synthetic and entry.reference:
        rows["note"] = f"a stand-in: an accuracy on it says nothing of the accuracy on {entry.reference}"
    if generated is not None:
        rows["note"] = f"what is here is a generated stand-in ({generated}), not {entry.name}"
    show_rows(out, rows)


def show_statistics(out: Console, found: Statistics) -> None:
    """What was counted in a graph that was loaded."""
    degrees = found.degrees
    rows = {
        "loaded": f"{found.nodes:,} nodes, {found.edges:,} edges (an undirected edge counts twice)",
        "degree": f"mean {degrees.mean:.2f}, median {degrees.median}, 90 % {degrees.p90}, 99 % {degrees.p99:,}, "
        f"max {degrees.max:,}",
        "hubs": f"the 1 % of the nodes with the most edges hold {100 * degrees.top_share:.1f} % of all edge ends",
        "isolated": f"{degrees.isolated:,} nodes without an edge",
    }
    if found.self_loops:
        rows["self-loops"] = f"{found.self_loops:,}"
    labels = found.labels
    if labels is not None:
        if labels.homophily is not None:
            adjusted = "" if labels.adjusted_homophily is None else f", adjusted {labels.adjusted_homophily:.3f}"
            rows["homophily"] = f"{labels.homophily:.3f} of the edges join one class{adjusted}"
        share = f"largest {100 * labels.largest:.1f} %, smallest {100 * labels.smallest:.2f} %"
        sizes = sorted(labels.sizes, reverse=True)
        listed = ", ".join(f"{size:,}" for size in sizes[:_LARGEST]) + (", ..." if len(sizes) > _LARGEST else "")
        rows["classes"] = f"{labels.classes}: {share} ({listed})"
        if labels.unknown:
            rows["unlabelled"] = f"{labels.unknown:,}"
    if found.splits:
        parts = ", ".join(f"{size:,} {name.removesuffix('_mask')}" for name, size in found.splits.items())
        rows["split"] = parts + (f" (the first of {found.num_splits})" if found.num_splits > 1 else "")
    features = found.features
    if features is not None:
        rows["features"] = (
            f"{features.width:,}, {100 * features.density:.3g} % of the values not zero, mean {features.mean:.3g}, "
            f"standard deviation {features.std:.3g}, {features.not_finite:,} NaN or infinite"
        )
    show_rows(out, rows)


def finding_line(finding: Finding) -> str:
    """One line for one thing that was looked at."""
    return f"{'WRONG' if finding.problem else 'ok':5}  {finding.what}: {finding.problem or finding.detail}"


def save_picture(counts: np.ndarray, title: str, file: Path) -> None:
    """Draws a degree distribution on logarithmic axes: nodes of each degree, and nodes of at least that degree.

    Args:
        counts: number of nodes of degree 0, 1, 2, ...
        title: over the picture.
        file: whose ending says the format, such as ``.png`` or ``.svg``.

    Raises:
        DatasetError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DatasetError('--picture needs matplotlib: pip install "graphlossy[plot]"') from None
    degree = np.flatnonzero(counts)
    degree = degree[degree > 0]
    at_least = counts[::-1].cumsum()[::-1]
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(degree, at_least[degree], color="#1f4e79", label="nodes of at least this degree")
    axes.plot(degree, counts[degree], ".", color="#c05020", markersize=4, label="nodes of this degree")
    if len(degree):
        axes.set(xscale="log", yscale="log")
    axes.set(xlabel="degree", ylabel="nodes", title=f"{title} ({int(counts[0]):,} isolated)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:  # ValueError: a format that matplotlib does not know
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DatasetError(f"--picture {file}: cannot be written ({reason})") from None


def _split_words(entry: Entry) -> str:
    if entry.sizes_of_split is None:
        return entry.split or "random"
    train, validation, test = entry.sizes_of_split
    return f"{entry.split}: {train:,} training, {validation:,} validation, {test:,} test nodes"


def show_rows(out: Console, rows: dict[str, str]) -> None:
    """Names and values below each other."""
    for name, value in rows.items():
        out.print(Text(f"{name:11}", style="bold"), Text(value), sep=" ", soft_wrap=True)
