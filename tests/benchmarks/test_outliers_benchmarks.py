"""The outlier benchmarks: their tiny modes, that they go on where they stopped, and their bars."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from benchmarks import _outliers, outliers_compressed, outliers_peers, outliers_scaling, outliers_table, studies


def spread(*values: float) -> dict:
    from benchmarks._report import spread

    return spread(values)


def folders(tmp_path: Path) -> list[str]:
    return ["--tiny", "--out", str(tmp_path / "out.json"), "--folder", str(tmp_path / "trials")]


def read(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out.json").read_text())


@pytest.mark.parametrize("module", [outliers_compressed, outliers_peers, outliers_scaling, outliers_table])
def test_help_shows_examples(module: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0 and f"examples:\n  python -m {module.__name__}" in capsys.readouterr().out


@pytest.mark.slow
def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*folders(tmp_path), "--methods", "gcnae,scan"]
    outliers_table.main(options)
    data = read(tmp_path)
    cells = {row["method"]: row for row in data["cells"]}
    assert set(cells) == {"gcnae", "scan", *outliers_table.LEAK}
    assert cells["gcnae"]["status"] == {"done": 2} and len(cells["gcnae"]["auc"]["raw"]) == 2
    assert {"contextual", "structural"} == set(cells["maxrank"]["by_type"])
    assert data["again"]["same"] == data["again"]["trials"] == 10
    assert any("GCNAE" in line for line in data["tables"]["auc"])
    page = studies.render("outliers_table", data)
    assert "| GCNAE |" in page and "contextual" in page and "10 of 10 trials have the same scores" in page
    printed = capsys.readouterr().out
    assert "10 of 10 trials had the same scores" in printed and "MaxRank" in printed
    before = (tmp_path / "trials" / "trials.jsonl").read_text()
    outliers_table.main(options)
    assert (tmp_path / "trials" / "trials.jsonl").read_text() == before
    with pytest.raises(SystemExit):
        outliers_table.main([*options, "--methods", "gcnea"])


def test_bars_of_the_table() -> None:
    def row(dataset: str, method: str, auc: float, status: str = "done", trials: int = 1, long: float = 1) -> dict:
        counts, seconds = {status: trials}, spread(long)
        return {"dataset": dataset, "method": method, "auc": spread(auc), "status": counts, "seconds": seconds}

    rows = [row("books", "lof", 0.3652), row("inj_cora", "lof", 0.71), row("books", "scan", 0.5, "failed", 20)]
    rows += [row("gen_1000", "lof", 0.5), row("gen_1000", "scan", 0.5)]  # of another call: not asked for here
    found = {
        bar["what"]: bar for bar in outliers_table.bars(rows, ["books", "inj_cora"], ["lof", "scan"], [True, False])
    }
    assert found["lof on books: distance of the mean AUC from 0.365"]["met"]
    assert found["lof on inj_cora: distance of the mean AUC from 0.699"]["met"] is False
    assert not any("inj_amazon" in what or "disney" in what for what in found)
    assert found["cells of the table that miss trials or have failed ones"]["value"] == 2
    assert found["share of 2 trials, of 22, with the same scores, bit for bit, when run again"]["met"] is False
    for trials, seconds, missed in ((19, 1, 1), (20, 1, 0), (5, 1, 1), (5, 301, 0), (4, 301, 1)):
        few = [row("books", "gcnae", 0.5, trials=trials, long=seconds)]
        assert outliers_table.bars(few, ["books"], ["gcnae"], [])[0]["value"] == missed
    assert outliers_table.bars([], ["books"], ["lof"], [])[-1]["met"] is None


def test_a_cell_is_long_by_its_slowest_trial_or_a_limit() -> None:
    assert not outliers_table.is_long({"seconds": spread(10, 300), "status": {"done": 2}})
    assert outliers_table.is_long({"seconds": spread(10, 301), "status": {"done": 2}})
    assert outliers_table.is_long({"seconds": None, "status": {"TLE": 5}})


def test_a_second_run_is_compared_trial_by_trial() -> None:
    def record(trial: int, sha: str, status: str = "done") -> dict:
        place = {"dataset": "books", "method": "lof", "engine": "native", "trial": trial}
        return {**place, "status": status, "scores_sha256": sha}

    first = [record(0, "a"), record(1, "b"), record(2, "c", "failed")]
    second = [record(1, "b"), record(0, "x"), record(2, "c"), record(3, "d")]
    assert outliers_table.same_scores(first, second) == [True, False]
    assert outliers_table.same_scores(first, [record(0, "a", "OOM"), record(1, "b")]) == [False, True]


@pytest.mark.slow
def test_peers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours alone where the others are not installed."""
    options = [*folders(tmp_path), "--methods", "gcnae"]
    outliers_peers.main(options)
    data = read(tmp_path)
    have = data["settings"]["engines"]
    done = {(row["method"], row["engine"]): row["status"] for row in data["cells"]}
    assert done["gcnae", "native"] == {"done": 2}
    assert ("pygod" in have) == (("gcnae", "pygod") in done)
    for row in data["compared"]:
        assert row["auc"]["spread"] >= 0.005 and -1 <= row["rank_correlation"] <= 1
    assert "gcnae" not in capsys.readouterr().out or "pygod" in have
    before = (tmp_path / "trials" / "gcnae" / "trials.jsonl").read_text()
    outliers_peers.main(options)
    assert (tmp_path / "trials" / "gcnae" / "trials.jsonl").read_text() == before


