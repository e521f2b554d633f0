"""MLPAE, OCGNN and CoLA, the walks that CoLA draws and the batches that they train on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch_geometric.data import Data

from graphlossy.outliers._checks import Graph, prepare
from graphlossy.outliers.methods import MLPAE, OCGNN, CoLA
from graphlossy.outliers.methods._networks import mlp_layers
from graphlossy.outliers.methods._walks import walk_contexts

pytestmark = pytest.mark.usefixtures("one_thread")


def communities(nodes: int = 60, outlier: int = 5, seed: int = 0) -> Data:
    """Two cliques-by-chance with features of their own; one node has those of the other side."""
    generator = torch.Generator().manual_seed(seed)
    side = torch.arange(nodes) % 2
    source, target = torch.randint(nodes, (2, 20 * nodes), generator=generator)
    same = side[source] == side[target]
    x = 0.1 * torch.randn(nodes, 8, generator=generator)
    x[torch.arange(nodes), side] += 1
    x[outlier, :2] = x[outlier, :2].flip(0)
    return Data(x=x, edge_index=torch.stack([source[same], target[same]]))


def test_mlp_layers_are_pygs_mlp() -> None:
    from torch_geometric.nn import MLP

    ours, theirs = nn.Sequential(*mlp_layers([6, 4, 4, 3], 0.0)), MLP([6, 4, 4, 3])
    linear = [m for m in ours if isinstance(m, nn.Linear)]
    for mine, other in zip(linear, theirs.lins, strict=True):
        mine.load_state_dict(other.state_dict())
    x = torch.randn(10, 6)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-6)


def test_mlpae_scores_are_the_errors_of_its_last_pass() -> None:
    data = communities()
    one = MLPAE(epoch=1, hid_dim=4, seed=0).fit(data)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLPAE(hid_dim=4)._build(prepare(data))
    error = (net(data.x) - data.x).square().mean(1).detach()
    assert torch.allclose(one.decision_score_, error, atol=1e-6)
    assert one.losses_ == [pytest.approx(float(error.mean()), rel=1e-5)]
    longer = MLPAE(epoch=60, lr=0.01, seed=0).fit(data)
    assert longer.losses_[-1] < 0.3 * longer.losses_[0]


def test_ocgnn_is_its_equation() -> None:
    data = communities()
    detector = OCGNN(epoch=4, beta=0.3, hid_dim=8, lr=1e-9, seed=0).fit(data)
    module, graph = detector.model_, prepare(data)
    with torch.no_grad():
        embedding = module.network(graph.x, graph.gcn_adjacency)
    # With a step of nearly nothing c is the mean embedding, and r the quantile of the distances from it.
    assert torch.allclose(module.center, embedding.mean(0), atol=2e-3)
    distance = (embedding - module.center).square().sum(1)
    assert float(module.radius) == pytest.approx(float(torch.quantile(distance.sqrt(), 0.7)), rel=1e-4)
    assert torch.allclose(detector.decision_score_, distance, atol=1e-5)
    loss = module.radius**2 + (distance - module.radius**2).relu().mean() / 0.3
    assert detector.losses_[-1] == pytest.approx(float(loss), rel=1e-4)


def test_ocgnn_trains_towards_the_first_centre() -> None:
    """The centre stays, the radius follows: it is that of the last epoch, and the nodes have come nearer."""
    data = communities()
    first, last = (OCGNN(epoch=n, hid_dim=8, lr=0.02, seed=0).fit(data) for n in (1, 60))
    assert torch.equal(first.model_.center, last.model_.center)
    median = last.decision_score_.sqrt().median()
    assert float(last.model_.radius) == pytest.approx(float(median), rel=0.05)
    assert float(median) < 0.8 * float(first.decision_score_.sqrt().median())
    assert last.decision_score_.unique().numel() > 0.9 * data.num_nodes


def test_ocgnn_keeps_small_entries_of_the_centre_away_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, graph = OCGNN(eps=0.5, hid_dim=4), prepare(communities())
    module = detector._build(graph)
    embedding = torch.tensor([[0.1, -0.1, 2.0, 0.0]]).expand(graph.num_nodes, 4)
    monkeypatch.setattr(module.network, "forward", lambda x, adjacency: embedding)
    detector._place(module, graph)
    assert module.center.tolist() == [0.5, -0.5, 2.0, 0.0]
    assert float(module.radius) == pytest.approx(2**0.5 * 0.4)


@given(st.integers(1, 12), st.integers(0, 30), st.integers(1, 5), st.sampled_from([0.0, 0.5, 0.9]), st.integers(0, 99))
def test_walks(nodes: int, edges: int, size: int, restart: float, seed: int) -> None:
    torch.manual_seed(seed)
    data = Data(num_nodes=nodes, edge_index=torch.randint(nodes, (2, edges)))
    graph = prepare(data, needs=("edges",)).without_self_loops.undirected
    targets = torch.randperm(nodes)
    local = walk_contexts(graph, targets, size, restart)
    dense = graph.dense_adjacency()
    reach = torch.linalg.matrix_power(dense + torch.eye(nodes), nodes) > 0
    for row, target in enumerate(targets.tolist()):
        found, valid = local.nodes[row], local.valid[row]
        kept = found[valid].tolist()
        assert int(found[0]) == target and bool(valid[0])
        assert len(set(kept)) == len(kept)
        assert all(bool(reach[target, v]) for v in kept)
        assert bool((found[~valid] == target).all())
        a = dense[kept][:, kept] + torch.eye(len(kept))
        scale = a.sum(1).rsqrt()
        assert torch.allclose(local.adjacency[row][valid][:, valid], scale[:, None] * a * scale, atol=1e-6)
        assert float(local.adjacency[row][~valid].abs().sum() + local.adjacency[row][:, ~valid].abs().sum()) == 0


def test_walks_go_to_every_neighbour_alike_and_fill_their_slots() -> None:
    star = torch.stack([torch.zeros(4, dtype=torch.long), torch.arange(1, 5)])
    graph = prepare(Data(num_nodes=5, edge_index=star), needs=("edges",)).undirected
    local = walk_contexts(graph, torch.zeros(4000, dtype=torch.long), 2, 0.5)
    assert bool(local.valid.all())
    count = torch.bincount(local.nodes[:, 1], minlength=5)
    assert int(count[0]) == 0
    assert bool(((count[1:] - 1000).abs() < 120).all())  # more than four standard deviations


@pytest.mark.parametrize("context", ["walk", "neighborhood"])
def test_cola_learns_and_finds_what_does_not_fit(context: str) -> None:
    data = communities()
    detector = CoLA(context=context, epoch=60, lr=0.02, batch_size=0, num_layers=2, seed=0).fit(data)
    assert detector.losses_[0] == pytest.approx(0.69, abs=0.1)
    if context == "walk":  # the other version has a node's own features in its surroundings
        assert detector.losses_[-1] < 0.6
        assert 5 in detector.decision_score_.topk(6).indices.tolist()


def test_colas_target_is_hidden_from_its_surroundings() -> None:
    data = communities()
    detector = CoLA(epoch=1, seed=0, dropout=0.0).fit(data)
    graph = prepare(data).undirected.without_self_loops
    local = walk_contexts(graph, torch.arange(60), 4, 0.5)
    projected = detector.model_.project(graph.x[local.nodes])
    before = detector.model_.surroundings(projected, local)
    projected[:, 0] += 100
    assert torch.equal(detector.model_.surroundings(projected, local), before)
    projected[:, 1] += 100
    assert not torch.equal(detector.model_.surroundings(projected, local), before)


def test_colas_scores_do_not_depend_on_the_size_of_features() -> None:
    data = communities()
    large = data.clone()
    large.x = data.x * 2.0 ** torch.randint(-3, 20, (data.num_nodes, 1), generator=torch.Generator().manual_seed(0))
    one, other = (CoLA(epoch=5, rounds=3, seed=0).fit(given).decision_score_ for given in (data, large))
    assert torch.equal(one, other) and one.unique().numel() > 1
    large.x[3] = 0
    assert bool(torch.isfinite(CoLA(epoch=2, rounds=2, seed=0).fit(large).decision_score_).all())


def test_colas_activation_is_prelu() -> None:
    module = CoLA()._build(prepare(communities()))
    x = torch.randn(50, requires_grad=True)
    found, expected = module.act(x), torch.nn.functional.prelu(x, module.slope.view(1))
    assert torch.equal(found, expected)
    for a, b in zip(*(torch.autograd.grad(out.sum(), [x, module.slope]) for out in (found, expected)), strict=True):
        assert torch.allclose(a, b)


def test_colas_default_batches() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 2, or 0 for all"):
        CoLA(batch_size=1)  # a node would be told from itself
    assert (CoLA().batch_size, CoLA(context="neighborhood").batch_size, CoLA(batch_size=7).batch_size) == (300, 0, 7)


METHODS = [
    (MLPAE, {}),
    (OCGNN, {}),
    (OCGNN, {"batch_size": 16, "num_neighbors": 3}),
    (CoLA, {"rounds": 3}),
    (CoLA, {"rounds": 3, "batch_size": 59}),  # a last batch of one node is joined to the one before
    (CoLA, {"context": "neighborhood"}),
    (CoLA, {"context": "neighborhood", "batch_size": 16, "num_neighbors": 3}),
]


@pytest.mark.parametrize(("cls", "options"), METHODS)
@pytest.mark.parametrize("more", [{}, {"bits": 2}, {"dropout": 0.3, "weight_decay": 0.01}])
def test_reproducible(cls: type, options: dict[str, object], more: dict[str, object]) -> None:
    data = communities()
    one, two = (cls(epoch=3, hid_dim=8, seed=1, **options, **more).fit(data) for _ in range(2))
    assert torch.equal(one.decision_score_, two.decision_score_)
    assert one.losses_ == two.losses_
    assert not torch.equal(one.decision_score_, cls(epoch=3, hid_dim=8, seed=2, **options).fit(data).decision_score_)
    if "bits" not in more:
        assert 0 < one.saved_bytes_ == one.plain_bytes_


def test_saved_bytes_are_those_of_one_batch() -> None:
    """What a batch saves is freed before the next one: four batches keep no more at a time than one."""
    given = {"epoch": 2, "hid_dim": 16, "rounds": 1, "seed": 0}
    whole, quarter = (CoLA(batch_size=size, **given).fit(communities(800)) for size in (800, 200))
    assert 0.2 * whole.saved_bytes_ < quarter.saved_bytes_ < 0.4 * whole.saved_bytes_


@pytest.mark.parametrize(
    ("cls", "options"), [entry for entry in METHODS if entry != (CoLA, {"rounds": 3, "batch_size": 59})]
)
def test_compression_saves(cls: type, options: dict[str, object]) -> None:
    detector = cls(epoch=2, hid_dim=64, seed=1, bits=2, **{**options, "batch_size": 0} if options else {})
    detector.fit(communities(800))
    assert detector.saved_bytes_ < detector.plain_bytes_ / 2


@pytest.mark.parametrize(("cls", "options"), METHODS)
def test_scores_other_graphs(cls: type, options: dict[str, object]) -> None:
    detector = cls(epoch=3, hid_dim=8, seed=1, **options).fit(communities())
    other = communities(30, seed=3)
    found = detector.decision_function(other)
    assert found.shape == (30,)
    assert torch.equal(found, detector.decision_function(other))
    with pytest.raises(ValueError, match="8 features a node, this graph has 3"):
        detector.decision_function(Data(x=torch.ones(4, 3), edge_index=other.edge_index[:, :0]))


def test_batches_of_an_epoch_share_one_sphere_and_cover_every_node(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    radius = OCGNN._radius

    def spy(self: OCGNN, distance: torch.Tensor) -> torch.Tensor:
        measured.append(len(distance))
        return radius(self, distance)

    monkeypatch.setattr(OCGNN, "_radius", spy)
    detector = OCGNN(epoch=3, batch_size=7, num_neighbors=4, seed=0).fit(communities())
    assert measured == [60] * 4  # before training and after each epoch, from all nodes
    assert bool((detector.decision_score_ >= 0).all())


@pytest.mark.parametrize(("cls", "options"), METHODS)
def test_no_edges_and_one_node(cls: type, options: dict[str, object]) -> None:
    empty = torch.empty(2, 0, dtype=torch.long)
    detector = cls(epoch=2, seed=0, **options)
    assert bool(detector.fit(Data(x=torch.rand(40, 3), edge_index=empty)).decision_score_.isfinite().all())
    if cls is not OCGNN:
        with pytest.raises(ValueError, match="must have at least 2, it has 1"):
            detector.fit(Data(x=torch.rand(1, 3), edge_index=empty))


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (MLPAE, {"dropout": 2}, "dropout must be at least 0 and at most 1"),
        (OCGNN, {"beta": 0}, "beta must be more than 0"),
        (OCGNN, {"num_neighbors": 0}, "num_neighbors must be at least 1, or -1"),
        (CoLA, {"context": "graph"}, "context must be one of 'walk', 'neighborhood', got 'graph'"),
        (CoLA, {"subgraph_size": 1}, "subgraph_size must be at least 2"),
        (CoLA, {"restart": 1.0}, "restart must be below 1"),
        (CoLA, {"rounds": 0}, "rounds must be at least 1"),
    ],
)
def test_wrong_options(cls: type, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**options)


def test_a_loss_that_is_not_finite_says_so() -> None:
    data = communities()
    data.x *= 1e20
    with pytest.raises(FloatingPointError, match="the loss of MLPAE is .* in epoch 1 of 3"):
        MLPAE(epoch=3, seed=0).fit(data)
    assert isinstance(prepare(data), Graph)


@pytest.mark.parametrize("method", [CoLA, OCGNN])
def test_the_benchmarks_draws_leave_a_ranking(method: type) -> None:
    """Under a penalty that outweighs the loss all weights vanish, and with them all differences of the scores."""
    space = {name: values[0] for name, values in method.search_space("any").items() if name != "epoch"}
    score = method(**space, epoch=40, seed=0).fit(communities()).decision_score_
    assert score.unique().numel() > 0.9 * len(score)
