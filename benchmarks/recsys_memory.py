"""Peak memory of training an embedding table: dense, or multi-size at a sixteenth of its bytes, one process each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import _report
from benchmarks._meter import ResidentMeter
from benchmarks.recsys_speed import power_sizes, zipf_batches

__all__ = ["VARIANTS", "main", "measure"]

EXAMPLES = """\
  python -m benchmarks.recsys_memory                       V = 5 M, d = 64, a few minutes and about 9 GB of memory
  python -m benchmarks.recsys_memory --variants dense,multi-size --fresh
  python -m benchmarks.recsys_memory --tiny --out /tmp/recsys_memory.json

The peak is what the process holds beyond what it held before the table was made (VmHWM of /proc), over ten training
steps of 8,192 ids of a Zipf law; tables, gradients and optimizer state are in it. Sizes are given: finding them is
`search`, which needs the full table and is measured beside."""

VARIANTS = {
    "dense": "nn.Embedding, sparse gradients, SparseAdam",
    "multi-size": "MultiSizeEmbedding at 1/16 of the bytes, sparse gradients, SparseAdamW",
    "multi-size, SparseAdam": "the same, torch's SparseAdam for the tables and Adam for the projection",
    "multi-size, RowwiseAdagrad": "the same, one number of optimizer state a row",
    "multi-size, int8 rows": "the same, rows of 8 bits in training, RowwiseAdagrad",
    "search": "PME's saliencies over ten batches: full table, one dense sum",
}


def child(spec: dict[str, Any]) -> dict[str, Any]:
    """Runs one variant in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(spec["threads"])
    batches, rank = zipf_batches(spec["tokens"], spec["ids"], spec["steps"])
    sizes = power_sizes(rank, spec["dim"], spec["share"])
    head = nn.Linear(spec["dim"], 1)
    run = _search if spec["variant"] == "search" else _train
    few = [ids % 100 for ids in batches[:2]]
    run({**spec, "tokens": 100}, few, sizes[:100], head)  # what is imported and set up once is not the table's
    meter = ResidentMeter()
    meter.start()
    nbytes = run(spec, batches, sizes, head)
    return {"peak_bytes": meter.peak(), "table_bytes": nbytes}


def _train(spec: dict[str, Any], batches: list[torch.Tensor], sizes: torch.Tensor, head: nn.Module) -> int:
    from graphlossy.recsys import MultiSizeEmbedding
    from graphlossy.recsys.optim import RowwiseAdagrad, SparseAdamW

    variant, shape = spec["variant"], (spec["tokens"], spec["dim"])
    optimizers: list[torch.optim.Optimizer]
    if variant == "dense":
        table: Any = nn.Embedding(*shape, sparse=True)
        optimizers = [torch.optim.SparseAdam(table.parameters())]
        nbytes = table.weight.nbytes
    else:
        table = MultiSizeEmbedding(*shape, sizes=sizes, sparse=True)
        if variant == "multi-size, int8 rows":
            table.quantize_(8, trainable=True)
        nbytes = table.nbytes
        if variant == "multi-size":
            optimizers = [SparseAdamW(table.parameters())]
        elif variant == "multi-size, SparseAdam":
            rows = [p for name, p in table.named_parameters() if name.startswith("tables.")]
            optimizers = [torch.optim.SparseAdam(rows), torch.optim.Adam(table.projections.parameters())]
        else:
            optimizers = [RowwiseAdagrad(table.parameters())]
    for ids in batches:
        for optimizer in optimizers:
            optimizer.zero_grad()
        head(table(ids)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    return nbytes


def _search(spec: dict[str, Any], batches: list[torch.Tensor], sizes: torch.Tensor, head: nn.Module) -> int:
    from graphlossy.recsys.methods import search

    model = nn.Sequential(nn.Embedding(spec["tokens"], spec["dim"]), head)
    nbytes = model[0].weight.nbytes
    budget = int(nbytes * spec["share"])
    search(model, batches, lambda m, ids: m(ids).square().mean(), method="pme", budget=budget, progress=False, seed=0)
    return nbytes


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """One variant in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.recsys_memory", "--child", json.dumps(spec)],
        capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"the process ended with status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def bars(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """The peak of multi-size training against the dense table's."""
    peaks = {name: run.get("peak_bytes") for name, run in runs.items()}
    ratio = peaks["multi-size"] / peaks["dense"] if peaks.get("multi-size") and peaks.get("dense") else None
    return [_report.bar("peak memory of training at 1/16, share of the dense table's", ratio, "at most", 1 / 8)]


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "recsys_memory.json")
    made.add_argument("--variants", default=None, help="comma-separated; by default all")
    made.add_argument("--child", help="used by the benchmark itself: JSON of one measurement")
    args = made.parse_args(argv)
    if args.child:
        print(json.dumps(child(json.loads(args.child))))
        return
    wanted = list(VARIANTS) if args.variants is None else [name.strip() for name in args.variants.split(",")]
    if unknown := [name for name in wanted if name not in VARIANTS]:
        made.error(f"--variants: {', '.join(unknown)} is none; allowed are {', '.join(VARIANTS)}")
    tokens, dim, ids = (20_000, 16, 256) if args.tiny else (5_000_000, 64, 8192)
    settings = {"tokens": tokens, "dim": dim, "ids": ids, "steps": 10, "share": 1 / 16, "threads": 1}
    data = _report.header("recsys_memory", settings)
    data["variants"] = VARIANTS
    data["runs"] = _report.earlier(args.out, _report.header("recsys_memory", settings), args.fresh).get("runs", {})
    for variant in wanted:
        if "peak_bytes" not in data["runs"].get(variant, {}):
            data["runs"][variant] = measure({**settings, "variant": variant})
        run = data["runs"][variant]
        if "error" in run:
            print(f"{variant:32} {run['error']}")
        else:
            print(f"{variant:32} peak {run['peak_bytes'] / 1e6:10,.1f} MB, table {run['table_bytes'] / 1e6:10,.1f} MB")
        data["bars"] = [] if args.tiny else bars(data["runs"])
        _report.write_json(args.out, data)
    _report.print_bars(data["bars"])


if __name__ == "__main__":
    main()
