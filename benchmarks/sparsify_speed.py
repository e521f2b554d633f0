"""Time of a full-batch training step against the share of edges kept, beside the ideal for its sparse products."""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import _report
from benchmarks._models import build
from benchmarks._thinned import adjacency, thin

__all__ = ["main", "measure"]

EXAMPLES = """\
  python -m benchmarks.sparsify_speed --tolokers data/tolokers.npz
  python -m benchmarks.sparsify_speed --only synth-arxiv --models gcn
  python -m benchmarks.sparsify_speed --tiny --out /tmp/sparsify_speed.json"""

SHARES = (1.0, 0.5, 0.25, 0.1, 0.0)  # without edges the time is that of everything but the sparse products
SETS = ("synth-arxiv", "tolokers", "synth-proteins")
PROTEINS_SCALE = 0.1
BAR = 0.7
SCHEMES = ("float32", "compress-2bit")


def measure(data: Any, model: str, scheme: str, steps: int, rounds: int, hidden: int) -> dict[str, Any]:
    """Seconds of a step for every share, the shares taking turns; three layers with BatchNorm and dropout 0.5."""
    import graphlossy

    nodes = data.num_nodes
    rows, y = data.train_mask.nonzero().squeeze(1), data.y
    cells = []
    for share in SHARES:
        edges, weight = (
            (data.edge_index[:, :0], None) if share == 0 else thin(data.edge_index, nodes, "degree", share, 0)
        )
        torch.manual_seed(0)
        net = build(
            model, features=data.x.shape[1], hidden=hidden, classes=data.num_classes, layers=3, dropout=0.5,
            norm=True, input_dropout=False, normalize=False, bits=None,
        )  # fmt: skip
        if scheme != "float32":
            graphlossy.compress(net, bits=2)
        cells.append((net, torch.optim.Adam(net.parameters()), adjacency(model, edges, weight, nodes), edges.shape[1]))
    seconds: list[list[float]] = [[] for _ in cells]
    for number in range(rounds + 1):
        for at, (net, optimizer, adj, _) in enumerate(cells):
            for step in range(steps + 1):
                begin = time.perf_counter()
                optimizer.zero_grad(set_to_none=True)
                out = net(data.x, adj)[rows].float()
                loss = F.cross_entropy(out, y[rows]) if y.dim() == 1 else _binary(out, y[rows])
                loss.backward()
                optimizer.step()
                if number and step:  # the first round and the first step of every turn warm up
                    seconds[at].append(time.perf_counter() - begin)
    medians = [statistics.median(s) for s in seconds]
    full, dense = medians[0], medians[-1]
    table = []
    for share, (_, _, _, edges), median, raw in zip(SHARES, cells, medians, seconds, strict=True):
        kept = edges / cells[0][3]
        ideal = full / (dense + kept * (full - dense))
        table.append({
            "share_asked": share, "share_kept": kept, "edges": edges, "seconds": median, "raw": raw,
            "speedup": full / median, "ideal": ideal, "of_ideal": full / median / ideal,
        })  # fmt: skip
    return {"sparse_share": 1 - dense / full, "shares": table}


def _binary(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    known = ~y.isnan()
    return F.binary_cross_entropy_with_logits(out[known], y[known])


def load(name: str, args: argparse.Namespace) -> Any:
    """A data set by its name here."""
    from graphlossy.datasets import load

    if name == "tolokers":
        return load(args.tolokers)
    if name == "synth-proteins":
        return load(name, scale=PROTEINS_SCALE)
    return load(name)


def bars(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At least 0.7 of the ideal speed-up in every cell of float32."""
    return [
        _report.bar(
            f"{r['dataset']} {r['model']}, {100 * cell['share_asked']:g} % of the edges: speed-up "
            f"{cell['speedup']:.2f}x, ideal {cell['ideal']:.2f}x; share of the ideal", cell["of_ideal"], "at least", BAR
        )  # fmt: skip
        for r in results if r["scheme"] == "float32"
        for cell in r["shares"][1:-1]
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "sparsify_speed.json")
    made.add_argument("--tolokers", metavar="FILE", help="tolokers.npz; left out without it")
    made.add_argument("--only", help=f"comma-separated, of {', '.join(SETS)}")
    made.add_argument("--models", default="gcn,sage", help="(default: %(default)s)")
    made.add_argument("--schemes", default=",".join(SCHEMES), help="comma-separated (default: %(default)s)")
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default: %(default)s)")
    args = made.parse_args(argv)
    warnings.filterwarnings("ignore")
    chosen = ["synth-arxiv-tiny"] if args.tiny else args.only.split(",") if args.only else list(SETS)
    if not args.tolokers and "tolokers" in chosen:
        chosen.remove("tolokers")
        print("tolokers is left out: no --tolokers FILE")
    torch.set_num_threads(args.threads)
    hidden = 16 if args.tiny else 256
    settings = {
        "threads": args.threads,
        "layers": 3,
        "hidden": hidden,
        "proteins_scale": PROTEINS_SCALE,
    }
    data = _report.header("sparsify_speed", settings)
    data["results"] = _report.earlier(args.out, data, args.fresh).get("results", [])
    for name in chosen:
        graph = None
        for model in args.models.split(","):
            for scheme in args.schemes.split(","):
                key = {"dataset": name, "model": model, "scheme": scheme}
                if any(all(r[k] == v for k, v in key.items()) for r in data["results"]):
                    continue
                graph = load(name, args) if graph is None else graph
                steps, rounds = (1, 1) if args.tiny else (2, 3)
                found = measure(graph, model, scheme, steps, rounds, hidden)
                data["results"].append({**key, "nodes": graph.num_nodes, "edges": graph.num_edges, **found})
                for cell in found["shares"]:
                    print(f"{name} {model} {scheme}: {cell['share_kept']:6.1%} of the edges, {cell['seconds']:.3f} s, "
                          f"speed-up {cell['speedup']:.2f}x of {cell['ideal']:.2f}x", flush=True)  # fmt: skip
                data["bars"] = [] if args.tiny else bars(data["results"])
                _report.write_json(args.out, data)
    _report.print_bars(data.get("bars", []))


if __name__ == "__main__":
    main()
