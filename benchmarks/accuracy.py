"""Accuracy after training with each method, seed by seed beside float32, under one protocol."""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import _report
from benchmarks._tasks import PROTOCOLS, load
from benchmarks._variants import VARIANTS, Runner

__all__ = ["locked", "main", "results_of", "score", "summarize", "train"]

EXAMPLES = """\
  python -m benchmarks.accuracy --planetoid-root data --tolokers data/tolokers.npz    everything, half an hour
  python -m benchmarks.accuracy --datasets wordnet-verbs --schemes float32,compress-2bit --seeds 3
  python -m benchmarks.accuracy --tiny --out /tmp/accuracy.json                       a generated graph, seconds

A (data set, scheme, seed) that is in --out already is not run again; stop and repeat the command whenever you like.
Data sets whose files are not given are left out."""

BASE = "float32"
SCHEMES = (BASE, "compress-2bit", "compress-8bit", "compress-4bit", "compress-1bit", "nn-2bit", "exact-2bit",
           "exact-2bit-rp", "crs-1/8", "subgraph-1/8", "bf16")  # fmt: skip
EVERY = 2  # epochs between two evaluations
Key = tuple[str, str, int]


def train(dataset: str, path: str | None, scheme: str, seed: int, epochs: int | None) -> dict[str, Any]:
    """One run: the test score at the epoch of the best validation score."""
    warnings.filterwarnings("ignore")
    protocol, task = PROTOCOLS[dataset], load(dataset, path)
    rows = task.split(seed)
    problem = replace(task.problem, train=rows[0])
    runner = Runner("pyg-csr" if scheme == BASE else scheme, task.shape(protocol), problem, seed)
    model = runner.model
    optimizer = torch.optim.Adam(model.parameters(), lr=protocol.lr, weight_decay=protocol.weight_decay)
    graph = runner.graph
    best = {"valid": -1.0}
    begin = time.perf_counter()
    last = (epochs or protocol.epochs) - 1
    for epoch in range(last + 1):
        model.train()
        loss = runner.step(optimizer)
        if epoch % EVERY and epoch != last:
            continue
        model.eval()
        with torch.no_grad():
            out = model(problem.x, graph)
        valid, test = (score(out[r], problem.y[r], protocol.metric) for r in rows[1:])
        if valid > best["valid"]:
            best = {"valid": valid, "test": test, "epoch": epoch}
    return {
        "dataset": dataset, "scheme": scheme, "seed": seed, **best, "last_test": test,
        "last_loss": loss if math.isfinite(loss) else None, "epochs": last + 1,
        "seconds": round(time.perf_counter() - begin, 3),
    }  # fmt: skip


