"""``report.html``: one page with the table, the curves and the memory by layer; it loads nothing from elsewhere."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from graphlossy.train._format import METRIC_NAMES, comparison_notes, comparison_rows, counted, format_size
from graphlossy.train._html import legend, show, table
from graphlossy.train._svg import Bar, Line, bar_chart, line_chart

__all__ = ["render_report"]

Record = dict[str, Any]
KINDS = ("exact", "unbiased", "approximate")


def render_report(summary: dict[str, Any], results: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]]) -> str:
    """The page as text.

    Args:
        summary: contents of ``summary.json``.
        results: the result of every run, with the ledger's records.
        lines: the lines of ``metrics.jsonl``.
    """
    labels = [scheme["run"] for scheme in summary["schemes"]]
    metric = METRIC_NAMES[summary["metric"]].removeprefix("test ")
    lines = [line for line in lines if "loss" in line]
    data = summary["data"]
    settings = summary["settings"]
    sections = [
        f"<h1>{escape(data['name'])}, {escape(settings['model'])}: what compressed training costs</h1>",
        f"<p>{data['nodes']:,} nodes, {data['edges']:,} edges, {data['features']:,} features; "
        f"{data['train_nodes']:,} training, {data['valid_nodes']:,} validation and {data['test_nodes']:,} test nodes. "
        f"{counted(settings['seeds'], 'seed')} of {settings['epochs']} epochs on {escape(summary['device'])}."
        f"{escape(_training(summary))}</p>",
        *(f"<p><strong>{escape(note)}</strong></p>" for note in comparison_notes(summary)),
        table(comparison_rows(summary), head=True),
        '<p class="note">In brackets: ratio to the baseline. The metric is the mean and the standard deviation over '
        "seeds, each seed's test score taken at its best validation epoch. Saved bytes include scales, offsets and "
        "masks. Peak is the highest memory of a step beyond its start, the median of the seeds: "
        f"{escape(summary['peak_measured_as'] or '-')}. "
        "Seconds are the median of the training steps, without evaluation.</p>",
        "<h2>Training curves</h2>",
        legend(labels),
        '<div class="charts">',
        line_chart(_curves(lines, labels, "valid", 100), "epoch", f"validation {metric}"),
        line_chart(_curves(lines, labels, "loss", 1), "epoch", "training loss"),
        "</div>",
        *(['<p class="note">Thick: mean over seeds. Thin: single seeds.</p>'] if settings["seeds"] > 1 else []),
        "<h2>Memory by layer</h2>",
        legend(labels),
        bar_chart(_layers(results, labels)),
        "<h2>What is exact and what is not</h2>",
        table(_gradients(results, labels), head=True),
        f'<p class="note">{_forward_note(settings)} Unbiased: the gradient is right in expectation over the rounding, '
        "given the gradient that comes in. Approximate: no such promise.</p>",
        "<h2>Every saved tensor</h2>",
        *(_details(label, _records(results, label)) for label in labels),
        "<h2>Settings and versions</h2>",
        table([[key, show(value)] for key, value in settings.items()]),
        table([[key, value] for key, value in summary["versions"].items()]),
    ]
    style = files("graphlossy.train").joinpath("templates/report.css").read_text(encoding="utf-8")
    title = escape(f"graphlossy: {data['name']}, {settings['model']}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def _training(summary: dict[str, Any]) -> str:
    """What the runs were trained on, where it is not the whole graph at once."""
    data, settings = summary["data"], summary["settings"]
    text = ""
    if settings["sparsify"] is not None:
        share = 100 * data["train_edges"] / max(data["edges"], 1)
        where = "training and evaluation" if settings["sparsify_eval"] else "training"
        kept = f" to {data['train_edges']:,} edges, {share:.1f} %"
        if settings["sampler"] == "sparsify":
            where, kept = "every epoch", " anew"
        text += f" For {where} the graph was thinned{kept} ({settings['sparsify']})."
    if settings["sampler"] is not None:
        text += (
            f" Mini-batches by the sampler {settings['sampler']}; saved bytes are those of the largest batch of an "
            "epoch, the peak is that of an epoch."
        )
    return text


def _forward_note(settings: dict[str, Any]) -> str:
    note = (
        "Compression rounds nothing in the forward pass: its values are those of the baseline, up to the order of "
        "summation where a convolution given a plain edge_index runs as a sparse product."
    )
    if settings["amp"]:
        note += " Under bfloat16 autocast that order shows in the last digits of bfloat16."
    return note


def _curves(lines: Sequence[dict[str, Any]], labels: list[str], key: str, factor: float) -> list[Line]:
    found = []
    for colour, label in enumerate(labels):
        ours = [line for line in lines if line["run"] == label and line[key] is not None]
        seeds = sorted({line["seed"] for line in ours})
        for seed in seeds:
            points = [(line["epoch"], factor * line[key]) for line in ours if line["seed"] == seed]
            found.append(Line(f"{label}, seed {seed}", points, colour, strong=len(seeds) == 1))
        if len(seeds) > 1:
            by_epoch: dict[int, list[float]] = {}
            for line in ours:
                by_epoch.setdefault(line["epoch"], []).append(factor * line[key])
            means = [(epoch, statistics.fmean(values)) for epoch, values in sorted(by_epoch.items())]
            found.append(Line(f"{label}, mean", means, colour, strong=True))
    return found


def _records(results: Sequence[dict[str, Any]], label: str) -> list[Record]:
    return next((result["records"] for result in results if result["run"] == label and result["records"]), [])


def _layers(results: Sequence[dict[str, Any]], labels: list[str]) -> list[Bar]:
    sums: dict[str, dict[str, int]] = {}
    for label in labels:
        for record in _records(results, label):
            place = sums.setdefault(f"{record['module']} {record['op']}".strip(), {})
            place[label] = place.get(label, 0) + record["saved_bytes"]
    return [
        Bar(place, [by.get(label) for label in labels], [format_size(by.get(label)) for label in labels])
        for place, by in sums.items()
        if any(by.values())
    ]


def _gradients(results: Sequence[dict[str, Any]], labels: list[str]) -> list[list[str]]:
    rows = [["saved bytes behind a gradient that is", *KINDS]]
    for label in labels:
        records = _records(results, label)
        sums = [sum(r["saved_bytes"] for r in records if r["gradient"] == kind) for kind in KINDS]
        rows.append([label, *(format_size(size) for size in sums)])
    return rows


def _details(label: str, records: list[Record]) -> str:
    rows = [["module", "operation", "type", "shape", "before", "after", "bits", "gradient"]]
    for r in records:
        shape = " x ".join(str(size) for size in r["shape"])
        sizes = [format_size(r["plain_bytes"]), format_size(r["saved_bytes"])]
        rows.append([r["module"] or "(model)", r["op"], r["dtype"], shape, *sizes, f"{r['bits']:g}", r["gradient"]])
    tensors = table(rows, head=True)
    return f"<details><summary>{escape(label)}: {len(records)} tensors</summary>{tensors}</details>"
