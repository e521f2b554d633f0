"""The table of docs/plan.md: what ``graphlossy.plan`` predicts now, beside what benchmarks.memory measured."""

from __future__ import annotations

from typing import Any

import graphlossy
from benchmarks._graphs import TRAIN_SHARE
from benchmarks._models import build
from benchmarks.table import markdown

__all__ = ["BEGIN", "END", "ROWS", "is_current", "render"]

BEGIN, END = "<!-- predictions: python -m benchmarks.readme -->", "<!-- /predictions -->"

# model, variant of benchmarks.memory, what the table calls it, and the plan's scheme
ROWS = [
    ("gcn", "pyg-csr", "GCN, `adj_t`, float32", "float32"),
    ("gcn", "compress-2bit", "GCN, `adj_t`, 2 bits", "compress 2 bits"),
    ("gcn", "pyg-edge_index", "GCN, `edge_index`, float32", "float32"),
    ("gcn", "compress-2bit-edge_index", "GCN, `edge_index`, 2 bits", "compress 2 bits"),
    ("gcn", "nn-2bit", "GCN, `graphlossy.nn`, 2 bits", "float32"),
    ("sage", "pyg-csr", "SAGE, `adj_t`, float32", "float32"),
    ("sage", "compress-2bit", "SAGE, `adj_t`, 2 bits", "compress 2 bits"),
    ("sage", "nn-2bit", "SAGE, `graphlossy.nn`, 2 bits", "float32"),
    ("gat", "pyg-csr", "GAT, `adj_t`, float32", "float32"),
]


def render(memory: dict[str, Any]) -> str:
    """The text between the comments of docs/plan.md."""
    size = memory["settings"]
    rows = []
    for model, variant, title, scheme in ROWS:
        found = memory["summary"].get(model, {}).get(variant)
        if found is None:
            continue
        row = _predict(size, model, variant, scheme)
        saved, live, resident = _measured(found)
        off = f"{100 * (row.peak_bytes / found['peak_bytes']['median'] - 1):+.0f} %"
        rows.append([title, _mb(row.saved_bytes), saved, _mb(row.peak_bytes), live, resident, off])
    head = ["model, graph, scheme", "saved: predicted", "measured", "peak: predicted", "live tensors", "resident",
            "prediction is off by"]  # fmt: skip
    return "\n\n".join([
        f"Predicted and measured, for {size['nodes']:,} nodes and {size['edges']:,} edges with a power law, three "
        f"layers, {size['hidden']} wide (GAT three heads of {size['hidden'] // 2}), CPU. Megabytes; \"resident\" is "
        "the growth of the process during a step (`VmHWM`). The measured columns are of\n"
        "[benchmarks/results/memory.json](../benchmarks/results/memory.json):",
        markdown(head, rows),
    ])  # fmt: skip


def is_current(text: str, memory: dict[str, Any]) -> bool:
    """Whether the measured columns in ``text`` are those of ``memory``; the predictions take seconds and have tests."""
    table = text.partition(BEGIN)[2].partition(END)[0]
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    found = [[cells[0], cells[2], cells[4], cells[5]] for cells in shown[2:]]
    summary = memory["summary"]
    rows = [(title, summary.get(model, {}).get(variant)) for model, variant, title, _ in ROWS]
    return found == [[title, *_measured(row)] for title, row in rows if row is not None]


def _measured(found: dict[str, Any]) -> list[str]:
    """Saved bytes, the highest sum of live tensors, and the growth of the process."""
    return [_mb(found["held_bytes"]), _mb(found["peak_tensor_bytes"]), _mb(found["peak_bytes"]["median"])]


def _predict(size: dict[str, Any], model: str, variant: str, scheme: str) -> Any:
    plain = variant.endswith("edge_index")
    # On the strong path the graph comes with GCN's self-loops and normalisation.
    normalized = model == "gcn" and not plain
    network = build(
        model,
        features=size["features"],
        hidden=size["hidden"] // 2 if model == "gat" else size["hidden"],
        classes=size["classes"],
        layers=3,
        dropout=size["dropout"],
        normalize=not normalized,
        bits=2 if variant.startswith("nn") else None,
    )
    found = graphlossy.plan(
        network,
        num_nodes=size["nodes"],
        num_edges=size["edges"] + (size["nodes"] if normalized else 0),
        num_features=size["features"],
        num_classes=size["classes"],
        num_train_nodes=int(TRAIN_SHARE * size["nodes"]),
        schemes=[scheme],
        adj="edge_index" if plain else "csr",
    )
    return found[scheme]


def _mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.1f}"
