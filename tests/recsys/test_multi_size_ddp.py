"""Two processes with DDP train to the parameters of one process with the whole batch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

JOB = Path(__file__).with_name("ddp_job.py")
SPEC = importlib.util.spec_from_file_location("ddp_job", JOB)
job = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(job)


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed with gloo")
def test_two_processes_are_one(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen([sys.executable, str(JOB), str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    expected = job.train(job.Model(), slice(None))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)
    assert not torch.equal(
        expected["user.tables.2.weight"], dict(job.Model().named_parameters())["user.tables.2.weight"]
    )
