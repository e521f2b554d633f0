"""What is done about the memory of large CPU tensors."""

from __future__ import annotations

import pytest
import torch

from graphlossy.core import _memory


@pytest.mark.parametrize("nbytes", [0, _memory.MUCH - 1, _memory.MUCH])
def test_only_large_tensors_are_worth_it(nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(_memory, "_malloc_trim", lambda: called.append)
    assert _memory.release_free_memory(torch.device("cpu"), nbytes) == (nbytes >= _memory.MUCH)
    assert called == ([0] if nbytes >= _memory.MUCH else [])
    assert not _memory.release_free_memory(torch.device("cuda"), nbytes) and len(called) < 2


def test_freed_memory_goes_back() -> None:
    """Freed blocks below glibc's threshold stay resident until they are released."""
    if _memory._malloc_trim() is None:
        pytest.skip("another C library")
    blocks = [torch.ones(2**18) for _ in range(200)]  # 200 MB in blocks of 1 MB
    between = [torch.ones(2**10) for _ in range(200)]
    before = _resident()
    del blocks
    _memory.release_free_memory(torch.device("cpu"), _memory.MUCH)
    assert before - _resident() > 150e6
    assert len(between) == 200


def _resident() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        pytest.skip("no /proc")


def test_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "_malloc_trim", lambda: None)
    assert _memory.release_free_memory(torch.device("cpu"), _memory.MUCH)
