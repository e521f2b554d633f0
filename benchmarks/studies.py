"""Writes the tables of docs/studies.md from the result files, between its comments."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks import _llm_studies, _outlier_studies, _report
from benchmarks.readme import replace
from benchmarks.recsys_methods import METHODS
from benchmarks.table import bars_table, markdown

__all__ = ["NAMES", "PAGE", "main", "render"]

EXAMPLES = """\
  python -m benchmarks.studies              writes them
  python -m benchmarks.studies --check      exit code 1 if the page shows others than the result files hold"""

PAGE = Path(__file__).parents[1] / "docs" / "studies.md"
NAMES = (
    "sparsify", "sparsify_speed", "sparsify_accuracy", "sampler", "papers_memory", "combined", "largest", "gradients",
    "recsys_methods", "recsys_speed", "recsys_memory",
    "outliers_table", "outliers_peers", "outliers_scaling", "outliers_compressed", "llm_gradients", "llm_memory",
    "llm_loss", "llm_loss_long", "kv_quality", "kv_greedy", "kv_speed",
)  # fmt: skip


def begin(name: str) -> str:
    """The comment before a study's tables."""
    return f"<!-- {name}: python -m benchmarks.studies -->"


def end(name: str) -> str:
    """The comment behind a study's tables."""
    return f"<!-- /{name} -->"


def render(name: str, data: dict[str, Any] | None) -> str:
    """The tables of one study; a line that says so where there is no result."""
    if data is None:
        return "Not measured yet."
    parts = list(_TABLES[name](data))
    parts += bars_table({name: data})
    settings = data["settings"]
    threads = settings.get("threads") or settings.get("threads_per_run")
    where = f"{data['machine']['cpu']}" + (f", {threads} thread{'s' * (threads > 1)}" if threads else "")
    source = f"{where}; torch {data['versions']['torch']}. Raw values: `benchmarks/results/{name}.json`."
    return "\n\n".join([*parts, source])


def _sparsify(data: dict[str, Any]) -> Iterator[str]:
    rows = []
    for run in sorted(data["runs"].values(), key=lambda run: run["edges"]):
        rates = run["sampling"]
        peers = {name: rate["median"] / 1e6 for name, rate in rates.items() if name != "graphlossy"}
        best = max(peers, key=lambda peer: peers[peer]) if peers else None
        rows.append([
            f"{run['edges']:,}", f"{run['seconds']['median']:.2f} ± {run['seconds']['std']:.2f}",
            f"{run['process_peak_bytes'] / 1e9:.2f} GB", f"{rates['graphlossy']['median'] / 1e6:.1f}",
            "" if best is None else f"{peers[best]:.1f} ({best})",
        ])  # fmt: skip
    yield markdown(["undirected edges", "seconds", "process", "million draws / s", "fastest peer"], rows)


def _sparsify_speed(data: dict[str, Any]) -> Iterator[str]:
    rows = [
        [
            f"{run['dataset']}, {run['model']}, `{run['scheme']}`", f"{run['sparse_share']:.0%}",
            *(f"{cell['speedup']:.2f} / {cell['ideal']:.2f}" for cell in run["shares"][1:-1]),
        ]
        for run in data["results"]
    ]  # fmt: skip
    shares = [f"{100 * cell['share_asked']:g} % kept" for cell in data["results"][0]["shares"][1:-1]]
    head = ["epoch of", "share of the sparse products", *(f"{share}: speed-up / ideal" for share in shares)]
    yield markdown(head, rows)


def _sparsify_accuracy(data: dict[str, Any]) -> Iterator[str]:
    summary = data["summary"]
    for dataset in dict.fromkeys(row["dataset"] for row in summary):
        rows = [row for row in summary if row["dataset"] == dataset]
        shares = sorted({row["share"] for row in rows if row["method"] != "all"}, reverse=True)
        full = next((row for row in rows if row["method"] == "all"), None)
        body = []
        for method in [m for m in data["methods"] if any(row["method"] == m for row in rows)]:
            cells = {row["share"]: row for row in rows if row["method"] == method}
            body.append([f"`{method}`", *(_accuracy_cell(cells.get(share)) for share in shares)])
        text = "" if full is None else f", all edges: {full['test']['mean']:.2f} ± {full['test']['std']:.2f}"
        seeds = max(len(row["seeds"]) for row in rows)
        yield f"**{dataset}**{text} ({seeds} seeds)\n\n" + markdown(
            ["edges kept", *(f"{100 * share:g} %" for share in shares)], body
        )


