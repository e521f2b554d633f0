"""The CUDA source, and changed copies of it, compiled as host libraries."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from graphlossy.core import _nvrtc
from graphlossy.core._cuda import Kernels

HERE = Path(__file__).parent


def build(source: Path, include: Path, library: Path) -> Kernels:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    subprocess.run(
        [compiler, "-O1", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", f"-I{include}", f"-I{HERE}",
         f'-DKERNEL_SOURCE="{source}"', str(HERE / "main.cpp"), "-o", str(library)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return Kernels(ctypes.CDLL(str(library)), b"", lambda: 0)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """The operators on CPU tensors, by the text of the CUDA kernels and the code that launches them."""
    folder = tmp_path_factory.mktemp("emulator")
    return build(_nvrtc.CSRC / _nvrtc.SOURCE, _nvrtc.CSRC, folder / "kernels.so")


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[str, str], Kernels]:
    """Kernels of the source in which one text stands for another."""

    def make(old: str, new: str) -> Kernels:
        for name in (_nvrtc.SOURCE, *_nvrtc.HEADERS):
            text = (_nvrtc.CSRC / name).read_text()
            (tmp_path / name).write_text(text.replace(old, new, 1) if name == _nvrtc.SOURCE else text)
        assert (tmp_path / _nvrtc.SOURCE).read_text() != (_nvrtc.CSRC / _nvrtc.SOURCE).read_text(), f"no {old!r} there"
        return build(tmp_path / _nvrtc.SOURCE, tmp_path, tmp_path / "kernels.so")

    return make
