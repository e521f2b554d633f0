"""DONE and AdONE: the linear form against the dense one, and the closed form of the outlier shares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

from graphlossy.autograd import CSRGraph
from graphlossy.outliers._checks import Graph, prepare
from graphlossy.outliers.methods import DONE, AdONE
from graphlossy.outliers.methods._neighbors import neighbor_distance
from graphlossy.outliers.methods.done import TwoAutoencoders

pytestmark = pytest.mark.usefixtures("one_thread")


def example(nodes: int = 20, features: int = 6, seed: int = 0) -> Graph:
    """A directed graph with a self loop and an isolated last node."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(nodes - 1, (2, 3 * nodes), generator=generator)
    edges = torch.cat([edges, torch.tensor([[2], [2]])], 1)
    return prepare(Data(x=torch.rand(nodes, features, generator=generator), edge_index=edges))


def test_neighbour_distance_is_the_mean_over_arriving_edges() -> None:
    graph = example()
    h = (torch.randn(20, 3) + 100).requires_grad_()  # far from 0: the terms are large, the distances small
    a = graph.dense_adjacency().t()
    expected = (a * torch.cdist(h.double(), h.double()).square()).sum(1) / a.sum(1).clamp(min=1)
    found = neighbor_distance(CSRGraph(graph.edge_index, num_dst=20), h)
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-4)
    weight = torch.randn(20)
    (got,) = torch.autograd.grad(found @ weight, h)
    (want,) = torch.autograd.grad(expected @ weight.double(), h)
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layers", [2, 3, 4, 5])
def test_linear_and_dense_forms_agree_with_all_gradients(layers: int) -> None:
    graph = example()
    torch.manual_seed(1)
    exact = TwoAutoencoders(graph, 4, layers, 0.0, dense=False)
    dense = TwoAutoencoders(graph, 4, layers, 0.0, dense=True)
    dense.load_state_dict(exact.state_dict())
    found, expected = exact(graph), dense(graph)
    for got, want in zip(found, expected, strict=True):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)
    weights = torch.rand(20)
    for out in (found, expected):
        sum((part @ weights for part in out[2:]), out[0].square().sum()).backward()
    for (name, got), want in zip(exact.named_parameters(), dense.parameters(), strict=True):
        assert torch.allclose(got.grad, want.grad, rtol=1e-3, atol=1e-4), name


def test_structure_error_is_that_of_the_rows_an_mlp_would_write() -> None:
    graph = example()
    net = TwoAutoencoders(graph, 4, 4, 0.0, dense=False)
    rows = graph.dense_adjacency()
    written = net.output(net.decode_rows(net.encode_rows(net.input(rows))))
    net.zero_grad()
    assert torch.allclose(net(graph)[3], (rows - written).square().sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls", [DONE, AdONE])
def test_first_scores_agree_between_the_forms(cls: type[DONE]) -> None:
    graph = example()
    exact, dense = (cls(epoch=1, hid_dim=4, seed=5, structure=form).fit(graph) for form in ("exact", "dense"))
    assert torch.allclose(exact.decision_score_, dense.decision_score_, rtol=1e-4, atol=1e-6)


def flowing(parts: list[Tensor], w5: float) -> Tensor:
    """DONE's loss with gradients through the shares, as PyGOD writes it."""
    weights = (1.0, 1.0, w5)
    return sum(
        w * ((part / part.sum()).reciprocal().log() * part).mean() for w, part in zip(weights, parts, strict=True)
    )


def test_constant_shares_have_the_gradient_of_flowing_ones() -> None:
    graph, detector = example(), DONE(hid_dim=4, w5=0.3)
    torch.manual_seed(2)
    net = TwoAutoencoders(graph, 4, 4, 0.0, dense=True)
    _, loss = detector._loss(net, graph)
    constant = torch.autograd.grad(loss, list(net.parameters()))
    torch.manual_seed(2)
    net = TwoAutoencoders(graph, 4, 4, 0.0, dense=True)
    h_x, h_s, *errors = net(graph)
    total = flowing([*detector._proximity(*errors), (h_x - h_s).square().sum(1)], 0.3)
    assert float(loss.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    for a, b in zip(constant, torch.autograd.grad(total, list(net.parameters())), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cls", [DONE, AdONE])
@pytest.mark.parametrize("options", [{}, {"bits": 2}, {"dropout": 0.3, "weight_decay": 0.01}, {"num_layers": 2}])
def test_scores_are_shares_and_reproducible(cls: type[DONE], options: dict[str, object]) -> None:
    graph = example()
    one, two = (cls(epoch=5, hid_dim=8, seed=1, **options).fit(graph) for _ in range(2))
    assert torch.equal(one.decision_score_, two.decision_score_)
    assert one.losses_ == two.losses_
    for share in (one.structural_score_, one.attribute_score_, one.combined_score_):
        assert float(share.sum()) == pytest.approx(1, rel=1e-4)
        assert bool((share >= 0).all())
    other = cls(epoch=5, hid_dim=8, seed=2, **options).fit(graph)
    assert not torch.equal(one.decision_score_, other.decision_score_)


@pytest.mark.parametrize("cls", [DONE, AdONE])
def test_training_lowers_the_loss_and_compression_saves(cls: type[DONE]) -> None:
    graph = example(300, 16)
    plain, small = (cls(epoch=30, lr=0.01, seed=0, bits=bits).fit(graph) for bits in (None, 2))
    for detector in (plain, small):
        assert detector.losses_[-1] < 0.5 * detector.losses_[0]
    assert plain.saved_bytes_ == plain.plain_bytes_
    assert small.saved_bytes_ < small.plain_bytes_ / 2


@pytest.mark.parametrize("cls", [DONE, AdONE])
def test_a_planted_outlier_stands_out(cls: type[DONE]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(80, 8, generator=generator) * 0.1
    x[7] = 3 * torch.rand(8, generator=generator)
    ring = torch.stack([torch.arange(80), (torch.arange(80) + 1) % 80])
    found = cls(epoch=60, lr=0.01, seed=0).fit(Data(x=x, edge_index=torch.cat([ring, ring.flip(0)], 1)))
    assert 7 in found.decision_score_.topk(3).indices.tolist()


@pytest.mark.parametrize("cls", [DONE, AdONE])
def test_no_edges_isolated_nodes_and_one_node(cls: type[DONE]) -> None:
    empty = torch.empty(2, 0, dtype=torch.long)
    assert bool(cls(epoch=3).fit(Data(x=torch.rand(5, 2), edge_index=empty)).decision_score_.isfinite().all())
    with pytest.raises(ValueError, match="must have at least 2, it has 1"):
        cls(epoch=3).fit(Data(x=torch.rand(1, 2), edge_index=empty))


@pytest.mark.parametrize("cls", [DONE, AdONE])
def test_another_graph_is_fitted_anew_with_a_warning(cls: type[DONE]) -> None:
    detector = cls(epoch=2, hid_dim=4, seed=0).fit(example())
    with pytest.warns(UserWarning, match="is transductive"):
        assert detector.decision_function(example(30)).shape == (30,)
    assert detector.decision_score_.shape == (20,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"w2": -1}, "w2 must be at least 0"),
        ({"structure": "sampled"}, "structure must be one of .*'exact', 'dense'.*got 'sampled'"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DONE(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_layers must be at least 2"):
        DONE(num_layers=1).fit(example())
