"""The benchmark of sparsification: its graphs, its figures of a small size, the slope, the picture."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks import sparsify as benchmark
from graphlossy.sparsify._edges import read_edges


def test_the_graphs_are_undirected_and_have_heavy_tails() -> None:
    edge_index, nodes = benchmark.generate(20_000)
    assert edge_index.shape == (2, 40_000) and nodes == round(20_000 * 2_449_029 / 61_859_140)
    edges = read_edges(edge_index, nodes)
    assert edges.undirected and not edges.loops.numel()
    degree = edges.degrees(False)[0]
    assert float(degree.max()) > 8 * float(degree.mean())
    assert torch.equal(benchmark.generate(20_000)[0], edge_index)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    return benchmark.measure({"edges": 3000, "threads": 1, "rounds": 1, "peers": True, "methods": True})


def test_a_small_size(run, tmp_path: Path) -> None:
    assert set(run["sampling"]) >= {"graphlossy", "torch.searchsorted", "numpy choice", "torch.multinomial"}
    assert all(rates["median"] > 0 for rates in run["sampling"].values())
    assert set(run["methods"]) == {"degree", "random", "k-neighbor", "local-degree"}
    assert abs(run["shares"][0] - 0.5) < 0.05 and run["process_peak_bytes"] > run["input_bytes"]
    pytest.importorskip("matplotlib")
    benchmark.picture({"3000": run}, tmp_path / "sparsify.png")
    assert (tmp_path / "sparsify.png").read_bytes().startswith(b"\x89PNG")


def test_the_slope_and_the_bars() -> None:
    def run(edges: int, power: float) -> dict:
        seconds = 1e-7 * edges**power
        rate = {"graphlossy": {"median": 3e7}}
        return {"edges": edges, "seconds": {"median": seconds}, "process_peak_bytes": 5e9, "sampling": rate}

    sizes = benchmark.SIZES
    linear = {str(size): run(size, 1.0) for size in sizes}
    square = {str(size): run(size, 1.3) for size in sizes}
    assert math.isclose(benchmark.exponent(linear), 1) and math.isclose(benchmark.exponent(square), 1.3)
    assert all(bar["met"] for bar in benchmark.bars(linear))
    assert [bar["met"] for bar in benchmark.bars(square)] == [False, True, True, False, False]
    assert all(bar["met"] is None for bar in benchmark.bars({}))
    assert benchmark.exponent({"100": linear[str(sizes[0])]}) is None


def test_bad_options(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--edges", "many"], ["--edges", "5"], ["--threads", "0"]):
        with pytest.raises(SystemExit):
            benchmark.main(options)
        assert options[1] in capsys.readouterr().err
