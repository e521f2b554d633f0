"""NVRTC compiles every CUDA kernel for every architecture, on a machine without a GPU; the cache of what it made."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from graphlossy.core import _cuda, _nvrtc

try:
    VERSION = _nvrtc.nvrtc_version()
except _nvrtc.CompileError as error:
    for package in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(package)
            raise  # it is installed and was not found
    pytest.skip(str(error), allow_module_level=True)

BITS, FLOATS = (1, 2, 3, 4, 8), ("float32", "float16", "bfloat16", "float64")
ENTRIES = {
    *(f"dequantize_{kind}_{bits}" for kind in FLOATS for bits in BITS),
    *(f"quantize_{kind}_{bits}{who}" for kind in FLOATS for bits in BITS for who in ("", "_block")),
    *(f"{op}_{kind}" for op in ("pack_mask", "mask_apply") for kind in FLOATS),
    *(f"{op}_int{bits}" for op in ("pack_mask", "unpack_mask") for bits in (8, 16, 32, 64)),
    *(f"packed_attention_{keys}_{values}" for keys in BITS for values in BITS),
    *(f"full_attention_{kind}" for kind in FLOATS),
    "merge_attention",
    "sum_attention",
}
TINY = 'extern "C" __global__ void fill(float* x) { x[threadIdx.x] = VALUE; }'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "graphlossy" / "kernels"


@pytest.mark.parametrize(
    "arch", ["sm_90", *(pytest.param(f"sm_{n}", marks=pytest.mark.slow) for n in (75, 80, 86, 89, 100, 120))]
)
def test_every_kernel_compiles(arch: str) -> None:
    code = _nvrtc.compile_source(*_nvrtc.sources(), arch)
    assert code[:4] == b"\x7fELF"
    assert {name for name in ENTRIES if b".text." + name.encode() + b"\0" in code} == ENTRIES


def test_no_product_and_sum_become_one() -> None:
    """A fused multiply-add would round once where the definition rounds twice."""
    macros = ["QUANTIZE(float,quantize_float32_2,2,false)", "DEQUANTIZE(float,dequantize_float32_2,2)"]
    macros = [f"LOSSY_KERNELS=LOSSY_{macro}" for macro in macros]
    code = "".join(_nvrtc.compile_source(*_nvrtc.sources(), "compute_75", macro).decode() for macro in macros)
    assert "mul.rn.f32" in code and "add.rn.f32" in code
    # What remains is the exact remainder inside the division.
    quantize, dequantize = (
        code.split(f".entry {op}_float32_2(")[1].split(".entry")[0] for op in ("quantize", "dequantize")
    )
    assert "fma" not in dequantize and "div.rn.f32" in quantize and "fma.rn.f32" not in quantize


@pytest.mark.parametrize("op", ["quantize", "dequantize", "pack_mask", "unpack_mask", "mask_apply"])
def test_a_call_compiles_its_kernel_alone(op: str) -> None:
    """What `_cuda` asks for at a first call holds that kernel and no other."""
    code: list[bytes] = []

    def image(definition: str) -> bytes:
        code.append(_nvrtc.compile_source(*_nvrtc.sources(), "sm_90", f"LOSSY_KERNELS={definition}"))
        return code[-1]

    class Driver:
        def __getattr__(self, name: str) -> Callable[..., int]:
            return lambda *arguments: names.append(arguments[2].decode()) or 0 if name == "cuModuleGetFunction" else 0

    names: list[str] = []
    x = torch.zeros(1, 256)
    packed = torch.zeros(32, dtype=torch.uint8)
    stored = torch.zeros(1, 64, dtype=torch.uint8), *torch.zeros(2, 1, 1, dtype=torch.bfloat16)
    arguments = {
        "quantize": (x, 2, 256, True, 0),
        "dequantize": (*stored, 2, 256, 256, torch.float32),
        "pack_mask": (x,),
        "unpack_mask": (packed, 256),
        "mask_apply": (x, packed, 1.0),
    }[op]
    getattr(_cuda.Kernels(Driver(), image, lambda: 0, ctypes.c_void_p()), op)(*arguments)  # type: ignore[arg-type]
    assert len(names) == len(code) == 1 and names[0] in ENTRIES
    assert [name for name in ENTRIES if b".text." + name.encode() + b"\0" in code[0]] == names


def test_an_error_in_the_source_shows_the_compilers_words() -> None:
    with pytest.raises(_nvrtc.CompileError, match=r'lossy_cuda.cu\(1\).*identifier "VALUE" is undefined'):
        _nvrtc.compile_source(TINY, {}, "sm_90")


def test_a_user_without_a_home_compiles_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert _nvrtc.cache_folder() is None
    assert _nvrtc.compile_source(TINY.replace("VALUE", "1.0f"), {}, "sm_90")[:4] == b"\x7fELF"


def test_a_write_that_fails_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(old: str, new: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert _nvrtc.compile_source(TINY.replace("VALUE", "1.0f"), {}, "sm_90")[:4] == b"\x7fELF"
    assert list(cache.iterdir()) == []


def test_the_compiler_of_torchs_own_cuda_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    names = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
    assert sorted(names, key=_nvrtc._fits, reverse=True)[0] == "libnvrtc.so.12"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert sorted(names, key=_nvrtc._fits, reverse=True) == names


def test_a_second_call_reads_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TINY.replace("VALUE", "1.0f")
    first = _nvrtc.compile_source(source, {}, "sm_90")
    (file,) = cache.iterdir()
    monkeypatch.setattr(_nvrtc, "_compile", lambda *args, **kwargs: pytest.fail("compiled again"))
    assert _nvrtc.compile_source(source, {}, "sm_90") == first
    assert file.suffixes[-2:] == [".sm_90", ".bin"]


@pytest.mark.parametrize("change", ["source", "header", "options", "arch", "macro", "nvrtc"])
def test_whatever_matters_changes_the_name(change: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(_nvrtc, "_compile", lambda *args, **kwargs: made.append(args) or b"code")
    arguments = ["source", {"header.h": "text"}, "sm_90", ""]
    _nvrtc.compile_source(*arguments)
    if change == "options":
        monkeypatch.setattr(_nvrtc, "OPTIONS", ("--std=c++20",))
    elif change == "nvrtc":
        monkeypatch.setattr(_nvrtc, "nvrtc_version", lambda: (99, 0))
    else:
        changes = {
            "source": (0, "other"),
            "header": (1, {"header.h": "other"}),
            "arch": (2, "sm_80"),
            "macro": (3, "A=1"),
        }
        at, value = changes[change]
        arguments[at] = value
    _nvrtc.compile_source(*arguments)
    assert len(made) == len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + b"x" + b[41:]])
def test_a_damaged_file_is_made_again(damage, cache: Path) -> None:
    source = TINY.replace("VALUE", "2.0f")
    code = _nvrtc.compile_source(source, {}, "sm_90")
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert _nvrtc.compile_source(source, {}, "sm_90") == code and file.read_bytes() == whole
    assert list(cache.iterdir()) == [file]  # no temporary file stays


def test_a_folder_that_cannot_be_written_does_no_harm(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    assert _nvrtc.compile_source(TINY.replace("VALUE", "3.0f"), {}, "sm_90")[:4] == b"\x7fELF"
    assert stat.S_ISREG(os.stat(cache).st_mode)


def test_many_at_once(cache: Path) -> None:
    source, found = TINY.replace("VALUE", "4.0f"), []
    threads = [
        threading.Thread(target=lambda: found.append(_nvrtc.compile_source(source, {}, "sm_90"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1 and len(list(cache.iterdir())) == 1


def test_architecture_of_a_device() -> None:
    assert _nvrtc.architecture((9, 0)) == "sm_90" and _nvrtc.architecture((7, 5)) == "sm_75"
    assert _nvrtc.architecture((99, 0)).startswith("compute_")  # newer than NVRTC: the driver finishes the work
    with pytest.raises(_nvrtc.CompileError, match="compiles for sm_.* and newer; the device is sm_20"):
        _nvrtc.architecture((2, 0))


def test_without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nvrtc, "_packaged", list)
    monkeypatch.setattr(_nvrtc, "_NAMES", ("libnvrtc-that-is-not-there.so",))
    _nvrtc.load_nvrtc.cache_clear()
    try:
        with pytest.raises(_nvrtc.CompileError, match=r"pip install 'graphlossy\[cuda\]'"):
            _nvrtc.load_nvrtc()
    finally:
        _nvrtc.load_nvrtc.cache_clear()