def _accuracy_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "out of reach"
    kept = f" ({row['kept']:.0%} kept)" if abs(row["kept"] - row["share"]) > 0.03 else ""
    return f"{row['test']['mean']:.2f} ± {row['test']['std']:.2f}{kept}"


def _sampler(data: dict[str, Any]) -> Iterator[str]:
    names = list(dict.fromkeys(name for run in data["runs"].values() for name in run))
    threads = sorted(data["runs"])
    head = ["call"]
    for count in threads:
        head += [f"seeds / s, {count} thread{'s' * (count != '1')}", "ms a batch"]
    rows = []
    for name in names:
        cells = [name]
        for count in threads:
            found = data["runs"][count].get(name)
            rate = None if found is None else [f"{found['seeds_per_second']:,.0f}", f"{1e3 * found['median']:.2f}"]
            cells += rate or ["", ""]
        rows.append(cells)
    size = data["settings"]
    text = f"N = {size['nodes']:,}, {size['edges']:,} stored edges, batch {size['batch_size']}, {size['num_neighbors']}"
    yield f"{text}:\n\n" + markdown(head, rows)


def _papers_memory(data: dict[str, Any]) -> Iterator[str]:
    run = data["run"]
    fields = ("file_bytes", "peak_bytes", "anonymous_bytes", "file_resident_bytes")
    rows = [[name.removesuffix("_bytes").replace("_", " "), f"{run[name] / 2**20:,.0f} MiB"] for name in fields]
    yield markdown(["papers100M-shaped, memory-mapped", ""], [*rows, ["seeds / s", f"{run['seeds_per_second']:,.0f}"]])


def _combined(data: dict[str, Any]) -> Iterator[str]:
    for dataset in dict.fromkeys(row["dataset"] for row in data["summary"]):
        rows = []
        for row in (row for row in data["summary"] if row["dataset"] == dataset):
            difference = "" if "difference" not in row else f"{row['difference']:+.2f}"
            if row.get("standard_error") is not None:
                difference += f" (se {row['standard_error']:.2f})"
            rows.append([
                f"{row['sparsify']}, {row['sampler']}, `{row['scheme']}`",
                f"{row['saved_bytes'] / 1e6:.1f} MB", f"{row.get('saved_bytes_ratio', 1):.1f}",
                f"{row['peak_bytes'] / 1e6:.0f} MB", f"{row['epoch_seconds']:.2f}",
                f"{row['test']['mean']:.2f} ± {row['test']['std']:.2f}", difference,
            ])  # fmt: skip
        head = ["thinned, sampler, activations", "saved", "x less", "peak", "s / epoch", "test", "difference"]
        yield f"**{dataset}**, {data['settings']['seeds']} seeds\n\n" + markdown(head, rows)


def _largest(data: dict[str, Any]) -> Iterator[str]:
    rows = []
    for result in data["results"]:
        best = result["largest"]
        cells = ["none fitted", "", ""]
        if best is not None:
            cells = [f"{best['scale']:.3f}", f"{best['nodes']:,}", f"{best['peak_bytes'] / 2**30:.2f} GiB"]
        rows.append([f"`{result['method']}`: {data['methods'][result['method']]}", *cells])
    limit = data["settings"]["limit_bytes"] / 2**30
    yield markdown([f"within {limit:g} GiB", "scale of ogbn-products", "nodes", "measured peak"], rows)


def _gradients(data: dict[str, Any]) -> Iterator[str]:
    rows = []
    for name, row in data["summary"].items():
        fewer = "" if row["fewer"] is None else f"{row['fewer']:.1f}"
        error, spent, test = f"{row['error']:.2g}", row["milliseconds"], row["test"]
        rows.append([f"`{name}`", f"{row['bytes']:,.0f}", fewer, error, f"{spent['median']:.0f}",
                     f"{test['mean']:.2f} ± {test['std']:.2f}"])  # fmt: skip
    head = ["gradients sent as", "bytes / step", "x fewer", "relative error", "ms / step", "test accuracy"]
    yield markdown(head, rows)