def test_equal_settings_are_those_that_a_method_takes() -> None:
    assert outliers_peers.options_for("lof", False) == {}
    assert outliers_peers.options_for("cola", False)["context"] == "neighborhood"
    assert outliers_peers.options_for("ocgnn", False)["num_layers"] == 2
    assert outliers_peers.options_for("gcnae", True)["epoch"] == 2


def test_rounding_moves_features_by_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphlossy.outliers import Radar, data

    seen, args = [], argparse.Namespace(root=None, tiny=True)
    fit = Radar.fit
    monkeypatch.setattr(Radar, "fit", lambda self, graph: (seen.append(graph.x.clone()), fit(self, graph))[1])
    found = outliers_peers.rounded(args, "synth_100")
    x = data.load("synth_100").x
    assert len(found) == 2 and all(0 <= auc <= 1 for auc in found) and not torch.equal(*seen)
    for moved in seen:
        assert ((moved == x.nextafter(x + 1)) | (moved == x.nextafter(x - 1))).all()


def test_bars_of_the_peers_are_the_spread_of_the_seeds() -> None:
    def row(engine: str, *auc: float) -> dict:
        return {"dataset": "d", "method": "m", "engine": engine, "auc": spread(*auc), "seconds": spread(1.0),
                "peak_bytes": None, "status": {"done": len(auc)}}  # fmt: skip

    cells = [{**row("native", 0.70, 0.72), "method": "conad"}, {**row("pygod", 0.80, 0.82), "method": "conad"}]
    data = {"cells": cells, "compared": outliers_peers.compare(cells, Path("none"), {"d": 2}), "bars": [],
            "settings": {"seeds": {"d": 2}}, "machine": {"cpu": "c"}, "versions": {"torch": "t"},
            "rounding": {"d": [0.5, 0.25]}, "leak": {"d": {"MaxRank": 0.8765, "Random": 0.5}}}  # fmt: skip
    page = studies.render("outliers_peers", data)
    assert "|\n\nWithout a model: MaxRank 0.876, Random 0.500." in page
    assert "2 times by chance, our AUC is 0.250 to 0.500 on d." in page
    assert (
        "| CONAD, PyGOD | 0.710 ± 0.014 | 0.810 ± 0.014 | -0.100 |" in page and "- CONAD: the paper's contrast" in page
    )
    near = outliers_peers.compare([row("native", 0.70, 0.74), row("pygod", 0.71, 0.75)], Path("none"), {"d": 2})
    far = outliers_peers.compare([row("native", 0.70, 0.72), row("pygod", 0.80, 0.82)], Path("none"), {"d": 2})
    assert near[0]["auc"]["difference"] == pytest.approx(-0.01) and near[0]["rank_correlation"] is None
    assert outliers_peers.bars(near, ["m"], ["d"])[0]["met"] and not outliers_peers.bars(far, ["m"], ["d"])[0]["met"]
    assert outliers_peers.bars([], ["m"], ["d"])[0]["met"] is None


