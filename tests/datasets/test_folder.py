"""The folder layout: round trips, memory mapping, files written by hand, and damage."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data

from graphlossy.datasets import DatasetError, load, save_folder
from graphlossy.datasets._assemble import assemble
from graphlossy.datasets._folder import read_folder

TENSORS = ("x", "edge_index", "y", "train_mask", "val_mask", "test_mask")


@st.composite
def graphs(draw: st.DrawFn) -> Data:
    nodes, features = draw(st.integers(2, 12)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    edges = torch.randint(nodes, (2, draw(st.integers(0, 30))), generator=generator)
    edges = torch.cat([edges, edges.flip(0)], 1)[:, (edges[0] != edges[1]).repeat(2)].unique(dim=1)
    splits = draw(st.sampled_from([(), (1,), (3,)]))
    part = torch.randint(-1, 3, (nodes, *splits), generator=generator)
    part[0] = 0
    if draw(st.booleans()):
        y, classes = torch.randint(min(nodes, 4), (nodes,), generator=generator), min(nodes, 4)
        metric = "rocauc" if sorted(set(y.tolist())) == [0, 1] and draw(st.booleans()) else "accuracy"
    else:
        y, classes, metric = torch.randint(2, (nodes, 2), generator=generator).float(), 2, "rocauc"
        y[0, 1] = float("nan")
    return Data(
        x=torch.randn(nodes, features, generator=generator), edge_index=edges, y=y, num_classes=classes,
        train_mask=part == 0, val_mask=part == 1, test_mask=part == 2, metric=metric,
        name=draw(st.text(min_size=1, max_size=8)),
    )  # fmt: skip


@given(data=graphs())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, data: Data) -> None:
    folder = save_folder(data, tmp_path_factory.mktemp("graph"))
    again = load(folder, split=None if data.train_mask.dim() == 2 else 0)
    for name in TENSORS:
        assert again[name].dtype == data[name].dtype
        torch.testing.assert_close(again[name], data[name], rtol=0, atol=0, equal_nan=True)
    for name in ("name", "num_classes", "metric"):
        assert again[name] == data[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_folder(load("synth-arxiv-tiny"), tmp_path / "deep" / "tiny")


def test_arrays_stay_on_disk(folder: Path) -> None:
    arrays = read_folder(folder)
    data = assemble(arrays, 0, 0)
    for mapped, tensor in ((arrays.x, data.x), (arrays.edges, data.edge_index), (arrays.y, data.y)):
        assert isinstance(mapped, np.memmap)
        assert np.shares_memory(mapped, tensor.numpy())


def test_writing_to_the_tensor_leaves_the_file(folder: Path) -> None:
    data = load(folder)
    before = data.x.clone()
    data.x.zero_()
    assert load(folder).x.equal(before)


def test_a_file_mapped_by_another_graph_can_be_saved_elsewhere(folder: Path, tmp_path: Path) -> None:
    assert load(save_folder(load(folder), tmp_path / "copy")).x.equal(load(folder).x)


def test_files_written_by_hand(tmp_path: Path) -> None:
    np.save(tmp_path / "edge_index.npy", np.array([[0, 1, 1, 2], [1, 2, 2, 2]], np.uint16))
    np.save(tmp_path / "x.npy", np.asfortranarray(np.arange(12).reshape(4, 3)))
    np.save(tmp_path / "y.npy", np.array([[0.0], [1.0], [1.0], [0.0]]))
    data = load(tmp_path)
    assert data.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert data.x.tolist() == np.arange(12.0).reshape(4, 3).tolist()
    assert (data.name, data.num_classes, data.metric) == (tmp_path.name, 1, "rocauc") or data.y.dim() == 1
    assert int(data.train_mask.sum()) == 2 and int(data.val_mask.sum()) == 1 and int(data.test_mask.sum()) == 1


def test_split_numbers(folder: Path) -> None:
    with pytest.raises(DatasetError, match="there is no split 1; it has one split, 0"):
        load(folder, split=1)
    (folder / "split.npy").unlink()
    drawn = load(folder, split=None)
    assert drawn.train_mask.shape == (1500, 10)
    assert drawn.train_mask.sum(0).tolist() == [900] * 10
    assert load(folder, split=3).test_mask.equal(drawn.test_mask[:, 3])
    with pytest.raises(DatasetError, match="no split 10; its 10 splits are 0 to 9"):
        load(folder, split=10)


@pytest.mark.parametrize("name", ["edge_index", "x", "y"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text", "pickled", "archive"])
def test_damage(folder: Path, name: str, damage: str) -> None:
    file = folder / f"{name}.npy"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "pickled":
        np.save(file, np.array([{}], dtype=object))
    elif damage == "archive":
        with open(file, "wb") as stream:
            np.savez(stream, a=np.zeros(3))
    else:
        file.write_bytes({"empty": b"", "truncated": content[:-9], "text": b"hello, world"}[damage])
    message = (
        f"{name}.npy missing" if damage == "missing" else f"{name}.npy: (no readable .npy file|is an .npz archive)"
    )
    with pytest.raises(DatasetError, match=message):
        load(folder)


def test_bad_split_file(folder: Path) -> None:
    np.save(folder / "split.npy", np.full(1500, 3, np.int8))
    with pytest.raises(DatasetError, match=r"split.npy: must hold the whole numbers 0 \(training\)"):
        load(folder)
    np.save(folder / "split.npy", np.full(1499, 0, np.int8))
    with pytest.raises(DatasetError, match=r"train_mask has shape \[1499\]"):
        load(folder)
    np.save(folder / "split.npy", np.full(1500, 2, np.int8))
    with pytest.raises(DatasetError, match="there are no training nodes"):
        load(folder)


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '{"classes": 3}', '{"num_classes": 0}', '{"metric": "f1"}', '{"name": 5}', '{"num_classes": true}'],
)
def test_bad_meta_file(folder: Path, text: str) -> None:
    (folder / "meta.json").write_text(text)
    with pytest.raises(DatasetError, match="meta.json: (cannot be read as JSON|must be an object with any of name)"):
        load(folder)


def test_declared_classes_bound_the_labels(folder: Path) -> None:
    (folder / "meta.json").write_text(json.dumps({"num_classes": 4}))
    with pytest.raises(DatasetError, match=r"labels must go from 0 to 3 \(there are 4 classes\)"):
        load(folder)
    (folder / "meta.json").write_text(json.dumps({"num_classes": 40}))
    assert load(folder).num_classes == 40


def test_a_folder_without_a_graph(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no graph; a folder needs edge_index.npy, x.npy and y.npy"):
        load(tmp_path)


def test_nothing_is_overwritten_and_nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("synth-arxiv-tiny")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("words")
    with pytest.raises(DatasetError, match="exists already and is no empty folder"):
        save_folder(data, tmp_path / "full")
    with pytest.raises(DatasetError, match="exists already and is no empty folder"):
        save_folder(data, tmp_path / "full" / "thesis.txt")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(DatasetError, match=r"new: cannot be written \(No space left on device\)"):
        save_folder(data, tmp_path / "new")
    assert os.listdir(tmp_path) == ["full"]


def test_bad_data_are_not_saved(tmp_path: Path) -> None:
    data = load("synth-arxiv-tiny")
    data.y[0] = -1
    with pytest.raises(DatasetError, match="1 label out of range"):
        save_folder(data, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("labels", "metric", "words"),
    [
        ([0, 0, 0, 0], "rocauc", "the labels go from 0 to 0; it needs two classes, 0 and 1"),
        ([1, 1, 1, 1], "rocauc", "the labels go from 1 to 1"),
        ([0, 1, 2, 1], "rocauc", "the labels go from 0 to 2"),
        (
            [[0, 1], [1, 0], [1, 1], [0, 0]],
            "accuracy",
            r"shape \[4, 2\]; labels of several tasks are scored by 'rocauc'",
        ),
    ],
)
def test_a_metric_that_does_not_suit_the_labels(tmp_path: Path, labels: list, metric: str, words: str) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 2), np.float32))
    np.save(tmp_path / "edge_index.npy", np.array([[0, 1], [1, 2]]))
    np.save(tmp_path / "y.npy", np.array(labels))
    (tmp_path / "meta.json").write_text(json.dumps({"metric": metric}))
    with pytest.raises(DatasetError, match=words):
        load(tmp_path)
