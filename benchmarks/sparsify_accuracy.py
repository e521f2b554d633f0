"""Accuracy against the share of edges kept, method by method: DSpar, random, k-neighbour, local degree."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import _report
from benchmarks._models import build
from benchmarks._thinned import METHODS, adjacency, thin
from benchmarks.accuracy import locked, results_of, score

__all__ = ["main", "summarize", "train"]

EXAMPLES = """\
  python -m benchmarks.sparsify_accuracy --planetoid-root data --tolokers data/tolokers.npz --debian
  python -m benchmarks.sparsify_accuracy --datasets wordnet-verbs --methods degree,random --seeds 3
  python -m benchmarks.sparsify_accuracy --tiny --out /tmp/sparsify_accuracy.json

A run that is in --out already is not run again. A data set whose files are not given is left out."""

SHARES = (0.75, 0.5, 0.25, 0.1)
EVERY = 10  # epochs between two evaluations


class Protocol(NamedTuple):
    """How a data set is trained: the same for every method and share, chosen on the whole graph."""

    model: str
    hidden: int
    layers: int
    norm: bool
    input_dropout: bool
    weight_decay: float
    epochs: int
    metric: str


PROTOCOLS = {
    "cora": Protocol("gcn", 64, 2, False, True, 5e-4, 100, "accuracy"),
    "tolokers": Protocol("sage", 64, 2, True, False, 0.0, 100, "rocauc"),
    "debian-packages": Protocol("sage", 64, 2, True, False, 0.0, 40, "accuracy"),
    "wordnet-verbs": Protocol("gcn", 64, 2, True, False, 0.0, 60, "accuracy"),
    "synth-arxiv-tiny": Protocol("gcn", 16, 2, True, False, 0.0, 10, "accuracy"),
}
Key = tuple[str, str, float, int]


def train(dataset: str, path: str | None, method: str, share: float, seed: int) -> dict[str, Any]:
    """One run, trained on the thinned graph; at the best validation score, the test score on it and on the whole one.

    Two models are chosen, one by the validation score on each graph, so that neither view helps the other.
    """
    from graphlossy.datasets import load

    warnings.filterwarnings("ignore")
    protocol = PROTOCOLS[dataset]
    name = dataset if path is None else str(Path(path))
    data = load(name, split=None)
    masks = [m[:, seed % m.shape[1]] if m.dim() == 2 else m for m in (data.train_mask, data.val_mask, data.test_mask)]
    rows = [m.nonzero().squeeze(1) for m in masks]
    x = data.x / data.x.sum(1, keepdim=True).clamp(min=1) if dataset == "cora" else data.x
    begin = time.perf_counter()
    key = {"dataset": dataset, "method": method if share < 1 else "all", "share": share, "seed": seed}
    try:
        edges, weight = thin(data.edge_index, data.num_nodes, method, share, seed)
    except ValueError as error:  # local degree keeps an edge of every node, however small the share
        if "out of reach" not in str(error):
            raise
        return {**key, "out_of_reach": str(error)}
    seconds = time.perf_counter() - begin
    thinned = adjacency(protocol.model, edges, weight, data.num_nodes)
    whole = adjacency(protocol.model, data.edge_index, None, data.num_nodes)
    torch.manual_seed(seed)
    net = build(
        protocol.model, features=x.shape[1], hidden=protocol.hidden, classes=data.num_classes, layers=protocol.layers,
        dropout=0.5, norm=protocol.norm, input_dropout=protocol.input_dropout, normalize=False, bits=None,
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=protocol.weight_decay)
    best = {"thinned": (-1.0, -1.0), "whole": (-1.0, -1.0)}
    for epoch in range(protocol.epochs):
        net.train()
        optimizer.zero_grad()
        F.cross_entropy(net(x, thinned)[rows[0]], data.y[rows[0]]).backward()
        optimizer.step()
        if epoch % EVERY == EVERY - 1 or epoch == protocol.epochs - 1:
            net.eval()
            for view, adj in (("thinned", thinned), ("whole", whole)):
                found = _scores(net, x, adj, data.y, rows[1:], protocol.metric)
                best[view] = max(best[view], found, key=lambda pair: pair[0])
    return {
        **key, "kept": edges.shape[1] / data.num_edges, "thinning_seconds": round(seconds, 4),
        "valid": best["thinned"][0], "test": best["thinned"][1], "test_whole": best["whole"][1],
        "seconds": round(time.perf_counter() - begin, 2),
    }  # fmt: skip


@torch.no_grad()
def _scores(net: Any, x: Tensor, adj: Tensor, y: Tensor, rows: list[Tensor], metric: str) -> tuple[float, float]:
    out = net(x, adj)
    valid, test = (score(out[r], y[r], metric) for r in rows)
    return valid, test


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per data set, method and share: test scores with spread, and DSpar's lead over it by equal seeds."""
    cells: dict[tuple[str, str, float], dict[int, dict[str, Any]]] = {}
    for run in (run for run in runs if "out_of_reach" not in run):
        cells.setdefault((run["dataset"], run["method"], run["share"]), {})[run["seed"]] = run
    rows = []
    for (dataset, method, share), found in cells.items():
        row: dict[str, Any] = {"dataset": dataset, "method": method, "share": share, "seeds": sorted(found)}
        row["kept"] = statistics.fmean(run["kept"] for run in found.values())
        for view in ("test", "test_whole"):
            row[view] = _report.spread([found[seed][view] for seed in sorted(found)])
        ours = cells.get((dataset, "degree", share), {})
        pairs = [ours[seed]["test"] - found[seed]["test"] for seed in found if seed in ours]
        if method not in ("degree", "all") and pairs:
            row["lead"] = statistics.fmean(pairs)
            row["lead_error"] = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
        rows.append(row)
    return rows


