"""Runs the benchmarks one after the other: ``python -m benchmarks``; with ``--device cuda`` those of a GPU."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks._report import RESULTS

EXAMPLES = """\
  python -m benchmarks --fresh                                all on the CPU, hours on 2 cores
  python -m benchmarks --planetoid-root DIR --tolokers FILE   with the data sets that are not embedded
  python -m benchmarks --only memory,bits_per_element
  python -m benchmarks --device cuda --fresh
  python -m benchmarks --tiny --out-dir /tmp/results          all of them in some minutes; no figures"""

# Quick ones first. Each is a module of its own with more options: python -m benchmarks.NAME --help
CPU = (
    "core_speed", "bits_per_element", "sparsify", "sampler", "papers_memory", "recsys_speed", "recsys_memory",
    "gradients", "sparsify_speed", "memory", "accuracy", "sparsify_accuracy", "combined", "largest", "recsys_methods",
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, epilog="examples:\n" + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--only", default=None, help=f"comma-separated, of {', '.join(CPU)}")
    made.add_argument("--tiny", action="store_true", help="seconds each: shows that they run, no figures")
    made.add_argument("--fresh", action="store_true", help="measure again what the result files hold already")
    made.add_argument("--out-dir", type=Path, default=RESULTS, help="(default: %(default)s)")
    made.add_argument("--planetoid-root", metavar="DIR", help="folder with Cora's ind.cora.* files")
    made.add_argument("--tolokers", metavar="FILE", help="tolokers.npz")
    args = made.parse_args(argv)
    chosen = ("gpu",) if args.device == "cuda" else tuple(args.only.split(",")) if args.only else CPU
    if unknown := [name for name in chosen if name not in (*CPU, "gpu")]:
        made.error(f"--only: unknown {', '.join(unknown)}; allowed: {', '.join(CPU)}")
    if args.tiny and args.out_dir == RESULTS:
        made.error("--tiny has no figures worth keeping: give another --out-dir")
    failed = []
    for name in chosen:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(args.out_dir / f"{name}.json")]
        command += [flag for flag in ("--tiny", "--fresh") if getattr(args, flag[2:])]
        if name in ("accuracy", "sparsify_accuracy"):
            command += ["--planetoid-root", args.planetoid_root] if args.planetoid_root else []
        if name in ("accuracy", "sparsify_accuracy", "sparsify_speed", "combined"):
            command += ["--tolokers", args.tolokers] if args.tolokers else []
        print(f"== {name}", flush=True)
        if subprocess.run(command, cwd=Path(__file__).parents[1], check=False).returncode != 0:
            failed.append(name)
    if failed:
        sys.exit(f"python -m benchmarks: failed: {', '.join(failed)}")
    print("Tables: python -m benchmarks.table" + ("" if args.out_dir == RESULTS else f" --results {args.out_dir}"))


if __name__ == "__main__":
    main()
