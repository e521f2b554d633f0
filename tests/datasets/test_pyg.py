"""Graphs read through PyTorch Geometric's classes, from files laid where it keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from graphlossy.datasets import DatasetError, load
from graphlossy.datasets._pyg import PYG


def test_a_graph_with_splits_of_its_own(heterophilous, tmp_path: Path) -> None:
    raw = tmp_path / "tolokers" / "raw"
    raw.mkdir(parents=True)
    arrays = heterophilous(classes=2)
    np.savez_compressed(raw / "tolokers.npz", **arrays)
    data = load("tolokers", root=tmp_path, split=None)
    assert (data.name, data.metric, data.num_classes) == ("Tolokers", "rocauc", 2)
    assert data.num_nodes == 30 and data.num_edges == 2 * 29
    assert np.array_equal(data.train_mask.numpy(), arrays["train_masks"].T)
    assert torch.equal(load("tolokers", root=tmp_path, split=3).test_mask, data.test_mask[:, 3])


def test_a_graph_without_a_split(attributed, tmp_path: Path) -> None:
    raw = tmp_path / "Photo" / "raw"
    raw.mkdir(parents=True)
    np.savez_compressed(raw / "amazon_electronics_photo.npz", **attributed())
    data = load("Amazon-Photo", root=tmp_path)
    assert data.num_classes == 3 and int(data.train_mask.sum()) == 60 and int(data.val_mask.sum()) == 90


def test_one_test_mask_for_all_splits(tmp_path: Path) -> None:
    raw = tmp_path / "WikiCS" / "raw"
    raw.mkdir(parents=True)
    nodes = 12
    masks = [[i % 3 == part for i in range(nodes)] for part in range(3)]
    content = {
        "features": np.eye(nodes, 4).tolist(),
        "labels": [i % 2 for i in range(nodes)],
        "links": [[(i + 1) % nodes] for i in range(nodes)],
        "train_masks": [masks[0]] * 20, "val_masks": [masks[1]] * 20, "stopping_masks": [masks[1]] * 20,
        "test_mask": masks[2],
    }  # fmt: skip
    (raw / "data.json").write_text(json.dumps(content))
    data = load("WikiCS", root=tmp_path, split=None)
    assert data.train_mask.shape == data.test_mask.shape == (nodes, 20)
    assert bool((data.test_mask[:, 0] == data.test_mask[:, 19]).all())


def test_every_name_is_a_class_of_pyg() -> None:
    from torch_geometric import datasets

    assert [kind for kind, _, _ in PYG.values() if not hasattr(datasets, kind)] == []


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_geometric.datasets import Flickr

    def fail(self: Flickr) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(Flickr, "download", fail)
    with pytest.raises(
        DatasetError, match=r"^Flickr: .*Flickr could not download or read it \(no route to host\); look"
    ):
        load("flickr", root=tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # PyG leaves the file open
def test_a_damaged_file(tmp_path: Path) -> None:
    raw = tmp_path / "tolokers" / "raw"
    raw.mkdir(parents=True)
    (raw / "tolokers.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DatasetError, match="Tolokers: .* could not download or read it"):
        load("Tolokers", root=tmp_path)
