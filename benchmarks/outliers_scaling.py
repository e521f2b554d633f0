"""Seconds and peak memory of every outlier method from a thousand to a million nodes, ours and PyGOD's and PyOD's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks import _outliers, _report
from benchmarks._outlier_studies import picture

__all__ = ["bars", "main", "slopes"]

EXAMPLES = """\
  python -m benchmarks.outliers_scaling                                  hours on one core, 20 GB of memory
  python -m benchmarks.outliers_scaling --methods dominant --engines native,pygod --sizes 1000,10000
  python -m benchmarks.outliers_scaling --picture docs/outliers_scaling.png
  python -m benchmarks.outliers_scaling --tiny --out /tmp/scaling.json

Every cell is a process of its own on a generated graph (`synth_N`: 64 features, 5 neighbours a node) and fits once,
after a warm-up on 32 nodes: the trained methods for 5 epochs at 64 hidden, with all that has to be done around them.
Peak memory is the resident set beyond what the process held before the fit, graph and features among that. A method
that breaks a limit is not run on larger graphs. Exponents are those of least squares of log seconds and log bytes over
log N, from 10,000 nodes on. Cells in --out already are not run again, but for those that failed."""

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
EPOCHS = 5
FROM = 10_000  # nodes from which on exponents are fitted: below, fixed costs count
# Methods whose time and memory are linear in nodes and edges, as their `memory` says.
LINEAR = (
    "if",
    "mlpae",
    "scan",
    "gcnae",
    "dominant",
    "done",
    "adone",
    "anomalydae",
    "gaan",
    "guide",
    "conad",
    "cola",
    "ocgnn",
)
LARGEST_DOMINANT, LARGEST_BYTES = 100_000, 4e9


def slope(points: list[tuple[float, float]]) -> float | None:
    """Least squares exponent of y over x; None of fewer than three points."""
    logs = [(math.log(x), math.log(y)) for x, y in points if y > 0]
    if len(logs) < 3:
        return None
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def slopes(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Exponents of time and memory of every engine and method, and the largest graph that it was done on."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["engine"], cell["method"]), []).append(cell)
    found = []
    for (engine, method), group in groups.items():
        done = [cell for cell in group if cell["status"] == "done"]
        fitted = [cell for cell in done if cell["nodes"] >= FROM]
        row = {"engine": engine, "method": method, "largest": max((c["nodes"] for c in done), default=None)}
        for name in ("seconds", "peak_bytes"):
            row[name] = slope([(c["nodes"], c[name]) for c in fitted if c[name] is not None])
        row["ended"] = next((f"{c['status']} at {c['nodes']:,}" for c in group if c["status"] != "done"), None)
        found.append(row)
    return found


def bars(cells: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Exponents of the linear methods, and DOMINANT against the peers and on its largest graph."""
    ours = {row["method"]: row for row in found if row["engine"] == "native"}
    result = []
    for method in LINEAR:
        for name, what in (("seconds", "time"), ("peak_bytes", "memory")):
            value = ours.get(method, {}).get(name)
            result.append(_report.bar(f"{method}: exponent of {what} from {FROM:,} nodes on", value, "at most", 1.15))
    at = {(c["engine"], c["method"], c["nodes"]): c for c in cells if c["status"] == "done"}
    mine = at.get(("native", "dominant", 10_000))
    for peer in ("pygod", "pyod"):
        theirs = at.get((peer, "dominant", 10_000))
        for name, what, bound in (("seconds", "time", 1 / 2), ("peak_bytes", "peak memory", 1 / 10)):
            value = mine[name] / theirs[name] if mine and theirs and theirs[name] else None
            result.append(_report.bar(f"dominant at 10,000 nodes, share of {peer}'s {what}", value, "at most", bound))
    large = at.get(("native", "dominant", LARGEST_DOMINANT))
    text = f"dominant at {LARGEST_DOMINANT:,} nodes, peak memory in bytes"
    return [*result, _report.bar(text, large["peak_bytes"] if large else None, "at most", LARGEST_BYTES)]


