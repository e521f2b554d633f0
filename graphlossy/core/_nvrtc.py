"""CUDA C++ to machine code by NVRTC, with a cache on disk. No compiler and no CUDA toolkit on the user's machine.

NVRTC comes with every torch built for CUDA (its wheels depend on nvidia-cuda-nvrtc); the extra ``cuda`` installs it
elsewhere. It needs no GPU, which is how the CUDA source is checked on machines that have none.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
from functools import cache
from pathlib import Path

import torch

from graphlossy.core._files import written

__all__ = ["CompileError", "architecture", "cache_folder", "compile_source", "load_nvrtc", "nvrtc_version", "sources"]

CSRC = Path(__file__).with_name("csrc")
SOURCE, HEADERS = (
    "lossy_cuda.cu",
    ("group_math.h", "quantize.cuh", "masks.cuh", "multi_size.cuh", "packed_attention.cuh"),
)
# One rounding an operation, as on the CPU: no contraction of a product and a sum into one.
OPTIONS = ("--std=c++17", "--fmad=false")
_PATTERNS = ("nvidia/cu*/lib/libnvrtc.so.*", "nvidia/cuda_nvrtc/lib/libnvrtc.so.*")
_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


class CompileError(RuntimeError):
    """NVRTC is not there or refuses; the message says which."""


@cache
def load_nvrtc() -> ctypes.CDLL:
    """NVRTC from the pip packages that torch brings, else from the system.

    Raises:
        CompileError: there is none.
    """
    for name in [*map(str, _packaged()), *sorted(_NAMES, key=_fits, reverse=True)]:
        try:
            library = ctypes.CDLL(name)
            library.nvrtcGetErrorString.restype = ctypes.c_char_p
            return library
        except (OSError, AttributeError):
            continue
    raise CompileError("NVRTC is not installed; pip install 'graphlossy[cuda]' (CUDA 13) or 'graphlossy[cuda12]'")


def _packaged() -> list[Path]:
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        return []
    roots = [] if spec is None else [Path(place).parent for place in spec.submodule_search_locations or ()]
    found = [path for root in roots for pattern in _PATTERNS for path in root.glob(pattern)]
    return sorted((path for path in found if ".alt." not in path.name), key=lambda path: (_fits(path.name), path),
                  reverse=True)  # fmt: skip


def _fits(name: str) -> bool:
    """Whether a library is of the CUDA that torch was built for: a driver may refuse the code of a newer one."""
    return torch.version.cuda is not None and name.endswith(f".so.{torch.version.cuda.split('.')[0]}")


def _check(status: int) -> None:
    if status:
        raise CompileError(f"NVRTC: {load_nvrtc().nvrtcGetErrorString(status).decode()}")


def nvrtc_version() -> tuple[int, int]:
    """(major, minor) of NVRTC."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(load_nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


def architecture(capability: tuple[int, int]) -> str:
    """What to compile for a device: its own machine code, or the newest intermediate code that NVRTC knows below it.

    Raises:
        CompileError: the device is older than everything that NVRTC knows.
    """
    library, count = load_nvrtc(), ctypes.c_int()
    _check(library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    known = (ctypes.c_int * count.value)()
    _check(library.nvrtcGetSupportedArchs(known))
    wanted = capability[0] * 10 + capability[1]
    usable = [number for number in known if number <= wanted]
    if not usable:
        raise CompileError(f"NVRTC {nvrtc_version()} compiles for sm_{min(known)} and newer; the device is sm_{wanted}")
    return f"sm_{wanted}" if max(usable) == wanted else f"compute_{max(usable)}"


def sources() -> tuple[str, dict[str, str]]:
    """The CUDA source and the headers that it includes, by name."""
    return (CSRC / SOURCE).read_text(), {name: (CSRC / name).read_text() for name in HEADERS}


def compile_source(source: str, headers: dict[str, str], arch: str, macro: str = "") -> bytes:
    """Machine code (``arch`` is ``"sm_90"`` and the like) or intermediate code (``"compute_90"``) of a CUDA source.

    ``macro`` (``NAME=text``) is defined for the source. The result is kept in :func:`cache_folder`, under a name that
    changes with the source, the options and NVRTC.

    Raises:
        CompileError: NVRTC is not there, or the source has an error; the message is the compiler's log.
    """
    options = (*OPTIONS, f"--gpu-architecture={arch}", *([f"--define-macro={macro}"] if macro else []))
    everything = repr((source, sorted(headers.items()), options, nvrtc_version()))
    folder = cache_folder()
    if folder is None:
        return _compile(source, headers, options, intermediate=arch.startswith("compute"))
    file = folder / f"{hashlib.sha256(everything.encode()).hexdigest()[:32]}.{arch}.bin"
    kept = _read(file)
    if kept is not None:
        return kept
    code = _compile(source, headers, options, intermediate=arch.startswith("compute"))
    _write(file, code)
    return code


def _compile(source: str, headers: dict[str, str], options: tuple[str, ...], intermediate: bool) -> bytes:
    library, program, size = load_nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
    names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
    made = library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), SOURCE.encode(), len(headers), texts, names
    )
    _check(made)
    try:
        arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(program, len(options), arguments):
            _check(library.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
            log = ctypes.create_string_buffer(size.value)
            _check(library.nvrtcGetProgramLog(program, log))
            raise CompileError(f"NVRTC could not compile {SOURCE}: {log.value.decode(errors='replace').strip()}")
        kind = "PTX" if intermediate else "CUBIN"
        _check(getattr(library, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)))
        code = ctypes.create_string_buffer(size.value)
        _check(getattr(library, f"nvrtcGet{kind}")(program, code))
        return code.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def cache_folder() -> Path | None:
    """Where compiled kernels are kept: ``$XDG_CACHE_HOME/graphlossy/kernels``, by default under ``~/.cache``.

    None for a user without a home, as in some containers: kernels are then compiled once a process.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "graphlossy" / "kernels"
    except RuntimeError:
        return None


def _read(file: Path) -> bytes | None:
    """The content, if it is there and whole: a checksum comes first."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    return content[32:] if hashlib.sha256(content[32:]).digest() == content[:32] else None


def _write(file: Path, code: bytes) -> None:
    """A folder that cannot be written costs a compilation a process."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with written(file) as path:
            path.write_bytes(hashlib.sha256(code).digest() + code)
