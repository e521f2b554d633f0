"""The language-model benchmarks: their tiny modes and their bars."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import llm_gradients, llm_memory, studies
from benchmarks._llm import _COMPRESS, VARIANTS


def test_help_shows_examples_and_wrong_arguments_end_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        llm_memory.main(["--help"])
    assert "examples:\n  python -m benchmarks.llm_memory" in capsys.readouterr().out
    for arguments, said in ((["--tiny", "--variants", "plain,five-bit"], "five-bit is none"), ([], "--model: give")):
        with pytest.raises(SystemExit):
            llm_memory.main(arguments)
        assert said in capsys.readouterr().err
    assert set(_COMPRESS) < set(VARIANTS)


@pytest.mark.slow
def test_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    options = ["--tiny", "--out", str(tmp_path / "out.json"), "--variants", "plain,exact,4-bit"]
    llm_memory.main(options)
    data = json.loads((tmp_path / "out.json").read_text())
    rows = data["summary"]
    assert rows["plain"]["held_bytes"] > 2 * rows["exact"]["held_bytes"] > 4 * rows["4-bit"]["held_bytes"]
    losses = [data["runs"][name][0]["losses"] for name in ("plain", "exact", "4-bit")]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5) == pytest.approx(losses[2][0], rel=1e-2)
    found = data["runs"]["4-bit"][0]["by_op"]
    assert found["(loss) cross_entropy"][0] > 10 * found["(loss) cross_entropy"][1]  # the log-softmax is not kept
    page = studies.render("llm_memory", {**data, "bars": []})
    assert f"{rows['4-bit']['saved']:.2f}" in page and "| (loss) cross_entropy |" in page
    assert "4-bit              round 1: saved" in capsys.readouterr().out
    llm_memory.main(options)
    assert capsys.readouterr().out == ""  # nothing is measured twice


def test_bars() -> None:
    row = {"saved": 13.0, "peak": 2.0, "time": 1.2}
    assert [bar["met"] for bar in llm_memory.bars({"4-bit": row})] == [True, False, True]
    assert [bar["met"] for bar in llm_memory.bars({})] == [None] * 3


def test_gradients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    llm_gradients.main(["--tiny", "--out", str(tmp_path / "out.json")])
    data = json.loads((tmp_path / "out.json").read_text())
    rows = {name: row["mean"] for name, row in data["rows"].items()}
    assert len(rows) == 18 and data["tokens"] == 256 and len(data["layers"]) == 14
    assert rows["8-bit"] < rows["4-bit"] < rows["2-bit"]
    for method in llm_gradients.ESTIMATORS:
        assert rows[f"{method} 0.5"] < rows[f"{method} 0.3"] < rows[f"{method} 0.1"]
    assert rows["pps 0.3"] < rows["crs 0.3"]
    assert f"{rows['pps 0.3']:.3f} ±" in studies.render("llm_gradients", {**data, "bars": []})
    assert "k/n = 0.3" in capsys.readouterr().out
    assert llm_gradients.bars({"pps 0.3": {"mean": 0.8}, "wta 0.3": {"mean": 1.0}})[0]["met"]
    assert llm_gradients.bars({})[0]["met"] is None


def test_errors_are_those_of_the_product() -> None:
    draw = torch.Generator().manual_seed(0)
    x, g = torch.randn(40, 6, generator=draw), torch.randn(40, 5, generator=draw)
    found = llm_gradients.errors({"a": (x, g), "b": (x, g)}, seed=1)
    exact = x.t() @ g
    heavy = (x.norm(dim=1) * g.norm(dim=1)).topk(12).indices
    wanted = (x[heavy].t() @ g[heavy] - exact).norm() / exact.norm()
    assert found["topk 0.3"] == pytest.approx(float(wanted), rel=1e-5)
