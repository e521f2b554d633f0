"""Time and memory of sparsification by degree from 10^5 to 10^8 edges, and its sampler beside its peers, in one run."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import _report
from benchmarks._meter import ResidentMeter
from graphlossy.core import weighted_sample
from graphlossy.sparsify import METHODS, degree_sparsify, sparsify
from graphlossy.sparsify._draws import Scores, draws_for_share
from graphlossy.sparsify._edges import read_edges
from graphlossy.sparsify.degree import _scores

__all__ = ["bars", "exponent", "generate", "main", "measure"]

EXAMPLES = """\
  python -m benchmarks.sparsify                     10^5 to 10^8 edges, about 15 minutes, 8 GB of memory
  python -m benchmarks.sparsify --edges 1000000,10000000 --out /tmp/sparsify.json
  python -m benchmarks.sparsify --tiny --out /tmp/sparsify.json

Every size runs in a process of its own. The graphs are generated, with a power law of degrees and as many edges a node
as ogbn-products; each undirected edge is stored in both directions, in random order. Seconds are those of the whole
call `degree_sparsify(edge_index, num_nodes, ratio=0.5)`, checks and finding out that the graph is undirected included;
draws a second those of `weighted_sample` alone, checks included. The peers draw as many, from the same weights, on the
same threads; searchsorted is given uniform numbers ready made, once without and once with the counting of draws."""

PRODUCTS = (2_449_029, 61_859_140)  # nodes and undirected edges of ogbn-products
SIZES = (10**5, 10**6, 10**7, PRODUCTS[1], 10**8)
TINY = (2_000, 20_000)
RATIO = 0.5
_CHUNK = 1 << 22
MULTINOMIAL_LIMIT = 2**24


def generate(edges: int, seed: int = 0) -> tuple[torch.Tensor, int]:
    """(edge_index int64 [2, 2 E], number of nodes): power law, both directions, made in chunks."""
    nodes = max(16, round(edges * PRODUCTS[0] / PRODUCTS[1]))
    step = next(step for step in range(nodes // 3 * 2 + 1, 2 * nodes) if math.gcd(step, nodes) == 1)
    found = torch.empty((2, 2 * edges), dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, edges, _CHUNK):
        count = min(_CHUNK, edges - start)
        ends = (torch.rand(2, count, generator=generator, dtype=torch.float64).square_() * nodes).long()
        ends[1] = torch.where(ends[0] == ends[1], (ends[1] + 1) % nodes, ends[1])
        ends = ends * step % nodes  # so that neighbours in degree are none in memory
        found[:, start : start + count] = ends
        found[:, edges + start : edges + start + count] = ends.flip(0)
    return found, nodes


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """One size: ``edges``, ``threads``, ``rounds``, ``peers`` and ``methods`` (whether these are measured as well)."""
    torch.set_num_threads(spec["threads"])
    warm, nodes = generate(2000)
    degree_sparsify(warm, nodes, ratio=RATIO, seed=0)
    edge_index, nodes = generate(spec["edges"])
    meter = ResidentMeter()
    seconds, peaks, shares = [], [], []
    for turn in range(spec["rounds"]):
        meter.start()
        begin = meter.clock()
        kept, weight = degree_sparsify(edge_index, nodes, ratio=RATIO, seed=turn)
        seconds.append(meter.clock() - begin)
        peaks.append(meter.peak())
        shares.append(kept.shape[1] / edge_index.shape[1])
        assert weight is not None
        total = float(weight.sum(dtype=torch.float64))
        assert abs(total / edge_index.shape[1] - 1) < 10 / math.sqrt(spec["edges"]), "weights do not add up"
        del kept, weight
    base = meter.settle()
    found: dict[str, Any] = {
        "nodes": nodes, "edges": spec["edges"], "seconds": _report.spread(seconds), "shares": shares,
        "peak_bytes": _report.spread(peaks), "process_peak_bytes": base + max(peaks),
        "input_bytes": edge_index.nbytes,
    }  # fmt: skip
    if spec["methods"]:
        found["methods"] = dict(_methods(edge_index, nodes))
    weights = _scores(read_edges(edge_index, nodes))
    del edge_index
    draws = draws_for_share(Scores(weights), RATIO)
    found["draws"] = draws
    found["sampling"] = {name: _report.spread(rates) for name, rates in _sampling(weights, draws, spec).items()}
    return found


def _methods(edge_index: torch.Tensor, nodes: int) -> Iterator[tuple[str, float]]:
    for name in METHODS:
        if name != "resistance":  # for small graphs only
            begin = time.perf_counter()
            sparsify(edge_index, nodes, name, ratio=RATIO, seed=0)
            yield name, time.perf_counter() - begin


def _sampling(weights: torch.Tensor, draws: int, spec: dict[str, Any]) -> dict[str, list[float]]:
    """Draws a second of our sampler and of its peers."""
    count = weights.numel()
    calls: dict[str, Callable[[], object]] = {"graphlossy": lambda: weighted_sample(weights, draws, 0)}
    if spec["peers"]:
        running = weights.double().cumsum(0)
        uniform = torch.rand(draws, dtype=torch.float64).mul_(running[-1])
        calls["torch.searchsorted"] = lambda: torch.searchsorted(running, uniform, right=True)
        calls["torch.searchsorted, counted"] = lambda: torch.bincount(
            torch.searchsorted(weights.double().cumsum(0), uniform, right=True).clamp_(max=count - 1)
        )
        p = (weights.double() / weights.double().sum()).numpy()
        generator = np.random.default_rng(0)
        calls["numpy choice"] = lambda: generator.choice(count, draws, p=p)
        if count <= MULTINOMIAL_LIMIT:
            calls["torch.multinomial"] = lambda: torch.multinomial(weights, draws, replacement=True)
    rates: dict[str, list[float]] = {}
    for name, call in calls.items():
        for turn in range((spec["rounds"] if name == "graphlossy" else 1) + (draws < 10**7)):
            begin = time.perf_counter()
            result = call()
            elapsed = time.perf_counter() - begin
            del result
            if turn or draws >= 10**7:  # where it is short, the first call warms up
                rates.setdefault(name, []).append(draws / elapsed)
    return rates


def exponent(runs: dict[str, dict[str, Any]]) -> float | None:
    """Slope of log seconds over log edges, least squares; None of fewer than two sizes."""
    points = [(math.log(run["edges"]), math.log(run["seconds"]["median"])) for run in runs.values()]
    if len(points) < 2:
        return None
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def bars(runs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The bars of sparsification, held against the medians."""
    products = runs.get(str(PRODUCTS[1]))
    name = "ogbn-products-sized"
    rate = None if products is None else products["sampling"]["graphlossy"]["median"] / 1e6
    large = {size: run for size, run in runs.items() if run["edges"] >= 10**5}
    smallest, largest = (run(large, key=int) if large else None for run in (min, max))
    per_edge = None
    if smallest is not None and largest is not None and smallest != largest:
        cost = {size: large[size]["seconds"]["median"] / large[size]["edges"] for size in (smallest, largest)}
        per_edge = cost[largest] / cost[smallest]
    return [
        _report.bar(f"{name}, seconds", products and products["seconds"]["median"], "at most", 60),
        _report.bar(
            f"{name}, peak of the process, GB", products and products["process_peak_bytes"] / 1e9, "at most", 8
        ),
        _report.bar(f"{name}, million draws a second", rate, "at least", 20),
        _report.bar("seconds grow with edges to the power of", exponent(large), "at most", 1.1),
        _report.bar("seconds an edge, largest size against smallest, times", per_edge, "at most", 2),
    ]


