"""On a GPU: memory and time of a training step on an arxiv-shaped graph, and the kernels' share of copy bandwidth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import _report, memory
from benchmarks._meter import meter_for

__all__ = ["bandwidth", "main"]

EXAMPLES = """\
  python -m benchmarks.gpu                        everything, about ten minutes
  python -m benchmarks.gpu --models gcn --steps 20
  python -m benchmarks.gpu --only bandwidth
  python -m benchmarks.gpu --device cpu --tiny --out /tmp/gpu.json     tries the script out; its figures mean nothing

Peak memory is torch.cuda.max_memory_allocated beyond what was allocated before the step; each method runs in a process
of its own. Every figure is per epoch; `time` beside pyg-csr is the overhead."""

ARXIV = {"nodes": 169_343, "edges": 2_315_598}  # ogbn-arxiv, both directions of each edge


def bandwidth(device: str, rows: int, repeats: int) -> dict[str, Any]:
    """GB/s of quantise and dequantise of [rows, 256] float32, and of a copy of the same matrix.

    Bytes are counted both ways: what is read and what is written, metadata included.
    """
    import graphlossy.core  # noqa: F401  registers the operators

    torch.manual_seed(0)
    x = torch.randn(rows, 256, device=device)
    out = torch.empty_like(x)
    full = x.numel() * x.element_size()
    found = {"copy": _rate(lambda: out.copy_(x), 2 * full, device, repeats)}
    ops = torch.ops.graphlossy
    for bits in (1, 2, 4, 8):
        stored = ops.quantize(x, bits, 256, True, 0)
        size = full + sum(t.numel() * t.element_size() for t in stored)
        found[f"quantize-{bits}bit"] = _rate(lambda b=bits: ops.quantize(x, b, 256, True, 0), size, device, repeats)
        back = lambda b=bits, s=stored: ops.dequantize(*s, b, 256, 256, torch.float32)  # noqa: E731
        found[f"dequantize-{bits}bit"] = _rate(back, size, device, repeats)
    return found


def _rate(run: Any, nbytes: int, device: str, repeats: int) -> dict[str, Any]:
    for _ in range(3):
        run()
    meter = meter_for(torch.device(device))
    rates = []
    for _ in range(repeats):
        begin = meter.clock()
        for _ in range(10):
            run()
        rates.append(10 * nbytes / (meter.clock() - begin) / 1e9)
    return _report.spread(rates)


def _bars(rates: dict[str, Any] | None, summary: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for op in ("quantize-2bit", "dequantize-2bit"):
        share = None if rates is None else rates[op]["median"] / rates["copy"]["median"]
        found.append(_report.bar(f"GPU: {op}, share of copy bandwidth", share, "at least", 0.7))
    # The bars on time are of CPU training; here the overhead is reported without one.
    shared = (bar for bar in memory.bars(summary) if "time" not in bar["what"])
    return [*found, *({**bar, "what": f"GPU: {bar['what']}"} for bar in shared)]


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = memory.arguments(__doc__ or "", EXAMPLES, "gpu.json")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tries the script out")
    made.add_argument("--only", choices=("bandwidth", "memory"), default=None, help="one half")
    args = made.parse_args(argv)
    memory.finish(made, args)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: this machine has no CUDA device that torch can use; nothing was measured")
    args.threads = None
    if not args.tiny:
        args.nodes, args.edges = args.nodes or ARXIV["nodes"], args.edges or ARXIV["edges"]
    settings = memory.settings_of(args)
    data: dict[str, Any] = _report.header("gpu", settings, args.device)
    old = _report.earlier(args.out, data, args.fresh)
    data["runs"], rates = old.get("runs", {}), old.get("bandwidth")
    if args.only != "bandwidth":
        data = memory.measure_all(args, settings, "gpu")
    if args.only != "memory":
        rates = _in_own_process(args.device, 4000 if args.tiny else 2**20, 3 if args.tiny else 20)
        for name, rate in rates.items():
            print(f"{name:18} {rate['median']:8.1f} GB/s  ({rate['median'] / rates['copy']['median']:.2f} of a copy)")
    data["summary"] = memory.summarize(data["runs"])
    data["bandwidth"] = rates
    data["bars"] = [] if args.tiny else _bars(rates, data["summary"])
    _report.write_json(args.out, data)
    _report.print_bars(data["bars"])


def _in_own_process(device: str, rows: int, repeats: int) -> dict[str, Any]:
    """The rates, measured where no other benchmark holds memory."""
    call = f"bandwidth({device!r}, {rows}, {repeats})"
    code = f"import json; from benchmarks.gpu import bandwidth; print(json.dumps({call}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"benchmarks.gpu: the bandwidth measurement failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
