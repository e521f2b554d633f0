"""Every benchmark: --help, the tiny mode, valid JSON without names of the machine, continuing where it stopped."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import _gpu_caches, gpu, table

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("bits_per_element", "memory", "accuracy", "gpu", "table")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    """Runs a benchmark's command line in this process; what it printed."""

    def run(name: str, *options: object, status: object = 0) -> str:
        main = importlib.import_module(f"benchmarks.{name}").main
        code: object = 0
        try:
            main([str(option) for option in options])
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        if isinstance(code, str):
            return code
        assert code in (status, None), printed.err
        return printed.out + printed.err

    return run


def result(file: Path) -> dict:
    text = file.read_text()
    assert socket.gethostname() not in text
    assert not any(str(path) in text for path in (ROOT, Path.home(), file.parent, Path(sys.prefix)))
    data = json.loads(text)
    assert data["machine"]["cores"] >= 1 and data["versions"]["torch"] == torch.__version__
    assert data["settings"]
    return data


@pytest.mark.parametrize("name", ["__main__", *COMMANDS])
def test_help_shows_examples(call, name: str) -> None:
    module = "benchmarks" if name == "__main__" else f"benchmarks.{name}"
    assert f"examples:\n  python -m {module}" in call(name, "--help")


def test_unknown_names_are_refused(call) -> None:
    message = call("memory", "--variants", "pyg-csv", status=2)
    assert "pyg-csv" in message and "pyg-csr" in message
    assert "allowed" in call("__main__", "--only", "speed", status=2)
    assert "allowed" in call("accuracy", "--schemes", "float16", status=2)
    assert "--tolokers" in call("accuracy", "--datasets", "tolokers", status=2)
    assert "--out-dir" in call("__main__", "--tiny", status=2)


def test_bits_per_element(call, tmp_path: Path) -> None:
    call("bits_per_element", "--tiny", "--out", tmp_path / "bits_per_element.json")
    bits = result(tmp_path / "bits_per_element.json")["bits"]["64"]
    assert bits["nn-2bit"] < bits["compress-2bit"] < bits["exact-2bit"] < bits["pyg-csr"]
    assert "`nn-2bit`" in call("table", "--results", tmp_path, "--only", "bits")


def test_accuracy_continues_where_it_stopped(call, tmp_path: Path) -> None:
    out = tmp_path / "accuracy.json"
    options = ["--tiny", "--jobs", 1, "--schemes", "float32,compress-2bit", "--out", out]
    assert "2 runs to do" in call("accuracy", *options, "--seeds", 1)
    before = result(out)["runs"]
    assert "2 runs to do, 2 are there already" in call("accuracy", *options, "--seeds", 2)
    data = result(out)
    assert [r for r in data["runs"] if r["seed"] == 0] == before
    row = data["summary"]["planted"]["compress-2bit"]
    assert row["seeds"] == [0, 1] and row["mean"] > 60 and abs(row["difference"]) < 20
    assert "planted" in call("table", "--results", tmp_path)


def test_gpu_benchmark_without_a_gpu_says_so_in_one_line(call, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    message = call("gpu", "--out", tmp_path / "none.json")
    assert "no CUDA device" in message and "\n" not in message
    assert not (tmp_path / "none.json").exists()


@pytest.mark.slow
def test_accuracy_in_two_processes_is_the_same(call, tmp_path: Path) -> None:
    options = ["--tiny", "--seeds", 1, "--schemes", "float32,nn-2bit"]
    call("accuracy", *options, "--jobs", 1, "--out", tmp_path / "1.json")
    command = [sys.executable, "-m", "benchmarks.accuracy", *options, "--jobs", 2, "--out", tmp_path / "2.json"]
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True, capture_output=True, timeout=300)
    one, two = (result(tmp_path / f"{jobs}.json")["runs"] for jobs in (1, 2))
    assert [{**r, "seconds": 0} for r in one] == [{**r, "seconds": 0} for r in two]


