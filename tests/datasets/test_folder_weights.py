"""Edge weights in the folder layout: they stay with their edges, and bad ones are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from graphlossy.datasets import DatasetError, load, save_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A graph of 4 nodes, written by hand, with edges in one direction only, twice, and a self-loop."""
    np.save(tmp_path / "edge_index.npy", np.array([[2, 0, 1, 1, 2], [1, 1, 0, 1, 3]], np.int32))
    np.save(tmp_path / "edge_weight.npy", np.array([0.5, 2.0, 3.0, 9.0, 4.0]))
    np.save(tmp_path / "x.npy", np.ones((4, 2), np.float32))
    np.save(tmp_path / "y.npy", np.array([0, 1, 0, 1]))
    return tmp_path


def test_weights_follow_their_edges(folder: Path) -> None:
    data = load(folder)
    assert data.edge_index.tolist() == [[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]
    assert data.edge_weight.tolist() == [2.0, 3.0, 0.5, 0.5, 4.0, 4.0] and data.edge_weight.dtype == torch.float32


def test_round_trip_and_weights_stay_on_disk(folder: Path, tmp_path: Path) -> None:
    data = load(folder)
    again = load(save_folder(data, tmp_path / "new"))
    assert torch.equal(again.edge_weight, data.edge_weight) and torch.equal(again.edge_index, data.edge_index)
    plain = load(folder)
    del plain.edge_weight
    assert "edge_weight" not in load(save_folder(plain, tmp_path / "plain"))


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (np.ones(4), r"shape \[4\] and type float64; it must hold one real number for each of the 5 edges"),
        (np.ones((5, 1)), r"shape \[5, 1\]"),
        (np.ones(5, bool), "type bool"),
        (np.array([1, 1, -2.0, 1, 1]), "the weight of edge 2 is -2.0; weights must be finite and at least 0"),
        (np.array([1, np.nan, 1, 1, 1]), "edge 1 is nan"),
        (np.array([1, 1, 1, 1, np.inf]), "edge 4 is inf"),
    ],
    ids=["short", "column", "bool", "negative", "nan", "inf"],
)
def test_bad_weights(folder: Path, weight: np.ndarray, words: str) -> None:
    np.save(folder / "edge_weight.npy", weight)
    with pytest.raises(DatasetError, match=words):
        load(folder)


def test_bad_edges_are_still_named(folder: Path, tmp_path: Path) -> None:
    np.save(folder / "edge_index.npy", np.array([[2, 0, 1, 1, 2], [1, 1, 0, 1, 9]]))
    with pytest.raises(DatasetError, match="1 edge with an end out of range"):
        load(folder)
    (folder / "edge_weight.npy").write_bytes(b"hello")
    with pytest.raises(DatasetError, match="edge_weight.npy: no readable .npy file"):
        load(folder)


def test_bad_weights_are_not_saved(tmp_path: Path) -> None:
    data = load("synth-arxiv-tiny")
    data.edge_weight = torch.full((data.num_edges,), torch.nan)
    with pytest.raises(DatasetError, match="the weight of edge 0 is nan"):
        save_folder(data, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
