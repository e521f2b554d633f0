"""Our outlier detectors beside PyGOD's and PyOD's at equal settings: AUC, ranks and peak memory over seeds."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import _outliers, _report

__all__ = ["bars", "compare", "main"]

EXAMPLES = """\
  python -m benchmarks.outliers_peers --root DIR                    gen_1000 and inj_cora; some hours on one core
  python -m benchmarks.outliers_peers --root DIR --datasets gen_1000 --methods dominant,gcnae --seeds 50
  python -m benchmarks.outliers_peers --tiny --out /tmp/peers.json --folder /tmp/peers

Needs `pip install pygod pyod`; what is not installed is left out. All three are given the same width, layers, dropout,
learning rate, weight decay and epochs, the same graph without duplicate edges, and the same seeds, which are of no
meaning across libraries. PyGOD is run as `graphlossy.outliers.engines` runs it. The spread is the pooled standard
deviation over seeds, at least .005. PyOD's detectors are other models of the same names (docs/outliers.md): their
differences are listed, and no bar is set. Radar has no seed: its AUC is given where every feature is moved to one of
the two numbers next to it. A cell whose first seed breaks a limit is left at that."""

SEEDS = {"gen_1000": 20, "inj_cora": 5}  # data sets, and seeds: few where they take long
ROUNDED = 5  # runs of Radar on features that are rounded otherwise
EQUAL: dict[str, dict[str, Any]] = {
    "*": {"hid_dim": 64, "num_layers": 4, "dropout": 0.0, "weight_decay": 0.0, "lr": 0.004, "epoch": 100},
    "cola": {"context": "neighborhood"},  # PyGOD's variant; our default is the paper's, on random walks
    "ocgnn": {"num_layers": 2},
    "radar": {"solver": "adam", "beta": 0.0},  # our default is the paper's alternation
}


# Where ours is not PyGOD's model, or cannot follow it bit for bit.
WHY = {
    "scan": "clusters grow as in the paper; PyGOD's end at the first neighbours",
    "radar": "the same up to rounding for some 20 steps; then Adam magnifies rounding of gradients near 0",
    "gaan": "the paper's loss over edges; PyGOD's takes whole rows of the matrices for the ends of each edge",
    "conad": "the paper's contrast; PyGOD's is a constant, so that it trains DOMINANT",
    "ocgnn": "no biases, as in the paper; PyGOD's has them, with which every node may end on the centre: AUC .5",
    "anomalydae": "a sample of columns in each epoch, unbiased, in place of all",
}


def options_for(method: str, tiny: bool) -> dict[str, Any]:
    """EQUAL, as far as this method takes it; small where only running counts."""
    from graphlossy.outliers.methods import METHODS

    wanted = {**EQUAL["*"], **({"hid_dim": 8, "epoch": 2} if tiny else {}), **EQUAL.get(method, {})}
    known = METHODS[method].parameter_names()
    return {name: value for name, value in wanted.items() if name in known}


def measure(args: Any, dataset: str, method: str, engine: str, seeds: int) -> list[dict[str, Any]]:
    """Records of one cell; of one seed where that breaks a limit, as every other would."""
    options = {method: options_for(method, args.tiny)}
    rest = {"out": args.folder / method, "save_scores": True}
    for trials in (1, seeds):
        found, _ = _outliers.cell(args, dataset, method, trials, engine=engine, options=options, **rest)
        if found[0]["status"] != "done":
            break
    return found


def rounded(args: Any, dataset: str) -> list[float]:
    """AUC of our Radar where features are next to those given, up or down by chance: what rounding alone changes."""
    from graphlossy.outliers import Radar, data, metrics

    graph, found = data.load(dataset, root=args.root), []
    x, labels = graph.x.float(), data.labels(graph)
    for seed in range(2 if args.tiny else ROUNDED):
        up = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        graph.x = torch.where(up, x.nextafter(x + 1), x.nextafter(x - 1))
        scores = Radar(**options_for("radar", args.tiny)).fit(graph).decision_score_
        found.append(metrics.roc_auc(scores, labels))
    return found


def compare(rows: list[dict[str, Any]], folder: Any, seeds: dict[str, int]) -> list[dict[str, Any]]:
    """For every method of another engine, how far ours is from it; ``seeds`` by data set."""
    cells = {(row["dataset"], row["method"], row["engine"]): row for row in rows}
    found = []
    for (dataset, method, engine), theirs in cells.items():
        ours = cells.get((dataset, method, "native"))
        if engine == "native" or ours is None:
            continue
        row = {"dataset": dataset, "method": method, "engine": engine, "auc": _outliers.difference(ours, theirs)}
        ours_peak, theirs_peak = ours["peak_bytes"], theirs["peak_bytes"]
        both = ours_peak and theirs_peak and ours_peak["median"] > 0
        row["peak_bytes_ratio"] = theirs_peak["median"] / ours_peak["median"] if both else None
        for name, pair in (("rank_correlation", ("native", engine)), ("own_rank_correlation", (engine, engine))):
            row[name] = _outliers.rank_correlation(folder / method, dataset, method, pair, seeds[dataset])
        row["status"], row["why"] = theirs["status"], WHY.get(method) if engine == "pygod" else "another model"
        found.append(row)
    return found


def bars(compared: list[dict[str, Any]], methods: list[str], datasets: list[str]) -> list[dict[str, Any]]:
    """Every method that PyGOD has: the difference of the mean AUC within the spread of the seeds."""
    cells = {(row["dataset"], row["method"]): row for row in compared if row["engine"] == "pygod"}
    found = []
    for dataset in datasets:
        for method in methods:
            auc = cells.get((dataset, method), {}).get("auc")
            value, bound = (abs(auc["difference"]), auc["spread"]) if auc else (None, 0.005)
            text = f"{method} on {dataset}: mean AUC, distance from PyGOD's"
            found.append(_report.bar(text, value, "at most", bound))
    return found


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    from graphlossy.outliers import engines

    theirs = [name for name in engines.METHODS["native"] if any(name in engines.METHODS[e] for e in ("pygod", "pyod"))]
    made = _report.parser(__doc__ or "", EXAMPLES, "outliers_peers.json")
    _outliers.add_options(made, "outliers_peers", 1800, "16GiB")
    made.add_argument("--datasets", help=f"comma-separated (default: {','.join(SEEDS)})")
    made.add_argument("--methods", help="comma-separated (default: all that another library has)")
    told = ", ".join(f"{count} of {name}" for name, count in SEEDS.items())
    made.add_argument("--seeds", type=int, help=f"(default: {told}, 5 of others; 2 if --tiny)")
    args = made.parse_args(argv)
    datasets = args.datasets.split(",") if args.datasets else (["synth_100"] if args.tiny else list(SEEDS))
    seeds = {name: args.seeds or (2 if args.tiny else SEEDS.get(name, 5)) for name in datasets}
    methods = _outliers.method_list(made, args.methods, theirs)
    if args.fresh:
        for method in theirs:
            _outliers.clear(args.folder / method)
    installed = {name: version for name, version in engines.available().items() if version is not None}
    settings = {"seeds": {**({} if args.tiny else SEEDS), **seeds}, "options": EQUAL, "threads": 1, "jobs": args.jobs}
    settings |= {"time_limit": args.time_limit, "memory_limit": args.memory_limit, "engines": installed}
    data = _report.header("outliers_peers", settings)
    data["rounding"] = _report.earlier(args.out, dict(data), args.fresh).get("rounding", {})
    data["leak"] = {name: _outliers.leak_rows(args, name) for name in datasets}
    for name in set(engines.METHODS) - set(installed):
        print(f"{name} is not installed and left out")
    records: list[dict[str, Any]] = []
    for dataset in datasets:
        for method in methods:
            for engine in installed:
                if method in engines.METHODS[engine]:
                    records += measure(args, dataset, method, engine, seeds[dataset])
            data["cells"] = _outliers.summarize(records)
            data["compared"] = compare(data["cells"], args.folder, seeds)
            pygod = [name for name in methods if name in engines.METHODS["pygod"]]
            data["bars"] = [] if args.tiny else bars(data["compared"], pygod, datasets)
            if method == "radar" and dataset not in data["rounding"]:
                data["rounding"][dataset] = rounded(args, dataset)
            _report.write_json(args.out, data)
    for row in data["compared"]:
        auc = row["auc"]
        shown = "-" if auc is None else f"AUC {auc['difference']:+.4f} (spread {auc['spread']:.4f})"
        memory = "" if row["peak_bytes_ratio"] is None else f", {row['peak_bytes_ratio']:.1f}x our memory"
        apart = auc is not None and abs(auc["difference"]) > auc["spread"]
        why = f"; {row['why']}" if apart and row["why"] else ""
        print(f"{row['dataset']:10} {row['method']:11} {row['engine']:6} ours - theirs: {shown}{memory}{why}")
    _report.print_bars(data["bars"])


if __name__ == "__main__":
    main()
