"""Outlier detectors trained on activations of two bits against exact ones: AUC over seeds, and bytes saved."""

from __future__ import annotations

from typing import Any

from benchmarks import _outliers, _report

__all__ = ["bars", "compare", "main"]

EXAMPLES = """\
  python -m benchmarks.outliers_compressed --root DIR              gen_1000 and inj_cora; an hour on one core
  python -m benchmarks.outliers_compressed --root DIR --datasets gen_1000 --methods dominant,gcnae --seeds 10
  python -m benchmarks.outliers_compressed --tiny --out /tmp/compressed.json --folder /tmp/compressed

The same seeds, initial weights and settings (the defaults: 100 epochs, 64 hidden) with `bits=None` and `bits=2`. The
bytes are those of `graphlossy.compress`'s ledger: what one forward pass keeps for its backward pass, and what it would
keep. The spread is the pooled standard deviation over seeds, at least .005. Methods beyond it are trained with 8 bits
as well: a difference that stays is not one of the two bits, but of what any other rounding does to that training."""

SEEDS = {"gen_1000": 20, "inj_cora": 5}  # data sets, and seeds: few where they take long
LEAST = 8.0  # times fewer bytes
VARIANTS = {"exact": None, "2 bits": 2, "8 bits": 8}
# Where fewer bytes are saved than LEAST says.
WHY = {
    "guide": "the autoencoder of its motif degrees is 4 numbers wide: a row of 16 bytes takes 2 in two bits and 4 for "
    "its scale and offset; the wider the features, the less that counts",
}


def deep_methods() -> list[str]:
    """The methods that take ``bits``."""
    from graphlossy.outliers.methods import METHODS

    return [name for name in METHODS if "bits" in METHODS[name].parameter_names()]


def compare(rows: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """For every data set and method: exact and compressed AUC, their difference, and how many times fewer bytes."""
    exact, eight = ({(row["dataset"], row["method"]): row for row in rows[name]} for name in ("exact", "8 bits"))
    found = []
    for row in rows["2 bits"]:
        key = row["dataset"], row["method"]
        plain = exact.get(key)
        if plain is None:
            continue
        pair = {"dataset": row["dataset"], "method": row["method"], "auc": _outliers.difference(row, plain)}
        pair["auc_8_bits"] = _outliers.difference(eight[key], plain) if key in eight else None
        both = row["auc"] is not None and plain["auc"] is not None
        paired = [a - b for a, b in zip(row["auc"]["raw"], plain["auc"]["raw"], strict=False)] if both else []
        pair["paired"] = _report.spread(paired) if paired else None
        saved, kept = row["saved_bytes"], row["plain_bytes"]
        pair["times_fewer_bytes"] = fewer = kept["median"] / saved["median"] if saved and kept else None
        pair["why"] = WHY.get(row["method"]) if fewer is not None and fewer < LEAST else None
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
    made.add_argument("--datasets", help=f"comma-separated (default: {','.join(SEEDS)})")
    made.add_argument("--methods", help="comma-separated (default: all deep ones)")
    told = ", ".join(f"{count} of {name}" for name, count in SEEDS.items())
    made.add_argument("--seeds", type=int, help=f"(default: {told}, 5 of others; 2 if --tiny)")
    args = made.parse_args(argv)
    datasets = args.datasets.split(",") if args.datasets else (["synth_100"] if args.tiny else list(SEEDS))
    seeds = {name: args.seeds or (2 if args.tiny else SEEDS.get(name, 5)) for name in datasets}
    methods = _outliers.method_list(made, args.methods, deep_methods())
    settings = {"seeds": {**({} if args.tiny else SEEDS), **seeds}, "threads": 1, "jobs": args.jobs}
    settings |= {"time_limit": args.time_limit}
    data = _report.header("outliers_compressed", settings)
    _report.earlier(args.out, data, args.fresh)
    folders = {name: args.folder / name.replace(" ", "") for name in VARIANTS}
    if args.fresh:
        for folder in folders.values():
            _outliers.clear(folder)
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    data["leak"] = {name: _outliers.leak_rows(args, name) for name in datasets}

    def train(dataset: str, method: str, *names: str) -> dict[str, Any]:
        """Trials of one cell; what is known of it then."""
        for name in names:
            options = {"*": {"bits": VARIANTS[name], **({"epoch": 2} if args.tiny else {})}}
            found, _ = _outliers.cell(args, dataset, method, seeds[dataset], out=folders[name], options=options)
            records[name] += found
        data["cells"] = {name: _outliers.summarize(found) for name, found in records.items()}
        data["compared"] = compare(data["cells"])
        data["bars"] = [] if args.tiny else bars(data["compared"], methods, datasets)
        _report.write_json(args.out, data)
        return data["compared"][-1]

    for dataset in datasets:
        for method in methods:
            row = train(dataset, method, "exact", "2 bits")
            if row["auc"] and abs(row["auc"]["difference"]) > row["auc"]["spread"]:
                row = train(dataset, method, "8 bits")
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