def test_ranks_are_averaged_over_trials(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    rising = np.arange(10.0)
    for engine, sign in (("native", 1), ("pygod", 1), ("pyod", -1)):
        for trial in (0, 1):
            np.save(tmp_path / "scores" / f"d-m-{engine}-{trial}.npy", sign * rising ** (trial + 1))
    correlate = _outliers.rank_correlation
    assert correlate(tmp_path, "d", "m", ("native", "pygod"), 2) == pytest.approx(1)
    assert correlate(tmp_path, "d", "m", ("native", "pyod"), 2) == pytest.approx(-1)
    assert correlate(tmp_path, "d", "m", ("native", "native"), 2) == pytest.approx(1)
    assert correlate(tmp_path, "d", "m", ("native", "other"), 2) is None


@pytest.mark.slow
def test_compressed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outliers_compressed.main([*folders(tmp_path), "--methods", "gcnae"])
    (row,) = read(tmp_path)["compared"]
    assert f"{row['times_fewer_bytes']:.1f} |" in studies.render("outliers_compressed", read(tmp_path))
    assert row["times_fewer_bytes"] > 2 and len(row["paired"]["raw"]) == 2
    assert "times fewer bytes" in capsys.readouterr().out
    assert set(read(tmp_path)["leak"]["synth_100"]) == {"Degree", "Norm", "MaxRank", "Copies", "Random"}
    found = outliers_compressed.bars([{**row, "times_fewer_bytes": 7.9}], ["gcnae"], [row["dataset"]])
    assert found[1]["met"] is False and outliers_compressed.bars([], ["gcnae"], ["x"])[0]["met"] is None
    with pytest.raises(SystemExit):
        outliers_compressed.main([*folders(tmp_path), "--methods", "lof"])


def test_beyond_the_spread_eight_bits_are_tried_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def cell(args: object, dataset: str, method: str, seeds: int, out: Path, options: dict) -> tuple[list, dict]:
        bits = options["*"]["bits"]
        asked.append((method, bits))
        shift = 0.2 * (method == "done") * (bits == 2)
        place = {"dataset": dataset, "method": method, "engine": "native", "status": "done", "reason": None}
        figures = dict.fromkeys(("ap", "recall", "seconds", "epoch_seconds", "peak_bytes", "scores_sha256"))
        figures |= {"saved_bytes": 100 if bits == 2 else 700, "plain_bytes": 700, "by_type": {}}
        return [{**place, **figures, "trial": n, "auc": 0.5 + 0.01 * n + shift} for n in range(seeds)], {}

    monkeypatch.setattr(_outliers, "cell", cell)
    monkeypatch.setattr(_outliers, "leak_rows", lambda args, dataset: {"Random": 0.5})
    outliers_compressed.main([*folders(tmp_path), "--methods", "guide,done", "--seeds", "3"])
    assert asked == [("guide", None), ("guide", 2), ("done", None), ("done", 2), ("done", 8)]
    page = studies.render("outliers_compressed", read(tmp_path))
    assert "| DONE | 0.510 ± 0.010 | 0.710 ± 0.010 | +0.2000 | +0.0000 |" in page
    assert "- DONE on synth_100: AUC +0.2000 at 2 bits, +0.0000 at 8 bits, spread 0.0100. It is the noise of" in page
    assert "Without a model: Random 0.500." in page and "- GUIDE: the autoencoder of its motif degrees" in page


@pytest.mark.slow
def test_one_cell_of_scaling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*folders(tmp_path)[:3], "--engines", "native", "--methods", "gcnae", "--sizes", "200"]
    outliers_scaling.main(options)
    (cell,) = read(tmp_path)["cells"]
    assert cell["nodes"] == 200 < cell["edges"] and cell["status"] == "done" and 0 < cell["seconds"] < 60
    assert cell["peak_bytes"] >= 0 and "gcnae             200 nodes: done" in capsys.readouterr().out


