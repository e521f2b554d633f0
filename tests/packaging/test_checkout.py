"""From the repository's root the folders recsys/, llm/ and datasets/ shadow no installed package."""

from __future__ import annotations

import importlib.machinery
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ["datasets", "llm", "recsys"]


def run_at_root(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Runs ``python -c`` in the repository's root, so that the root comes first on sys.path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    environment.pop("PYTHONSAFEPATH", None)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)


def write_package(folder: Path, name: str, source: str) -> Path:
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source)
    return package


def skip_if_installed(name: str) -> None:
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    spec = importlib.machinery.PathFinder.find_spec(name, elsewhere)
    if spec is not None and spec.loader is not None:
        pytest.skip(f"a package named {name} is installed here")


@pytest.mark.parametrize("name", FOLDERS)
def test_installed_package_is_handed_the_import(tmp_path: Path, name: str) -> None:
    package = write_package(tmp_path, name, "from . import part\nMARK = 'installed ' + part.MARK\n")
    (package / "part.py").write_text("MARK = 'whole'\n")
    code = (
        f"import {name}, {name}.part as part, graphlossy.{name} as ours\n"
        f"print({name}.MARK, part.MARK, {name}.__name__, ours.__name__, ours is {name}, sep='|')"
    )
    done = run_at_root(code, tmp_path)
    assert done.stdout.strip() == f"installed whole|whole|{name}|graphlossy.{name}|False", done.stderr


@pytest.mark.parametrize("name", FOLDERS)
def test_bare_name_is_ours_where_nothing_else_is_installed(name: str) -> None:
    skip_if_installed(name)
    done = run_at_root(f"import {name}, graphlossy.{name} as ours; print({name} is ours, {name}.__name__)")
    assert done.stdout.strip() == f"True graphlossy.{name}", done.stderr


def test_folder_without_init_is_no_package(tmp_path: Path) -> None:
    skip_if_installed("recsys")
    (tmp_path / "recsys").mkdir()
    done = run_at_root("import recsys; print(recsys.__name__)", tmp_path)
    assert done.stdout.strip() == "graphlossy.recsys", done.stderr


def test_error_of_the_installed_package_is_its_own(tmp_path: Path) -> None:
    write_package(tmp_path, "llm", "raise OSError('a library of llm is missing')\n")
    code = (
        "import sys\n"
        "for attempt in range(2):\n"
        "    try:\n"
        "        import llm\n"
        "    except OSError as error:\n"
        "        print(error, 'llm' in sys.modules)\n"
    )
    done = run_at_root(code, tmp_path)
    assert done.stdout.splitlines() == ["a library of llm is missing False"] * 2, done.stderr
