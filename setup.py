"""Maps the folders to packages and builds the torch-free CPU kernel library; the rest is in pyproject.toml."""

import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

FOLDERS = {
    "graphlossy": "graphlossy",
    "graphlossy.recsys": "recsys",
    "graphlossy.llm": "llm",
    "graphlossy.datasets": "datasets",
}
CSRC = "graphlossy/core/csrc"
OPENMP = "-fopenmp"


class BuildKernels(build_ext):
    """Builds a plain shared library (loaded by ctypes), without OpenMP where the compiler has none."""

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")) + ".so"

    def get_export_symbols(self, ext):
        return ext.export_symbols

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except (CompileError, LinkError):
            ext.extra_compile_args = [flag for flag in ext.extra_compile_args if flag != OPENMP]
            ext.extra_link_args = [flag for flag in ext.extra_link_args if flag != OPENMP]
            super().build_extension(ext)


class PlatformWheel(bdist_wheel):
    """One wheel for every CPython: the library uses no Python API."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


def kernel_library():
    sources = sorted(str(path) for path in Path(CSRC).glob("*.cpp"))
    if not sources or sys.platform == "win32":
        return []
    return [
        Extension(
            "graphlossy.core._lossy_cpu",
            sources,
            depends=sorted(str(path) for path in Path(CSRC).glob("*.h")),
            language="c++",
            optional=True,  # no compiler: the install succeeds and the reference runs
            # One rounding per operation (-ffp-contract=off) is what makes the kernels agree bit for bit.
            extra_compile_args=["-O3", "-std=c++17", OPENMP, "-ffp-contract=off", "-fno-math-errno"],
            extra_link_args=[OPENMP],
        )
    ]


def packages():
    found = [name for name, folder in FOLDERS.items() for name in _tree(name, folder)]
    if Path(CSRC).is_dir():
        found.append("graphlossy.core.csrc")  # holds no Python: the sources NVRTC compiles at first use
    return found


def _tree(name, folder):
    return [name, *(f"{name}.{sub}" for sub in find_packages(folder))]


setup(
    packages=packages(),
    package_dir=FOLDERS,
    ext_modules=kernel_library(),
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
