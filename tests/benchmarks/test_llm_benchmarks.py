"""The language-model benchmarks: their tiny modes and their bars."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import kv_quality, kv_speed, llm_gradients, llm_loss, llm_memory, studies
from benchmarks._llm import COMPRESS, VARIANTS


def test_help_shows_examples_and_wrong_arguments_end_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        llm_memory.main(["--help"])
    assert "examples:\n  python -m benchmarks.llm_memory" in capsys.readouterr().out
    for arguments, said in ((["--tiny", "--variants", "plain,five-bit"], "five-bit is none"), ([], "--model: give")):
        with pytest.raises(SystemExit):
            llm_memory.main(arguments)
        assert said in capsys.readouterr().err
    assert set(COMPRESS) < set(VARIANTS)


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
    assert len(rows) == 21 and data["tokens"] == 256 and len(data["layers"]) == 14
    assert rows["8-bit/64"] < rows["4-bit/64"] < rows["4-bit/256"] < rows["2-bit/256"]
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


@pytest.mark.slow
def test_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    options = ["--tiny", "--out", str(tmp_path / "out.json"), "--folder", str(tmp_path / "runs"), "--rate", "1e-2"]
    llm_loss.main([*options, "--variants", "plain,4-bit,pps 0.3"])
    data = json.loads((tmp_path / "out.json").read_text())
    rows = data["summary"]
    assert len(data["runs"]) == 6 and all("valid" in run for run in data["runs"].values())
    assert rows["plain"]["valid"]["mean"] < rows["plain"]["first"] == rows["4-bit"]["first"]  # it learned
    assert 0 < abs(rows["4-bit"]["paired"]["mean"]) < abs(rows["pps 0.3"]["paired"]["mean"])
    assert rows["plain"]["paired"]["raw"] == [0, 0]
    assert not any((tmp_path / "runs").iterdir())
    page = studies.render("llm_loss", {**data, "bars": []})
    assert f"{rows['4-bit']['valid']['mean']:.4f} ±" in page and "4 steps of 2 x 128 tokens" in page
    assert "4-bit, 1 " in capsys.readouterr().out
    llm_loss.main([*options, "--variants", "plain,4-bit,pps 0.3"])
    assert capsys.readouterr().out == ""  # nothing is run twice


def test_loss_that_failed_is_told_and_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([{"error": "killed"}, {"valid": [[0, 3.0], [4, 2.0]], "train_loss": 2.0, "seconds_per_step": 1.0}])
    folders: list[Path] = []

    def answer(name: str, spec: dict) -> dict:
        folders.append(Path(spec["folder"]))
        return next(answers)

    monkeypatch.setattr(llm_loss, "in_child", answer)
    options = ["--tiny", "--variants", "plain", "--seeds", "1", "--out", str(tmp_path / "out.json")]
    options += ["--folder", str(tmp_path)]
    llm_loss.main(options)
    assert json.loads((tmp_path / "out.json").read_text())["summary"] == {"plain": {"error": "killed"}}
    left = tmp_path / folders[0].name
    left.mkdir()  # as the run that was stopped left it
    llm_loss.main(options)
    assert json.loads((tmp_path / "out.json").read_text())["summary"]["plain"]["valid"]["mean"] == 2.0
    assert not left.exists() and folders[0] == folders[1]
    answers = iter([{"error": "killed"}])
    llm_loss.main([*options, "--rate", "1e-3", "--fresh"])
    assert folders[2] != folders[0]  # other settings do not go on with that run


def test_bars_of_the_loss() -> None:
    def row(*values: float) -> dict:
        return {"valid": {"raw": list(values), "mean": sum(values) / len(values), "std": 0.02}}

    rows = {"plain": row(3.0, 3.0), "4-bit": row(3.01, 3.01), "pps 0.5 + 4-bit": row(3.1, 3.1)}
    assert [bar["met"] for bar in llm_loss.bars(rows, 2)] == [True, True, False, False]
    assert [bar["met"] for bar in llm_loss.bars(rows, 5)] == [None] * 4  # not all seeds are there
    assert [bar["met"] for bar in llm_loss.bars({}, 1)] == [None] * 2


def test_caches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    options = [
        "--tiny",
        "--out",
        str(tmp_path / "out.json"),
        "--schemes",
        "8bit-w32,2bit-w32,h2o:0.1:0.1,per token 2bit-w32,transformers fp8",
    ]
    kv_quality.main(options)
    data = json.loads((tmp_path / "out.json").read_text())
    rows = data["summary"]
    assert list(rows) == ["plain", "8bit-w32", "2bit-w32", "h2o:0.1:0.1", "per token 2bit-w32", "transformers fp8"]
    assert rows["transformers fp8"]["times_less"]["mean"] == pytest.approx(2, rel=1e-3)
    assert rows["plain"]["words"] == 40 and rows["plain"]["agreement"] == 1
    assert rows["8bit-w32"]["kl"]["mean"] < rows["2bit-w32"]["kl"]["mean"]
    assert 1 < rows["8bit-w32"]["times_less"]["mean"] < rows["2bit-w32"]["times_less"]["mean"] < 4
    assert "| `2bit-w32` |" in studies.render("kv_quality", {**data, "bars": []})
    said = capsys.readouterr().out
    assert "text 2/2  2bit-w32" in said
    kv_quality.main(options)
    assert "text" not in capsys.readouterr().out  # nothing is measured twice
    assert all(bar["met"] is None for bar in kv_quality.bars({}, {}))
    assert set(data["bits_of_long"]) == {"plain", "8bit-w32", "2bit-w32", "h2o:0.1:0.1"}
    row = {"kl": {"mean": 0.003}, "times_less": {"mean": 3.0}, "perplexity_change": 0.2}
    recipes = {"4bit-w16": row, "2bit-w32": row, "h2o-p:0.1:0.1": row, "streaming-p:4:0.197": row}
    found = kv_quality.bars(recipes, {"2bit-w32": 3.1})
    rest = [None, None, True, False]
    assert [bar["met"] for bar in found] == [True, True, *[None] * 4, False, False, True, *[None] * 3, *rest]
    with pytest.raises(SystemExit):
        kv_quality.main(["--tiny", "--schemes", "4bits"])
    assert "no cache has the name '4bits'" in capsys.readouterr().err


def test_the_bytes_of_peers() -> None:
    transformers = pytest.importorskip("transformers")
    from benchmarks._kv_peers import PEERS

    config = transformers.LlamaConfig(num_hidden_layers=2, num_attention_heads=2, hidden_size=64)
    token = PEERS["per token 4bit-w32"].make(config)
    keys = torch.randn(1, 2, 300, 32)
    for layer in (0, 1):
        token.update(keys, keys, layer)
    found = token.layers[0].keys
    assert torch.equal(found[:, :, :4], keys[:, :, :4]) and torch.equal(found[:, :, 260:], keys[:, :, 260:])
    assert 0 < float((found - keys)[:, :, 4:260].abs().max()) < 0.3
    packed = 2 * 2 * 2 * 256 * (32 * 4 // 8 + 4)  # layers, keys and values, heads; codes, a scale and an offset
    plain = 2 * 2 * 2 * 44 * 32 * 4
    assert token.nbytes == packed + plain and token.plain_bytes == 2 * 2 * 2 * 300 * 32 * 4
    fp8 = PEERS["transformers fp8"].make(config)
    for layer in (0, 1):
        fp8.update(keys, keys, layer)
    assert fp8.plain_bytes == token.plain_bytes and fp8.nbytes == token.plain_bytes / 4 + 2 * 2 * 4


def test_three_bits_of_both_take_what_four_and_two_take() -> None:
    transformers = pytest.importorskip("transformers")
    from graphlossy.llm.kv import plan_cache

    names = ["k4v2-r-w80", "3bit-r-w80"]
    assert set(names) < set(kv_quality.SCHEMES)
    plan = plan_cache(transformers.LlamaConfig(num_hidden_layers=2), 1, 1540, caches=names)
    assert plan[names[0]].nbytes == plan[names[1]].nbytes


def test_speed_of_caches(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    options = ["--tiny", "--out", str(tmp_path / "out.json"), "--caches", "4bit-w32,h2o:0.1:0.1,transformers fp8"]
    kv_speed.main(options)
    data = json.loads((tmp_path / "out.json").read_text())
    rows = data["summary"]["decode"]["64"]
    assert list(rows) == ["plain", "4bit-w32", "h2o:0.1:0.1", "transformers fp8"]
    assert rows["plain"]["ratio"]["raw"] == [1, 1] and all(row["milliseconds"]["mean"] > 0 for row in rows.values())
    page = studies.render("kv_speed", {**data, "bars": []})
    assert "| `4bit-w32` |" in page and "64 tokens |" in page
    first = data["decode"]
    kv_speed.main(options)
    assert json.loads((tmp_path / "out.json").read_text())["decode"] == first  # nothing is measured twice
    with pytest.raises(SystemExit):
        kv_speed.main(["--tiny", "--memory-length", "8"])
    assert "need --model DIR" in capsys.readouterr().err
    monkeypatch.setattr(kv_speed, "source", lambda: "other")  # as behind a change of how caches store
    with pytest.raises(SystemExit, match="under another settings.*--fresh"):
        kv_speed.main(options)
    monkeypatch.undo()
    del data["settings"]["source"]  # as in a result of before it was told
    (tmp_path / "out.json").write_text(json.dumps(data))
    assert "| `4bit-w32` |" in studies.render("kv_speed", {**data, "bars": []})
    with pytest.raises(SystemExit, match="under another settings.*--fresh"):
        kv_speed.main(options)


def test_bars_and_peaks_of_the_speed_of_caches() -> None:
    done = {"status": "done", "peak_bytes": 600, "beyond_bytes": 400, "cache_bytes": 200}
    data = {
        "decode": {"1024": {"plain": [1.0, 2.0], "4bit": [1.4, 2.4]}, "8000": {"plain": [1.0], "4bit": [0.9]}},
        "memory": {"plain": done, "4bit": {**done, "beyond_bytes": 100}, "2bit": {"status": "out of memory"}},
    }
    summary = kv_speed.summarize(data)
    assert summary["memory"]["4bit"]["less"] == {"peak_bytes": 1, "beyond_bytes": 4, "cache_bytes": 1}
    assert "less" not in summary["memory"]["2bit"]
    assert [bar["met"] for bar in kv_speed.bars(summary)] == [True, None, True]
    settings = {"model": "m", "threads": 1, "memory_length": 8000, "memory_batch": 4}
    page = "\n".join(studies._TABLES["kv_speed"]({"summary": summary, "settings": settings}))
    assert "| out of memory |" in page and "1.30 ± 0.14" in page
