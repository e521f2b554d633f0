"""The embedded graph is what its documentation says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import graphlossy.datasets._wordnet as module
from graphlossy.datasets import DatasetError, load


def test_facts() -> None:
    data = load("wordnet-verbs")
    source, target = data.edge_index
    degree = torch.bincount(source, minlength=data.num_nodes)
    assert (data.num_nodes, data.num_edges, data.num_features) == (13_767, 2 * 15_653, 512)
    assert (data.num_classes, data.metric) == (15, "accuracy")
    assert data.is_undirected() and data.is_coalesced() and not data.has_self_loops()
    assert (int(degree.max()), int((degree == 0).sum())) == (402, 100)
    assert (data.y[source] == data.y[target]).double().mean().item() == pytest.approx(0.8575, abs=5e-5)
    assert torch.bincount(data.y).tolist() == [
        547, 2383, 695, 1548, 459, 243, 2196, 694, 343, 1408, 461, 847, 1106, 756, 81
    ]  # fmt: skip
    assert int((data.x != 0).sum()) == 81_172
    assert (data.x >= 0).all() and (data.x == data.x.round()).all() and (data.x.sum(1) > 0).all()


def test_splits() -> None:
    every = load("wordnet-verbs", split=None)
    assert every.train_mask.shape == (13_767, 10)
    assert every.train_mask.sum(0).tolist() == [8260] * 10
    assert every.val_mask.sum(0).tolist() == [2753] * 10
    assert (every.train_mask.int() + every.val_mask.int() + every.test_mask.int() == 1).all()
    assert not every.train_mask[:, 0].equal(every.train_mask[:, 1])
    assert load("wordnet-verbs", split=7).test_mask.equal(every.test_mask[:, 7])
    assert not load("wordnet-verbs", seed=1).test_mask.equal(load("wordnet-verbs").test_mask)


def test_split_zero_never_changes() -> None:
    """Accuracies that were written down stay comparable."""
    rows = load("wordnet-verbs").train_mask.nonzero().squeeze(1)
    assert rows[:8].tolist() == [0, 3, 5, 7, 10, 14, 15, 16]
    assert int(rows.sum()) == 56_692_894


def test_licence_lies_beside_the_data() -> None:
    notice = (module.FILE.parent / "WORDNET_LICENSE").read_text()
    assert notice.startswith("This software and database is being provided to you, the LICENSEE, by")
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in notice
    assert notice.endswith("Princeton University and LICENSEE agrees to preserve same.\n")
    assert module.FILE.stat().st_size < 200_000


def test_a_damaged_installation_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = module.FILE.read_bytes()
    monkeypatch.setattr(module, "FILE", tmp_path / "wordnet_verbs.npz")
    with pytest.raises(DatasetError, match="wordnet_verbs.npz: cannot be opened .No such file"):
        load("wordnet-verbs")
    module.FILE.write_bytes(content[:5000] + b"damage" + content[5006:])
    with pytest.raises(DatasetError, match="wordnet_verbs.npz: cannot be read .*; install graphlossy again"):
        load("wordnet-verbs")


def test_the_graph_tells_more_than_the_words() -> None:
    """A vote of the labelled neighbours beats the largest class by far: the edges carry the labels."""
    data = load("wordnet-verbs")
    votes = torch.zeros(data.num_nodes, data.num_classes)
    source, target = data.edge_index[:, data.train_mask[data.edge_index[0]]]
    votes.index_put_((target, data.y[source]), torch.ones(len(source)), accumulate=True)
    share = (votes.argmax(1) == data.y)[data.test_mask].double().mean().item()
    largest = float(np.bincount(data.y[data.test_mask]).max() / int(data.test_mask.sum()))
    assert share > 3 * largest
