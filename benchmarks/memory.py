"""Saved bytes, peak memory and time of one training step: graphlossy, PyG and the other methods, one process each."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import _report
from benchmarks._models import MODELS
from benchmarks._variants import VARIANTS

__all__ = ["main", "measure_all", "summarize"]

EXAMPLES = """\
  python -m benchmarks.memory                                   every model and method, about an hour on 2 cores
  python -m benchmarks.memory --models gcn,sage --rounds 3      more measurements of two models
  python -m benchmarks.memory --models gcn --variants pyg-csr,compress-2bit
  python -m benchmarks.memory --tiny --out /tmp/memory.json     seconds; shows that everything runs

Finished measurements in --out are kept and only what is missing is run; --fresh starts again. Stop and repeat the
command whenever you like."""

# Bit widths other than 2 on one model are enough to see their law.
ONLY_GCN = ("compress-8bit", "compress-4bit", "compress-1bit")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Sizes of the graph and the networks."""
    size = {"nodes": 120_000, "edges": 800_000, "features": 128, "hidden": 256, "classes": 40, "deep": 16}
    if args.tiny:
        size = {"nodes": 3000, "edges": 20_000, "features": 32, "hidden": 64, "classes": 8, "deep": 3}
    if getattr(args, "nodes", None):
        size["nodes"] = args.nodes
    if getattr(args, "edges", None):
        size["edges"] = args.edges
    return {**size, "dropout": 0.5, "seed": 0, "threads": args.threads, "device": getattr(args, "device", "cpu")}


def spec_of(settings: dict[str, Any], model: str, variant: str, steps: int) -> dict[str, Any]:
    """What the measuring process is given. GAT has three heads of half the width each."""
    hidden = settings["hidden"] // 2 if model == "gat" else settings["hidden"]
    layers = settings["deep"] if model == "gcn2" else 3
    shared = {k: v for k, v in settings.items() if k not in ("hidden", "deep")}
    return {**shared, "model": model, "variant": variant, "hidden": hidden, "layers": layers, "steps": steps}


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Runs one method in a process of its own. A method that fails is recorded with its error, not left out."""
    environment = dict(os.environ)
    if spec["threads"]:
        environment["OMP_NUM_THREADS"] = str(spec["threads"])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._child", json.dumps(spec)],
        capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"the process ended with status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def measure_all(args: argparse.Namespace, settings: dict[str, Any], benchmark: str) -> dict[str, Any]:
    """Runs what is missing in ``args.out``, method after method, round after round, writing after each."""
    data = _report.header(benchmark, settings, settings["device"])
    runs = _report.earlier(args.out, data, args.fresh).get("runs", {})
    data["variants"] = {name: text for name, text in VARIANTS.items() if name in args.variants}
    data["runs"] = runs
    for model in args.models:
        for number in range(args.rounds):
            for variant in args.variants:
                if variant in ONLY_GCN and model != "gcn" and not args.all_widths:
                    continue
                rounds = data["runs"].setdefault(model, {}).setdefault(variant, [])
                if len(rounds) > number and "error" not in rounds[number]:
                    continue
                found = measure(spec_of(settings, model, variant, args.steps))
                rounds[number : number + 1] = [found]
                print(f"{model:5} {variant:26} round {number + 1}: {_line(found)}", flush=True)
                data["summary"] = summarize(data["runs"])
                _report.write_json(args.out, data)
    return data


def _line(found: dict[str, Any]) -> str:
    if "error" in found:
        return found["error"]
    peak, seconds = statistics.median(found["peak_bytes"]), statistics.median(found["seconds"])
    return f"saved {found['held_bytes'] / 1e6:8.1f} MB   peak {peak / 1e6:8.1f} MB   {seconds:7.3f} s"


def summarize(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Per model and method: saved and peak bytes, seconds, and each as a ratio to both forms of PyG."""
    out: dict[str, Any] = {}
    for model, variants in runs.items():
        rows = {name: _merge(rounds) for name, rounds in variants.items()}
        for row in rows.values():
            for base in ("pyg-csr", "pyg-edge_index"):
                other = rows.get(base)
                if other is None or "error" in other or "error" in row:
                    continue
                row[f"vs {base}"] = {
                    "saved": _ratio(other["held_bytes"], row["held_bytes"]),
                    "peak": _ratio(other["peak_bytes"]["median"], row["peak_bytes"]["median"]),
                    "first_peak": _ratio(other["first_peak_bytes"], row["first_peak_bytes"]),
                    "peak_tensors": _ratio(other["peak_tensor_bytes"], row["peak_tensor_bytes"]),
                    "time": _ratio(row["seconds"]["median"], other["seconds"]["median"]),
                }
        out[model] = rows
    return out


