"""Markdown tables from the result files, for README.md and for reading."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _report

__all__ = ["main", "tables"]

EXAMPLES = """\
  python -m benchmarks.table                                all tables of benchmarks/results
  python -m benchmarks.table --only bars
  python -m benchmarks.table --results /tmp/results --only memory,accuracy"""

KINDS = ("bars", "memory", "bits", "accuracy", "gpu")
TITLES = {"gcn": "GCN", "sage": "GraphSAGE", "gat": "GAT, 3 heads", "gcn2": "GCN2"}
DATASETS = {"wordnet-verbs": "WordNet verbs", "cora": "Cora", "tolokers": "tolokers (ROC-AUC)"}


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def memory_tables(data: dict[str, Any], device: str) -> Iterator[str]:
    """A table per model: saved, peak, seconds and their ratios to both forms of PyG."""
    size = data["settings"]
    for model, rows in data["summary"].items():
        layers = size["deep"] if model == "gcn2" else 3
        width = f"3 x {size['hidden'] // 2}" if model == "gat" else str(size["hidden"])
        title = f"{TITLES[model]}, {layers} layers of {width}, N = {size['nodes']:,}, E = {size['edges']:,}, {device}"
        head = ["method", "saved", "x less", "peak", "x less", "x less than edge_index", "s / epoch", "x time"]
        body = [[f"`{name}`", *_memory_row(row)] for name, row in rows.items()]
        yield f"**{title}**\n\n" + markdown(head, body)


def _memory_row(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [row["error"].replace("|", "/"), *[""] * 6]
    strong, usual = row.get("vs pyg-csr", {}), row.get("vs pyg-edge_index", {})
    seconds = row["seconds"]
    digits = 2 if seconds["median"] >= 1 else 4
    return [
        _mb(row["held_bytes"]), _times(strong.get("saved")), _mb(row["peak_bytes"]["median"]),
        _times(strong.get("peak")), _times(usual.get("peak")),
        f"{seconds['median']:.{digits}f} ± {seconds['std']:.{digits}f}", _times(strong.get("time")),
    ]  # fmt: skip


def _mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.1f} MB" if nbytes < 1e8 else f"{nbytes / 1e6:,.0f} MB"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"


def bits_table(data: dict[str, Any]) -> Iterator[str]:
    """Bits per element by method and width."""
    widths = list(data["bits"])
    methods = list(data["bits"][widths[0]])
    head = ["bits stored per element of one GCN layer", *(f"D = {w}" for w in widths)]
    yield markdown(head, [[f"`{m}`", *(f"{data['bits'][w][m]:.3f}" for w in widths)] for m in methods])


def accuracy_table(data: dict[str, Any]) -> Iterator[str]:
    """Mean and spread by scheme and data set, and the paired difference to float32 with its standard error."""
    summary = data["summary"]
    datasets = [name for name in (*DATASETS, "planted") if name in summary]
    schemes = list(dict.fromkeys(scheme for rows in summary.values() for scheme in rows))
    head = ["scheme"]
    for name in datasets:
        head += [DATASETS.get(name, name), "difference"]
    body = []
    for scheme in schemes:
        cells = [f"`{scheme}`"]
        for name in datasets:
            row = summary[name].get(scheme)
            cells += ["", ""] if row is None else [f"{row['mean']:.2f} ± {row['std']:.2f}", _difference(row)]
        body.append(cells)
    yield markdown(head, body)


def _difference(row: dict[str, Any]) -> str:
    if "difference" not in row:
        return ""
    error = row["standard_error"]
    return f"{row['difference']:+.2f}" + ("" if error is None else f" (se {error:.2f})")


def bandwidth_table(data: dict[str, Any]) -> Iterator[str]:
    """GB/s of the kernels beside a copy."""
    rates = data.get("bandwidth")
    if rates:
        copy = rates["copy"]["median"]
        rows = [[f"`{n}`", f"{r['median']:,.0f}", f"{r['median'] / copy:.2f}"] for n, r in rates.items()]
        yield markdown(["operation, [2^20, 256] float32", "GB/s", "share of a copy"], rows)


def caches_table(data: dict[str, Any]) -> Iterator[str]:
    """Attention of a new token over keys and values in few bits, and how many texts of them fit."""
    caches = data.get("caches") or {}
    if times := caches.get("attention"):
        plain = min(times[name]["median"] for name in times if name.startswith("plain"))
        rows = [
            [f"`{n}`", f"{t['median']:.3f} ± {t['std']:.3f}", f"{t['median'] / plain:.2f}"] for n, t in times.items()
        ]
        yield markdown(["attention of a new token, 8 x 16,384 tokens", "ms", "times the faster plain one"], rows)
    if fitting := caches.get("largest"):
        rows = [[f"`{n}`", str(row["batch"]), f"{row['cache_bytes'] / 1e9:.1f} GB"] for n, row in fitting.items()]
        yield markdown(["texts of 8,192 tokens beside 3 billion weights", "fit", "cache"], rows)


def bars_table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Every bar of every file, with what was measured."""
    state = {True: "met", False: "**missed**", None: "not measured"}
    rows = []
    for data in results.values():
        for found in data.get("bars", []):
            value = "" if found["value"] is None else f"{found['value']:.3g}"
            rows.append([found["what"], found["bar"], value, state[found["met"]]])
    if rows:
        yield markdown(["figure", "bar", "measured", ""], rows)


def tables(results: dict[str, dict[str, Any]], kinds: Sequence[str] = KINDS) -> str:
    """The tables of the given kinds from result files, by their name without ``.json``."""
    found: list[str] = []
    if "bars" in kinds:
        found += bars_table(results)
    if "memory" in kinds and "memory" in results:
        found += memory_tables(results["memory"], results["memory"]["machine"]["cpu"])
    if "bits" in kinds and "bits_per_element" in results:
        found += bits_table(results["bits_per_element"])
    if "accuracy" in kinds and "accuracy" in results:
        found += accuracy_table(results["accuracy"])
    if "gpu" in kinds and "gpu" in results:
        data = results["gpu"]
        found += memory_tables(data, data["machine"].get("gpu", data["machine"]["cpu"]))
        found += bandwidth_table(data)
        found += caches_table(data)
    return "\n\n".join(found)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, epilog="examples:\n" + EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--results", type=Path, default=_report.RESULTS, metavar="DIR", help="(default: %(default)s)")
    made.add_argument("--only", default=",".join(KINDS), help="comma-separated kinds of tables (default: %(default)s)")
    args = made.parse_args(argv)
    kinds = args.only.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        made.error(f"--only: unknown {', '.join(unknown)}; allowed: {', '.join(KINDS)}")
    files = sorted(args.results.glob("*.json"))
    if not files:
        made.error(f"{args.results} holds no results; run `python -m benchmarks` first")
    print(tables({file.stem: json.loads(file.read_text()) for file in files}, kinds))


if __name__ == "__main__":
    main()