def picture(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Seconds and peak over the number of edges."""
    from matplotlib.figure import Figure

    found = sorted(runs.values(), key=lambda run: run["edges"])
    edges = [run["edges"] for run in found]
    figure = Figure(figsize=(9, 4), layout="constrained")
    for place, (values, label) in enumerate(
        (
            ([run["seconds"]["median"] for run in found], "seconds"),
            ([run["process_peak_bytes"] / 1e9 for run in found], "peak of the process, GB"),
        )
    ):
        axes = figure.add_subplot(1, 2, place + 1)
        axes.loglog(edges, values, "o-", label="degree_sparsify, half of the edges")
        axes.loglog(edges, [values[-1] * e / edges[-1] for e in edges], ":", color="gray", label="linear")
        axes.set_xlabel("undirected edges")
        axes.set_ylabel(label)
        axes.legend()
    figure.savefig(path, dpi=150)


def _print(run: dict[str, Any]) -> None:
    print(
        f"{run['edges']:>12,} edges: {run['seconds']['median']:8.3f} s, "
        f"process {run['process_peak_bytes'] / 1e9:6.2f} GB, "
        f"beyond the input {run['peak_bytes']['median'] / 1e9:6.2f} GB"
    )
    for name, rates in run["sampling"].items():
        print(f"    {name:30} {rates['median'] / 1e6:8.1f} million draws a second")
    for name, seconds in run.get("methods", {}).items():
        print(f"    method {name:23} {seconds:8.3f} s")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "sparsify.json")
    made.add_argument("--edges", metavar="E[,E...]", help="undirected edges (default: 10^5 to 10^8)")
    made.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    made.add_argument("--child", help=argparse.SUPPRESS)
    args = made.parse_args(argv)
    if args.child:
        print(json.dumps(measure(json.loads(args.child))))
        return
    sizes = TINY if args.tiny else SIZES
    if args.edges:
        if not all(part.isdecimal() and int(part) >= 100 for part in args.edges.split(",")):
            made.error(f"--edges: {args.edges!r} is no comma-separated list of numbers from 100, such as 1000000")
        sizes = tuple(int(part) for part in args.edges.split(","))
    if args.threads < 1:
        made.error(f"--threads: must be at least 1, got {args.threads}")
    data: dict[str, Any] = _report.header("sparsify", {"ratio": RATIO, "threads": args.threads, "tiny": args.tiny})
    data["runs"] = _report.earlier(args.out, data, args.fresh).get("runs", {})
    for size in sizes:
        if str(size) not in data["runs"]:
            spec = {
                "edges": size, "threads": args.threads, "rounds": 3 if size <= 10**7 else 2,
                "peers": size <= PRODUCTS[1], "methods": size <= 10**7,
            }  # fmt: skip
            command = [sys.executable, "-m", "benchmarks.sparsify", "--child", json.dumps(spec)]
            done = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, stdout=subprocess.PIPE, text=True)
            data["runs"][str(size)] = json.loads(done.stdout.splitlines()[-1])
        _print(data["runs"][str(size)])
        data["bars"] = [] if args.tiny else bars(data["runs"])
        _report.write_json(args.out, data)
    picture(data["runs"], args.out.with_suffix(".png"))
    _report.print_bars(data["bars"])


if __name__ == "__main__":
    main()
