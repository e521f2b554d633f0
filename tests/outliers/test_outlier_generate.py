"""Generated graphs at any scale, and the leak of injected outliers."""

from __future__ import annotations

import tracemalloc

import pytest
import torch
from torch_geometric.data import Data

from graphlossy.datasets import DatasetError, load
from graphlossy.outliers.data import types
from graphlossy.outliers.generate import generate
from graphlossy.outliers.injection import inject
from graphlossy.outliers.leak import leak_report, model_free_scores


@pytest.mark.parametrize("nodes", [100, 1_000, 5_000])
def test_size_degree_and_shares(nodes: int) -> None:
    data = generate(nodes, seed=0, kind="leakfree")
    assert (data.num_nodes, data.num_features, data.num_edges) == (nodes, 64, 5 * nodes)
    assert data.is_undirected()
    shares = {name: int(mask.sum()) / nodes for name, mask in types(data).items()}
    assert shares == pytest.approx({"contextual": 0.025, "structural": 0.025}, rel=0.25)


def test_arguments_shape_the_graph() -> None:
    data = generate(400, num_features=7, mean_degree=12, num_classes=3, share=0.3, kind="leakfree", seed=1)
    assert (data.num_features, data.num_edges) == (7, 400 * 12)
    assert 0.25 <= int((data.y > 0).sum()) / 400 <= 0.3


def test_seeds() -> None:
    first, again, other = generate(200, seed=0), generate(200, seed=0), generate(200, seed=1)
    assert all(torch.equal(first[key], again[key]) for key in ("x", "edge_index", "y"))
    assert not torch.equal(first.x, other.x)
    torch.manual_seed(3)
    drawn = generate(200)
    torch.manual_seed(3)
    assert torch.equal(generate(200).x, drawn.x)


def test_features_follow_the_edges() -> None:
    """Neighbours are alike, which is what makes a node that is not an outlier."""
    data = generate(2_000, seed=0, kind="leakfree")
    unit = torch.nn.functional.normalize(data.x)
    source, target = data.edge_index
    neighbours = (unit[source] * unit[target]).sum(1)
    strangers = (unit[source] * unit[torch.randperm(len(target)) % 2_000]).sum(1)
    assert neighbours.mean() > 3 * strangers.mean().abs()


def test_memory_grows_linearly() -> None:
    peaks = []
    for nodes in (4_000, 16_000):
        tracemalloc.start()
        generate(nodes, num_features=16, seed=0, kind="leakfree")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 6 * peaks[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_nodes": 99}, "num_nodes must be at least 100"),
        ({"num_nodes": 200, "mean_degree": 100}, "mean_degree must be at least 0.01 and at most 49.75, got 100"),
        ({"num_nodes": 200, "num_features": 0}, "num_features must be at least 1"),
        ({"num_nodes": 200, "num_classes": 201}, "num_classes must be at most num_nodes"),
        ({"num_nodes": 200, "kind": "none"}, "kind must be"),
    ],
)
def test_what_cannot_be_generated(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(**arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def wordnet() -> Data:
    return load("wordnet-verbs")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_published_injection_leaks(wordnet: Data, seed: int) -> None:
    """Without a model: cliques by their degree, distant rows by their norm, and copied rows by being copies."""
    report = leak_report(inject(wordnet, "published", seed=seed))
    assert report["structural"]["degree"] > 0.9
    assert report["contextual"]["norm"] > 0.95
    assert report["contextual"]["copies"] > 0.95
    assert report["all"]["maxrank"] > 0.88


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_leak_free_injection_does_not(wordnet: Data, seed: int) -> None:
    report = leak_report(inject(wordnet, "leakfree", seed=seed))
    assert set(report) == {"all", "contextual", "structural"}
    assert all(set(rows) == {"degree", "norm", "maxrank", "copies"} for rows in report.values())
    assert all(abs(auc - 0.5) < 0.05 for rows in report.values() for auc in rows.values()), report
    assert abs(report["structural"]["degree"] - 0.5) < 0.01
    assert abs(report["contextual"]["norm"] - 0.5) < 0.01


def test_the_scores_by_hand() -> None:
    x = torch.tensor([[0.0, 1], [3, 4], [0, 1], [0, 2]])
    data = Data(x=x, edge_index=torch.tensor([[0, 0, 0, 1, 1], [1, 2, 2, 0, 1]]), y=torch.tensor([1, 0, 1, 0]))
    scores = {name: score.tolist() for name, score in model_free_scores(data).items()}
    assert scores["degree"] == [2, 1, 1, 0]
    assert scores["norm"] == [1, 5, 1, 2]
    assert scores["maxrank"] == [1.0, 1.0, 0.625, 0.75]  # ranks 4, 4, 2.5 and 3 of 4
    assert scores["copies"] == [1, 0, 1, 0]
    assert leak_report(data) == {"all": {"degree": 0.875, "norm": 0.0, "maxrank": 0.375, "copies": 1.0}}


def test_without_labels_there_is_no_report() -> None:
    with pytest.raises(DatasetError, match="has no labels of outliers"):
        leak_report(Data(x=torch.ones(3, 1), edge_index=torch.tensor([[0], [1]])))
