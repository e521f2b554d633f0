"""Resident memory while sampling neighbours from CSC arrays on disk, in the shape of ogbn-papers100M."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import _report

__all__ = ["main", "measure", "write_graph"]

EXAMPLES = """\
  python -m benchmarks.papers_memory                               a twentieth of ogbn-papers100M, 0.7 GB on disk
  python -m benchmarks.papers_memory --scale 0.2 --batches 50 --fresh
  python -m benchmarks.papers_memory --arrays colptr.npy row.npy   arrays that are there already
  python -m benchmarks.papers_memory --tiny --out /tmp/papers_memory.json

A process of its own opens the arrays and samples; the peak of its resident memory (VmHWM) over what it had before it
opened them is the figure: anonymous memory and pages of the files both count. Pages that were only read stay in the
system's page cache, which any process may claim: they count for nobody, and are not part of the figure."""

NODES, EDGES = 111_059_956, 1_615_685_872  # ogbn-papers100M
FANOUTS, BATCH, BOUND = [15, 10, 5], 1024, 0.25
_CHUNK = 1 << 22


def write_graph(folder: Path, nodes: int, edges: int, seed: int = 0) -> tuple[Path, Path]:
    """colptr.npy and row.npy of a power-law graph with random neighbours, written chunk by chunk."""
    rng = np.random.default_rng(seed)
    weight = (np.arange(nodes) + 10.0) ** -0.5
    degree = np.maximum(1, np.floor(weight * ((edges - nodes) / weight.sum()))).astype(np.int64)
    rng.shuffle(degree)
    files = folder / "colptr.npy", folder / "row.npy"
    colptr = np.concatenate([[0], degree.cumsum()])
    np.save(files[0], colptr)
    row = np.lib.format.open_memmap(files[1], mode="w+", dtype=np.int64, shape=(int(colptr[-1]),))
    for start in range(0, row.shape[0], _CHUNK):
        end = min(start + _CHUNK, row.shape[0])
        row[start:end] = rng.integers(nodes, size=end - start)
    row.flush()
    return files


def _status() -> dict[str, int]:
    """Bytes of this process: peak and present resident memory, anonymous and of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS", "RssAnon", "RssFile")}


def measure(colptr: str, row: str, batches: int, batch: int) -> dict[str, Any]:
    """Samples and says what it took; the first step of the process, since a peak cannot be set back."""
    from graphlossy.sampler import NeighborSampler

    torch.set_num_threads(1)
    # What any use loads, kernels and all, before the first look.
    warm = NeighborSampler((torch.tensor([0, 1]), torch.tensor([0])), FANOUTS, weighted=True, seed=0)
    warm.sample(torch.tensor([0]), 0)
    before = _status()
    arrays = np.load(colptr, mmap_mode="r"), np.load(row, mmap_mode="r")
    sampler = NeighborSampler(arrays, FANOUTS, seed=0)
    generator = torch.Generator().manual_seed(0)
    seconds, edges, after = [], 0, []
    for i in range(batches):
        seeds = torch.randint(sampler.graph.num_nodes, (batch,), generator=generator)
        begin = time.perf_counter()
        edges += sampler.sample(seeds, i).edge.shape[0]
        seconds.append(time.perf_counter() - begin)
        after.append(_status())
    last = after[-1]
    return {
        "file_bytes": sum(Path(file).stat().st_size for file in (colptr, row)),
        "nodes": sampler.graph.num_nodes, "edges": sampler.graph.num_edges,
        "peak_bytes": last["VmHWM"] - before["VmRSS"],
        "anonymous_bytes": max(s["RssAnon"] for s in after) - before["RssAnon"],
        "file_resident_bytes": max(s["RssFile"] for s in after) - before["RssFile"],
        "before_bytes": before["VmRSS"], "seconds": seconds, "sampled_edges_per_batch": edges / batches,
        "seeds_per_second": batches * batch / sum(seconds),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """The command line; with ``--child`` the process that is measured."""
    made = _report.parser(__doc__ or "", EXAMPLES, "papers_memory.json")
    made.add_argument("--scale", type=float, default=0.05, help="share of ogbn-papers100M (default: %(default)s)")
    made.add_argument("--batches", type=int, default=20, help="batches of 1024 seeds (default: %(default)s)")
    made.add_argument("--arrays", nargs=2, metavar=("COLPTR", "ROW"), help=".npy files of a graph, int32 or int64")
    made.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = made.parse_args(argv)
    if args.child:
        colptr, row, batches, batch = args.child
        print(json.dumps(measure(colptr, row, int(batches), int(batch))))
        return
    if not Path("/proc/self/status").exists():
        made.error("resident memory is read from /proc, which only Linux has")
    if not 0 < args.scale <= 1:
        made.error(f"--scale: must be above 0 and at most 1, got {args.scale}")
    if args.batches < 1:
        made.error(f"--batches: must be at least 1, got {args.batches}")
    scale, batches, batch = (0.0002, 2, 64) if args.tiny else (args.scale, args.batches, BATCH)
    settings = {
        "scale": None if args.arrays else scale, "batches": batches, "batch_size": batch, "num_neighbors": FANOUTS,
    }  # fmt: skip
    result: dict[str, Any] = _report.header("papers_memory", settings)
    result["run"] = _report.earlier(args.out, result, args.fresh).get("run")
    if result["run"] is None:
        with tempfile.TemporaryDirectory(dir=args.out.parent) as folder:
            files = args.arrays or write_graph(Path(folder), int(NODES * scale), int(EDGES * scale))
            command = [sys.executable, "-m", "benchmarks.papers_memory", "--child", *map(str, files)]
            done = subprocess.run([*command, str(batches), str(batch)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"benchmarks.papers_memory: the measured process failed: {done.stderr.strip()[-500:]}")
        result["run"] = json.loads(done.stdout)
    run = result["run"]
    for name in ("file_bytes", "peak_bytes", "anonymous_bytes", "file_resident_bytes"):
        print(f"{name.replace('_', ' '):22} {run[name] / 2**20:12,.1f} MiB")
    print(f"{'seeds per second':22} {run['seeds_per_second']:12,.0f}")
    share = run["peak_bytes"] / run["file_bytes"]
    text = "peak resident memory while sampling, share of the files"
    result["bars"] = [] if args.tiny else [_report.bar(text, share, "at most", BOUND)]
    _report.write_json(args.out, result)
    _report.print_bars(result["bars"])


if __name__ == "__main__":
    main()
