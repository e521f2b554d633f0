import sys

import pytest
import torch

from graphlossy.core import _memory
from graphlossy.train._memory import PEAK_KINDS, PeakMeter

linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak of the resident set is read from /proc")


@linux
def test_the_peak_of_a_freed_block_is_seen():
    meter = PeakMeter(torch.device("cpu"))
    assert meter.kind == "resident"
    meter.start()
    block = torch.ones(16 * 2**20)  # 64 MiB
    del block
    peak = meter.stop()
    assert 60 * 2**20 < peak < 100 * 2**20


@linux
def test_each_step_is_measured_from_its_own_start():
    meter = PeakMeter(torch.device("cpu"))
    meter.start()
    big = torch.ones(16 * 2**20)
    meter.start()
    small = torch.ones(2 * 2**20)  # 8 MiB
    assert meter.stop() < 30 * 2**20
    assert big.numel() > small.numel()


def test_without_proc_the_meter_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(_memory, "_CLEAR", tmp_path / "no" / "clear_refs")
    meter = PeakMeter(torch.device("cpu"))
    meter.start()
    assert meter.kind == "saved" and meter.stop() is None and "saved" in PEAK_KINDS[meter.kind]
