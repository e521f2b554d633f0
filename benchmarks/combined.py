"""Compressed activations x thinned graph x sampled mini-batches: bytes, time and accuracy of every cell."""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import _report

__all__ = ["main", "summarize"]

EXAMPLES = """\
  python -m benchmarks.combined --tolokers data/tolokers.npz
  python -m benchmarks.combined --datasets wordnet-verbs --seeds 3
  python -m benchmarks.combined --tiny --out /tmp/combined.json

A cell that is in --out already is not run again. Every cell is `graphlossy train` with its settings; the reference of
all of them is float32 on the whole graph in full batches."""

SPARSIFY = (None, "degree:0.5", "degree:0.25")
SAMPLERS: dict[str | None, dict[str, Any]] = {
    None: {},
    "neighbor": {"batch_size": 1024, "num_neighbors": (10, 10)},
    "cluster": {"num_parts": 40, "batch_size": 8},
}
# An epoch of mini-batches is many steps: fewer epochs of them, the same for both schemes.
EPOCHS = {None: 45, "neighbor": 9, "cluster": 18}
SHARED: dict[str, Any] = {
    "model": "sage", "layers": 2, "hidden": 128, "dropout": 0.5, "norm": True, "lr": 0.01, "adj": "csr",
    "bits": (2,), "schemes": ("baseline", "compressed"), "split": None, "device": "cpu", "eval_every": 3,
}  # fmt: skip
FULL = {"sparsify": "none", "sampler": "none"}


def run(dataset: str, sparsify: str | None, sampler: str | None, seeds: int, tiny: bool) -> dict[str, Any]:
    """One cell: float32 and 2 bits, all seeds."""
    from graphlossy.train import Experiment, TrainConfig

    settings = {**SHARED, **SAMPLERS[sampler], "sparsify": sparsify, "sampler": sampler}
    settings |= {"epochs": 2 if tiny else EPOCHS[sampler], "seeds": seeds, "hidden": 16 if tiny else SHARED["hidden"]}
    if tiny and sampler == "cluster":
        settings |= {"num_parts": 4, "batch_size": 2}
    config = TrainConfig(dataset=dataset, threads=torch.get_num_threads(), **settings)
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(config, Path(folder) / "run", checkpoint_seconds=3600)
        experiment.run()
    schemes = {}
    for scheme in config.comparison():
        found = [result for result in experiment.results if result["run"] == scheme.label]
        schemes["float32" if not scheme.compressed else scheme.label] = {
            "test": [100 * result["test"] for result in found],
            "saved_bytes": [result["saved_bytes"] for result in found],
            "peak_bytes": [result["peak_bytes"] for result in found],
            "epoch_seconds": [statistics.median(result["seconds"]) for result in found],
            "train_seconds": [sum(result["seconds"]) for result in found],
        }
    return {"settings": {**config.to_dict(), "dataset": Path(dataset).stem}, "schemes": schemes}


def summarize(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each cell and scheme, beside float32 on the whole graph in full batches, by equal seeds."""
    rows = []
    for cell in cells:
        same = [c for c in cells if c["dataset"] == cell["dataset"] and all(c[k] == v for k, v in FULL.items())]
        base = same[0]["schemes"]["float32"] if same else None
        for scheme, found in cell["schemes"].items():
            row: dict[str, Any] = {key: cell[key] for key in ("dataset", "sparsify", "sampler")} | {"scheme": scheme}
            row["test"] = _report.spread(found["test"])
            for key in ("saved_bytes", "peak_bytes", "epoch_seconds", "train_seconds"):
                row[key] = statistics.median(found[key])
                if base is not None:
                    row[f"{key}_ratio"] = statistics.median(base[key]) / row[key]
            if base is not None and found is not base:
                pairs = [a - b for a, b in zip(found["test"], base["test"], strict=True)]
                row["difference"] = statistics.fmean(pairs)
                row["standard_error"] = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
            rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "combined.json")
    made.add_argument("--tolokers", metavar="FILE", help="tolokers.npz of the heterophilous-graphs collection")
    made.add_argument("--datasets", default="debian-packages", help="comma-separated names (default: %(default)s)")
    made.add_argument("--seeds", type=int, default=None, help="runs of each (default: 5; 1 if --tiny)")
    args = made.parse_args(argv)
    names = {name: name for name in (["synth-arxiv-tiny"] if args.tiny else args.datasets.split(","))}
    if args.tolokers:
        names = {"tolokers": args.tolokers, **names}
    seeds = args.seeds or (1 if args.tiny else 5)
    data = _report.header("combined", {"threads": torch.get_num_threads(), "seeds": seeds})
    data["cells"] = _report.earlier(args.out, data, args.fresh).get("cells", [])
    for (name, path), sparsify, sampler in itertools.product(names.items(), SPARSIFY, SAMPLERS):
        key = {"dataset": name, "sparsify": sparsify or "none", "sampler": sampler or "none"}
        if any(all(cell[k] == v for k, v in key.items()) for cell in data["cells"]):
            continue
        data["cells"].append({**key, **run(path, sparsify, sampler, seeds, args.tiny)})
        data["summary"] = summarize(data["cells"])
        _report.write_json(args.out, data)
        for row in data["summary"][-2:]:
            cell = f"{name}, sparsify {key['sparsify']}, sampler {key['sampler']}, {row['scheme']}"
            sizes = f"saved {row['saved_bytes'] / 2**20:.1f} MiB, peak {row['peak_bytes'] / 2**20:.0f} MiB"
            print(f"{cell}: test {row['test']['mean']:.2f}, {sizes}, epoch {row['epoch_seconds']:.2f} s", flush=True)


if __name__ == "__main__":
    main()
