"""Writes the figures of README.md and the table of docs/plan.md from the result files, between their comments."""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from benchmarks import _report, plan_table
from benchmarks.table import DATASETS, markdown

__all__ = ["main", "render", "replace"]

EXAMPLES = """\
  python -m benchmarks.readme              writes them
  python -m benchmarks.readme --check      exit code 1 if they show others than the result files hold"""

NEEDED = ("memory", "bits_per_element", "accuracy", "llm_memory", "llm_loss")
README = Path(__file__).parents[1] / "README.md"
PLAN = README.parent / "docs" / "plan.md"
BEGIN, END = "<!-- figures: python -m benchmarks.readme -->", "<!-- /figures -->"
LLM_BEGIN, LLM_END = "<!-- llm figures: python -m benchmarks.readme -->", "<!-- /llm figures -->"
LLM_ROWS = {"exact": "nothing rounded, `bits=None`", "4-bit": "4 bits, the default", "lora + 4-bit": "LoRA and 4 bits"}
MODELS = {
    "gcn": "GCN, 3 layers of {hidden}",
    "sage": "GraphSAGE, 3 layers of {hidden}",
    "gat": "GAT, 3 layers of 3 x {half}",
    "gcn2": "GCN2, {deep} layers of {hidden}",
}


def render(memory: dict[str, Any], bits: dict[str, Any], accuracy: dict[str, Any]) -> str:
    """The text between the comments."""
    size = memory["settings"]
    names = {key: text.format(**size, half=size["hidden"] // 2) for key, text in MODELS.items()}
    found = {model: memory["summary"][model] for model in MODELS if model in memory["summary"]}
    rows = [
        [names[model], *_against(rows, "compress-2bit", "pyg-csr"), *_against(rows, "nn-2bit", "pyg-csr")[:2]]
        for model, rows in found.items()
    ]
    usual = [
        [names[model], *_against(rows, "compress-2bit-edge_index", "pyg-edge_index")] for model, rows in found.items()
    ]
    head = ["saved for backward", "peak of a step", "epoch time"]
    layer = bits["bits"]["128"]
    return "\n\n".join([
        f"One training step, N = {size['nodes']:,}, E = {size['edges']:,}, float32 PyG → 2 bits, "
        f"{memory['machine']['cpu']}, {size['threads']} threads:",
        markdown(
            ["against PyG's fast path, a sparse `adj_t`", *head, "`graphlossy.nn`: saved", "peak"], rows
        ),
        markdown(["against PyG with a plain `edge_index`", *head], usual),
        f"Bits stored per element of one GCN layer, D = 128: {layer['compress-2bit']:.2f} under `compress(bits=2)`, "
        f"{layer['nn-2bit']:.2f} with `graphlossy.nn`; float32 takes {layer['pyg-csr']:.0f}, EXACT's scheme "
        f"{layer['exact-2bit']:.2f}. Test score, mean ± standard deviation over 10 seeds, and the difference to "
        "float32 over equal seeds with its standard error:",
        _scores(accuracy["summary"]),
        "All methods compared (bfloat16, checkpointing, EXACT, sampling, ...) and how it was measured: "
        "[benchmarks/README.md](benchmarks/README.md). Figures on a GPU have not been measured yet.",
    ])  # fmt: skip


def render_llm(memory: dict[str, Any], loss: dict[str, Any]) -> str:
    """The text between the comments of the language models."""
    size, rows = memory["settings"], memory["summary"]
    body = []
    for name, title in LLM_ROWS.items():
        base = rows["lora" if name.startswith("lora") else "plain"]
        row = rows[name]
        peaks = base["peak_bytes"]["median"], row["peak_bytes"]["median"]
        body.append([
            title, _less(base["held_bytes"], row["held_bytes"]), _less(*peaks),
            f"{row['seconds']['median'] / base['seconds']['median']:.2f}x",
        ])  # fmt: skip
    head = ["a step of fine-tuning, each against the same without", "saved for backward", "peak of a step", "time"]
    where = f"{memory['machine']['cpu']}, {size['threads']} threads"
    plain, low, steps = loss["summary"]["plain"], loss["summary"]["4-bit"], loss["settings"]["steps"]
    held = ", ".join(
        f"{row['valid']['mean']:.3f} ± {row['valid']['std']:.3f} {title}"
        for row, title in ((plain, "plain"), (low, "in 4 bits"))
    )
    first = (
        f"SmolLM2-135M, {size['batch']} x {size['length']} tokens, float32, {where}; the peak is that beyond weights, "
        "gradients and optimizer state:"
    )
    last = (
        f"Held-out loss after {steps} steps, {len(plain['valid']['raw'])} seeds: {held}, {plain['first']:.3f} before. "
        "Gradient checkpointing, bfloat16, VeLoRA, WTA-CRS and others in the same tables: "
        "[docs/studies.md](docs/studies.md)."
    )
    return f"{first}\n\n{markdown(head, body)}\n\n{textwrap.fill(last, 120, break_on_hyphens=False)}"


def _less(plain: float, ours: float) -> str:
    return f"{_mb(plain)} → {_mb(ours)} ({plain / ours:.1f}x less)"


def _against(found: dict[str, Any], variant: str, base: str) -> list[str]:
    if base not in found or variant not in found:
        return ["not measured"] * 3
    plain, ours = found[base], found[variant]
    ratio = ours[f"vs {base}"]
    peaks = (plain["peak_bytes"]["median"], ours["peak_bytes"]["median"])
    return [
        _less(plain["held_bytes"], ours["held_bytes"]),
        _less(*peaks),
        f"{ratio['time']:.2f}x",
    ]


def _mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.0f} MB"


def _scores(summary: dict[str, Any]) -> str:
    rows = []
    for name, title in DATASETS.items():
        cells = [title, f"{summary[name]['float32']['mean']:.2f} ± {summary[name]['float32']['std']:.2f}"]
        for scheme in ("compress-2bit", "nn-2bit"):
            row = summary[name][scheme]
            difference = f"{row['difference']:+.2f}, se {row['standard_error']:.2f}"
            cells.append(f"{row['mean']:.2f} ± {row['std']:.2f} ({difference})")
        rows.append(cells)
    return markdown(["GCN on", "float32", "`compress(bits=2)`", "`graphlossy.nn`, 2 bits"], rows)


def replace(text: str, figures: str, begin: str = BEGIN, end: str = END) -> str:
    """``text`` with ``figures`` between the two comments ``begin`` and ``end``.

    Raises:
        ValueError: a comment is missing.
    """
    before, found, rest = text.partition(begin)
    _, also_found, after = rest.partition(end)
    if not found or not also_found:
        raise ValueError(f"the text needs the lines {begin} and {end}")
    return f"{before}{begin}\n\n{figures}\n\n{end}{after}"


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, epilog="examples:\n" + EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--check", action="store_true", help="write nothing; compare")
    args = made.parse_args(argv)
    missing = [name for name in NEEDED if not _file(name).exists()]
    if missing:
        made.error(f"no results of {', '.join(missing)}; run `python -m benchmarks` first")
    data = [json.loads(_file(name).read_text()) for name in NEEDED]
    old = README.read_text()
    new = replace(replace(old, render(*data[:3])), render_llm(*data[3:]), LLM_BEGIN, LLM_END)
    plan = PLAN.read_text()
    if args.check:
        return 0 if new == old and plan_table.is_current(plan, data[0]) else 1
    README.write_text(new)
    PLAN.write_text(replace(plan, plan_table.render(data[0]), plan_table.BEGIN, plan_table.END))
    return 0


def _file(name: str) -> Path:
    return _report.RESULTS / f"{name}.json"


if __name__ == "__main__":
    raise SystemExit(main())