def measure(args: Any, engine: str, method: str, nodes: int) -> dict[str, Any]:
    """One cell, in a process that runs nothing else."""
    from graphlossy.outliers.methods import METHODS

    takes = "epoch" in METHODS[method].parameter_names()
    options = {method: {"epoch": 2 if args.tiny else EPOCHS}} if takes else None
    rest = {"engine": engine, "options": options, "progress": False}
    (record,), facts = _outliers.cell(args, f"synth_{nodes}", method, 1, **rest)
    kept = ("seconds", "epoch_seconds", "peak_bytes", "auc", "status", "reason")
    return {"engine": engine, "method": method, "nodes": nodes, "edges": facts["edges"], **{k: record[k] for k in kept}}


def _options(argv: list[str] | None) -> Any:
    from graphlossy.outliers import engines

    made = _report.parser(__doc__ or "", EXAMPLES, "outliers_scaling.json")
    _outliers.add_options(made, "outliers_scaling", 900, "18GiB")
    made.add_argument("--methods", help="comma-separated (default: all)")
    made.add_argument("--engines", help="comma-separated (default: native and what is installed)")
    made.add_argument("--sizes", help=f"comma-separated numbers of nodes (default: {','.join(map(str, SIZES))})")
    made.add_argument("--picture", type=Path, help="draw what --out holds to this file, and run nothing")
    args = made.parse_args(argv)
    args.methods = _outliers.method_list(made, args.methods, engines.METHODS["native"])
    have = [name for name, version in engines.available().items() if version is not None]
    args.engines = args.engines.split(",") if args.engines else have
    if missing := [name for name in args.engines if name not in have]:
        made.error(f"--engines: {', '.join(missing)} cannot be had; there are {', '.join(have)}")
    sizes = args.sizes.split(",") if args.sizes else (100, 300) if args.tiny else SIZES
    args.sizes = sorted(int(size) for size in sizes)
    return args


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    from graphlossy.outliers import engines

    args = _options(argv)
    if args.picture:
        if not args.out.exists():
            raise SystemExit(f"benchmarks: {args.out} is not there: run this without --picture first")
        picture(json.loads(args.out.read_text()), args.picture)
        return
    settings = {"epochs": EPOCHS, "threads": 1, "time_limit": args.time_limit, "memory_limit": args.memory_limit}
    data = _report.header("outliers_scaling", settings)
    data["cells"] = _report.earlier(args.out, dict(data), args.fresh).get("cells", [])
    data["engines"] = engines.available()
    data["cells"] = [cell for cell in data["cells"] if cell["status"] != "failed"]
    have = {(c["engine"], c["method"], c["nodes"]): c for c in data["cells"]}
    for method in args.methods:
        for engine in args.engines:
            if method not in engines.METHODS[engine]:
                continue
            for nodes in args.sizes:
                cell = have.get((engine, method, nodes))
                if cell is None:
                    cell = measure(args, engine, method, nodes)
                    data["cells"].append(cell)
                    data["slopes"] = slopes(data["cells"])
                    data["bars"] = [] if args.tiny else bars(data["cells"], data["slopes"])
                    _report.write_json(args.out, data)
                    peak = "" if cell["peak_bytes"] is None else f", {cell['peak_bytes'] / 1e6:,.1f} MB"
                    shown = "" if cell["seconds"] is None else f" {cell['seconds']:.2f} s{peak}"
                    print(f"{engine:6} {method:11} {nodes:9,} nodes: {cell['status']}{shown}", flush=True)
                if cell["status"] != "done":
                    break
    for row in data.get("slopes", []):
        fitted = ", ".join(f"{k} ~ N^{row[k]:.2f}" for k in ("seconds", "peak_bytes") if row[k] is not None)
        print(
            f"{row['engine']:6} {row['method']:11} up to {row['largest'] or 0:,}; {row['ended'] or 'no end'}; {fitted}"
        )
    _report.print_bars(data.get("bars", []))


if __name__ == "__main__":
    main()
