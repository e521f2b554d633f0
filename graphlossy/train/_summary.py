"""The comparison at the end: mean and spread over seeds, bytes and time, each as a ratio to the baseline."""

from __future__ import annotations

import statistics
from typing import Any

from graphlossy.train._config import TrainConfig
from graphlossy.train._folder import versions
from graphlossy.train._presets import compare_reference
from graphlossy.train._run import OUT_OF_MEMORY
from graphlossy.train._task import Task

__all__ = ["summarize"]

PEAK_KINDS = {
    "allocated": "bytes given out by the CUDA allocator",
    "resident": "resident set of the process",
    "saved": "bytes saved for backward that were alive (this system does not report the resident set's peak)",
}


def summarize(
    config: TrainConfig, task: Task, results: list[dict[str, Any]], folder: str, device: str, world_size: int = 1
) -> dict[str, Any]:
    """The contents of ``summary.json``.

    Args:
        config: the settings.
        task: the data.
        results: :meth:`Run.result` of every run.
        folder: the run folder's path.
        device: the device that was used.
        world_size: number of processes that trained together; bytes and seconds are those of rank 0.

    Returns:
        ``schemes`` has one entry per scheme: ``test_mean``, ``test_std`` (sample standard deviation over seeds, of the
        test metric at the best validation epoch), ``saved_bytes``, ``peak_bytes`` (each seed's highest; their median)
        and ``seconds_per_epoch`` (median), and under ``ratio`` each of the last three and the mean divided by the
        baseline's. What was not measured is None. ``reference`` is the leaderboard's figure for OGB's data sets and
        their stand-ins, with ``comparable`` and ``remark``.
    """
    schemes = [
        _scheme(scheme.label, [r for r in results if r["run"] == scheme.label]) for scheme in config.comparison()
    ]
    baseline = schemes[0] if schemes and schemes[0]["run"] == "baseline" else None
    for scheme in schemes:
        scheme["ratio"] = None if baseline is None else _ratios(scheme, baseline)
    kinds = sorted({r["peak_kind"] for r in results if r["peak_kind"]})
    return {
        "folder": folder,
        "settings": config.to_dict(),
        "device": device,
        "world_size": world_size,
        "versions": versions(),
        "data": task.describe(),
        "metric": task.metric,
        "reference": compare_reference(task.reference, task.synthetic, config.to_dict()),
        "peak_measured_as": "; ".join(PEAK_KINDS[kind] for kind in kinds) or None,
        "schemes": schemes,
        "runs": [{key: value for key, value in r.items() if key not in ("records", "seconds")} for r in results],
    }


def _scheme(label: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    tests = [r["test"] for r in results if r["status"] == "done"]
    seconds = [value for r in results for value in r["seconds"]]
    failed = any(r["status"] == OUT_OF_MEMORY for r in results)
    return {
        "run": label,
        "status": OUT_OF_MEMORY if failed else "done",
        "seeds": len(tests),
        "test_mean": statistics.fmean(tests) if tests else None,
        "test_std": statistics.stdev(tests) if len(tests) > 1 else None,
        "saved_bytes": _median(results, "saved_bytes"),
        "peak_bytes": _median(results, "peak_bytes"),
        "seconds_per_epoch": statistics.median(seconds) if seconds else None,
    }


def _ratios(scheme: dict[str, Any], baseline: dict[str, Any]) -> dict[str, float | None]:
    ratios = {}
    for key in ("test_mean", "saved_bytes", "peak_bytes", "seconds_per_epoch"):
        ours, theirs = scheme[key], baseline[key]
        ratios[key] = ours / theirs if ours is not None and theirs else None
    return ratios


def _median(results: list[dict[str, Any]], key: str) -> int | None:
    found = [r[key] for r in results if r[key] is not None]
    return round(statistics.median(found)) if found else None
