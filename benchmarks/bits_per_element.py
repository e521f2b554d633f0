"""Bits stored for the backward pass per element of one GCN layer: SpMM, linear, BatchNorm, ReLU, dropout."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import torch

from benchmarks import _report
from benchmarks._graphs import Problem, make_problem
from benchmarks._live import LiveBytes
from benchmarks._variants import VARIANTS, Runner, Shape

__all__ = ["bits_per_element", "main"]

EXAMPLES = """\
  python -m benchmarks.bits_per_element                       widths 128, 256 and 512, about a minute
  python -m benchmarks.bits_per_element --widths 64,1024
  python -m benchmarks.bits_per_element --tiny --out /tmp/bits.json

The bytes are those of the tensors alive between forward and backward, scales, offsets, masks and padding included. The
first and last layers are special (an input that lives anyway, a loss), so the figure is the difference between a
network of five layers and one of three, divided by two layers' elements."""

METHODS = ("pyg-csr", "bf16", "checkpoint", "exact-2bit", "exact-2bit-rp", "crs-1/8", "compress-8bit", "compress-4bit",
           "compress-2bit", "compress-1bit", "nn-2bit")  # fmt: skip
FEW, MANY = 3, 5


def held_bytes(method: str, problem: Problem, width: int, layers: int) -> int:
    """Bytes held between forward and backward of a GCN, when its caches are filled."""
    shape = Shape("gcn", width, width, 16, layers, 0.5)
    runner = Runner(method, shape, problem)
    runner.step(torch.optim.Adam(runner.model.parameters()))
    live = LiveBytes()
    with live:
        loss = next(iter(runner.losses()))
        gc.collect()
        held = live.bytes
    del loss
    return held


def bits_per_element(method: str, problem: Problem, width: int) -> float:
    """Bits that one more layer costs, per element of its output."""
    extra = held_bytes(method, problem, width, MANY) - held_bytes(method, problem, width, FEW)
    return 8 * extra / ((MANY - FEW) * problem.x.size(0) * width)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "bits_per_element.json")
    made.add_argument("--widths", default=None, help="comma-separated (default: 128,256,512; 64 if --tiny)")
    args = made.parse_args(argv)
    widths = [int(w) for w in (args.widths or ("64" if args.tiny else "128,256,512")).split(",")]
    nodes, edges = (512, 2000) if args.tiny else (20_000, 100_000)
    methods = ("pyg-csr", "exact-2bit", "compress-2bit", "nn-2bit") if args.tiny else METHODS
    warnings.filterwarnings("ignore")
    settings = {"nodes": nodes, "edges": edges, "widths": widths, "layers": [FEW, MANY], "seed": 0}
    data: dict[str, Any] = _report.header("bits_per_element", settings)
    data["variants"] = {method: VARIANTS[method] for method in methods}
    data["bits"] = {}
    for width in widths:
        problem = make_problem(nodes, edges, width, 16, 0)
        found = {method: round(bits_per_element(method, problem, width), 4) for method in methods}
        data["bits"][str(width)] = found
        for method, bits in found.items():
            print(f"D = {width:4}  {method:14} {bits:8.3f} bits per element   {found['pyg-csr'] / bits:6.1f}x less")
    row = data["bits"].get("128", {})
    text = "GCN layer, D = 128: nn-2bit, bits per element"
    data["bars"] = [] if args.tiny else [_report.bar(text, row.get("nn-2bit"), "at most", 3.5)]
    _report.write_json(args.out, data)
    _report.print_bars(data["bars"])


if __name__ == "__main__":
    main()
