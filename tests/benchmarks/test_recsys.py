"""The recommender benchmarks: their tiny modes, the sizes and batches they are made of, what becomes of their cells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import recsys_memory, recsys_methods, recsys_speed


def test_batches_follow_a_zipf_law_in_random_order() -> None:
    batches, rank = recsys_speed.zipf_batches(1000, 5000, 4)
    assert len(batches) == 4 and torch.equal(rank.sort().values, torch.arange(1000))
    counts = torch.bincount(rank[torch.cat(batches)], minlength=1000).double()
    assert counts[0] > 1.5 * counts[1] > 2 * counts[10] > 0
    again, _ = recsys_speed.zipf_batches(1000, 5000, 4)
    assert torch.equal(again[3], batches[3])


@pytest.mark.parametrize("share", [1 / 4, 1 / 8, 1 / 32])
def test_sizes_fall_with_popularity_and_have_the_wanted_mean(share: float) -> None:
    rank = torch.randperm(20_000)
    sizes = recsys_speed.power_sizes(rank, 32, share)
    assert 0.99 * share * 32 < sizes.double().mean() < 1.01 * share * 32
    assert bool((sizes[rank.argsort()].diff() <= 0).all())


def test_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    file = tmp_path / "speed.json"
    recsys_speed.main(["--tiny", "--out", str(file)])
    runs = json.loads(file.read_text())["runs"]
    assert "multi-size, int4" in capsys.readouterr().out
    found = recsys_speed.bars(runs)
    assert len(found) == 4 and all(bar["value"] > 0 for bar in found)
    assert recsys_speed.bars({})[0]["met"] is None


def test_memory_of_one_variant_in_its_process(tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    recsys_memory.main(["--tiny", "--out", str(file), "--variants", "multi-size"])
    run = json.loads(file.read_text())["runs"]["multi-size"]
    assert run["peak_bytes"] > 0 and run["table_bytes"] < 20_000 * 16 * 4 / 8
    with pytest.raises(SystemExit):
        recsys_memory.main(["--variants", "sparse"])
    peaks = {"dense": {"peak_bytes": 800}, "multi-size": {"peak_bytes": 100}}
    assert recsys_memory.bars(peaks)[0]["met"] and recsys_memory.bars({})[0]["met"] is None


def test_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "methods.json"
    options = ["--tiny", "--out", str(file), "--methods", "full;frequency;int4", "--budgets", "1/8,1/1000"]
    recsys_methods.main([*options, "--models", "deepfm"])
    data = json.loads(file.read_text())
    assert "4 cells to run" in capsys.readouterr().out and set(data["tuning"]) == {"zipf deepfm"}
    status = {(c["label"], c["budget_label"]): c["status"] for c in data["cells"]}
    assert status["frequency", "1/8"] == "done" and status["frequency", "1/1000"] == "unreachable"
    row = next(row for row in data["summary"] if row["method"] == "int4")
    assert row["ratio"]["mean"] > 4 and row["difference"]["mean"] > -0.5
    recsys_methods.main([*options, "--models", "deepfm"])
    assert "0 cells to run" in capsys.readouterr().out
    recsys_methods.main([*options, "--methods", "full;pme", "--seeds", "2", "--fresh"])
    data = json.loads(file.read_text())
    assert {row["model"] for row in data["summary"]} == {"deepfm", "ncf"}
    for row in data["stability"]:
        assert row["value"] is None if row["budget"] == "1/1000" else -1 <= row["value"] <= 1 and row["seeds"] == 2
    for wrong in (["--methods", "full;pma"], ["--models", "deepmf"]):
        with pytest.raises(SystemExit):
            recsys_methods.main([*options, *wrong])


def test_bars_take_the_smallest_within_three_thousandths() -> None:
    def row(method: str, ratio: float, difference: float) -> dict:
        figures = {"ratio": {"mean": ratio}, "difference": {"mean": difference}, "search_epochs": {"mean": 0.5}}
        return {"data": "epinions", "model": "ncf", "method": method, **figures}

    summary = [row("pme+int4", 30.0, -0.002), row("frequency+int4", 100.0, -0.004), row("pme", 8.0, 0.0)]
    found = {bar["what"]: bar for bar in recsys_methods.bars(summary)}
    assert found["multi-size + int4 within .003 AUC of full, ncf on epinions, times"]["value"] == 30.0
    assert found["PME's search, ncf on epinions, epochs"]["met"]
    assert found["PME's search, ncf on movielens-100k-ids, epochs"]["met"] is None
