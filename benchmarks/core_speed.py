"""Time of the CPU kernels of graphlossy.core beside copying, writing and the eager reference, in one run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import _report
from graphlossy.core import _cpu, _reference

__all__ = ["bars", "main", "measure"]

EXAMPLES = """\
  python -m benchmarks.core_speed                    [100000, 256] float32, 1 and 2 threads, about a minute
  python -m benchmarks.core_speed --threads 1,4 --rounds 100 --fresh
  python -m benchmarks.core_speed --tiny --out /tmp/core_speed.json

All calls take turns, so that whatever else the machine does falls on all of them alike; ratios are of the best of all
rounds (`best`) and of the medians. "new" results are allocated by the call, and the system provides their memory page
by page as it is written; "used" ones are written over memory that was written before. A write is compared with a write
of the same kind. On a GPU: python -m benchmarks.gpu --only bandwidth."""

WIDTH, GROUP, BITS = 256, 256, 2
OTHER_BITS = (1, 3, 4, 8)


def measure(rows: int, threads: int, rounds: int, reference_rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds of every call on [rows, 256] float32: all values, their best, mean, median and spread."""
    kernels = _cpu.kernels
    if kernels is None:
        raise SystemExit(f"benchmarks.core_speed: no CPU kernels to measure: {_cpu.load_error}")
    ops = torch.ops.graphlossy
    x = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(0))
    used = torch.zeros_like(x)
    stored = ops.quantize(x, BITS, GROUP, True, 0)
    mask = ops.pack_mask(x > 0)
    back = (*stored, BITS, GROUP, WIDTH, torch.float32)
    calls: dict[str, Callable[[], object]] = {
        "copy, used": lambda: used.copy_(x),
        "copy, new": lambda: torch.empty_like(x).copy_(x),
        "write, used": lambda: used.fill_(1.0),
        "write, new": lambda: torch.empty_like(x).fill_(1.0),
        "quantize": lambda: ops.quantize(x, BITS, GROUP, True, 0),
        "quantize, nearest": lambda: ops.quantize(x, BITS, GROUP, False, 0),
        "dequantize, used": lambda: kernels.dequantize(*back, out=used),
        "dequantize, new": lambda: ops.dequantize(*back),
        "pack_mask": lambda: ops.pack_mask(x),
        "unpack_mask, new": lambda: ops.unpack_mask(mask, x.numel()),
        "mask_apply, new": lambda: ops.mask_apply(x, mask, 2.0),
    }
    for bits in OTHER_BITS:
        calls[f"quantize, {bits} bits"] = lambda b=bits: ops.quantize(x, b, GROUP, True, 0)  # type: ignore[misc]
        calls[f"dequantize, {bits} bits, new"] = _dequantize_call(x, bits)
    eager: dict[str, Callable[[], object]] = {
        "quantize, reference": lambda: _reference.quantize(x, BITS, GROUP, True, 0),
        "dequantize, reference, new": lambda: _reference.dequantize(*back),
    }
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _take_turns(calls, rounds) | _take_turns(eager, reference_rounds)
    finally:
        torch.set_num_threads(before)


def _dequantize_call(x: torch.Tensor, bits: int) -> Callable[[], object]:
    stored = torch.ops.graphlossy.quantize(x, bits, GROUP, True, 0)
    return lambda: torch.ops.graphlossy.dequantize(*stored, bits, GROUP, WIDTH, torch.float32)


def _take_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, Any]]:
    milliseconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            result = call()
            end = time.perf_counter()
            del result  # before the next call, so that it cannot keep memory from it
            if turn:  # the first round warms up
                milliseconds[name].append(round((end - begin) * 1e3, 4))
    return {name: {**_report.spread(values), "best": min(values)} for name, values in milliseconds.items()}


def _ratio(times: dict[str, Any] | None, one: str, other: str, statistic: str = "best") -> float | None:
    return None if times is None else times[one][statistic] / times[other][statistic]


# what is compared: (text, threads, call, call it is compared with, relation, bar)
COMPARED = [
    ("quantise against copy_, 1 thread", "1", "quantize", "copy, used", "at most", 1.1),
    ("quantise against copy_, 2 threads", "2", "quantize", "copy, used", "at most", 0.9),
    ("dequantise against fill_, new memory, 1 thread", "1", "dequantize, new", "write, new", "at most", 1.0),
    ("dequantise against fill_, used memory, 1 thread", "1", "dequantize, used", "write, used", "at most", 1.0),
    ("eager reference against quantise, 1 thread", "1", "quantize, reference", "quantize", "at least", 15),
    ("eager reference against dequantise, used memory, 1 thread", "1", "dequantize, reference, new", "dequantize, used",
     "at least", 15),
    ("eager reference against dequantise, new memory, 1 thread", "1", "dequantize, reference, new", "dequantize, new",
     "at least", 15),
]  # fmt: skip


def bars(runs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The bars of the kernels, held against the best times; the ratio of the medians stands beside each."""
    found = []
    for text, threads, one, other, relation, bound in COMPARED:
        times = runs.get(threads)
        made = _report.bar(f"{text}, times", _ratio(times, one, other), relation, bound)
        found.append({**made, "ratio_of_medians": _ratio(times, one, other, "median")})
    return found


def huge_pages() -> str:
    """The system's setting for transparent huge pages: ``always``, ``madvise``, ``never`` or ``unknown``."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "unknown"
    chosen = re.search(r"\[(\w+)\]", text)
    return chosen[1] if chosen else "unknown"


def _print(threads: str, times: dict[str, Any]) -> None:
    print(f"{threads} thread{'' if threads == '1' else 's'}: milliseconds, best, median, spread")
    for name, values in times.items():
        print(f"  {name:28} {values['best']:9.2f} {values['median']:9.2f} {values['std']:8.2f}")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = _report.parser(__doc__ or "", EXAMPLES, "core_speed.json")
    made.add_argument("--threads", default="1,2", help="comma-separated (default: %(default)s)")
    made.add_argument("--rounds", type=int, default=None, help="calls of each kind (default: 60; 2 if --tiny)")
    args = made.parse_args(argv)
    wanted = args.threads.split(",")
    if not all(re.fullmatch("[1-9][0-9]{0,3}", count) for count in wanted):
        made.error(f"--threads: {args.threads!r} is no comma-separated list of numbers from 1, such as 1,2")
    if args.rounds is not None and args.rounds < 1:
        made.error(f"--rounds: must be at least 1, got {args.rounds}")
    rows, rounds, reference_rounds = (2000, 2, 1) if args.tiny else (100_000, 60, 5)
    rounds = args.rounds or rounds
    settings: dict[str, Any] = {
        "shape": [rows, WIDTH], "dtype": "float32", "bits": BITS, "group_size": GROUP, "rounding": "stochastic",
        "rounds": rounds, "reference_rounds": reference_rounds, "huge_pages": huge_pages(),
        "instructions": None if _cpu.kernels is None else _cpu.LEVELS[_cpu.kernels.highest],
    }  # fmt: skip
    data: dict[str, Any] = _report.header("core_speed", settings)
    data["runs"] = _report.earlier(args.out, data, args.fresh).get("runs", {})
    for threads in wanted:
        if threads not in data["runs"]:
            data["runs"][threads] = measure(rows, int(threads), rounds, reference_rounds)
        _print(threads, data["runs"][threads])
        data["bars"] = [] if args.tiny else bars(data["runs"])
        _report.write_json(args.out, data)
    _report.print_bars(data["bars"])


if __name__ == "__main__":
    main()
