"""The speed of the kernels: the tiny run, continuing it, the bars, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import core_speed
from graphlossy.core import _cpu

needs_kernels = pytest.mark.skipif(_cpu.kernels is None, reason=f"no CPU kernels: {_cpu.load_error}")


def run(*options: object) -> None:
    core_speed.main([str(option) for option in options])


@needs_kernels
def test_tiny_run_measures_every_call_and_keeps_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, threads = tmp_path / "core_speed.json", torch.get_num_threads()
    run("--tiny", "--threads", 1, "--out", out)
    data = json.loads(out.read_text())
    assert data["settings"]["shape"] == [2000, 256] and data["versions"]["torch"] == torch.__version__
    assert data["settings"]["instructions"] in _cpu.LEVELS and data["bars"] == []
    first = data["runs"]["1"]
    needed = {name for _, _, one, other, _, _ in core_speed.COMPARED for name in (one, other)}
    assert needed <= set(first)
    assert all(times["raw"] and 0 < times["best"] <= times["median"] for times in first.values())
    assert len(first["quantize"]["raw"]) == 2 and len(first["quantize, reference"]["raw"]) == 1
    assert "quantize" in capsys.readouterr().out
    run("--tiny", "--threads", "1,2", "--out", out)
    runs = json.loads(out.read_text())["runs"]
    assert runs["1"] == first and set(runs) == {"1", "2"}
    assert torch.get_num_threads() == threads
    with pytest.raises(SystemExit, match="--fresh"):
        run("--tiny", "--rounds", 3, "--out", out)


def test_bars_follow_the_measurements() -> None:
    names = {name for _, _, one, other, _, _ in core_speed.COMPARED for name in (one, other)}
    times = {name: {"best": 10.0, "median": 12.0} for name in names}
    times["quantize"] = {"best": 10.5, "median": 18.0}
    times["dequantize, used"] = {"best": 10.5, "median": 10.5}
    times["quantize, reference"] = {"best": 200.0, "median": 200.0}
    found = {bar["what"]: bar for bar in core_speed.bars({"1": times})}
    met = {name.removesuffix(", times"): bar["met"] for name, bar in found.items()}
    assert met["quantise against copy_, 1 thread"] is True
    assert met["dequantise against fill_, used memory, 1 thread"] is False
    assert met["dequantise against fill_, new memory, 1 thread"] is True
    assert met["eager reference against quantise, 1 thread"] is True
    assert met["eager reference against dequantise, new memory, 1 thread"] is False
    assert met["quantise against copy_, 2 threads"] is None
    assert found["quantise against copy_, 1 thread, times"]["ratio_of_medians"] == 1.5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--threads", "one"], "'one' is no comma-separated list"),
        (["--rounds", 0], "at least 1"),
        (["--help"], "examples:"),
    ],
)
def test_help_and_refusals(options: list[object], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(*options)
    printed = capsys.readouterr()
    assert text in printed.out + printed.err


@needs_kernels
def test_without_kernels_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu, "kernels", None)
    monkeypatch.setattr(_cpu, "load_error", "no compiler was found")
    with pytest.raises(SystemExit, match="no CPU kernels to measure: no compiler was found"):
        core_speed.measure(10, 1, 1, 1)
