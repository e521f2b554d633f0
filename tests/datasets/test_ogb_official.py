"""What this package reads and scores is what OGB's own loader and evaluator give."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphlossy.datasets import _ogb_evaluate, load, ogb_evaluate, write_ogb
from graphlossy.datasets._ogb_download import import_ogb
from graphlossy.train._metrics import accuracy, roc_auc

if importlib.util.find_spec("ogb") is None:
    pytest.skip("ogb is not installed", allow_module_level=True)

_spec = importlib.util.spec_from_file_location("ogb_fakes", Path(__file__).with_name("ogb_fakes.py"))
fakes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fakes)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what ogb prints and warns of."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield


def official(name: str, root: Path) -> tuple[dict[str, Any], np.ndarray, dict[str, np.ndarray]]:
    """Graph, labels and split by ``ogb``; the first time in a root, as the second fails under torch 2.6 and newer."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        dataset = import_ogb("ogb.nodeproppred.dataset").NodePropPredDataset(name, str(root))
        return *dataset[0], dataset.get_idx_split()


@pytest.fixture(autouse=True)
def _no_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))


def compare(ours: Any, name: str, root: Path) -> None:
    graph, labels, split = official(name, root)
    nodes = graph["num_nodes"]
    assert ours.num_nodes == nodes
    source, target = graph["edge_index"]
    there = {(a, b) for a, b in zip(source.tolist(), target.tolist(), strict=True) if a != b}
    there |= {(b, a) for a, b in there}
    assert sorted(there) == list(zip(*ours.edge_index.tolist(), strict=True))
    if graph["node_feat"] is not None:
        np.testing.assert_array_equal(ours.x.numpy(), graph["node_feat"])
    else:  # the mean over the edges of each node, as OGB's references compute it
        total, degree = np.zeros((nodes, 8)), np.bincount(source, minlength=nodes)[:, None]
        np.add.at(total, source, graph["edge_feat"])
        np.testing.assert_allclose(ours.x.numpy(), total / np.maximum(degree, 1), rtol=1e-6)
        values = dict(zip(zip(source.tolist(), target.tolist(), strict=True), graph["edge_feat"].tolist(), strict=True))
        expected = [values[ends] for ends in zip(*ours.edge_index.tolist(), strict=True)]
        np.testing.assert_array_equal(ours.edge_attr.numpy(), np.array(expected, np.float32))
    if labels.shape[1] > 1:
        np.testing.assert_array_equal(ours.y.numpy(), labels)
    else:
        known = np.isfinite(labels[:, 0])
        np.testing.assert_array_equal(ours.y.numpy()[known], labels[known, 0])
    for mask, part in (("train_mask", "train"), ("val_mask", "valid"), ("test_mask", "test")):
        assert ours[mask].nonzero()[:, 0].tolist() == sorted(split[part].tolist())
    for key in ("node_year", "node_species"):
        assert (key in graph) == (key in ours)
        if key in graph:
            assert ours[key].tolist() == graph[key].tolist() and ours[key].dtype == torch.int64


@pytest.mark.parametrize("name", ["ogbn-arxiv", "ogbn-products", "ogbn-proteins", "ogbn-papers100M"])
def test_the_same_as_ogb_reads(tmp_path: Path, name: str) -> None:
    fakes.fake_ogb(tmp_path, name)
    ours = load(name, root=tmp_path, edge_features=name == "ogbn-proteins")
    compare(ours, name, tmp_path)


@pytest.mark.parametrize(
    ("name", "scale"), [("synth-arxiv", 0.005), ("synth-proteins", 0.006), ("synth-papers100M", 1e-5)]
)
def test_ogb_reads_what_is_written(tmp_path: Path, name: str, scale: float) -> None:
    weighed = name == "synth-proteins"
    folder = write_ogb(name, tmp_path, scale, seed=3, official_name=True)
    original = name.replace("synth", "ogbn")
    assert folder == tmp_path / original.replace("-", "_")
    ours = load(name, root=tmp_path / "elsewhere", scale=scale, seed=3, edge_features=weighed)
    compare(ours, original, tmp_path)


