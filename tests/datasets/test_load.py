"""Names, suggestions, arguments."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from graphlossy.datasets import DatasetError, load, names


@pytest.mark.parametrize(
    ("given", "suggested"),
    [
        ("wordnet-verb", "'wordnet-verbs'"),
        ("Corra", "'Cora'"),
        ("SYNTH-ARXIF", "'synth-arxiv'"),
        ("pubmet", "'PubMed'"),
    ],
)
def test_unknown_names_get_suggestions(given: str, suggested: str) -> None:
    with pytest.raises(ValueError, match=f"there is no data set '{given}'; did you mean .*{suggested}") as caught:
        load(given)
    assert all(name in str(caught.value) for name in names())


def test_unlike_names_get_the_list_alone() -> None:
    with pytest.raises(DatasetError, match="no data set 'qqq'; the names are .*; else give the path") as caught:
        load("qqq")
    assert "did you mean" not in str(caught.value)


def test_absent_paths(tmp_path: Path) -> None:
    (tmp_path / "tolokers.npz").write_bytes(b"")
    with pytest.raises(DatasetError, match="there is no such file or folder; did you mean .*tolokers.npz"):
        load(tmp_path / "toloker.npz")
    with pytest.raises(DatasetError, match="there is no such file or folder; nor is there a folder .*nowhere"):
        load(tmp_path / "nowhere" / "graph")
    (tmp_path / "graph.csv").write_text("1,2")
    with pytest.raises(DatasetError, match="graph.csv: a graph file ends in .npz"):
        load(tmp_path / "graph.csv")


def test_names_come_before_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wordnet-verbs").mkdir()
    assert load("WordNet-Verbs").num_nodes == 13_767
    with pytest.raises(DatasetError, match="holds no graph"):
        load("./wordnet-verbs")


@pytest.mark.parametrize("argument", ["split", "seed"])
def test_arguments(argument: str) -> None:
    with pytest.raises(DatasetError, match=f"{argument} must be from 0 to 4294967295, got -1"):
        load("wordnet-verbs", **{argument: -1})
    for wrong in ("1", 1.0, True):
        with pytest.raises(TypeError, match=f"{argument} must be an integer, got {wrong!r}"):
            load("wordnet-verbs", **{argument: wrong})
    with pytest.raises(TypeError):
        load(3)


def test_small_files_load_in_less_than_a_second(heterophilous, save_npz) -> None:
    path = save_npz(heterophilous())
    load(path)  # imports PyTorch Geometric
    start = time.perf_counter()
    load(path)
    load("wordnet-verbs")
    assert time.perf_counter() - start < 1


def test_importing_is_lean() -> None:
    code = "import sys, graphlossy.datasets; print([m for m in ('torch_geometric', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
