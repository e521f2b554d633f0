"""The harness: graphs, statistics, bars, tables and result files."""

from __future__ import annotations

import json
import math
from importlib import metadata
from pathlib import Path

import pytest
import torch

from benchmarks import _report, accuracy, memory, readme, table
from benchmarks._graphs import power_law_edges


def test_power_law_graph_has_exactly_the_edges_asked_for() -> None:
    edges = power_law_edges(2000, 12_000, seed=1)
    assert edges.shape == (2, 12_000)
    assert (edges[0] != edges[1]).all()
    assert edges.unique(dim=1).shape == edges.shape
    assert torch.equal(edges.unique(dim=1), edges.flip(0).unique(dim=1))
    degrees = torch.bincount(edges[0], minlength=2000)
    assert degrees.max() > 10 * degrees.float().mean()  # heavy tail: a Poisson graph of mean 6 stays far below 60
    assert torch.equal(edges, power_law_edges(2000, 12_000, seed=1))
    assert not torch.equal(edges, power_law_edges(2000, 12_000, seed=2))


@pytest.mark.parametrize("edges", [7, 2000])
def test_power_law_graph_refuses_what_cannot_be(edges: int) -> None:
    with pytest.raises(ValueError, match=str(edges)):
        power_law_edges(20, edges, seed=0)


def test_auc_is_the_share_of_ordered_pairs() -> None:
    scores = torch.randint(5, (60, 2)).float()
    y = torch.randint(2, (60,))
    difference = scores[:, 1] - scores[:, 0]
    ordered = (difference[y == 1][:, None] > difference[y == 0]).double()
    ordered += 0.5 * (difference[y == 1][:, None] == difference[y == 0])
    assert accuracy.score(scores, y, "rocauc") == pytest.approx(100 * ordered.mean().item())
    assert accuracy.score(torch.eye(3), torch.tensor([0, 1, 1]), "accuracy") == pytest.approx(200 / 3)


def run(scheme: str, seed: int, test: float) -> dict:
    return {"dataset": "cora", "scheme": scheme, "seed": seed, "test": test}


def test_differences_are_paired_by_seed() -> None:
    runs = [run("float32", i, v) for i, v in enumerate([80.0, 82.0, 84.0])]
    runs += [run("compress-2bit", i, v) for i, v in enumerate([80.1, 82.3, 84.2])]
    runs += [run("nn-2bit", 0, 70.0)]
    row = accuracy.summarize(runs)["cora"]["compress-2bit"]
    assert row["difference"] == pytest.approx(0.2)
    assert row["standard_error"] == pytest.approx(0.1 / math.sqrt(3))
    bars = {bar["what"].split(" against")[0]: bar["met"] for bar in accuracy.bars(accuracy.summarize(runs))}
    assert bars["cora: compress-2bit"] is True
    assert bars["cora: nn-2bit"] is False
    assert bars["tolokers: nn-2bit"] is None


@pytest.mark.parametrize(
    ("value", "relation", "met"),
    [(2.5, "at least", True), (2.4, "at least", False), (2.5, "at most", True), (2.5, "below", False)],
)
def test_bars_compare(value: float, relation: str, met: bool) -> None:
    assert _report.bar("", value, relation, 2.5)["met"] is met


def test_bars_of_memory_follow_the_measurements() -> None:
    def measured(held: int, seconds: float, peak: int = 100) -> list[dict]:
        return [{
            "held_bytes": held, "ledger": None, "peak_bytes": [peak], "first": {"peak_bytes": peak},
            "peak_tensor_bytes": peak, "kept_bytes": 0, "seconds": [seconds],
        }]  # fmt: skip

    runs = {"gcn": {"pyg-csr": measured(1500, 1.0, 300), "compress-2bit": measured(100, 1.2)}}
    runs["gcn"]["bf16"] = [{"error": "out of memory"}]
    met = {bar["what"]: bar["met"] for bar in memory.bars(memory.summarize(runs))}
    assert met["gcn: compress-2bit against pyg-csr, bytes saved, times less"] is True
    assert met["gcn: compress-2bit against pyg-csr, peak, times less"] is True
    assert met["gcn: compress-2bit against pyg-csr, time, times"] is False
    assert met["sage: compress-2bit against pyg-csr, time, times"] is None
    settings = {"nodes": 10, "edges": 20, "hidden": 8, "deep": 2}
    data = {"settings": settings, "machine": {"cpu": "x"}, "summary": memory.summarize(runs)}
    text = table.tables({"memory": data})
    assert "out of memory" in text and "| 15.0 |" in text and "| 3.00 |" in text


def test_results_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "result.json"
    _report.write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        _report.write_json(file, {"a": float("nan")})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [p.name for p in file.parent.iterdir()] == ["result.json"]


def test_figures_of_another_machine_or_setting_are_not_continued(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    head = _report.header("memory", {"nodes": 10})
    assert _report.earlier(file, head, fresh=False) == {}
    _report.write_json(file, {**head, "runs": {"gcn": {}}})
    assert _report.earlier(file, head, fresh=False)["runs"] == {"gcn": {}}
    assert _report.earlier(file, {**head, "settings": {"nodes": 11}}, fresh=True) == {}
    for key in ("machine", "versions", "settings"):
        with pytest.raises(SystemExit, match=f"another {key}.*--fresh"):
            _report.earlier(file, {**head, key: {"cpu": "another"}}, fresh=False)


def test_libraries_of_language_models_are_told_where_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"transformers": "5.23.0", "optimum-quanto": "0.2.7"}

    def version(name: str) -> str:
        if name == "hqq":
            raise metadata.PackageNotFoundError(name)
        return there.get(name, "1.0")

    monkeypatch.setattr(metadata, "version", version)
    for benchmark in ("kv_speed", "llm_loss"):
        found = _report.header(benchmark, {})["versions"]
        assert found.items() >= there.items() and "hqq" not in found
    assert not there.keys() & _report.header("memory", {})["versions"].keys()


def test_a_digest_tells_files_apart(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.py", "b.py")]

    def digest(*contents: str) -> str:
        for file, content in zip(files, contents, strict=True):
            file.write_text(content)
        assert _report.digest(files) == _report.digest(reversed(files))
        return _report.digest(files)

    assert len({digest(*pair) for pair in (("1", "2"), ("2", "1"), ("1", "3"), ("12", ""), ("", "12"))}) == 5
    assert digest("1", "2") == digest("1", "2") != _report.digest(files[:1])


def test_the_figures_of_the_readme_are_those_of_the_results() -> None:
    assert readme.main(["--check"]) == 0, "run python -m benchmarks.readme"


def test_readme_figures_need_their_place() -> None:
    text = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter"
    assert readme.replace(text, "new") == f"before\n{readme.BEGIN}\n\nnew\n\n{readme.END}\nafter"
    with pytest.raises(ValueError, match="needs the lines"):
        readme.replace("no place", "new")