def score(out: Tensor, y: Tensor, metric: str) -> float:
    """Accuracy or area under the ROC curve (by ranks, ties shared), in points."""
    if metric == "accuracy":
        return 100 * (out.argmax(1) == y).double().mean().item()
    scores = (out[:, 1] - out[:, 0]).double()
    _, where, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[where]
    positive = int(y.sum())
    area = ranks[y == 1].sum().item() - positive * (positive + 1) / 2
    return 100 * area / (positive * (y.numel() - positive))


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Per data set and scheme: scores with spread, and the difference to float32 over equal seeds with its error."""
    tests: dict[str, dict[str, dict[int, float]]] = {}
    for run in runs:
        tests.setdefault(run["dataset"], {}).setdefault(run["scheme"], {})[run["seed"]] = run["test"]
    out: dict[str, Any] = {}
    for dataset, schemes in tests.items():
        out[dataset] = {}
        for scheme in (s for s in SCHEMES if s in schemes):
            seeds = sorted(schemes[scheme])
            row = _report.spread([schemes[scheme][seed] for seed in seeds])
            pairs = [schemes[scheme][s] - schemes[BASE][s] for s in seeds if s in schemes.get(BASE, {})]
            if scheme != BASE and pairs:
                row["difference"] = statistics.fmean(pairs)
                row["standard_error"] = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
            out[dataset][scheme] = {"seeds": seeds, **row}
    return out


def bars(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """At 2 bits: within 0.3 points of float32, or inside the spread of its seeds."""
    found = []
    for dataset in ("wordnet-verbs", "cora", "tolokers"):
        rows = summary.get(dataset, {})
        bound = max(0.3, round(rows[BASE]["std"], 3)) if BASE in rows else 0.3
        for scheme in ("compress-2bit", "nn-2bit"):
            difference = rows.get(scheme, {}).get("difference")
            value = None if difference is None else abs(difference)
            text = f"{dataset}: {scheme} against float32, points apart (bar: 0.3 or one seed's spread)"
            found.append(_report.bar(text, value, "at most", bound))
    return found


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One writer of ``path`` at a time, among all processes of this machine."""
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    with open(Path(tempfile.gettempdir()) / f"graphlossy-{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _save(path: Path, new: list[dict[str, Any]], fresh: bool = False) -> dict[str, Any]:
    """Adds runs to the file, whoever else has written to it meanwhile; ``fresh``: to an empty one."""
    data = _report.header("accuracy", {"graph": "adj_t", "model": "gcn", "threads_per_run": 1})
    with locked(path):
        old = _report.earlier(path, data, fresh)
        # Runs under another protocol than today's cannot stand beside new ones.
        stored = old.get("protocols", {})
        same = {name for name, protocol in PROTOCOLS.items() if stored.get(name) == protocol._asdict()}
        merged = {_key(run): run for run in [*(r for r in old.get("runs", []) if r["dataset"] in same), *new]}
        data["schemes"] = {name: text for name, text in VARIANTS.items() if name in SCHEMES}
        data["protocols"] = {name: protocol._asdict() for name, protocol in PROTOCOLS.items()}
        data["runs"] = [merged[key] for key in sorted(merged)]
        data["summary"] = summarize(data["runs"])
        data["bars"] = [] if set(data["summary"]) <= {"planted"} else bars(data["summary"])
        _report.write_json(path, data)
    return data


def _key(run: dict[str, Any]) -> Key:
    return run["dataset"], run["scheme"], run["seed"]


def _one_thread() -> None:
    torch.set_num_threads(1)


def results_of(
    function: Callable[..., dict[str, Any]], runs: list[tuple[Any, ...]], jobs: int
) -> Iterator[dict[str, Any]]:
    """What ``function`` returns for each of ``runs``, as they finish; each run has one thread."""
    threads = torch.get_num_threads()
    if jobs == 1:
        _one_thread()
        yield from (function(*run) for run in runs)
        torch.set_num_threads(threads)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers, which start as fresh processes
    with ProcessPoolExecutor(jobs, get_context("spawn"), _one_thread) as pool:
        for future in as_completed([pool.submit(function, *run) for run in runs]):
            yield future.result()


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "accuracy.json")
    made.add_argument("--planetoid-root", metavar="DIR", help="folder with Cora's ind.cora.* files (or Cora/[raw/])")
    made.add_argument("--tolokers", metavar="FILE", help="tolokers.npz of the heterophilous-graphs collection")
    made.add_argument("--datasets", help=f"comma-separated, of {', '.join(PROTOCOLS)} (default: those that are given)")
    made.add_argument("--schemes", default=",".join(SCHEMES), help="comma-separated (default: %(default)s)")
    made.add_argument("--seeds", type=int, default=None, help="runs of each (default: 10; 2 if --tiny)")
    made.add_argument("--epochs", type=int, default=None, help="instead of the protocol's")
    made.add_argument("--jobs", type=int, default=2, help="processes of one thread each (default: %(default)s)")
    args = made.parse_args(argv)
    paths = {"wordnet-verbs": None, "cora": args.planetoid_root, "tolokers": args.tolokers, "planted": None}
    given = ["planted"] if args.tiny else [n for n in PROTOCOLS if n != "planted" and (n[0] == "w" or paths[n])]
    datasets = args.datasets.split(",") if args.datasets else given
    schemes = args.schemes.split(",")
    for name, chosen, allowed in (("--datasets", datasets, PROTOCOLS), ("--schemes", schemes, SCHEMES)):
        if unknown := [c for c in chosen if c not in allowed]:
            made.error(f"{name}: unknown {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    for name in datasets:
        if name in ("cora", "tolokers") and paths[name] is None:
            made.error(f"{name}: say where its files are ({'--planetoid-root' if name == 'cora' else '--tolokers'})")
    seeds = args.seeds or (2 if args.tiny else 10)
    data = _save(args.out, [], args.fresh)
    done = {_key(run): run["epochs"] for run in data["runs"]}
    wanted = [(d, s, i) for i in range(seeds) for d in datasets for s in schemes]
    todo = [key for key in wanted if done.get(key) != (args.epochs or PROTOCOLS[key[0]].epochs)]
    print(f"{len(todo)} runs to do, {len(wanted) - len(todo)} are there already", flush=True)
    for number, run in enumerate(
        results_of(train, [(d, paths[d], s, i, args.epochs) for d, s, i in todo], args.jobs), 1
    ):
        data = _save(args.out, [run])
        line = f"[{number}/{len(todo)}] {run['dataset']:13} {run['scheme']:14} seed {run['seed']}"
        print(f"{line}: test {run['test']:6.2f}  ({run['seconds']:.1f} s)", flush=True)
    _report.print_bars(data["bars"])


if __name__ == "__main__":
    main()
