"""Statistics against their definitions, in pieces of any size, and within bounded memory."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data

from graphlossy.datasets import DatasetError, _statistics, load
from graphlossy.datasets._statistics import degree_counts, statistics


@st.composite
def graphs(draw: st.DrawFn) -> Data:
    """Any edges between up to 150 nodes, labels of which some are missing, features of which some are zero."""
    nodes, seed = draw(st.integers(1, 150)), draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(nodes, (2, draw(st.integers(0, 300))), generator=generator)
    edges[1] = torch.where(torch.rand(edges.shape[1], generator=generator) < 0.3, edges[1] // 3, edges[1])
    y = torch.randint(draw(st.sampled_from([0, -1])), draw(st.integers(1, 5)), (nodes,), generator=generator)
    x = torch.randn(nodes, draw(st.integers(1, 7)), generator=generator).relu()
    part = torch.randint(-1, 3, (nodes,), generator=generator)
    y[-1], part[-1] = 1, -1  # so that the labels outside the splits are no mere stand-ins
    return Data(x=x, edge_index=edges, y=y, train_mask=part == 0, val_mask=part == 1, test_mask=part == 2)


def by_definition(data: Data) -> dict[str, Any]:
    """Edge by edge and node by node."""
    nodes, pairs, y = data.num_nodes, data.edge_index.T.tolist(), data.y.tolist()
    degree = sorted(Counter(source for source, _ in pairs).get(node, 0) for node in range(nodes))
    known = [(a, b) for a, b in pairs if y[a] >= 0 and y[b] >= 0]
    h = sum(y[a] == y[b] for a, b in known) / len(known) if known else None
    ends = Counter(y[a] for a, _ in known)
    chance = sum((count / len(known)) ** 2 for count in ends.values()) if known else 1
    adjusted = (h - chance) / (1 - chance) if h is not None and chance < 1 else None
    top = degree[-max(1, nodes // 100) :]
    return {
        "loops": sum(a == b for a, b in pairs),
        "degrees": (
            len(pairs) / nodes, *(degree[math.ceil(share * nodes) - 1] for share in (0.5, 0.9, 0.99)), degree[-1],
            degree.count(0), sum(top) / len(pairs) if pairs else 0,
        ),
        "homophily": (h, adjusted),
        "sizes": [y.count(label) for label in range(max(max(y), 0) + 1)],
        "unknown": sum(label < 0 for label in y),
    }  # fmt: skip


@given(data=graphs(), chunk=st.sampled_from([1, 7, 64, 1 << 22]))
def test_equal_to_the_definitions(data: Data, chunk: int) -> None:
    before, _statistics._CHUNK = _statistics._CHUNK, chunk
    try:
        found, counts = statistics(data), degree_counts(data)
    finally:
        _statistics._CHUNK = before
    expected = by_definition(data)
    assert (found.nodes, found.edges, found.self_loops) == (data.num_nodes, data.num_edges, expected["loops"])
    degrees = found.degrees
    ours = (degrees.mean, degrees.median, degrees.p90, degrees.p99, degrees.max, degrees.isolated, degrees.top_share)
    assert ours == pytest.approx(expected["degrees"])
    assert int(counts.sum()) == data.num_nodes and int((counts * np.arange(len(counts))).sum()) == data.num_edges
    assert (found.labels.homophily, found.labels.adjusted_homophily) == pytest.approx(expected["homophily"])
    assert list(found.labels.sizes) == expected["sizes"] and found.labels.unknown == expected["unknown"]
    assert found.features.density == pytest.approx((data.x != 0).float().mean().item())
    assert found.features.mean == pytest.approx(data.x.double().mean().item(), abs=1e-9)
    assert found.features.std == pytest.approx(data.x.double().std(correction=0).item(), abs=1e-6)
    assert found.splits == {name: int(data[name].sum()) for name in ("train_mask", "val_mask", "test_mask")}
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["nodes"] == data.num_nodes


def test_a_star_and_a_lone_node() -> None:
    leaves = 200
    edges = torch.stack([torch.zeros(leaves, dtype=torch.long), torch.arange(1, leaves + 1)])
    data = Data(edge_index=torch.cat([edges, edges.flip(0)], 1), num_nodes=leaves + 2)
    degrees = statistics(data).degrees
    assert (degrees.median, degrees.p99, degrees.max, degrees.isolated) == (1, 1, leaves, 1)
    assert degrees.top_share == (leaves + 1) / (2 * leaves)  # the 1 % of 202 nodes are the centre and one leaf
    found = statistics(data)
    assert found.labels is None and found.features is None and found.splits == {} and found.num_splits == 0


def test_adjusted_homophily_tells_structure_from_class_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(3000, (2, 60_000), generator=generator)
    y = (torch.rand(3000, generator=generator) < 0.1).long()
    labels = statistics(Data(edge_index=torch.cat([edges, edges.flip(0)], 1), y=y, num_nodes=3000)).labels
    assert labels.homophily > 0.8 and abs(labels.adjusted_homophily) < 0.02  # edges at random, one large class
    within = edges[:, y[edges[0]] == y[edges[1]]]
    labels = statistics(Data(edge_index=within, y=y, num_nodes=3000)).labels
    assert labels.homophily == 1 and labels.adjusted_homophily == pytest.approx(1)
    assert labels.largest == pytest.approx(0.9, abs=0.02) and labels.smallest == pytest.approx(0.1, abs=0.02)


def test_labels_that_only_stand_in_are_unknown() -> None:
    data = load("synth-papers100M", scale=1e-4)
    inside = data.train_mask | data.val_mask | data.test_mask
    labels = statistics(data).labels
    assert labels.unknown == int((~inside).sum()) > 0.9 * data.num_nodes and sum(labels.sizes) == int(inside.sum())
    source, target = data.edge_index[:, inside[data.edge_index].all(0)]
    assert labels.homophily == pytest.approx((data.y[source] == data.y[target]).float().mean().item())
    data.y[~inside] += torch.arange(int((~inside).sum())) % 2  # labels of their own, as Planetoid's nodes have
    assert statistics(data).labels.unknown == 0


def test_labels_of_several_tasks() -> None:
    y = torch.tensor([[1.0, 0.0], [float("nan"), 1.0], [0.0, 1.0], [1.0, 1.0]])
    labels = statistics(Data(edge_index=torch.tensor([[0, 1], [1, 0]]), y=y, num_nodes=4)).labels
    assert (labels.classes, labels.sizes, labels.unknown, labels.homophily) == (2, (2, 3), 1, None)
    assert labels.largest == 0.75 and labels.smallest == pytest.approx(2 / 3)


def test_features_that_are_not_finite_are_counted_and_left_out() -> None:
    x = torch.tensor([[1.0, float("nan")], [float("inf"), 3.0], [0.0, 0.0]])
    features = statistics(Data(x=x, edge_index=torch.zeros(2, 0, dtype=torch.long))).features
    assert (features.not_finite, features.mean, features.width) == (2, 1.0, 2) and features.density == 4 / 6


def test_several_splits() -> None:
    data = load("synth-arxiv-tiny")
    first = data.train_mask
    data.train_mask = torch.stack([first, ~first & ~data.val_mask & ~data.test_mask], dim=1)
    found = statistics(data)
    assert found.num_splits == 2 and found.splits["train_mask"] == int(first.sum())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Data(x=torch.ones(3, 1)), r"there is no edge_index \[2, edges\]"),
        (Data(edge_index=torch.zeros(3, 2, dtype=torch.long), num_nodes=3), r"there is no edge_index \[2, edges\]"),
        (Data(edge_index=torch.zeros(2, 0, dtype=torch.long), num_nodes=0), "there are no nodes"),
        (Data(edge_index=torch.tensor([[0], [3]]), num_nodes=3), "an edge's end is out of range; nodes go from 0 to 2"),
        (Data(edge_index=torch.tensor([[-1], [0]]), num_nodes=3), "an edge's end is out of range"),
    ],
)
def test_bad_input(data: Data, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        statistics(data)


def test_memory_does_not_grow_with_the_edges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, edges, width = 1_000, 2_000_000, 64
    file, features = tmp_path / "edge_index.npy", tmp_path / "x.npy"
    np.save(file, np.random.default_rng(0).integers(nodes, size=(2, edges)))
    np.save(features, np.ones((20 * nodes, width), np.float32))
    data = Data(
        edge_index=torch.from_numpy(np.load(file, mmap_mode="c")), y=torch.arange(20 * nodes) % 7,
        x=torch.from_numpy(np.load(features, mmap_mode="c")),
    )  # fmt: skip
    monkeypatch.setattr(_statistics, "_CHUNK", 1 << 14)

    def peak() -> int:
        tracemalloc.start()
        try:
            assert statistics(data).degrees.mean == edges / (20 * nodes)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak() < 3 << 20 < file.stat().st_size / 10
    monkeypatch.setattr(_statistics, "_CHUNK", edges)  # the same as a whole is found out by this test
    assert peak() > 8 << 20
