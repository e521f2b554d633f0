"""Generated graphs: sizes kept exactly, the same for the same seed, and as hard as they are meant to be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.datasets import DatasetError, check_data, load
from graphlossy.datasets.synthetic import PRESETS, BlockModel, dc_sbm, random_graph

TENSORS = ("x", "edge_index", "y", "train_mask", "val_mask", "test_mask")


def homophily(data) -> float:
    source, target = data.edge_index
    return (data.y[source] == data.y[target]).double().mean().item()


def test_tiny_preset() -> None:
    data = load("synth-arxiv-tiny")
    model = PRESETS["synth-arxiv-tiny"]
    assert (data.num_nodes, data.num_edges) == (model.num_nodes, 2 * model.num_edges)
    assert (data.num_features, data.num_classes, data.metric) == (model.num_features, model.num_classes, "accuracy")
    assert data.is_undirected() and data.is_coalesced() and not data.has_self_loops()


def test_same_seed_same_graph() -> None:
    for make in (
        lambda seed: load("synth-arxiv-tiny", seed=seed),
        lambda seed: dc_sbm("synth-arxiv-tiny", seed=seed),
        lambda seed: random_graph(300, 900, 4, 3, seed=seed),
    ):
        first, again, other = make(3), make(3), make(4)
        for name in TENSORS:
            assert first[name].equal(again[name])
            assert not first[name].equal(other[name])
    direct, loaded = dc_sbm("synth-arxiv-tiny", seed=3), load("synth-arxiv-tiny", seed=3)
    assert all(direct[name].equal(loaded[name]) for name in TENSORS)


def test_torch_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    load("synth-arxiv-tiny")
    random_graph(50, 60, 2, 2)
    assert torch.get_rng_state().equal(before)


@given(
    nodes=st.integers(20, 300), degree=st.integers(1, 4), classes=st.integers(1, 8), features=st.integers(1, 6),
    homophily=st.floats(0, 0.9), hard=st.floats(0, 0.9), seed=st.integers(0, 2**40),
)  # fmt: skip
def test_block_model_keeps_its_sizes(nodes, degree, classes, features, homophily, hard, seed) -> None:
    model = BlockModel(
        nodes, nodes * degree, classes, features, weight_cap=5.0, homophily=homophily, hard=hard, class_skew=0.3
    )
    data = dc_sbm(model, seed=seed)
    check_data(data)
    assert (data.num_nodes, data.num_edges, data.num_features) == (nodes, 2 * nodes * degree, features)
    assert data.num_classes == classes
    assert data.is_undirected() and data.is_coalesced() and not data.has_self_loops()


@given(nodes=st.integers(2, 200), classes=st.integers(1, 2), seed=st.integers(0, 2**40))
def test_random_graph_keeps_its_sizes(nodes, classes, seed) -> None:
    edges = max(1, nodes * (nodes - 1) // 8)
    data = random_graph(nodes, edges, 3, classes, seed=seed)
    assert (data.num_nodes, data.num_edges, data.num_features, data.num_classes) == (nodes, 2 * edges, 3, classes)
    assert data.is_undirected() and data.is_coalesced() and not data.has_self_loops()


def test_chunks_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    import graphlossy.datasets._block_model as module

    monkeypatch.setattr(module, "_CHUNK", 512)
    data = dc_sbm("synth-arxiv-tiny", num_nodes=3000, num_features=50)  # rows 0 to 80, 81 to 161, ...
    check_data(data)
    assert data.num_edges == 20_000
    spread = data.x.std(1)
    assert spread.min() > 0.5 and spread.max() < 2  # every row was filled
    assert len(data.x.unique(dim=0)) == 3000


def test_parameters_do_what_they_say() -> None:
    # Light tails: where hubs meet often, duplicates inside the blocks fall out and lower the homophily.
    base = BlockModel(4000, 30_000, 8, 16, hard=0.0, class_skew=0.0, signal=3.0, weight_cap=30.0)
    easy = dc_sbm(base)
    assert homophily(easy) == pytest.approx(0.87 + 0.13 / 8, abs=0.03)
    assert homophily(dc_sbm(base, homophily=0.0)) == pytest.approx(1 / 8, abs=0.03)
    assert homophily(dc_sbm(base, hard=0.5)) < homophily(easy) - 0.2
    sizes = torch.bincount(easy.y)
    assert sizes.max() < 1.3 * sizes.min()
    skewed = torch.bincount(dc_sbm(base, class_skew=1.5).y)
    assert skewed[0] > 5 * skewed[-1]
    centre = torch.stack([easy.x[easy.y == label].mean(0) for label in range(8)])
    assert (torch.cdist(easy.x, centre).argmin(1) == easy.y).double().mean() > 0.99
    noise = dc_sbm(base, signal=0.0)
    assert abs(float(noise.x.mean())) < 0.02 and float(noise.x.std()) == pytest.approx(1, abs=0.02)
    flat = torch.bincount(dc_sbm(base, weight_cap=1.0).edge_index[0])
    assert torch.bincount(easy.edge_index[0]).max() > 4 * flat.max()


def test_hard_nodes_bound_what_can_be_learnt() -> None:
    data = dc_sbm(BlockModel(4000, 30_000, 8, 16, hard=0.4, class_skew=0.0, signal=5.0))
    centre = torch.stack([data.x[data.y == label].median(0).values for label in range(8)])
    share = (torch.cdist(data.x, centre).argmin(1) == data.y).double().mean().item()
    assert share == pytest.approx(0.6 + 0.4 / 8, abs=0.04)


def test_random_graph_has_hubs_at_random_places() -> None:
    degree = torch.bincount(random_graph(5000, 30_000, 2, 2).edge_index[0], minlength=5000).double()
    assert degree.max() > 15 * degree.mean()
    rank = degree.argsort(descending=True)[:200].double()
    assert 2000 < rank.mean() < 3000


@pytest.mark.slow
def test_arxiv_preset_has_the_statistics_it_documents() -> None:
    data = load("synth-arxiv")
    degree = torch.bincount(data.edge_index[0], minlength=data.num_nodes).double()
    assert (data.name, data.num_nodes, data.num_edges, data.num_classes) == ("synth-arxiv", 169_343, 2_315_598, 40)
    assert [int(mask.sum()) for mask in (data.train_mask, data.val_mask, data.test_mask)] == [90_941, 29_799, 48_603]
    assert degree.mean() == pytest.approx(13.67, abs=0.01) and degree.median() == 6
    assert 3_000 < degree.max() < 10_000
    assert homophily(data) == pytest.approx(0.609, abs=0.005)
    assert torch.bincount(data.y).max() / data.num_nodes == pytest.approx(0.166, abs=0.005)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_nodes": 1}, "num_nodes must be at least 2, got 1"),
        ({"num_nodes": 10.5}, "num_nodes must be a whole number, got 10.5"),
        ({"num_edges": 10**9}, "num_edges must be at most 1124250, the pairs of 1500 nodes, got 1000000000"),
        ({"num_classes": 1501}, "num_classes must be at most num_nodes = 1500"),
        ({"homophily": 1.5}, "homophily must be from 0 to 1, got 1.5"),
        ({"pareto": 1.0}, "pareto must be over 1, got 1.0"),
        ({"weight_cap": float("nan")}, "weight_cap must be at least 1, got nan"),
        ({"hard": 1.0}, "hard must be at least 0 and below 1, got 1.0"),
        ({"signal": -1.0}, "signal must be at least 0"),
        ({"homofily": 0.5}, "dc_sbm has no parameter 'homofily'; the model's are num_nodes, .*homophily"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"preset": "synth"}, "preset must be 'synth-arxiv' or 'synth-arxiv-tiny' or 'synth-products' or a BlockModel"),
    ],
)
def test_block_model_errors(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dc_sbm(**{"preset": "synth-arxiv-tiny", **changes})


def test_random_graph_errors() -> None:
    with pytest.raises(ValueError, match="num_edges must be at most 45, the pairs of 10 nodes, got 46"):
        random_graph(10, 46, 2, 2)
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
        random_graph(10, 5, 0, 2)
    with pytest.raises(ValueError, match="num_classes must be at most num_nodes = 10, got 11"):
        random_graph(10, 5, 2, 11)


def test_edges_that_cannot_be_placed() -> None:
    with pytest.raises(DatasetError, match="num_edges = 4950 cannot be placed: after .* ask for fewer edges"):
        dc_sbm("synth-arxiv-tiny", num_nodes=100, num_edges=4950, homophily=1.0, hard=0.0)
