"""Outlier detectors trained on activations of two bits against exact ones: AUC over seeds, and bytes saved."""

from __future__ import annotations

from typing import Any

from benchmarks import _outliers, _report

__all__ = ["bars", "compare", "main"]

EXAMPLES = """\
  python -m benchmarks.outliers_compressed --root DIR              gen_1000 and inj_cora, 5 seeds; an hour on one core
  python -m benchmarks.outliers_compressed --root DIR --datasets gen_1000 --methods dominant,gcnae --seeds 10
  python -m benchmarks.outliers_compressed --tiny --out /tmp/compressed.json --folder /tmp/compressed

The same seeds, initial weights and settings (the defaults: 100 epochs, 64 hidden) with `bits=None` and `bits=2`. The
bytes are those of `graphlossy.compress`'s ledger: what one forward pass keeps for its backward pass, and what it would
keep. The spread is the pooled standard deviation over seeds, at least .005."""

DATASETS = ("gen_1000", "inj_cora")
LEAST = 8.0  # times fewer bytes


def deep_methods() -> list[str]:
    """The methods that take ``bits``."""
    from graphlossy.outliers.methods import METHODS

    return [name for name in METHODS if "bits" in METHODS[name].parameter_names()]


def compare(rows: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """For every data set and method: exact and compressed AUC, their difference, and how many times fewer bytes."""
    exact = {(row["dataset"], row["method"]): row for row in rows["exact"]}
    found = []
    for row in rows["2 bits"]:
        plain = exact.get((row["dataset"], row["method"]))
        if plain is None:
            continue
        pair = {"dataset": row["dataset"], "method": row["method"], "auc": _outliers.difference(row, plain)}
        both = row["auc"] is not None and plain["auc"] is not None
        paired = [a - b for a, b in zip(row["auc"]["raw"], plain["auc"]["raw"], strict=False)] if both else []
        pair["paired"] = _report.spread(paired) if paired else None
        saved, kept = row["saved_bytes"], row["plain_bytes"]
        pair["times_fewer_bytes"] = kept["median"] / saved["median"] if saved and kept else None
        found.append(pair)
    return found


def bars(compared: list[dict[str, Any]], methods: list[str], datasets: list[str]) -> list[dict[str, Any]]:
    """AUC within the spread of the seeds, and at least LEAST times fewer bytes, for every method."""
    cells = {(row["dataset"], row["method"]): row for row in compared}
    found = []
    for dataset in datasets:
        for method in methods:
            row = cells.get((dataset, method), {})
            value, bound = (abs(row["auc"]["difference"]), row["auc"]["spread"]) if row.get("auc") else (None, 0.005)
            found.append(_report.bar(f"{method} on {dataset}: mean AUC at 2 bits, distance", value, "at most", bound))
            fewer = row.get("times_fewer_bytes")
            found.append(
                _report.bar(f"{method} on {dataset}: saved bytes at 2 bits, times fewer", fewer, "at least", LEAST)
            )
    return found


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "outliers_compressed.json")
    _outliers.add_options(made, "outliers_compressed", 1800, "16GiB")
    made.add_argument("--datasets", help=f"comma-separated (default: {','.join(DATASETS)})")
    made.add_argument("--methods", help="comma-separated (default: all deep ones)")
    made.add_argument("--seeds", type=int, help="(default: 5; 2 if --tiny)")
    args = made.parse_args(argv)
    seeds = args.seeds or (2 if args.tiny else 5)
    datasets = args.datasets.split(",") if args.datasets else (["synth_100"] if args.tiny else list(DATASETS))
    methods = _outliers.method_list(made, args.methods, deep_methods())
    settings = {"seeds": seeds, "threads": 1, "jobs": args.jobs, "time_limit": args.time_limit}
    data = _report.header("outliers_compressed", settings)
    _report.earlier(args.out, data, args.fresh)
    variants = {"exact": None, "2 bits": 2}
    folders = {name: args.folder / name.replace(" ", "") for name in variants}
    if args.fresh:
        for folder in folders.values():
            _outliers.clear(folder)
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for dataset in datasets:
        for method in methods:
            for name, bits in variants.items():
                options = {"*": {"bits": bits, **({"epoch": 2} if args.tiny else {})}}
                records[name] += _outliers.cell(args, dataset, method, seeds, out=folders[name], options=options)[0]
            data["cells"] = {name: _outliers.summarize(found) for name, found in records.items()}
            data["compared"] = compare(data["cells"])
            data["bars"] = [] if args.tiny else bars(data["compared"], methods, datasets)
            _report.write_json(args.out, data)
            row = data["compared"][-1]
            if row["auc"] and row["times_fewer_bytes"]:
                auc, fewer = row["auc"], row["times_fewer_bytes"]
                print(
                    f"{dataset:10} {method:11} AUC at 2 bits {auc['difference']:+.4f} (spread {auc['spread']:.4f}), "
                    f"{fewer:.1f} times fewer bytes saved",
                    flush=True,
                )
    _report.print_bars(data["bars"])


if __name__ == "__main__":
    main()
