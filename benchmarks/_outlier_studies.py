"""The tables of docs/studies.md on outliers, and the picture of how methods grow with the graph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.table import markdown

__all__ = ["compressed", "peers", "picture", "scaling", "table"]

ENGINES = {"native": "graphlossy", "pygod": "PyGOD", "pyod": "PyOD"}


def titles() -> dict[str, str]:
    """Methods as their papers call them, in the order of every table."""
    from graphlossy.outliers.methods import METHODS

    return {name: METHODS[name].title for name in METHODS}


def table(data: dict[str, Any]) -> Iterator[str]:
    """AUC, AUC by type of outlier, seconds and peak memory of every method."""
    yield "\n".join(data["tables"]["auc"])
    for name in ("seconds", "peak_bytes"):
        yield "\n".join(line for line in data["tables"][name] if line.startswith("|"))
    cells = {(row["dataset"], row["method"]): row["by_type"] for row in data["cells"]}
    columns = [
        (dataset, kind)
        for dataset, facts in data["datasets"].items()
        for kind in facts["types"]
        if any(kind in found for (name, _), found in cells.items() if name == dataset)
    ]
    rows = []
    for name, title in titles().items():
        found = [cells.get((dataset, name), {}).get(kind) for dataset, kind in columns]
        if any(found):
            rows.append([title, *("" if cell is None else f"{100 * cell['mean']:.1f}" for cell in found)])
    if rows:
        yield markdown(["ROC-AUC, %, against all normal nodes", *(f"{name}, {kind}" for name, kind in columns)], rows)
    again = data["again"]
    if again["trials"]:
        same = f"{again['same']} of {again['trials']} trials have the same scores, bit for bit"
        yield f"Run again with the same seed: {same}."


def peers(data: dict[str, Any]) -> Iterator[str]:
    """A table for every data set: ours beside each other library's."""
    cells = {(row["dataset"], row["method"], row["engine"]): row for row in data["cells"]}
    for dataset in dict.fromkeys(row["dataset"] for row in data["compared"]):
        rows = []
        for row in (row for row in data["compared"] if row["dataset"] == dataset):
            ours, theirs = (cells[dataset, row["method"], engine] for engine in ("native", row["engine"]))
            rows.append([
                f"{titles()[row['method']]}, {ENGINES[row['engine']]}", _mean(ours), _mean(theirs),
                "" if row["auc"] is None else f"{row['auc']['difference']:+.3f}",
                *(_number(row[name], ".2f") for name in ("rank_correlation", "own_rank_correlation")),
                _number(row["peak_bytes_ratio"], ".1f"),
            ])  # fmt: skip
        seeds = data["settings"]["seeds"][dataset]
        head = [
            f"{dataset}, {seeds} seeds",
            "our AUC",
            "theirs",
            "difference",
            "rank correlation",
            "theirs with itself",
        ]
        yield markdown([*head, "x our memory"], rows) + _leak_line(data, dataset)
    apart = [row for row in data["compared"] if row["auc"] and abs(row["auc"]["difference"]) > row["auc"]["spread"]]
    known = {row["method"]: row["why"] for row in apart if row["engine"] == "pygod" and row["why"]}
    if known:
        yield "Beyond the spread of the seeds, and why:\n\n" + "\n".join(
            f"- {titles()[method]}: {why}." for method, why in known.items()
        )
    if data["rounding"]:
        told = (f"{min(aucs):.3f} to {max(aucs):.3f} on {name}" for name, aucs in data["rounding"].items())
        runs = len(next(iter(data["rounding"].values())))
        yield (
            f"What rounding alone does to Radar: with features moved to a number next to them, {runs} times by chance, "
            f"our AUC is {', '.join(told)}."
        )


def _leak_line(data: dict[str, Any], dataset: str) -> str:
    """What needs no model, below a table of one data set."""
    told = ", ".join(f"{name} {auc:.3f}" for name, auc in data["leak"][dataset].items())
    return f"\n\nWithout a model: {told}."


def _mean(row: dict[str, Any]) -> str:
    if row["auc"] is None:
        return ", ".join(row["status"])
    return f"{row['auc']['mean']:.3f} ± {row['auc']['std']:.3f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def scaling(data: dict[str, Any]) -> Iterator[str]:
    """Seconds, then peak memory, of every method and engine over the number of nodes."""
    cells = {(cell["method"], cell["engine"], cell["nodes"]): cell for cell in data["cells"]}
    sizes = sorted({nodes for _, _, nodes in cells})
    fits = {(row["method"], row["engine"]): row for row in data["slopes"]}
    for field, what, scale in (("seconds", "seconds", 1.0), ("peak_bytes", "peak, MB", 1e6)):
        rows = []
        for method, title in titles().items():
            for engine, library in ENGINES.items():
                if (method, engine) not in fits:
                    continue
                found = [_cell(cells.get((method, engine, nodes)), field, scale) for nodes in sizes]
                rows.append([f"{title}, {library}", *found, _number(fits[method, engine][field], ".2f")])
        yield markdown([what, *(f"{nodes:,}" for nodes in sizes), "exponent"], rows)