def test_scaling_runs_what_is_missing_up_to_the_first_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(args: object, engine: str, method: str, nodes: int) -> dict:
        asked.append((method, nodes))
        status = "failed" if method == "scan" else "TLE" if (method, nodes) == ("radar", 300) else "done"
        cell = {
            "engine": engine,
            "method": method,
            "nodes": nodes,
            "edges": 5 * nodes,
            "status": status,
            "reason": None,
        }
        return {**cell, "seconds": nodes / 1e3, "epoch_seconds": None, "peak_bytes": nodes, "auc": 0.5}

    monkeypatch.setattr(outliers_scaling, "measure", measure)
    options = [
        *folders(tmp_path)[:3],
        "--engines",
        "native",
        "--methods",
        "degree,radar,scan",
        "--sizes",
        "300,100,500",
    ]
    outliers_scaling.main(options)
    assert asked == [*(("degree", n) for n in (100, 300, 500)), ("radar", 100), ("radar", 300), ("scan", 100)]
    ended = {row["method"]: row["ended"] for row in read(tmp_path)["slopes"]}
    assert ended == {"degree": None, "radar": "TLE at 300", "scan": "failed at 100"}
    asked.clear()
    outliers_scaling.main(options)
    assert asked == [("scan", 100)]  # what failed is tried again
    asked.clear()
    page = studies.render("outliers_scaling", read(tmp_path))
    assert "| Radar, graphlossy | 0.10 | TLE |  |  |" in page and "| Degree, graphlossy | 0.10 | 0.30 | 0.50 |" in page
    outliers_scaling.main([*options, "--picture", str(tmp_path / "scaling.png")])
    assert asked == [] and (tmp_path / "scaling.png").stat().st_size > 5000
    with pytest.raises(SystemExit, match="nothing.json is not there"):
        outliers_scaling.main(["--out", str(tmp_path / "nothing.json"), "--picture", str(tmp_path / "scaling.png")])
    with pytest.raises(SystemExit):
        outliers_scaling.main([*options, "--engines", "pygods"])


def test_exponents_and_the_bars_of_scaling() -> None:
    assert outliers_scaling.slope([(10**k, 3 * 10 ** (2 * k)) for k in (4, 5, 6)]) == pytest.approx(2)
    assert outliers_scaling.slope([(10, 1), (100, 1)]) is None

    def cells(engine: str, power: float, scale: float) -> list[dict]:
        return [{"engine": engine, "method": "dominant", "nodes": n, "seconds": scale * n**power, "status": "done",
                 "peak_bytes": scale * n**power} for n in (1_000, 10_000, 30_000, 100_000)]  # fmt: skip

    both = cells("native", 1, 1e-4) + cells("pygod", 2, 1e-6)
    found = {bar["what"]: bar for bar in outliers_scaling.bars(both, outliers_scaling.slopes(both))}
    assert found["dominant: exponent of time from 10,000 nodes on"]["value"] == pytest.approx(1)
    assert found["dominant at 10,000 nodes, share of pygod's peak memory"]["value"] == pytest.approx(0.01)
    assert found["dominant at 10,000 nodes, share of pyod's time"]["met"] is None
    assert found["gcnae: exponent of time from 10,000 nodes on"]["met"] is None
