"""Regular, editable and sdist installs into fresh environments, with and without a compiler.

Each environment sees this one's site-packages (torch and the build tools) and nothing of the checkout, so the tests
need no network and no second copy of torch.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["graphlossy", "recsys", "llm", "datasets"]
NO_COMPILER = {"CXX": "/bin/false", "CC": "/bin/false"}
LIBRARY = "graphlossy/core/_lossy_cpu.so"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the CPU library is built on POSIX systems only"),
]

PROBE = """
import json, graphlossy.core, graphlossy.datasets, graphlossy.llm, graphlossy.recsys, torch
from pathlib import Path
x = torch.arange(12.0).reshape(3, 4)
library = Path(graphlossy.core.__file__).with_name("_lossy_cpu.so")
print(json.dumps({
    "core": graphlossy.core.__file__,
    "datasets": graphlossy.datasets.__file__,
    "library": library.exists(),
    "live": graphlossy.core.kernel_status()["cpu"]["live"],
    "exact": bool((graphlossy.quantize(x, 8, rounding="nearest").dequantize() - x).abs().max() < 0.02),
}))
"""


class Environment:
    """A virtual environment without pip, driven by this environment's pip."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.site = folder / "lib" / version / "site-packages"
        # A .pth entry adds the folder to sys.path, but runs none of the .pth files in it: an editable install of
        # graphlossy there stays invisible.
        (self.site / "host.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install(self, *arguments: str, **variables: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check", "install"]
        options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed"]
        run([*pip, *options, *arguments], self.site, **variables)

    def probe(self, cwd: Path) -> dict[str, object]:
        return json.loads(run([str(self.python), "-c", PROBE], cwd))


def run(command: list[str], cwd: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(command, cwd=cwd, env={**environment, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The project as a fresh clone has it: no library, no build outputs."""
    folder = tmp_path / "source"
    folder.mkdir()
    for part in [*PARTS, "tests"]:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, folder)
    return folder


def build(source: Path, kind: str, out: Path) -> None:
    command = [sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", str(out), str(source)]
    run(command, out, **NO_COMPILER)


def installed_files(environment: Environment) -> set[str]:
    files = (path for path in (environment.site / "graphlossy").rglob("*") if path.is_file())
    return {str(path.relative_to(environment.site)) for path in files if path.suffix != ".pyc"}


def expected_files() -> set[str]:
    """What an install must hold: every Python file, the kernels' sources, the embedded data and the templates."""
    expected = {"graphlossy/py.typed"}
    for part in PARTS:
        package = Path(part) if part == "graphlossy" else Path("graphlossy") / part
        found = [path for path in (ROOT / part).rglob("*") if path.is_file() and is_installed(path)]
        expected |= {str(package / path.relative_to(ROOT / part)) for path in found}
    return expected


def is_installed(path: Path) -> bool:
    return path.suffix == ".py" or path.parent.name in ("csrc", "data", "templates")


def test_regular_install_builds_the_library(source: Path, tmp_path: Path) -> None:
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    environment = Environment(tmp_path / "env")
    environment.install(str(source))
    assert expected_files() | {LIBRARY} == installed_files(environment)
    found = environment.probe(tmp_path)
    assert found["library"] and found["live"] and found["exact"]
    assert found["core"] == str(environment.site / "graphlossy/core/__init__.py")
    assert found["datasets"] == str(environment.site / "graphlossy/datasets/__init__.py")


def test_a_compiler_without_openmp_builds_the_library_too(source: Path, tmp_path: Path) -> None:
    real = shutil.which("c++") or shutil.which("g++")
    if real is None:
        pytest.skip("no C++ compiler")
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\ncase " $* " in *" -fopenmp "*) exit 1;; esac\nexec {real} "$@"\n')
    compiler.chmod(0o755)
    environment = Environment(tmp_path / "env")
    environment.install(str(source), CXX=str(compiler))
    found = environment.probe(tmp_path)
    assert found["library"] and found["live"] and found["exact"]


def test_install_without_a_compiler_falls_back_to_the_reference(source: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env")
    environment.install(str(source), **NO_COMPILER)
    assert expected_files() == installed_files(environment)
    found = environment.probe(tmp_path)
    assert not found["library"] and not found["live"] and found["exact"]


def test_editable_install_follows_the_checkout(source: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env")
    environment.install("--editable", str(source), **NO_COMPILER)
    found = environment.probe(tmp_path)
    assert found["core"] == str(source / "graphlossy/core/__init__.py")
    assert found["datasets"] == str(source / "datasets/__init__.py")
    new = source / "recsys" / "added_later"
    new.mkdir()
    (new / "__init__.py").write_text("WORD = 'found'\n")
    code = "from graphlossy.recsys.added_later import WORD; print(WORD)"
    assert run([str(environment.python), "-c", code], tmp_path).strip() == "found"


def test_sdist_holds_the_sources_and_installs_the_same_files(source: Path, tmp_path: Path) -> None:
    build(source, "--sdist", tmp_path)
    (sdist,) = tmp_path.glob("graphlossy-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for path in [*(ROOT / "graphlossy/core/csrc").iterdir(), ROOT / "Makefile", ROOT / "tests/conftest.py"]:
        assert str(path.relative_to(ROOT)) in names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    environment = Environment(tmp_path / "env")
    environment.install(str(sdist), **NO_COMPILER)
    assert expected_files() == installed_files(environment)


def test_one_wheel_serves_every_python(source: Path, tmp_path: Path) -> None:
    build(source, "--wheel", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("graphlossy-") and "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"graphlossy"}