@pytest.mark.slow
def test_memory_writes_ratios_and_continues(call, tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    options = ["--tiny", "--threads", 1, "--models", "gcn", "--out", out]
    call("memory", *options, "--variants", "pyg-csr,compress-2bit")
    first = result(out)["runs"]["gcn"]["pyg-csr"]
    printed = call("memory", *options, "--variants", "pyg-csr,nn-2bit")
    assert "nn-2bit" in printed and "compress-2bit" not in printed
    data = result(out)
    assert data["runs"]["gcn"]["pyg-csr"] == first  # kept, not measured again
    row = data["summary"]["gcn"]["compress-2bit"]
    assert row["vs pyg-csr"]["saved"] > 10
    assert row["peak_bytes"]["raw"] and row["seconds"]["raw"][0] > 0
    assert row["held_bytes"] == pytest.approx(row["ledger"]["saved_bytes"], rel=0.02)
    assert "--fresh" in call("memory", *options, "--nodes", 2000)
    shown = call("table", "--results", tmp_path)
    assert "| `compress-2bit` |" in shown and "x less" in shown


def test_caches_of_the_gpu_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    called = []

    def here(module: str, call: str) -> dict:
        called.append(call)
        return eval(call, vars(importlib.import_module(f"benchmarks.{module}")))

    monkeypatch.setattr(gpu, "_in_own_process", here)
    caches: dict = {"largest": {"4bit": {"batch": 7, "cache_bytes": 10}}}  # as a stopped run left it
    assert len(list(gpu._measure_caches(caches, "cpu", True))) == 4 and "largest('cpu', '4bit', True)" not in called
    assert list(caches["attention"]) == ["plain", "plain, grouped", "4bit", "k4v2-r", "2bit"]
    assert all(times["median"] > 0 for times in caches["attention"].values())
    found = caches["largest"]
    assert {name: row["batch"] for name, row in found.items()} == {"plain": 2, "4bit": 7, "k4v2-r": 2, "2bit": 2}
    assert found["plain"]["cache_bytes"] == 2 * 258 * 2 * 2 * 2 * 16 * 2 > found["2bit"]["cache_bytes"] > 0
    assert "7 texts fit" in capsys.readouterr().out
    assert list(gpu._measure_caches(caches, "cpu", True)) == []  # nothing is measured twice
    shown = "\n".join(table.caches_table({"caches": caches}))
    assert "| `4bit` | 7 |" in shown and "| `plain, grouped` |" in shown
    assert list(table.caches_table({})) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert list(gpu._measure_caches({}, "cpu", True)) == []
    assert "they need transformers" in capsys.readouterr().out


@pytest.mark.parametrize("most", [1, 2, 9, 1000])
def test_the_largest_that_fits(most: int) -> None:
    for limit in (0, 1, 2, 8, 37, 700, 2000):
        asked: list[int] = []

        def fits(number: int, limit: int = limit, asked: list[int] = asked) -> bool:
            asked.append(number)
            return number <= limit

        found = _gpu_caches.search(fits, most)
        best = min(limit, most)
        assert found <= best and best - found <= found // 32 and max(asked) <= most
        assert len(asked) == len(set(asked)) < 25


@pytest.mark.slow
def test_gpu_benchmark_on_the_cpu(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu_caches, "SCHEMES", ("2bit",))
    out = tmp_path / "gpu.json"
    call("gpu", "--device", "cpu", "--tiny", "--models", "gcn", "--variants", "pyg-csr", "--out", out)
    data = result(out)
    assert data["bandwidth"]["copy"]["median"] > 0 and data["bandwidth"]["quantize-2bit"]["median"] > 0
    assert data["summary"]["gcn"]["pyg-csr"]["held_bytes"] > 0
    assert data["caches"]["largest"]["2bit"]["batch"] == 2 and data["caches"]["attention"]["2bit"]["median"] > 0
    assert "share of a copy" in call("table", "--results", tmp_path)
