"""The script that a user copies: it runs on its own graph, on a file, and without labels."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import pytest
import torch

from graphlossy.outliers.data import load, save_npz

SCRIPT = Path(__file__).parents[2] / "examples" / "outlier_scores.py"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def script(*arguments: str) -> tuple[str, list[dict[str, str]]]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        with open(tmp_path / "scores.csv", newline="") as file:
            return capsys.readouterr().out, list(csv.DictReader(file))

    return script


def auc(out: str, title: str) -> list[float]:
    line = next(line for line in out.splitlines() if line.startswith(title))
    return [float(word) for word in line.partition("nodes")[0].split()[1:]]


def test_a_graph_of_its_own(run, one_thread) -> None:
    out, rows = run("--epochs", "60")
    assert auc(out, "DOMINANT")[1] > 0.9, "contextual outliers are found"
    assert all(abs(value - 0.5) < 0.15 for value in auc(out, "MaxRank")), "but not without a model"
    assert len(rows) == 600
    assert set(rows[0]) == {"node", "DOMINANT", "GCNAE", "Degree", "Norm", "MaxRank", "outlier"}


def test_a_file_with_published_injection(run, tmp_path: Path, one_thread) -> None:
    save_npz(load("synth_300"), tmp_path / "mine.npz")
    out, rows = run("--graph", str(tmp_path / "mine.npz"), "--epochs", "3", "--bits", "2")
    assert "mine: 300 nodes" in out
    assert sum(row["outlier"] == "1" for row in rows) == int((load("synth_300").y > 0).sum())


def test_a_graph_without_labels(run, tmp_path: Path, one_thread) -> None:
    data = load("synth_200")
    torch.save({"x": data.x, "edge_index": data.edge_index}, tmp_path / "mine.pt")
    out, rows = run("--graph", str(tmp_path / "mine.pt"), "--epochs", "3")
    assert "outlier" not in rows[0]
    assert auc(out, "DOMINANT") == []
