"""Neighbour sampling, seeds and edges a second: graphlossy's kernel, its reference, plain Python, a compiled peer."""

from __future__ import annotations

import random
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks import _report
from graphlossy.core import neighbors, relabel
from graphlossy.datasets.synthetic import random_graph
from graphlossy.sampler import NeighborSampler, _hops

__all__ = ["bars", "main", "measure"]

EXAMPLES = """\
  python -m benchmarks.sampler                          a fifth of ogbn-products' size, 1 and 2 threads, a few minutes
  python -m benchmarks.sampler --peer-path DIR          with torch_sparse from a folder of its own (pip install -t DIR)
  python -m benchmarks.sampler --scale 1 --fresh        all of it: 124 million edges, about 8 GB
  python -m benchmarks.sampler --tiny --out /tmp/sampler.json

One call samples a batch: all of them take turns on the same seed nodes. k_hop_subgraph takes all neighbours, as
there is no sampling in PyG without compiled parts; the plain loop is what one writes with random.sample and a
dictionary."""

NODES, PAIRS, FEATURES = 2_449_029, 61_859_140, 100  # ogbn-products
FANOUTS, BATCH = [15, 10, 5], 1024
OURS, REFERENCE, LOOP, PEER = "graphlossy", "graphlossy, reference", "plain Python loop", "torch_sparse"
K_HOP, PYG = "PyG k_hop_subgraph", "PyG NeighborSampler on torch_sparse"


@contextmanager
def _reference() -> Iterator[None]:
    """The hops on the definitions in plain torch."""
    before = _hops.sample_neighbors, _hops.relabel

    def sample(indptr: Tensor, seeds: Tensor, k: int, *, replace: bool, weight: Any, stream: Any, seed: int) -> Any:
        return neighbors._reference_sample(indptr, seeds, weight, stream, k, replace, seed)

    _hops.sample_neighbors, _hops.relabel = sample, neighbors._reference_relabel  # type: ignore[assignment]
    try:
        yield
    finally:
        _hops.sample_neighbors, _hops.relabel = before


def _plain_loop(neighbours: list[Tensor], seeds: list[int]) -> int:
    """Edges that the usual loop of Python draws."""
    local = {node: i for i, node in enumerate(seeds)}
    frontier, edges = seeds, 0
    for k in FANOUTS:
        fresh = []
        for node in frontier:
            found = neighbours[node].tolist()
            for other in random.sample(found, k) if len(found) > k else found:
                edges += 1
                if other not in local:
                    local[other] = len(local)
                    fresh.append(other)
        frontier = fresh
    return edges


def _calls(data: Any, batches: list[Tensor], peer: bool) -> dict[str, Callable[[int], int]]:
    """What is measured: each call samples batch i and returns its edges."""
    sampler = NeighborSampler(data, FANOUTS, seed=0)
    graph = sampler.graph
    options = {
        f"{OURS}, with replacement": NeighborSampler(graph, FANOUTS, replace=True, seed=0),
        f"{OURS}, by degree": NeighborSampler(graph, FANOUTS, weight="degree", seed=0),
        f"{OURS}, trees": NeighborSampler(graph, FANOUTS, disjoint=True, seed=0),
    }
    rows: list[Tensor] = list(graph.indices.split(graph.in_degree().tolist()))

    def reference(i: int) -> int:
        with _reference():
            return sampler.sample(batches[i], i).edge.shape[0]

    def k_hop(i: int) -> int:
        from torch_geometric.utils import k_hop_subgraph

        found = k_hop_subgraph(batches[i], len(FANOUTS), data.edge_index, relabel_nodes=True, num_nodes=data.num_nodes)
        return found[1].shape[1]

    calls: dict[str, Callable[[int], int]] = {OURS: lambda i: sampler.sample(batches[i], i).edge.shape[0]}
    for name, other in options.items():
        calls[name] = lambda i, s=other: s.sample(batches[i], i).edge.shape[0]  # type: ignore[misc]
    calls |= {REFERENCE: reference, LOOP: lambda i: _plain_loop(rows, batches[i].tolist()), K_HOP: k_hop}
    if peer:
        calls |= _peer_calls(data, graph, batches)
    return calls


def _peer_calls(data: Any, graph: Any, batches: list[Tensor]) -> dict[str, Callable[[int], int]]:
    import torch_geometric.typing
    import torch_sparse  # noqa: F401  registers torch.ops.torch_sparse
    from torch_geometric.sampler import NeighborSampler as PyG
    from torch_geometric.sampler import NodeSamplerInput

    torch_geometric.typing.WITH_TORCH_SPARSE = True  # PyG looked before --peer-path was known
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pyg = PyG(data, FANOUTS)
    sample = torch.ops.torch_sparse.neighbor_sample
    return {
        PEER: lambda i: sample(graph.indptr, graph.indices, batches[i], FANOUTS, False, True)[3].shape[0],
        PYG: lambda i: pyg.sample_from_nodes(NodeSamplerInput(None, batches[i])).edge.shape[0],
    }


