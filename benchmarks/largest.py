"""The largest products-shaped graph on which full-batch GraphSAGE trains within a memory limit."""

from __future__ import annotations

import gc
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import _report

__all__ = ["largest", "main", "measure"]

EXAMPLES = """\
  python -m benchmarks.largest                                        12 GiB, every method; an hour
  python -m benchmarks.largest --limit 4 --methods pyg-csr,nn-2bit
  python -m benchmarks.largest --tiny --out /tmp/largest.json"""

NODES, PAIRS, FEATURES, CLASSES = 2_449_029, 61_859_140, 100, 47  # of ogbn-products
TRAIN = 196_615 / NODES
METHODS = {
    "pyg-edge_index": "float32, PyG's SAGEConv given a plain edge_index",
    "pyg-csr": "float32, PyG's SAGEConv given a sparse CSR adj_t: what OGB's reference script does",
    "pyg-csr-checkpoint": "the same, every layer checkpointed (torch.utils.checkpoint)",
    "compress-2bit": "graphlossy.compress(bits=2) around the unmodified model, adj_t",
    "nn-2bit": "graphlossy.nn's layers at 2 bits, given a CSRGraph",
}
# Scales tried in turn for a line through the peaks, and how near the limit the last, deciding run has to come.
FIRST, NEAR = (0.05, 0.12), 0.96
FIRST_OF = {"pyg-edge_index": (0.01, 0.02)}  # it keeps a message for every edge


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Trains two steps in this process; its peak resident set, all included: graph, features, model, optimizer."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(spec["threads"])
    folder = Path(spec["folder"])
    _reset_peak()
    base = _status("VmRSS")  # Python, torch and PyG themselves
    nodes = int(np.load(folder / "crow.npy", mmap_mode="r").shape[0]) - 1
    torch.manual_seed(0)
    graph = _graph(spec["method"], folder, nodes)
    x = torch.randn(nodes, FEATURES)
    y = torch.randint(CLASSES, (nodes,))
    rows = torch.randperm(nodes)[: int(TRAIN * nodes)]
    net = _Net(spec["method"], spec["hidden"])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.002)
    gc.collect()
    losses = []
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(x, graph)[rows], y[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        del loss
    return {"nodes": nodes, "peak_bytes": _status("VmHWM"), "before_bytes": base, "losses": losses}


class _Net(torch.nn.Module):
    """OGB's GraphSAGE for ogbn-products: three layers, ReLU and dropout 0.5, no norm."""

    def __init__(self, method: str, hidden: int) -> None:
        super().__init__()
        import torch_geometric.nn

        import graphlossy.nn

        ours = method.startswith("nn")
        library: Any = graphlossy.nn if ours else torch_geometric.nn
        self.convs = torch.nn.ModuleList(
            library.SAGEConv(a, b) for a, b in ((FEATURES, hidden), (hidden, hidden), (hidden, CLASSES))
        )
        self.act = graphlossy.nn.NormActDropout(hidden, None, 0.5) if ours else None
        self.checkpointed = method.endswith("checkpoint")
        if method.startswith("compress"):
            graphlossy.compress(self, bits=2)

    def layer(self, number: int, x: Tensor, graph: Any) -> Tensor:
        x = self.convs[number](x, graph)
        return F.dropout(F.relu(x), 0.5, self.training)

    def forward(self, x: Tensor, graph: Any) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        for number in range(2):
            if self.checkpointed:
                x = checkpoint(self.layer, number, x, graph, use_reentrant=False)
            elif self.act is not None:
                x = self.convs[number](x, graph)
                x = self.act(x)
            else:
                x = self.convs[number](x, graph)
                x = F.relu(x)
                x = F.dropout(x, 0.5, self.training)
        return self.convs[2](x, graph)


def _graph(method: str, folder: Path, nodes: int) -> Any:
    crow, col = torch.from_numpy(np.load(folder / "crow.npy")), torch.from_numpy(np.load(folder / "col.npy"))
    if method == "pyg-edge_index" or method.startswith("nn"):
        row = torch.repeat_interleave(torch.arange(nodes, dtype=torch.int32), crow.diff(), output_size=col.numel())
        edge_index = torch.stack([col, row])
        if method == "pyg-edge_index":
            return edge_index.long()
        from graphlossy.autograd import CSRGraph

        return CSRGraph(edge_index, num_dst=nodes)
    values = torch.ones(col.numel())
    return torch.sparse_csr_tensor(crow.long(), col.long(), values, (nodes, nodes))


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":"))


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def make_graph(scale: float, folder: Path) -> None:
    """Writes crow.npy and col.npy, int32, of a products-shaped power-law graph; in a process of its own."""
    from graphlossy.datasets.synthetic import random_graph

    nodes = max(1000, round(NODES * scale))
    edges = random_graph(nodes, round(PAIRS / NODES * nodes), 1, 2, seed=0).edge_index.numpy()
    counts = np.bincount(edges[1], minlength=nodes)
    np.save(folder / "crow.npy", np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    # Symmetric and sorted by source: the sources of the edges into node i are the targets of those out of it.
    np.save(folder / "col.npy", edges[1].astype(np.int32))


def _child(command: str, spec: dict[str, Any], limit: int | None = None) -> dict[str, Any] | None:
    """The result of a process of our own; None if it ran out of memory."""

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.largest", "--child", command, json.dumps(spec)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, preexec_fn=restrict, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode < 0 or any(words in done.stderr for words in ("can't allocate memory", "MemoryError")):
        return None
    raise SystemExit(f"benchmarks.largest: a run failed\n{done.stderr}")


def largest(method: str, limit: int, threads: int, hidden: int, first: tuple[float, ...]) -> dict[str, Any]:
    """Peaks at growing scales, the next one where a line through the last two meets the limit, until it is near."""
    runs: list[dict[str, Any]] = []
    scales = list(first)
    for _ in range(6):
        scale = scales.pop(0) if scales else _next([run for run in runs if run["peak_bytes"]], limit)
        folder = Path(tempfile.mkdtemp(prefix="graphlossy-largest-"))
        try:
            _child("graph", {"scale": scale, "folder": str(folder)})
            spec = {"method": method, "folder": str(folder), "threads": threads, "hidden": hidden}
            found = _child("train", spec, 2 * limit)
        finally:
            shutil.rmtree(folder)
        runs.append({"scale": scale, **(found or {"nodes": None, "peak_bytes": None})})
        peak = runs[-1]["peak_bytes"]
        shown = f"{peak / 2**30:.2f} GiB" if peak else "over twice the limit"
        print(f"  {method}: scale {scale:.4f}, peak {shown}", flush=True)
        if not scales and peak and NEAR * limit <= peak <= limit:
            break
    fitting = [run for run in runs if run["peak_bytes"] and run["peak_bytes"] <= limit]
    best = max(fitting, key=lambda run: run["scale"], default=None)
    return {"method": method, "runs": runs, "largest": best}


def _next(runs: list[dict[str, Any]], limit: int) -> float:
    a, b = sorted(runs, key=lambda run: run["scale"])[-2:]
    slope = (b["peak_bytes"] - a["peak_bytes"]) / (b["scale"] - a["scale"])
    return b["scale"] + ((1 + NEAR) / 2 * limit - b["peak_bytes"]) / slope


def bars(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At least four times the graph of float32."""
    scale = {r["method"]: r["largest"]["scale"] if r["largest"] else None for r in results}
    found = []
    for base in ("pyg-csr", "pyg-edge_index"):
        for ours in ("compress-2bit", "nn-2bit"):
            value = scale[ours] / scale[base] if scale.get(ours) and scale.get(base) else None
            found.append(_report.bar(f"largest graph, {ours} against {base}, times", value, "at least", 4))
    return found


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "largest.json")
    made.add_argument("--limit", type=float, default=12.0, metavar="GIB", help="(default: %(default)s)")
    made.add_argument("--methods", default=",".join(METHODS), help="comma-separated (default: %(default)s)")
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default: %(default)s)")
    args = made.parse_args(argv)
    methods = args.methods.split(",")
    if unknown := [name for name in methods if name not in METHODS]:
        made.error(f"--methods: unknown {', '.join(unknown)}; allowed: {', '.join(METHODS)}")
    limit = int((0.7 if args.tiny else args.limit) * 2**30)
    hidden = 256
    data = _report.header("largest", {"limit_bytes": limit, "hidden": hidden, "layers": 3, "threads": args.threads})
    data["methods"] = METHODS
    data["results"] = _report.earlier(args.out, data, args.fresh).get("results", [])
    for method in methods:
        if any(r["method"] == method for r in data["results"]):
            continue
        first = (0.002, 0.004) if args.tiny else FIRST_OF.get(method, FIRST)
        data["results"].append(largest(method, limit, args.threads, hidden, first))
        data["bars"] = bars(data["results"])
        _report.write_json(args.out, data)
    _report.print_bars(data.get("bars", []))


def _run_child(command: str, text: str) -> None:
    spec = json.loads(text)
    if command == "graph":
        make_graph(spec["scale"], Path(spec["folder"]))
        print("{}")
    else:
        print(json.dumps(measure(spec)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _run_child(*sys.argv[2:])
    else:
        main()
