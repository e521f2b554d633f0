"""What the outlier benchmarks share: options, parts of the grid run into a folder, summaries and differences."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _report

__all__ = [
    "add_options", "cell", "clear", "difference", "leak_rows", "method_list", "rank_correlation", "run", "summarize",
]  # fmt: skip

SEED = 0
Record = dict[str, Any]


def add_options(
    made: argparse.ArgumentParser, name: str, seconds: float, memory: str, parent: Path = Path("runs")
) -> None:
    """Options that every outlier benchmark has."""
    made.add_argument("--root", metavar="DIR", help="folder of PyGOD's files (default: $GRAPHLOSSY_DATA)")
    made.add_argument(
        "--folder", type=Path, default=parent / name, metavar="DIR",
        help="where every trial is kept as it ends, for the next call to go on from (default: %(default)s)",
    )  # fmt: skip
    made.add_argument("--jobs", type=int, default=1, help="processes of one thread each (default: %(default)s)")
    made.add_argument(
        "--time-limit", type=float, default=seconds, metavar="S", help="of one fit, then TLE (default: %(default)s)"
    )
    made.add_argument("--memory-limit", default=memory, help="of one fit, then OOM (default: %(default)s)")


def method_list(made: argparse.ArgumentParser, text: str | None, allowed: Sequence[str]) -> list[str]:
    """The methods of a comma-separated list, all of ``allowed`` where there is none."""
    found = list(allowed) if text is None else [name.strip() for name in text.split(",")]
    if unknown := [name for name in found if name not in allowed]:
        made.error(f"--methods: {', '.join(unknown)} is none; allowed are {', '.join(allowed)}")
    return found


def clear(folder: Path) -> None:
    """Removes the trials of a folder; anything else in it stays."""
    for file in [folder / "trials.jsonl", folder / "run.json", *(folder / "scores").glob("*.npy")]:
        file.unlink(missing_ok=True)


def run(args: argparse.Namespace, datasets: Sequence[str], methods: Sequence[str], trials: int, **rest: Any) -> Any:
    """A part of the grid, with the limits of the command line; trials in ``out`` are not run again."""
    from graphlossy.outliers.runner import BenchmarkError, benchmark

    settings = {"seed": SEED, "jobs": args.jobs, "root": args.root, "progress": not args.tiny, **rest}
    try:
        return benchmark(
            list(datasets), list(methods), trials,
            time_limit=args.time_limit, memory_limit=args.memory_limit, threads=1, **settings,
        )  # fmt: skip
    except BenchmarkError as error:
        raise SystemExit(f"benchmarks: {error}") from None


def cell(args: argparse.Namespace, dataset: str, method: str, trials: int, **rest: Any) -> tuple[list[Record], Any]:
    """Records of one method on one data set, without the rows that are in every grid, and what is known of the data."""
    results = run(args, [dataset], [method], trials, protocol="fixed", **rest)
    records = [record for record in results.records if record["method"] == method]
    return records, results.datasets[records[0]["dataset"]]


def leak_rows(args: argparse.Namespace, dataset: str) -> dict[str, float]:
    """AUC of the rows that need no model, by their printed names; nothing is kept."""
    results = run(args, [dataset], ["degree"], 1, protocol="fixed")
    return {results.titles[record["method"]]: record["auc"] for record in results.records}


def summarize(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for every data set, method and engine, raw values of its trials in it."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["dataset"], record["method"], record["engine"]), []).append(record)
    return [
        {"dataset": dataset, "method": method, "engine": engine, **_row(sorted(group, key=lambda r: r["trial"]))}
        for (dataset, method, engine), group in groups.items()
    ]


def _row(trials: list[Record]) -> dict[str, Any]:
    done = [record for record in trials if record["status"] == "done"]
    row: dict[str, Any] = {
        "trials": len(trials),
        "status": {kind: n for kind in ("done", "TLE", "OOM", "failed") if (n := _count(trials, kind))},
        "reasons": sorted({record["reason"] for record in trials if record["reason"]}),
    }
    for name in ("auc", "ap", "recall", "seconds", "epoch_seconds", "peak_bytes", "saved_bytes", "plain_bytes"):
        values = [record[name] for record in done if record[name] is not None]
        row[name] = _report.spread(values) if values else None
    kinds = sorted({kind for record in done for kind in record["by_type"]})
    row["by_type"] = {
        kind: _report.spread([r["by_type"][kind]["auc"] for r in done if kind in r["by_type"]]) for kind in kinds
    }
    row["scores_sha256"] = [record["scores_sha256"] for record in trials]
    return row


def _count(trials: list[Record], status: str) -> int:
    return sum(record["status"] == status for record in trials)


def difference(ours: dict[str, Any], theirs: dict[str, Any], name: str = "auc") -> dict[str, float] | None:
    """Difference of two rows' means, and the spread that it is held against; None where one has no figure.

    The spread is the pooled standard deviation over seeds, sqrt((s1^2 + s2^2) / 2), and at least .005, the bar of the
    deterministic cross-checks, for methods that hardly vary.
    """
    if ours[name] is None or theirs[name] is None:
        return None
    pooled = math.sqrt((ours[name]["std"] ** 2 + theirs[name]["std"] ** 2) / 2)
    return {"difference": ours[name]["mean"] - theirs[name]["mean"], "spread": max(pooled, 0.005)}


def rank_correlation(folder: Path, dataset: str, method: str, engines: Sequence[str], trials: int) -> float | None:
    """Spearman's correlation between two engines' ranks of the nodes, averaged over trials; None where scores miss.

    Of one engine twice: between the averages over its even and its odd trials.
    """
    from scipy.stats import rankdata, spearmanr

    means = []
    for place, engine in enumerate(engines):
        numbers = range(place, trials, 2) if engines[0] == engines[1] else range(trials)
        files = [folder / "scores" / f"{dataset}-{method}-{engine}-{number}.npy" for number in numbers]
        ranks = [rankdata(np.load(file)) for file in files if file.is_file()]
        if not ranks:
            return None
        means.append(np.mean(ranks, axis=0))
    if any(np.ptp(mean) == 0 for mean in means):
        return None
    return float(spearmanr(*means).statistic)