def measure(data: Any, threads: int, rounds: int, batch: int, peer: bool) -> dict[str, dict[str, Any]]:
    """For each call: seconds of every round with mean and spread, seeds and edges a second (of the median)."""
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(data.num_nodes, generator=generator)
    batches = [order[i * batch : (i + 1) * batch] for i in range(rounds + 1)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = _take_turns(_calls(data, batches, peer), batches) | _parts(data, batches)
    finally:
        torch.set_num_threads(before)
    return found


def _take_turns(calls: dict[str, Callable[[int], int]], batches: list[Tensor]) -> dict[str, dict[str, Any]]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    edges = dict.fromkeys(calls, 0)
    for i in range(len(batches)):
        # The first call of a round finds the batch's part of the graph in no cache: another one each time.
        turns = list(calls.items())
        for name, call in turns[i % len(turns) :] + turns[: i % len(turns)]:
            slow = name in (REFERENCE, LOOP, K_HOP) and i > 3
            if slow:
                continue
            begin = time.perf_counter()
            count = call(i)
            if i:  # the first round warms up
                seconds[name].append(time.perf_counter() - begin)
                edges[name] += count
    return {name: _rates(values, batches[0].shape[0], edges[name] / len(values)) for name, values in seconds.items()}


def _rates(values: list[float], seeds: int, edges: float) -> dict[str, Any]:
    median = sorted(values)[len(values) // 2]
    return {
        **_report.spread(values), "best": min(values), "median": median, "edges": edges,
        "seeds_per_second": seeds / median, "edges_per_second": edges / median,
    }  # fmt: skip


def _parts(data: Any, batches: list[Tensor]) -> dict[str, dict[str, Any]]:
    """Numbering the nodes of the last hop, and gathering the features of a batch, by themselves."""
    sampler = NeighborSampler(data, FANOUTS, seed=0)
    times: dict[str, list[float]] = {"numbering": [], "features": []}
    nodes = edges = 0
    for i, seeds in enumerate(batches[:10]):
        out = sampler.sample(seeds, i)
        known = out.node[: sum(out.num_sampled_nodes[:-1])]
        last = sampler.graph.sources(out.edge[sum(out.num_sampled_edges[:-1]) :])
        begin = time.perf_counter()
        relabel(known, last, sampler.graph.num_nodes)
        middle = time.perf_counter()
        data.x.index_select(0, out.node)
        end = time.perf_counter()
        if i:
            times["numbering"].append(middle - begin)
            times["features"].append(end - middle)
            nodes, edges = nodes + out.node.shape[0], edges + last.shape[0]
    count = len(times["numbering"])
    sizes = {"numbering": edges / count, "features": nodes / count}
    return {f"{OURS}, {name} alone": _rates(values, batches[0].shape[0], sizes[name]) for name, values in times.items()}


def bars(runs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Ahead of what needs no compiler, within 1.5 times of what does."""
    found = []
    for threads, calls in sorted(runs.items()):
        ours = calls[OURS]["seeds_per_second"]
        for name in (LOOP, K_HOP):
            text = f"seeds a second against {name}, {threads} threads, times"
            found.append(_report.bar(text, ours / calls[name]["seeds_per_second"], "at least", 1.0))
        for name in (PEER, PYG):
            theirs = calls[name]["seeds_per_second"] / ours if name in calls else None
            found.append(_report.bar(f"time against {name}, {threads} threads, times", theirs, "at most", 1.5))
    return found


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "sampler.json")
    made.add_argument("--threads", default="1,2", help="comma-separated (default: %(default)s)")
    made.add_argument("--rounds", type=int, default=20, help="batches (default: %(default)s; 2 if --tiny)")
    made.add_argument("--scale", type=float, default=0.2, help="share of ogbn-products' size (default: %(default)s)")
    made.add_argument("--peer-path", metavar="DIR", help="folder that holds torch_sparse")
    args = made.parse_args(argv)
    wanted = args.threads.split(",")
    if not all(re.fullmatch("[1-9][0-9]{0,3}", count) for count in wanted):
        made.error(f"--threads: {args.threads!r} is no comma-separated list of numbers from 1, such as 1,2")
    if args.rounds < 1:
        made.error(f"--rounds: must be at least 1, got {args.rounds}")
    if not 0 < args.scale <= 10:
        made.error(f"--scale: must be above 0 and at most 10, got {args.scale}")
    if args.peer_path:
        sys.path.insert(0, args.peer_path)
    peer = _has_peer()
    if args.peer_path and not peer:
        made.error("--peer-path: no torch_sparse can be imported from there")
    scale, rounds, batch = (0.002, 2, 64) if args.tiny else (args.scale, args.rounds, BATCH)
    nodes, pairs = int(NODES * scale), int(PAIRS * scale)
    settings = {
        "nodes": nodes, "edges": 2 * pairs, "features": FEATURES, "num_neighbors": FANOUTS, "batch_size": batch,
        "rounds": rounds, "peer": peer,
    }  # fmt: skip
    result: dict[str, Any] = _report.header("sampler", settings)
    result["runs"] = _report.earlier(args.out, result, args.fresh).get("runs", {})
    data = random_graph(nodes, pairs, FEATURES, 47)
    for threads in wanted:
        if threads not in result["runs"]:
            result["runs"][threads] = measure(data, int(threads), rounds, batch, peer)
        print(f"{threads} thread{'' if threads == '1' else 's'}: seeds/s, million edges/s, milliseconds a batch")
        for name, values in result["runs"][threads].items():
            rates = values["seeds_per_second"], values["edges_per_second"] / 1e6, 1e3 * values["median"]
            print(f"  {name:36} {rates[0]:12,.0f} {rates[1]:10.2f} {rates[2]:10.2f}")
        result["bars"] = [] if args.tiny else bars(result["runs"])
        _report.write_json(args.out, result)
    _report.print_bars(result["bars"])


def _has_peer() -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch_sparse  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


if __name__ == "__main__":
    main()