def test_ogb_saver_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.RandomState(0)
    graph = {
        "edge_index": rng.randint(50, size=(2, 200)), "num_nodes": 50, "node_feat": rng.randn(50, 3).astype("f4"),
        "node_kind": rng.randint(3, size=(50, 1)),
    }  # fmt: skip
    label = rng.randint(4, size=(50, 1))
    split = dict(zip(("train", "valid", "test"), np.split(rng.permutation(50), [20, 30]), strict=True))
    (tmp_path / "mapping").mkdir()
    (tmp_path / "mapping" / "README.md").write_text("none")
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        saver = import_ogb("ogb.io.save_dataset").DatasetSaver("ogbn-mine", False, 1, str(tmp_path / "out"))
        saver.save_graph_list([graph])
        saver.save_target_labels(label)
        saver.save_split(split, "random")
    data = load(saver.dataset_dir)
    assert (data.name, data.synthetic, data.num_nodes, data.num_classes) == ("mine", False, 50, 4)
    assert data.x.tolist() == graph["node_feat"].tolist() and data.y.tolist() == label[:, 0].tolist()
    assert data.node_kind.tolist() == graph["node_kind"].tolist()
    assert data.test_mask.nonzero()[:, 0].tolist() == sorted(split["test"].tolist())


@given(seed=st.integers(0, 1000), nodes=st.integers(2, 60))
def test_accuracy_is_the_evaluators(seed: int, nodes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, y = torch.randn(nodes, 5, generator=generator), torch.randint(5, (nodes,), generator=generator)
    expected = ogb_evaluate("ogbn-arxiv", y, scores.argmax(1))
    assert accuracy(scores, y) == pytest.approx(expected, abs=1e-12)
    assert _ogb_evaluate._own("accuracy", y.numpy()[:, None], scores.argmax(1).numpy()[:, None]) == expected


@settings(max_examples=6)  # scikit-learn takes a quarter of a second for the 112 tasks
@given(seed=st.integers(0, 1000), nodes=st.integers(5, 40), ties=st.booleans())
def test_roc_auc_is_the_evaluators(seed: int, nodes: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(nodes, 112, generator=generator)
    scores = scores.round() if ties else scores
    y = torch.randint(2, (nodes, 112), generator=generator).float()
    y[torch.rand(nodes, 112, generator=generator) < 0.1] = float("nan")
    y[:, 3] = 1  # a task of one label is left out
    y[0, :2], y[1, :2], y[2:, 2] = 0, 1, float("nan")
    expected = ogb_evaluate("synth-proteins", y, scores)
    assert roc_auc(scores, y) == pytest.approx(expected, abs=1e-12)
    assert _ogb_evaluate._own("rocauc", y.numpy(), scores.numpy()) == pytest.approx(expected, abs=1e-12)


def test_evaluation_without_ogb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    y = np.array([0, 1, 2, 2])
    assert ogb_evaluate("ogbn-products", y, np.array([0, 1, 2, 0])) == 0.75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Cora", [0], [0]), "name must be a data set of an OGB leaderboard, ogbn-arxiv, .*got 'Cora'"),
        (("ogbn-arxiv", [0, 1], [0]), r"must both be \[nodes, 1\] for ogbn-arxiv, got \[2, 1\], \[1, 1\]"),
        (("ogbn-proteins", np.zeros((3, 4)), np.zeros((3, 4))), r"must both be \[nodes, 112\] for ogbn-proteins"),
        (("ogbn-proteins", np.zeros((3, 112)), np.zeros((3, 112))), "a task with both 0 and 1 in it; it has none"),
    ],
)
def test_evaluation_errors(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ogb_evaluate(*arguments)