def _save(path: Path, new: list[dict[str, Any]], fresh: bool = False) -> dict[str, Any]:
    data = _report.header("sparsify_accuracy", {"threads_per_run": 1})
    with locked(path):
        old = _report.earlier(path, data, fresh)
        stored = old.get("protocols", {})
        same = {name for name, protocol in PROTOCOLS.items() if stored.get(name) == protocol._asdict()}
        runs = {_key(run): run for run in [*(r for r in old.get("runs", []) if r["dataset"] in same), *new]}
        data["methods"] = METHODS
        data["protocols"] = {name: protocol._asdict() for name, protocol in PROTOCOLS.items()}
        data["runs"] = [runs[key] for key in sorted(runs)]
        data["summary"] = summarize(data["runs"])
        _report.write_json(path, data)
    return data


def _key(run: dict[str, Any]) -> Key:
    return run["dataset"], run["method"], run["share"], run["seed"]


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "sparsify_accuracy.json")
    made.add_argument("--planetoid-root", metavar="DIR", help="folder with Cora's ind.cora.* files")
    made.add_argument("--tolokers", metavar="FILE", help="tolokers.npz of the heterophilous-graphs collection")
    made.add_argument("--debian", nargs="?", const="debian-packages", metavar="FOLDER",
                      help="debian-packages, prepared (graphlossy datasets prepare), or its folder")  # fmt: skip
    made.add_argument("--datasets", help=f"comma-separated, of {', '.join(PROTOCOLS)} (default: those that are given)")
    made.add_argument("--methods", default=",".join(METHODS), help="comma-separated (default: %(default)s)")
    made.add_argument("--seeds", type=int, default=None, help="runs of each (default: 5; 2 if --tiny)")
    made.add_argument("--jobs", type=int, default=2, help="processes of one thread each (default: %(default)s)")
    made.add_argument("--picture", type=Path, help="draw the curves that --out holds to this file, and run nothing")
    args = made.parse_args(argv)
    if args.picture:
        _draw(_save(args.out, []), args.picture)
        return
    given = {"cora": args.planetoid_root, "tolokers": args.tolokers, "debian-packages": args.debian}
    default = ["synth-arxiv-tiny"] if args.tiny else [name for name, path in given.items() if path]
    datasets = args.datasets.split(",") if args.datasets else default
    methods, seeds = args.methods.split(","), args.seeds or (2 if args.tiny else 5)
    for name, chosen, allowed in (("--datasets", datasets, PROTOCOLS), ("--methods", methods, METHODS)):
        if unknown := [c for c in chosen if c not in allowed]:
            made.error(f"{name}: unknown {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    if missing := [name for name in datasets if name in given and not given[name]]:
        made.error(f"{missing[0]}: say where its files are")
    paths = {name: _path(name, given.get(name)) for name in datasets}
    data = _save(args.out, [], args.fresh)
    done = {_key(run) for run in data["runs"]}
    shares = SHARES[1:2] if args.tiny else SHARES
    cells = [("degree", 1.0), *((m, s) for s in shares for m in methods)]
    todo = [
        (d, paths[d], m, s, seed) for seed in range(seeds) for d in datasets for m, s in cells
        if (d, m if s < 1 else "all", s, seed) not in done
    ]  # fmt: skip
    print(f"{len(todo)} runs to do", flush=True)
    for number, run in enumerate(results_of(train, todo, args.jobs), 1):
        _save(args.out, [run])
        cell = f"{run['dataset']} {run['method']:18} {run['share']:4} seed {run['seed']}"
        scores = run.get("out_of_reach")
        if scores is None:
            scores = f"test {run['test']:.2f}, on the whole graph {run['test_whole']:.2f} ({run['seconds']} s)"
        print(f"[{number}/{len(todo)}] {cell}: {scores}", flush=True)


def _path(name: str, given: str | None) -> str | None:
    if name != "cora" or given is None:
        return None if given in (None, name) else given
    folders = [Path(given), Path(given) / "Cora", Path(given) / "Cora" / "raw"]
    return str(next((f for f in folders if (f / "ind.cora.graph").exists()), folders[0]))


def _draw(data: dict[str, Any], file: Path) -> None:
    """Curves with one standard deviation, a panel for each data set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted({row["dataset"] for row in data["summary"]})
    figure, panels = plt.subplots(1, len(names), figsize=(5 * len(names), 4), squeeze=False, layout="constrained")
    for panel, name in zip(panels[0], names, strict=True):
        rows = [row for row in data["summary"] if row["dataset"] == name]
        (full,) = [row for row in rows if row["method"] == "all"]
        panel.axhline(full["test"]["mean"], color="black", linewidth=1, label="all edges")
        for method in METHODS:
            curve = sorted((row for row in rows if row["method"] == method), key=lambda row: row["kept"])
            panel.errorbar(
                [100 * row["kept"] for row in curve], [row["test"]["mean"] for row in curve],
                [row["test"]["std"] for row in curve], marker="o", markersize=3, capsize=2, linewidth=1, label=method,
            )  # fmt: skip
        panel.set(title=name, xlabel="edges kept, %", ylabel=f"test {PROTOCOLS[name].metric}, %")
    panels[0][0].legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if file.suffix == ".svg" else None
    figure.savefig(file, dpi=110, metadata=metadata)


if __name__ == "__main__":
    main()