def _ratio(top: float, bottom: float) -> float | None:
    return round(top / bottom, 3) if bottom else None


def _merge(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    errors = [found["error"] for found in rounds if "error" in found]
    if errors:
        return {"error": errors[0]}
    return {
        "held_bytes": rounds[0]["held_bytes"],
        "ledger": rounds[0]["ledger"],
        "peak_bytes": _report.spread([v for found in rounds for v in found["peak_bytes"]]),
        "first_peak_bytes": max(found["first"]["peak_bytes"] for found in rounds),
        "peak_tensor_bytes": rounds[0]["peak_tensor_bytes"],
        "kept_bytes": statistics.median(found["kept_bytes"] for found in rounds),
        "seconds": _report.spread([v for found in rounds for v in found["seconds"]]),
        "seconds_by_round": [statistics.median(found["seconds"]) for found in rounds],
    }


def bars(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The project's bars beside the measured ratios."""

    def value(model: str, variant: str, base: str, what: str) -> float | None:
        return summary.get(model, {}).get(variant, {}).get(f"vs {base}", {}).get(what)

    found = []

    def add(model: str, variant: str, base: str, what: str, relation: str, bound: float) -> None:
        name = {"saved": "bytes saved, times less", "peak": "peak, times less", "time": "time, times"}[what]
        text = f"{model}: {variant} against {base}, {name}"
        found.append(_report.bar(text, value(model, variant, base, what), relation, bound))

    for model in ("gcn", "sage"):
        add(model, "compress-2bit", "pyg-csr", "saved", "at least", 15)
        add(model, "nn-2bit", "pyg-csr", "saved", "at least", 25)
    for variant in ("compress-2bit", "nn-2bit"):
        add("gat", variant, "pyg-csr", "saved", "at least", 8)
    for model, bound in (("gcn", 2.5), ("sage", 2.5), ("gcn2", 5)):
        add(model, "compress-2bit", "pyg-csr", "peak", "at least", bound)
        add(model, "nn-2bit", "pyg-csr", "peak", "at least", bound)
    for model in ("gcn", "sage"):
        add(model, "compress-2bit-edge_index", "pyg-edge_index", "peak", "at least", 3.5)
    for model in MODELS:
        add(model, "compress-2bit", "pyg-csr", "time", "at most", 1.15)
        add(model, "compress-2bit-edge_index", "pyg-edge_index", "time", "below", 1)
    return found


def arguments(description: str, examples: str, out: str) -> argparse.ArgumentParser:
    """Options shared with the GPU table."""
    made = _report.parser(description, examples, out)
    made.add_argument("--models", default=",".join(MODELS), help="comma-separated (default: %(default)s)")
    made.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated methods (default: all)")
    made.add_argument("--all-widths", action="store_true", help="8, 4 and 1 bits on every model, not on gcn only")
    made.add_argument("--rounds", type=int, default=None, help="passes over all methods (default: 2; 1 if --tiny)")
    made.add_argument("--steps", type=int, default=None, help="measured steps in a round (default: 3; 1 if --tiny)")
    made.add_argument("--nodes", type=int, default=None, help="of the graph (default: 120000; 3000 if --tiny)")
    made.add_argument("--edges", type=int, default=None, help="of the graph (default: 800000; 20000 if --tiny)")
    return made


def finish(made: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Splits the lists and checks them."""
    args.models, args.variants = args.models.split(","), args.variants.split(",")
    for name, chosen, allowed in (("--models", args.models, MODELS), ("--variants", args.variants, VARIANTS)):
        unknown = [c for c in chosen if c not in allowed]
        if unknown:
            made.error(f"{name}: unknown {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    args.rounds = args.rounds or (1 if args.tiny else 2)
    args.steps = args.steps or (1 if args.tiny else 3)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = arguments(__doc__ or "", EXAMPLES, "memory.json")
    made.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    args = made.parse_args(argv)
    finish(made, args)
    data = measure_all(args, settings_of(args), "memory")
    data["summary"] = summarize(data["runs"])
    data["bars"] = [] if args.tiny else bars(data["summary"])
    _report.write_json(args.out, data)
    _report.print_bars(data["bars"])


if __name__ == "__main__":
    main()