def _cell(cell: dict[str, Any] | None, field: str, scale: float) -> str:
    if cell is None:
        return ""
    if cell["status"] != "done":
        return str(cell["status"])
    value = cell[field] / scale
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def compressed(data: dict[str, Any]) -> Iterator[str]:
    """A table for every data set: AUC and saved bytes of each method, exact and at two bits."""
    cells = {name: {(row["dataset"], row["method"]): row for row in rows} for name, rows in data["cells"].items()}
    for dataset in dict.fromkeys(row["dataset"] for row in data["compared"]):
        rows = []
        for row in (row for row in data["compared"] if row["dataset"] == dataset):
            exact, low = (cells[name][dataset, row["method"]] for name in ("exact", "2 bits"))
            saved = low["saved_bytes"]
            rows.append([
                titles()[row["method"]], _mean(exact), _mean(low),
                *("" if row[name] is None else f"{row[name]['difference']:+.4f}" for name in ("auc", "auc_8_bits")),
                "" if saved is None else f"{low['plain_bytes']['median'] / 1e6:.2f} MB",
                "" if saved is None else f"{saved['median'] / 1e6:.2f} MB", _number(row["times_fewer_bytes"], ".1f"),
            ])  # fmt: skip
        seeds = data["settings"]["seeds"][dataset]
        head = [f"{dataset}, {seeds} seeds", "AUC, exact", "AUC, 2 bits", "difference", "of 8 bits"]
        yield markdown([*head, "saved, exact", "saved, 2 bits", "x fewer"], rows) + _leak_line(data, dataset)
    apart = [row for row in data["compared"] if row["auc_8_bits"]]
    if apart:
        yield "Beyond the spread of the seeds at 2 bits, and what 8 bits do there:\n\n" + "\n".join(map(_apart, apart))
    known = {titles()[row["method"]]: row["why"] for row in data["compared"] if row["why"]}
    if known:
        told = "\n".join(f"- {title}: {why}." for title, why in known.items())
        yield f"Fewer than the bytes asked for are saved, and why:\n\n{told}"


def _apart(row: dict[str, Any]) -> str:
    two, eight = row["auc"], row["auc_8_bits"]
    within = abs(eight["difference"]) <= eight["spread"]
    cause = "the noise of two bits" if within else "any other rounding: 8 bits move it as well"
    return (
        f"- {titles()[row['method']]} on {row['dataset']}: AUC {two['difference']:+.4f} at 2 bits, "
        f"{eight['difference']:+.4f} at 8 bits, spread {two['spread']:.4f}. It is {cause}."
    )


def picture(data: dict[str, Any], path: Path) -> None:
    """Seconds and peak memory over the number of nodes, a panel for every method, a line for every library."""
    from matplotlib.figure import Figure

    done = [cell for cell in data["cells"] if cell["status"] == "done"]
    methods = [name for name in titles() if any(cell["method"] == name for cell in done)]
    colours = dict(zip(ENGINES, ("C0", "C3", "C1"), strict=True))
    across = 6
    down = -(-len(methods) // across)
    figure = Figure(figsize=(2.2 * across, 2.0 * 2 * down), layout="constrained")
    axes = figure.subplots(2 * down, across, sharex=True, squeeze=False)
    for part, (field, label, scale) in enumerate((("seconds", "seconds", 1.0), ("peak_bytes", "peak, MB", 1e6))):
        panels = axes[part * down : (part + 1) * down]
        for panel in panels.flat[len(methods) :]:
            panel.set_axis_off()
        for method, panel in zip(methods, panels.flat, strict=False):
            panel.set_title(f"{titles()[method]}: {label}", fontsize=8)
            for engine, colour in colours.items():
                found = [c for c in done if (c["method"], c["engine"]) == (method, engine) and c[field]]
                points = [(cell["nodes"], cell[field] / scale) for cell in found]
                if points:
                    panel.loglog(*zip(*points, strict=True), "o-", color=colour, markersize=3)
            panel.tick_params(labelsize=7)
    handles = [_line(colour) for colour in colours.values()]
    figure.legend(handles, ENGINES.values(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)


def _line(colour: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker="o")
