import sys

import pytest
import torch
from torch import nn

import graphlossy
from graphlossy.core import _memory, _peak
from graphlossy.core._peak import PeakMeter

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak of the resident set is read from /proc")


@linux
def test_the_peak_of_a_freed_block_is_seen():
    meter = PeakMeter(CPU)
    assert meter.kind == "resident"
    block = torch.ones(16 * 2**20)  # 64 MiB
    del block
    assert 60 * 2**20 < meter.read() < 100 * 2**20


@linux
def test_each_meter_measures_from_where_it_was_made():
    first = PeakMeter(CPU)
    big = torch.ones(16 * 2**20)
    second = PeakMeter(CPU)
    small = torch.ones(2 * 2**20)  # 8 MiB
    assert second.read() < 30 * 2**20 and first.read() > 60 * 2**20
    assert big.numel() > small.numel()


@linux
def test_start_forgets_the_peak_and_keeps_the_base():
    meter = PeakMeter(CPU)
    held, block = torch.ones(8 * 2**20), torch.ones(16 * 2**20)  # 32 and 64 MiB
    del block
    meter.start()
    assert 30 * 2**20 < meter.read() < 60 * 2**20
    assert held.numel() > 0


@pytest.fixture
def freed():
    """400 MiB that the C library holds back: below a block that is in use, so that it keeps them."""
    warm = torch.ones(31 * 2**18)  # from now on blocks of up to 31 MiB come from the heap
    del warm
    blocks = [torch.ones(20 * 2**18) for _ in range(20)]
    last = torch.ones(20 * 2**18)
    del blocks
    return last


@linux
def test_memory_that_was_freed_before_hides_nothing(freed):
    meter = PeakMeter(CPU)
    block = torch.ones(80 * 2**18)  # 80 MiB: fits into what was freed
    del block
    assert meter.read() > 76 * 2**20
    meter.start()
    block = torch.ones(80 * 2**18)
    assert meter.read() > 76 * 2**20 and block.numel() > 0


@linux
def test_freed_memory_does_not_hide_the_peak_of_compress(freed):
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    x = torch.randn(80_000, 64)
    with graphlossy.compress(bits=2, measure_peak=True) as ledger:
        loss = model(x).square().mean()
    loss.backward()
    assert ledger.peak_bytes > 80_000 * 256 * 4 / 2


def test_without_proc_it_is_the_growth_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(_memory, "_CLEAR", tmp_path / "no" / "clear_refs")
    seen = iter([100, 100, 150])
    monkeypatch.setattr(_peak, "max_resident", lambda: next(seen))
    meter = PeakMeter(CPU)
    meter.start()
    assert meter.kind == "process" and meter.read() is None and meter.read() == 50
