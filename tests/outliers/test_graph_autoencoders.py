"""DOMINANT, CONAD, GCNAE, GUIDE, AnomalyDAE and GAAN against their formulas, and on graphs that break libraries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import GCN as PyGGCN

from graphlossy.outliers._checks import Graph, prepare
from graphlossy.outliers._deep import DeepDetector
from graphlossy.outliers._layers import GCN
from graphlossy.outliers.methods.anomalydae import AnomalyDAE
from graphlossy.outliers.methods.conad import CONAD, augment
from graphlossy.outliers.methods.dominant import DOMINANT
from graphlossy.outliers.methods.gaan import GAAN
from graphlossy.outliers.methods.gcnae import GCNAE
from graphlossy.outliers.methods.guide import GUIDE, _AttentionLayer

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = [DOMINANT, CONAD, GCNAE, GUIDE, AnomalyDAE, GAAN]


def planted(n: int = 300, f: int = 16) -> tuple[Data, Tensor, Tensor]:
    """Four blocks whose features lie near their centre; nodes 0-9 form a clique, nodes 10-19 have far features."""
    generator = torch.Generator().manual_seed(0)
    block = torch.arange(n) % 4
    same = block[:, None] == block[None, :]
    edges = (torch.rand(n, n, generator=generator) < torch.where(same, 0.03, 0.002)).nonzero().t()
    clique = torch.cartesian_prod(torch.arange(10), torch.arange(10)).t()
    edges = torch.cat([edges, edges.flip(0), clique[:, clique[0] != clique[1]]], 1)
    x = torch.randn(4, f, generator=generator)[block] + 0.1 * torch.randn(n, f, generator=generator)
    x[10:20] = 3 * torch.randn(10, f, generator=generator)
    return Data(x=x, edge_index=edges), torch.arange(10), torch.arange(10, 20)


def auc(score: Tensor, outliers: Tensor) -> float:
    """The share of (outlier, other of nodes 20 and up) pairs that are in order."""
    return float((score[outliers][:, None] > score[20:][None, :]).float().mean())


@pytest.mark.parametrize(
    ("method", "options", "structural", "contextual"),
    [
        (DOMINANT, {}, 0.95, 0.9),
        (DOMINANT, {"structure": "sampled", "samples": 100}, 0.95, 0.9),
        (CONAD, {"m": 10}, 0.95, 0.9),
        (GCNAE, {}, None, 0.95),
        (GUIDE, {}, 0.95, None),
        (AnomalyDAE, {"theta": 10.0}, None, 0.95),
        (GAAN, {}, None, 0.95),
    ],
)
def test_planted_outliers_are_found(
    method: type[DeepDetector], options: dict[str, Any], structural: float | None, contextual: float | None
) -> None:
    data, clique, far = planted()
    score = method(hid_dim=16, epoch=60, lr=0.01, seed=0, **options).fit(data).decision_score_
    for least, nodes in ((structural, clique), (contextual, far)):
        assert least is None or auc(score, nodes) >= least


@pytest.mark.parametrize("method", ALL)
def test_odd_graphs_are_no_obstacle(method: type[DeepDetector]) -> None:
    x = torch.rand(8, 4)
    x[5] = 0
    loops = torch.tensor([[0, 0, 0, 1, 2, 2], [0, 1, 1, 2, 2, 0]])  # self loops, duplicates; nodes 3-7 alone
    graphs = [
        Data(x=x, edge_index=loops),
        Data(x=x, edge_index=torch.empty(2, 0, dtype=torch.long)),
        Data(x=torch.zeros(8, 4), edge_index=loops),
        Data(x=torch.ones(2, 1), edge_index=torch.tensor([[0], [1]])),
    ]
    for data in graphs:
        first, again = (method(hid_dim=4, epoch=4, seed=1).fit(data).decision_score_ for _ in range(2))
        assert first.shape == (data.num_nodes,) and bool(torch.isfinite(first).all())
        assert torch.equal(first, again)


@pytest.mark.parametrize("method", ALL)
def test_two_bits_keep_the_ranking(method: type[DeepDetector]) -> None:
    data, _, _ = planted()
    ranks = []
    for bits in (None, 2):
        detector = method(hid_dim=32, epoch=15, seed=0, bits=bits).fit(data)
        ranks.append(detector.decision_score_.argsort().argsort().float())
    assert float(torch.corrcoef(torch.stack(ranks))[0, 1]) > 0.85
    assert detector.saved_bytes_ < detector.plain_bytes_


@pytest.mark.parametrize("method", ALL)
def test_what_the_benchmark_asks_of_a_method(method: type[DeepDetector]) -> None:
    for dataset in ("inj_cora", "books", "another"):
        assert set(method.search_space(dataset)) <= set(method.parameter_names())
        method(**{name: values[-1] for name, values in method.search_space(dataset).items()})
        method(**method.fixed(dataset))
    assert method.paper and method.memory and method.title and method.seeded


@pytest.mark.parametrize("method", [DOMINANT, CONAD, GCNAE, GUIDE, GAAN])
def test_the_same_graph_is_scored_again(method: type[DeepDetector]) -> None:
    data, _, _ = planted(100)
    detector = method(hid_dim=8, epoch=3, seed=0).fit(data)
    smaller, _, _ = planted(60)
    assert detector.decision_function(smaller).shape == (60,)
    again = detector.decision_function(data)
    assert torch.equal(again, detector.decision_function(data)) and torch.isfinite(again).all()


@pytest.mark.parametrize("method", [DOMINANT, AnomalyDAE])
def test_a_sampled_structure_does_not_blur_the_ranking(method: type[DeepDetector], monkeypatch: Any) -> None:
    """The scores of the same weights agree: they are taken with many columns, however few each epoch draws."""

    def correlation() -> float:
        sampled, dense = (
            method(epoch=2, lr=1e-7, hid_dim=8, seed=0, structure=form, samples=8)
            .fit(data)
            .decision_score_.argsort()
            .argsort()
            for form in ("sampled", "dense")
        )
        return float(torch.corrcoef(torch.stack([sampled, dense]).double())[0, 1])

    data = planted()[0]
    assert correlation() > 0.9995
    monkeypatch.setattr("graphlossy.outliers._deep._SCORED", 1)
    assert correlation() < 0.998


def test_anomalydae_is_transductive() -> None:
    data, _, _ = planted(60)
    detector = AnomalyDAE(hid_dim=8, epoch=2, seed=0).fit(data)
    with pytest.warns(UserWarning, match="AnomalyDAE is transductive"):
        assert torch.equal(detector.decision_function(data), detector.decision_score_)


@pytest.mark.parametrize("directed", [False, True])
def test_convolutions_are_pygs(directed: bool) -> None:
    edges = torch.randint(20, (2, 60))
    graph = prepare(Data(x=torch.rand(20, 6), edge_index=edges if directed else torch.cat([edges, edges.flip(0)], 1)))
    for out, layers in ((4, 3), (9, 1)):
        theirs = PyGGCN(6, 5, num_layers=layers, out_channels=out, dropout=0.0)
        ours = GCN(6, 5, out, layers, 0.0)
        for a, b in zip(ours.layers, theirs.convs, strict=True):
            a.weight.data.copy_(b.lin.weight.data)
            a.bias.data.copy_(b.bias.data.normal_())
        torch.testing.assert_close(ours(graph.x, graph.gcn_adjacency), theirs(graph.x, graph.edge_index))
    assert GCN(6, 5, 5, 0, 0.0)(graph.x, graph.gcn_adjacency) is graph.x


def test_dominants_score_is_the_papers() -> None:
    data, _, _ = planted(40)
    graph, detector = prepare(data), DOMINANT(hid_dim=8, weight=0.3)
    module = detector._build(graph)
    detector.losses_ = []
    score, loss = detector._loss(module, graph)
    _, rebuilt, z = module(graph)
    attributes = (graph.x - rebuilt).norm(dim=1)
    structure = (graph.dense_adjacency() - z @ z.t()).norm(dim=1)
    torch.testing.assert_close(score, 0.3 * attributes + 0.7 * structure)
    torch.testing.assert_close(loss, score.mean())


def test_the_three_forms_train_alike() -> None:
    data, _, _ = planted(80)
    runs = {
        structure: DOMINANT(hid_dim=8, epoch=10, seed=0, structure=structure, samples=80).fit(data).decision_score_
        for structure in ("exact", "dense", "sampled")
    }
    torch.testing.assert_close(runs["exact"], runs["dense"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(runs["sampled"], runs["dense"], rtol=1e-4, atol=1e-4)
    sampled, dense = (
        AnomalyDAE(hid_dim=8, epoch=10, seed=0, structure=s, samples=80, theta=10, eta=3).fit(data).decision_score_
        for s in ("sampled", "dense")
    )
    torch.testing.assert_close(sampled, dense, rtol=1e-4, atol=1e-4)


def test_anomalydaes_score_is_the_papers() -> None:
    data, _, _ = planted(40)
    graph, detector = prepare(data), AnomalyDAE(hid_dim=8, alpha=0.2, theta=9, eta=3)
    module = detector._build(graph)
    detector.losses_ = []
    score, _ = detector._loss(module, graph)
    z, rebuilt = module(graph, graph.x.t())
    dense = graph.dense_adjacency()
    on_features = torch.where(graph.x > 0, 0.75, 0.25)
    on_edges = torch.where(dense > 0, 0.9, 0.1)
    features = ((graph.x - rebuilt).square() * on_features).sum(1).sqrt()
    edges = ((dense - (z @ z.t()).sigmoid()).square() * on_edges).sum(1).sqrt()
    torch.testing.assert_close(score, 0.8 * features + 0.2 * edges)


def test_gaans_score_and_steps_are_on_the_edges() -> None:
    data, _, _ = planted(40)
    graph, detector = prepare(data), GAAN(hid_dim=8, weight=0.4)
    torch.manual_seed(0)
    module = detector._build(graph)
    made, z = torch.rand_like(graph.x), module.encoder(graph.x)
    products = (z @ z.t())[graph.edge_index[0], graph.edge_index[1]]
    score = detector._errors(graph, made, products)
    belief = (z @ z.t()).sigmoid()
    doubt = (graph.dense_adjacency() * -belief.log()).sum(1).sqrt()
    torch.testing.assert_close(score, 0.4 * (graph.x - made).norm(dim=1) + 0.6 * doubt)
    # The generator's step leaves the encoder alone, and the other way round.
    detector.losses_, detector._counted, detector._ledgers = [], True, []
    generator = [p.clone() for p in module.generator.parameters()]
    encoder = [p.clone() for p in module.encoder.parameters()]
    adams = detector._optimizers(module)
    detector._step(module, graph, (adams[0], torch.optim.SGD(module.encoder.parameters(), lr=0.0)))
    assert all(torch.equal(a, b) for a, b in zip(encoder, module.encoder.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(generator, module.generator.parameters(), strict=True))


def test_guides_attention_attends_to_differences() -> None:
    data, _, _ = planted(30)
    graph, detector = prepare(data), GUIDE()
    detector._count_motifs(graph)
    layer, s = _AttentionLayer(5, 3, None), torch.randn(30, 5)
    message = layer.other(s)
    reach = ((graph.dense_adjacency().t() + torch.eye(30)) > 0).float()  # rows are targets
    logit = ((message[:, None] - message[None]) @ layer.attention).masked_fill(reach == 0, -torch.inf)
    expected = layer.own(s) + logit.softmax(1) @ message
    found = layer(s, detector._looped)
    torch.testing.assert_close(found, expected)
    weight, trained = torch.randn(30, 3), list(layer.parameters())
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), trained),
        torch.autograd.grad((expected * weight).sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    huge = layer(1e4 * s, detector._looped)
    assert bool(torch.isfinite(huge).all())


def test_guide_keeps_nothing_for_an_edge() -> None:
    x, few, many = torch.rand(200, 8), torch.randint(200, (2, 400)), torch.randint(200, (2, 8000))
    sparse, dense = (GUIDE(epoch=2, hid_dim=8, seed=0, bits=2).fit(Data(x=x, edge_index=e)) for e in (few, many))
    assert sparse.saved_bytes_ == dense.saved_bytes_


def test_conad_without_contrast_is_dominant() -> None:
    data, _, _ = planted(60)
    options = {"hid_dim": 8, "epoch": 5, "seed": 2}
    dominant, conad = DOMINANT(**options).fit(data), CONAD(eta=1, **options).fit(data)
    assert torch.equal(dominant.decision_score_, conad.decision_score_)
    assert not torch.equal(dominant.decision_score_, CONAD(eta=0.5, **options).fit(data).decision_score_)


def test_the_contrast_pulls_and_pushes() -> None:
    """eta = 0: the embeddings of the changed nodes must move away, those of the others come closer."""
    data, _, _ = planted(200)
    graph = prepare(data)
    losses = CONAD(hid_dim=8, epoch=40, eta=0.0, m=10, lr=0.01, seed=0).fit(data).losses_
    assert losses[-1] < 0.8 * losses[0]
    detector = CONAD(hid_dim=8, epoch=40, eta=0.0, m=10, margin=1.0, lr=0.01, seed=0).fit(data)
    changed, which = augment(graph, 0.4, 10, 50, 10.0)
    encoder = detector.model_.encoder
    with torch.no_grad():
        before, after = encoder(graph.x, graph.gcn_adjacency), encoder(changed.x, changed.gcn_adjacency)
    distance = (before - after).norm(dim=1)
    assert float(distance[which].mean()) > 1.3 * float(distance[~which].mean())


def test_each_kind_of_change_is_made_to_its_share() -> None:
    graph = Graph(torch.rand(4000, 3) + 1, torch.randint(4000, (2, 40000)).unique(dim=1), 4000)
    x, edges = graph.x.clone(), graph.edge_index.clone()
    changed, which = augment(graph, 0.4, 30, 10, 10.0)
    assert torch.equal(graph.x, x) and torch.equal(graph.edge_index, edges)
    assert float(which.float().mean()) == pytest.approx(0.4, abs=0.03)
    ratio = changed.x[:, 0] / x[:, 0]
    scaled = (ratio > 9.9) | (ratio < 0.101)
    moved = (changed.x != x).any(1) & ~scaled
    # Every tenth node has lost its edges; no node had none before.
    alone = changed.undirected.degrees == 0
    hubs = changed.degrees > 28 + graph.undirected.degrees
    for kind in (scaled, moved, alone):
        assert float(kind.float().mean()) == pytest.approx(0.1, abs=0.02)
        assert bool(which[kind].all())
    assert bool(which[hubs].all())
    assert float(changed.degrees[which & ~scaled & ~moved & ~alone].float().mean()) > 30
    assert 0.4 < float((ratio[scaled] > 1).float().mean()) < 0.6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DOMINANT(weight=1.5), "weight must be at least 0 and at most 1"),
        (lambda: DOMINANT(structure="full"), "structure must be one of .*'exact', 'dense', 'sampled'.*'full'"),
        (lambda: AnomalyDAE(structure="exact"), "no exact form"),
        (lambda: GCNAE(num_layers=1), "num_layers must be at least 2"),
        (lambda: GUIDE(hid_s=0), "hid_s must be at least 1"),
        (lambda: GAAN(noise_dim=0), "noise_dim must be at least 1"),
        (lambda: CONAD(m=0), "m must be at least 1"),
        (lambda: CONAD(f=0), "f must be more than 0"),
        (lambda: AnomalyDAE(theta=-1), "theta must be at least 0"),
    ],
)
def test_arguments_of_the_methods_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_attention_survives_large_counts() -> None:
    """Motif degrees of a clique of 40 nodes reach 9,000; exp of their products must not overflow."""
    clique = torch.cartesian_prod(torch.arange(40), torch.arange(40)).t()
    data = Data(x=torch.rand(60, 4), edge_index=clique[:, clique[0] != clique[1]])
    detector = GUIDE(hid_dim=4, epoch=3, seed=0).fit(data)
    assert float(detector._motifs.max()) == 9139 and bool(torch.isfinite(detector.decision_score_).all())
    assert F.relu(detector.decision_score_).gt(0).all()
