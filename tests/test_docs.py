"""The examples in docstrings, in README.md and in docs/ run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import graphlossy

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def module_names() -> list[str]:
    """Every module of the package; recsys, llm and datasets lie in folders of their own."""
    packages = {"graphlossy": list(graphlossy.__path__)}
    packages |= {f"graphlossy.{folder}": [str(ROOT / folder)] for folder in ("recsys", "llm", "datasets")}
    names = [
        info.name
        for package, path in packages.items()
        for info in _walk(path, f"{package}.")
        if not info.name.endswith("__main__")
    ]
    return sorted({*packages, *names})


def _walk(path: list[str], prefix: str) -> list[pkgutil.ModuleInfo]:
    """Like pkgutil.walk_packages, without importing what it finds."""
    found = []
    for info in pkgutil.iter_modules(path, prefix):
        if info.name.endswith("._lossy_cpu"):  # a library for ctypes, no Python module
            continue
        found.append(info)
        if info.ispkg:
            found += _walk([str(Path(folder) / info.name.rpartition(".")[2]) for folder in path], f"{info.name}.")
    return found


@pytest.mark.parametrize("name", module_names())
def test_docstring_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("graphlossy"):
            raise
        pytest.skip(f"needs {error.name}")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page share one namespace, as a reader who types them in order would."""
    monkeypatch.chdir(tmp_path)
    text = path.read_text()
    namespace: dict[str, object] = {"__name__": path.stem}
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(1))
        exec(compile("\n" * line + match[1], str(path), "exec"), namespace)  # a failure names the page's own line


def test_readme_shows_code() -> None:
    assert BLOCK.search((ROOT / "README.md").read_text())
