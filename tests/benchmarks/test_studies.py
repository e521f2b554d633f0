"""The studies of thinned and sampled training: the tiny modes, what they write, and the graphs they hand to a layer."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch_geometric.nn import GCNConv, SAGEConv

from benchmarks import studies
from benchmarks._thinned import adjacency, thin

STUDIES = ("sparsify_speed", "sparsify_accuracy", "combined", "largest", "studies", "sampler", "papers_memory")


def call(name: str, *options: object) -> None:
    importlib.import_module(f"benchmarks.{name}").main([str(option) for option in options])


@pytest.mark.parametrize("name", STUDIES)
def test_help_shows_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call(name, "--help")
    assert f"examples:\n  python -m benchmarks.{name}" in capsys.readouterr().out


@pytest.fixture
def weighted() -> tuple[torch.Tensor, torch.Tensor]:
    edges = torch.tensor([[0, 1, 2, 3, 1, 4], [1, 0, 1, 1, 2, 3]])
    return edges, torch.tensor([1.0, 2.0, 0.5, 4.0, 3.0, 0.25])


def test_sage_takes_the_weighted_mean(weighted: tuple[torch.Tensor, torch.Tensor]) -> None:
    edges, weight = weighted
    x, dense = torch.randn(5, 3), torch.zeros(5, 5)
    dense[edges[1], edges[0]] = weight
    conv = SAGEConv(3, 3, root_weight=False, bias=False)
    torch.nn.init.eye_(conv.lin_l.weight)
    expected = dense @ x / dense.sum(1, keepdim=True).clamp(min=1e-30)
    torch.testing.assert_close(conv(x, adjacency("sage", edges, weight, 5)), expected)


def test_gcn_takes_the_weighted_normalisation(weighted: tuple[torch.Tensor, torch.Tensor]) -> None:
    edges, weight = weighted
    x, conv, bare = torch.randn(5, 3), GCNConv(3, 4), GCNConv(3, 4, normalize=False)
    bare.load_state_dict(conv.state_dict())
    torch.testing.assert_close(bare(x, adjacency("gcn", edges, weight, 5)), conv(x, edges, weight))


def test_thinning_keeps_the_share_asked_for() -> None:
    from graphlossy.datasets import load

    data = load("synth-arxiv-tiny")
    for method in ("degree", "degree-unweighted", "random"):
        edges, weight = thin(data.edge_index, data.num_nodes, method, 0.5, 0)
        assert abs(edges.shape[1] / data.num_edges - 0.5) < 0.03
        assert (weight is None) == (method == "degree-unweighted") or torch.equal(weight, torch.ones_like(weight))
    assert thin(data.edge_index, data.num_nodes, "degree", 1.0, 0)[0] is data.edge_index


def test_accuracy_over_shares(tmp_path: Path) -> None:
    out = tmp_path / "sparsify_accuracy.json"
    options = ["--tiny", "--jobs", 1, "--methods", "degree,random", "--out", out]
    call("sparsify_accuracy", *options)
    data = json.loads(out.read_text())
    assert len(data["runs"]) == 6  # two seeds of the whole graph and of two methods
    (random,) = [row for row in data["summary"] if row["method"] == "random"]
    assert random["seeds"] == [0, 1] and "lead" in random
    table = studies.render("sparsify_accuracy", data)
    assert f"{random['test']['mean']:.2f} ± {random['test']['std']:.2f}" in table and "(2 seeds)" in table
    call("sparsify_accuracy", "--out", out, "--picture", tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").stat().st_size > 1000


def test_speed_says_the_ideal(tmp_path: Path) -> None:
    out = tmp_path / "sparsify_speed.json"
    call("sparsify_speed", "--tiny", "--models", "gcn", "--threads", 1, "--out", out)
    data = json.loads(out.read_text())
    cells = data["results"][0]["shares"]
    assert f"{cells[1]['speedup']:.2f} / {cells[1]['ideal']:.2f}" in studies.render("sparsify_speed", data)
    assert [cell["share_asked"] for cell in cells] == [1.0, 0.5, 0.25, 0.1, 0.0]
    assert cells[0]["ideal"] == 1 and all(cell["ideal"] > 0 for cell in cells)


@pytest.mark.slow
def test_combined(tmp_path: Path) -> None:
    call("combined", "--tiny", "--out", tmp_path / "combined.json")
    rows = json.loads((tmp_path / "combined.json").read_text())["summary"]
    assert len(rows) == 18
    plain, compressed = rows[:2]
    assert plain["saved_bytes_ratio"] == 1 and compressed["saved_bytes_ratio"] > 4


def test_the_page_shows_the_results() -> None:
    assert studies.main(["--check"]) == 0
    assert "Not measured yet." in studies.render("sampler", None)


@pytest.mark.parametrize("name", ["sampler", "papers_memory"])
def test_sampling_benchmarks(name: str, tmp_path: Path) -> None:
    out = tmp_path / f"{name}.json"
    call(name, "--tiny", "--out", out)
    assert "| ---" not in (table := studies.render(name, json.loads(out.read_text()))) and table.count("|") > 10


def test_the_largest_scale_is_searched_on_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = importlib.import_module("benchmarks.largest")

    def child(command: str, spec: dict, limit: int | None = None) -> dict | None:
        if command == "graph":
            Path(spec["folder"], "scale").write_text(str(spec["scale"]))
            return {}
        scale = float(Path(spec["folder"], "scale").read_text())
        return {"nodes": round(1e6 * scale), "peak_bytes": round(2**28 + 2**34 * scale)}

    monkeypatch.setattr(largest, "_child", child)
    found = largest.largest("nn-2bit", 2**32, 1, 256, (0.02, 0.04))
    assert 0.96 * 2**32 <= found["largest"]["peak_bytes"] <= 2**32 and len(found["runs"]) == 3
