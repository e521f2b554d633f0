"""On a GPU: a training step on an arxiv-shaped graph, the kernels' share of copy bandwidth, and caches of a model."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import _gpu_caches, _report, memory
from benchmarks._meter import meter_for

__all__ = ["bandwidth", "main"]

EXAMPLES = """\
  python -m benchmarks.gpu                        everything, about a quarter of an hour
  python -m benchmarks.gpu --models gcn --steps 20
  python -m benchmarks.gpu --only bandwidth
  python -m benchmarks.gpu --only caches
  python -m benchmarks.gpu --device cpu --tiny --out /tmp/gpu.json     tries the script out; its figures mean nothing

Peak memory is torch.cuda.max_memory_allocated beyond what was allocated before the step; each method runs in a process
of its own. Every figure is per epoch; `time` beside pyg-csr is the overhead. Caches of keys and values (they need
transformers): milliseconds of a new token's attention behind 16,384 others beside torch's own, and how many texts of
8,192 tokens fit beside a model of 3 billion weights; the figures that --out has are kept."""

PARTS = ("memory", "bandwidth", "caches")
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
    made.add_argument("--only", choices=PARTS, default=None, help="one part")
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
    parts = (args.only,) if args.only else PARTS
    data["runs"], rates = old.get("runs", {}), old.get("bandwidth")
    if "memory" in parts:
        data = memory.measure_all(args, settings, "gpu")
    if "bandwidth" in parts:
        size = (4000, 3) if args.tiny else (2**20, 20)
        rates = _in_own_process("gpu", f"bandwidth({args.device!r}, {size[0]}, {size[1]})")
        for name, rate in rates.items():
            print(f"{name:18} {rate['median']:8.1f} GB/s  ({rate['median'] / rates['copy']['median']:.2f} of a copy)")
    data["summary"] = memory.summarize(data["runs"])
    data["bandwidth"], data["caches"] = rates, old.get("caches", {})
    data["bars"] = [] if args.tiny else _bars(rates, data["summary"])
    _report.write_json(args.out, data)
    if "caches" in parts:
        for _ in _measure_caches(data["caches"], args.device, args.tiny):
            _report.write_json(args.out, data)
    _report.print_bars(data["bars"])


def _measure_caches(caches: dict[str, Any], device: str, tiny: bool) -> Iterator[None]:
    """Measures what is missing in ``caches``, and yields after each part."""
    if importlib.util.find_spec("transformers") is None:
        print("caches: left out, they need transformers (pip install 'graphlossy[llm]')")
        return
    if "attention" not in caches:
        caches["attention"] = _in_own_process("_gpu_caches", f"attention({device!r}, {tiny})")
        yield
    found = caches.setdefault("largest", {})
    for name in _gpu_caches.SCHEMES:
        if name not in found:
            found[name] = _in_own_process("_gpu_caches", f"largest({device!r}, {name!r}, {tiny})")
            yield
    for name, times in caches["attention"].items():
        print(f"{name:18} {times['median']:8.3f} ms a token's attention")
    for name, row in found.items():
        print(f"{name:18} {row['batch']:8} texts fit, {row['cache_bytes'] / 1e9:.2f} GB")


def _in_own_process(module: str, call: str) -> dict[str, Any]:
    """What a call of a benchmark's module gives, where no other one holds memory."""
    code = f"import json; from benchmarks import {module} as one; print(json.dumps(one.{call}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False
    )
    if done.returncode != 0:
        what = call.partition("(")[0]
        raise SystemExit(f"benchmarks.gpu: the measurement of {what} failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