def _recsys_methods(data: dict[str, Any]) -> Iterator[str]:
    for name, model in dict.fromkeys((row["data"], row["model"]) for row in data.get("summary", [])):
        rows = []
        order = {method: place for place, method in enumerate(METHODS)}
        found = [row for row in data["summary"] if (row["data"], row["model"]) == (name, model)]
        for row in sorted(found, key=lambda row: (order[row["method"]], Fraction(row["budget"] or 1) * -1)):
            if row["auc"] is None:
                rows.append([row["method"], row["budget"], f"cannot reach: {row['minimum']:,} B", "", "", "", "", ""])
                continue
            search, difference = row["search_epochs"], row["difference"]
            rows.append([
                row["method"], row["budget"] or "", f"{row['bytes']['mean']:,.0f}", f"{row['ratio']['mean']:.1f}",
                f"{row['auc']['mean']:.4f} ± {row['auc']['std']:.4f}",
                "" if difference is None or row["method"] == "full" else f"{difference['mean']:+.4f}",
                f"{row['logloss']['mean']:.4f}", "" if search is None else f"{search['mean']:.2f}",
            ])  # fmt: skip
        best = max(data["tuning"][f"{name} {model}"], key=lambda tried: tried["valid_auc"])
        title = f"{name}, {model}, lr {best['lr']:g}, l2 {best['l2']:g}"
        head = [title, "budget", "bytes", "x smaller", "AUC", "to full", "logloss", "search, epochs"]
        yield markdown(head, rows)
    rows = [
        [row["data"], row["model"], row["method"], row["budget"], str(row["seeds"]), f"{row['value']:.2f}"]
        for row in data.get("stability", []) if row["value"] is not None
    ]  # fmt: skip
    if rows:
        yield markdown(["sizes", "model", "method", "budget", "seeds", "rank correlation of two seeds"], rows)


def _recsys_speed(data: dict[str, Any]) -> Iterator[str]:
    base = {"lookup": "nn.Embedding", "step": "nn.Embedding, SparseAdam"}
    for part, runs in data["runs"].items():
        rows = []
        for name, times in runs.items():
            batch = name.rpartition(", ")[2]
            other = runs[base.get(part, f"dense matmul, {batch}")]
            ratio = times["median"] / other["median"]
            rows.append([name, f"{times['median']:.3f} ± {times['std']:.3f}", f"{ratio:.2f}"])
        yield markdown([part, "ms", "times the dense"], rows)


def _recsys_memory(data: dict[str, Any]) -> Iterator[str]:
    rows = []
    for name, run in data["runs"].items():
        figures = [run["error"], ""] if "error" in run else [
            f"{run['table_bytes'] / 1e6:,.0f} MB", f"{run['peak_bytes'] / 1e6:,.0f} MB"]  # fmt: skip
        rows.append([f"`{name}`: {data['variants'][name]}", *figures])
    yield markdown(["training 5 million rows of 64", "table", "peak"], rows)


_OTHERS = {
    "outliers_table": _outlier_studies.table, "outliers_peers": _outlier_studies.peers,
    "outliers_scaling": _outlier_studies.scaling, "outliers_compressed": _outlier_studies.compressed,
    "llm_gradients": _llm_studies.gradients, "llm_memory": _llm_studies.memory,
    "llm_loss": _llm_studies.loss, "llm_loss_long": _llm_studies.loss, "kv_quality": _llm_studies.caches,
    "kv_greedy": _llm_studies.greedy, "kv_speed": _llm_studies.speed,
}  # fmt: skip
_TABLES = _OTHERS | {name: globals()[f"_{name}"] for name in NAMES if name not in _OTHERS}


def page(text: str) -> str:
    """The page with the tables of the result files."""
    for name in NAMES:
        file = _report.RESULTS / f"{name}.json"
        data = json.loads(file.read_text()) if file.exists() else None
        text = replace(text, render(name, data), begin(name), end(name))
    return text


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, epilog="examples:\n" + EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--check", action="store_true", help="write nothing; compare")
    args = made.parse_args(argv)
    old = PAGE.read_text()
    new = page(old)
    if args.check:
        return 0 if new == old else 1
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
