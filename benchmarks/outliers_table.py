"""The outlier benchmark's table: every method on books, inj_cora, inj_amazon and gen_1000, 20 trials each."""

from __future__ import annotations

from typing import Any

from benchmarks import _outliers, _report

__all__ = ["bars", "main"]

EXAMPLES = """\
  python -m benchmarks.outliers_table --root DIR --jobs 2                  everything: a day on 2 cores
  python -m benchmarks.outliers_table --root DIR --datasets books,gen_1000
  python -m benchmarks.outliers_table --root DIR --methods lof,dominant --trials 5
  python -m benchmarks.outliers_table --tiny --out /tmp/table.json --folder /tmp/table

DIR holds books.pt.zip, inj_cora.pt.zip, inj_amazon.pt.zip and gen_1000.pt.zip of PyGOD's data repository. It is
`graphlossy outliers run --protocol bond`: hyper-parameters are drawn anew in every trial. A method has 5 trials on a
data set on which one of its first 5 took more than 5 minutes. At the end, trials of every cell are run again in a
folder of its own and the scores are compared: all of them, but on inj_amazon, where that takes a day, trial 0. Stop and
repeat the command whenever you like: no trial is run twice. The trials are part of the results, so another machine can
go on with them."""

DATASETS = ("books", "inj_cora", "inj_amazon", "gen_1000")
LONG = 300.0  # seconds of a trial, beyond which FEW trials are enough
TRIALS, FEW = 20, 5
AGAIN = {"inj_amazon": 1}  # trials of a cell that are run a second time; all of other data sets
LEAK = ("degree", "norm", "maxrank", "copies", "random")
# Published or recomputed figures of what is deterministic: (data set, method) -> AUC.
KNOWN = {
    ("books", "lof"): 0.365,
    ("inj_cora", "lof"): 0.699,
    ("inj_amazon", "lof"): 0.552,
    ("disney", "lof"): 0.479,
    ("disney", "radar"): 0.518,
    ("disney", "anomalous"): 0.518,
    ("inj_cora", "maxrank"): 0.876,
    ("inj_amazon", "maxrank"): 0.924,
}


def is_long(row: dict[str, Any]) -> bool:
    """Whether a cell took so long that it has FEW trials."""
    return bool(row["seconds"] and max(row["seconds"]["raw"]) > LONG) or "TLE" in row["status"]


def is_whole(row: dict[str, Any]) -> bool:
    """Whether a cell has all its trials, TRIALS, FEW, or one of what is deterministic, and none failed."""
    from graphlossy.outliers.methods import METHODS
    from graphlossy.outliers.protocol import trial_count

    wanted = trial_count(METHODS[row["method"]], row["dataset"], "bond", FEW if is_long(row) else TRIALS)
    return "failed" not in row["status"] and sum(row["status"].values()) >= wanted


def bars(
    rows: list[dict[str, Any]], datasets: list[str], methods: list[str], again: list[bool]
) -> list[dict[str, Any]]:
    """Completeness, the deterministic cross-checks, the rows without a model, and the second run."""
    cells = {(row["dataset"], row["method"]): row for row in rows}
    wanted = {(dataset, method) for dataset in datasets for method in methods}
    missed = len(wanted) - sum(is_whole(row) for key, row in cells.items() if key in wanted)
    text = "cells of the table that miss trials or have failed ones"
    found = [_report.bar(text, float(missed), "at most", 0)]
    for (dataset, method), figure in KNOWN.items():
        row = cells.get((dataset, method))
        if dataset not in datasets:
            continue
        value = abs(row["auc"]["mean"] - figure) if row and row["auc"] else None
        text = f"{method} on {dataset}: distance of the mean AUC from {figure:g}"
        found.append(_report.bar(text, value, "at most", 0.005))
    have = min((sum((dataset, name) in cells for name in LEAK) for dataset in datasets), default=0)
    found.append(_report.bar("rows without a model in every column", float(have), "at least", len(LEAK)))
    share = sum(again) / len(again) if again else None
    trials = sum(sum(row["status"].values()) for key, row in cells.items() if key[0] in datasets)
    text = f"share of {len(again)} trials, of {trials}, with the same scores, bit for bit, when run again"
    return [*found, _report.bar(text, share, "at least", 1)]


