"""What is done about the memory of large CPU tensors."""

from __future__ import annotations

import pytest
import torch

from graphlossy.core import _memory


def test_huge_pages_leave_the_tensor_alone(device: torch.device) -> None:
    for size in (0, 10, 9 * 2**20):
        new = _memory.in_huge_pages(torch.empty(size, device=device)).fill_(1.0)
        assert new.shape == (size,) and bool((new == 1).all())


@pytest.mark.parametrize("nbytes", [0, _memory.MUCH - 1, _memory.MUCH])
def test_only_large_tensors_are_worth_it(nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(_memory, "_libc", lambda name: lambda *arguments: called.append(name))
    _memory.release_free_memory(torch.device("cpu"), nbytes)
    _memory.in_huge_pages(torch.empty(nbytes, dtype=torch.uint8))
    assert called == (["malloc_trim", "madvise"] if nbytes >= _memory.MUCH else [])
    _memory.release_free_memory(torch.device("cuda"), nbytes)
    assert len(called) in (0, 2)


def test_freed_memory_goes_back() -> None:
    """Freed blocks below glibc's threshold stay resident until they are released."""
    if _memory._libc("malloc_trim") is None:
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
    monkeypatch.setattr(_memory, "_libc", lambda name: None)
    _memory.release_free_memory(torch.device("cpu"), _memory.MUCH)
    assert _memory.in_huge_pages(torch.ones(_memory.MUCH // 4)).sum() == _memory.MUCH // 4
