"""What every benchmark writes: machine, versions, settings and raw values, as JSON, atomically."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "RESULTS",
    "bar",
    "digest",
    "earlier",
    "header",
    "machine",
    "parser",
    "print_bars",
    "spread",
    "versions",
    "write_json",
]

RESULTS = Path(__file__).parent / "results"
_LANGUAGE = ("transformers", "optimum-quanto", "hqq")  # what figures of language models depend on, if it is there


def parser(description: str, examples: str, out: str) -> argparse.ArgumentParser:
    """A command line with the options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=description, epilog="examples:\n" + examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--tiny", action="store_true", help="seconds instead of minutes: shows that it runs, no figures")
    made.add_argument("--fresh", action="store_true", help="measure again what --out holds already")
    made.add_argument(
        "--out", type=Path, default=RESULTS / out, metavar="FILE", help="JSON file (default: %(default)s)"
    )
    return made


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, memory and GPU; nothing that names the machine."""
    found: dict[str, Any] = {"cpu": _cpu_model(), "cores": _cores(), "memory_gib": _memory_gib()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["cuda"] = torch.version.cuda
    return found


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def versions(device: str = "cpu", others: Sequence[str] = ()) -> dict[str, Any]:
    """Versions of what the figures depend on, and whether graphlossy's compiled kernels were in use.

    Args:
        device: whose kernels.
        others: more packages; those that are not installed are left out.
    """
    from graphlossy.core import kernel_status

    found: dict[str, Any] = {"python": platform.python_version(), "os": platform.system()}
    found["kernels"] = "compiled" if kernel_status()[device]["live"] else "reference"
    for name in ("graphlossy", "torch", "torch-geometric", "numpy", *others):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name not in others:
                found[name] = None
    return found


def header(benchmark: str, settings: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    """The first keys of a result file."""
    others = _LANGUAGE if benchmark.startswith(("gpu", "kv_", "llm_")) else ()
    found = {"benchmark": benchmark, "machine": machine(device), "versions": versions(device, others)}
    return {**found, "settings": settings}


def digest(files: Iterable[Path]) -> str:
    """12 hexadecimal digits of the names and contents of files: in the settings of a run, they tell code apart."""
    made = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        made.update(f"{file.name} {len(content)}\n".encode() + content)
    return made.hexdigest()[:12]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Raw values with mean, median and standard deviation (of a sample; 0 for one value)."""
    values = [float(v) for v in values]
    return {
        "raw": values,
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def bar(text: str, value: float | None, relation: str, bound: float) -> dict[str, Any]:
    """A figure beside the bar it is held against; ``met`` is None where the figure is missing.

    Args:
        text: what is compared.
        value: measured.
        relation: ``"at least"``, ``"at most"`` or ``"below"``.
        bound: the bar.
    """
    holds = {"at least": lambda v: v >= bound, "at most": lambda v: v <= bound, "below": lambda v: v < bound}[relation]
    met = None if value is None else bool(holds(value))
    return {"what": text, "value": value, "bar": f"{relation} {bound:g}", "met": met}


def print_bars(bars: Sequence[dict[str, Any]]) -> None:
    """One line per bar."""
    for found in bars:
        state = {True: "met", False: "MISSED", None: "not measured"}[found["met"]]
        value = "-" if found["value"] is None else f"{found['value']:.3g}"
        print(f"{state:>12}  {found['what']}: {value} ({found['bar']})")


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes ``data`` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def earlier(path: Path, head: dict[str, Any], fresh: bool) -> dict[str, Any]:
    """The data of an earlier run that can be continued; {} if there is none or ``fresh`` is asked for.

    Raises:
        SystemExit: the file holds figures of another machine, other versions or other settings.
    """
    if fresh or not path.exists():
        return {}
    data: dict[str, Any] = json.loads(path.read_text())
    other = [key for key, value in head.items() if data.get(key) != value]
    if other:
        raise SystemExit(
            f"{path} holds figures under another {', '.join(other)}: give another --out, or --fresh to start again"
        )
    return data
