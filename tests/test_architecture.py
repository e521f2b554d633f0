"""The arrows between the packages, lean imports, the public names and the size of files."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import graphlossy

ROOT = Path(__file__).resolve().parents[1]
CODE = ["graphlossy", "recsys", "llm", "datasets"]
LONGEST = 400

_OPERATIONS = {"nn", "sparsify", "sampler", "compress", "plan", "autograd", "core"}
# What each part may import; arrows point down only.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "autograd": {"core"},
    "compress": {"autograd", "core"},
    "nn": {"autograd", "core"},
    "sparsify": {"autograd", "core"},
    "sampler": {"sparsify", "autograd", "core"},
    "plan": {"compress", "nn", "autograd", "core"},
    "train": _OPERATIONS | {"datasets"},
    "outliers": _OPERATIONS | {"datasets"},
    "cli": _OPERATIONS | {"train", "outliers", "recsys", "llm", "datasets"},
    "recsys": {"compress", "core"},
    "llm": {"compress", "core"},
    "datasets": {"compress", "core"},
    "_checkout": set(),
    "__main__": {"_diagnostics"},
    "_diagnostics": {"core"},
    "__init__": {"compress", "plan", "core"},
}
GUARDED = {"recsys", "llm", "datasets"}  # their first lines import graphlossy._checkout


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def part_of(module: str) -> str:
    """The part a dotted module name belongs to: ``graphlossy._compress._rules`` -> ``compress``."""
    name = module.split(".")[1] if "." in module else "__init__"
    return {"_compress": "compress", "_plan": "plan"}.get(name, name)


def module_of(path: Path) -> str:
    names = path.relative_to(ROOT).with_suffix("").parts
    names = names if names[0] == "graphlossy" else ("graphlossy", *names)
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imported_modules(source: str) -> Iterator[str]:
    """Every module of graphlossy that a source text imports, however deep in a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("graphlossy."))
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "relative"
            elif node.module == "graphlossy":
                yield from (public_home(alias.name) for alias in node.names)
            elif node.module and node.module.startswith("graphlossy."):
                yield node.module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "graphlossy":
            yield public_home(node.attr)


def missing_names(source: str) -> list[str]:
    """``module.name`` for every name of graphlossy that a source text imports, however deep, and that is not there."""
    missing = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "graphlossy":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                there = hasattr(importlib.import_module(node.module), alias.name)
                if not there and importlib.util.find_spec(full) is None:
                    missing.append(full)
    return missing


def public_home(name: str) -> str:
    """Where ``from graphlossy import name`` leads."""
    home = graphlossy._HOME.get(name)
    return home or ("graphlossy" if name in ("__version__", "__all__") else f"graphlossy.{name}")


def wrong_arrows(part: str, source: str) -> list[str]:
    allowed = MAY_IMPORT[part] | {part} | ({"_checkout"} if part in GUARDED else set())
    return [m for m in imported_modules(source) if m != "graphlossy" and (m == "relative" or part_of(m) not in allowed)]


@pytest.mark.parametrize("path", python_files(*CODE), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path: Path) -> None:
    part = part_of(module_of(path))
    assert part in MAY_IMPORT, (
        f"{path.relative_to(ROOT)} belongs to no known part; say in MAY_IMPORT what it may import"
    )
    assert wrong_arrows(part, path.read_text()) == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("core", "from graphlossy.autograd import linear"),
        ("core", "def f():\n    import graphlossy.nn.gcn"),
        ("nn", "from graphlossy import datasets"),
        ("nn", "from graphlossy import compress"),
        ("recsys", "import graphlossy\ngraphlossy.nn.GCNConv"),
        ("llm", "from graphlossy.datasets import load"),
        ("datasets", "from graphlossy._plan import plan"),
        ("nn", "from . import linear"),
    ],
)
def test_a_wrong_arrow_is_found(part: str, source: str) -> None:
    assert len(wrong_arrows(part, source)) == 1


@pytest.mark.parametrize("folder", [*CODE, "examples", "benchmarks"])
def test_every_imported_name_exists(folder: str) -> None:
    missing = {str(path.relative_to(ROOT)): missing_names(path.read_text()) for path in python_files(folder)}
    assert {path: names for path, names in missing.items() if names} == {}


def test_a_missing_name_is_found() -> None:
    assert missing_names("def f():\n    from graphlossy.core import gone, sampling") == ["graphlossy.core.gone"]


def test_examples_use_public_names_only() -> None:
    public = set(graphlossy._HOME.values())  # where `from graphlossy import compress` leads
    private = {
        str(path.relative_to(ROOT)): module
        for path in python_files("examples")
        for module in imported_modules(path.read_text())
        if module not in public and any(name.startswith("_") for name in module.split("."))
    }
    assert private == {}


LEAN = """
import sys, torch
def refuse(*args, **kwargs):
    raise RuntimeError("CUDA was touched at import")
for name in ("_lazy_init", "is_available", "device_count", "init"):
    setattr(torch.cuda, name, refuse)
before = set(sys.modules)  # torch itself may load CUDA's bindings
import graphlossy
for name in graphlossy.__all__:
    getattr(graphlossy, name)
import graphlossy.autograd, graphlossy.core
heavy = ["torch_geometric", "click", "rich", "matplotlib", "cuda.core", "cuda.bindings", "triton", "scipy"]
print([name for name in heavy if name in set(sys.modules) - before])
"""


def test_importing_every_public_name_is_lean() -> None:
    done = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_importing_the_package_alone_loads_no_torch() -> None:
    code = "import sys, graphlossy; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False False", done.stderr


def test_public_names() -> None:
    assert graphlossy.__all__ == ["Ledger", "QuantizedTensor", "__version__", "compress", "plan", "quantize", "restore"]
    assert set(graphlossy.__all__) <= set(dir(graphlossy))
    with pytest.raises(AttributeError, match="'graphlossy' has no attribute 'compres'"):
        _ = graphlossy.compres


PUBLIC = [
    "graphlossy",
    "graphlossy.core",
    "graphlossy.nn",
    "graphlossy.autograd",
    "graphlossy.datasets",
    "graphlossy.datasets.text",
    "graphlossy.llm",
    "graphlossy.llm.finetune",
    "graphlossy.llm.kv",
    "graphlossy.outliers",
    "graphlossy.recsys",
    "graphlossy.recsys.data",
    "graphlossy.recsys.export",
    "graphlossy.recsys.methods",
    "graphlossy.recsys.models",
    "graphlossy.recsys.optim",
    "graphlossy.sampler",
]


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_sorted_and_documented(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__all__ == sorted(module.__all__)
    assert module.__doc__
    undocumented = [
        name
        for name in module.__all__
        if callable(getattr(module, name)) and not (getattr(module, name).__doc__ or "").strip()
    ]
    assert undocumented == []


def test_no_file_is_too_long() -> None:
    folders = [*CODE, "tests", "examples", "benchmarks"]
    kinds = {".py", ".cpp", ".cu", ".cuh", ".h"}
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in kinds]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}