def same_scores(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[bool]:
    """For every trial of the second run that was done in the first, whether it is done and has the same scores."""
    known = {_key(record): record["scores_sha256"] for record in first if record["status"] == "done"}
    both = [record for record in second if _key(record) in known]
    return [record["status"] == "done" and record["scores_sha256"] == known[_key(record)] for record in both]


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["dataset"], record["method"], record["engine"], record["trial"]


def _options(argv: list[str] | None) -> Any:
    from graphlossy.outliers.methods import METHODS

    made = _report.parser(__doc__ or "", EXAMPLES, "outliers_table.json")
    _outliers.add_options(made, "outliers_table", 7200, "16GiB", _report.RESULTS)
    made.add_argument("--datasets", help=f"comma-separated (default: {','.join(DATASETS)})")
    made.add_argument("--methods", help="comma-separated (default: all)")
    made.add_argument("--trials", type=int, help="of each method (default: 20; 2 if --tiny)")
    made.add_argument("--again", type=int, metavar="N", help="trials run a second time (default: all; 1 on inj_amazon)")
    args = made.parse_args(argv)
    args.trials = args.trials or (2 if args.tiny else TRIALS)
    args.datasets = args.datasets.split(",") if args.datasets else (["synth_200"] if args.tiny else list(DATASETS))
    args.methods = [m for m in _outliers.method_list(made, args.methods, list(METHODS)) if m not in LEAK]
    return args


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    from graphlossy.outliers.methods import METHODS
    from graphlossy.outliers.runner import Results

    args = _options(argv)
    second = args.folder.with_name(args.folder.name + "_again")
    if args.fresh:
        _outliers.clear(args.folder)
        _outliers.clear(second)
    settings = {"protocol": "bond", "seed": _outliers.SEED, "threads": 1, "jobs": args.jobs, "long": LONG, "few": FEW}
    settings |= {"time_limit": args.time_limit, "memory_limit": args.memory_limit}
    trained = any("epoch" in METHODS[name].parameter_names() for name in args.methods)
    options = {"*": {"epoch": 2}} if args.tiny and trained else None
    data = _report.header("outliers_table", settings)
    _report.earlier(args.out, data, args.fresh)  # ends here if the file is of other settings

    def save(again: list[bool]) -> list[dict[str, Any]]:
        results = Results.read(args.folder)
        rows = _outliers.summarize(results.records)
        wanted = [*args.methods, *LEAK]
        data["datasets"] = results.datasets
        data["cells"] = rows
        data["tables"] = {m: results.table(m, "markdown").splitlines() for m in ("auc", "seconds", "peak_bytes")}
        data["bars"] = [] if args.tiny else bars(rows, args.datasets, wanted, again)
        data["again"] = {"trials": len(again), "same": sum(again)}
        _report.write_json(args.out, data)
        return rows

    for dataset in args.datasets:
        run = {"protocol": "bond", "out": args.folder, "options": options}
        _outliers.run(args, [dataset], args.methods, min(FEW, args.trials), **run)
        long = {row["method"] for row in save([]) if row["dataset"] == dataset and is_long(row)}
        _outliers.run(args, [dataset], [m for m in args.methods if m not in long], args.trials, **run)
        save([])
    twice = {"protocol": "bond", "out": second, "options": options}
    for dataset in args.datasets:
        _outliers.run(args, [dataset], args.methods, args.again or AGAIN.get(dataset, args.trials), **twice)
        save(same_scores(Results.read(args.folder).records, Results.read(second).records))
    print(Results.read(args.folder).table())
    print(f"{data['again']['same']} of {data['again']['trials']} trials had the same scores when they were run again")
    _report.print_bars(data["bars"])


if __name__ == "__main__":
    main()
