"""Radar and ANOMALOUS against dense forms, and the sparse pieces that they are made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

from graphlossy.outliers._checks import Graph, prepare
from graphlossy.outliers.methods import ANOMALOUS, Radar
from graphlossy.outliers.methods._features import Features
from graphlossy.outliers.methods._laplacian import Laplacian
from graphlossy.outliers.methods.radar import inverse_beside_identity

pytestmark = pytest.mark.usefixtures("one_thread")


def example(nodes: int = 24, features: int = 5, seed: int = 0) -> Graph:
    """A directed graph with a self loop, a duplicate and an isolated last node."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(nodes - 1, (2, 3 * nodes), generator=generator)
    edges = torch.cat([edges, torch.tensor([[0, 1], [0, 2]]), edges[:, :1]], 1)
    return prepare(Data(x=torch.randn(nodes, features, generator=generator), edge_index=edges))


def dense_laplacian(graph: Graph) -> Tensor:
    a = graph.dense_adjacency().double()
    a = torch.maximum(a, a.t())
    return torch.diag(a.sum(1)) - a


def test_laplacian_product_and_solution_are_the_dense_ones() -> None:
    graph = example()
    dense, laplacian = dense_laplacian(graph), Laplacian(graph)
    x = graph.x.double()
    assert torch.allclose(laplacian @ x, dense @ x)
    diagonal = torch.rand(graph.num_nodes, dtype=torch.float64) + 0.01
    for gamma in (0.0, 0.3, 100.0):
        expected = torch.linalg.solve(torch.diag(diagonal) + gamma * dense, x)
        assert torch.allclose(laplacian.solve(diagonal, gamma, x), expected, rtol=1e-7, atol=1e-9)


def test_solve_takes_zero_columns_and_many_columns() -> None:
    graph = example(features=150)
    x = graph.x.double()
    x[:, 3] = 0
    found = Laplacian(graph).solve(torch.ones(graph.num_nodes), 1.0, x)
    expected = torch.linalg.solve(torch.eye(graph.num_nodes, dtype=torch.float64) + dense_laplacian(graph), x)
    assert torch.allclose(found, expected, atol=1e-8)
    assert bool((found[:, 3] == 0).all())


def test_solve_says_when_it_fails() -> None:
    no_solution = torch.zeros(24)  # L alone is singular, and b is not orthogonal to the constant vector
    with pytest.raises(FloatingPointError, match="conjugate gradients did not reach the relative residual 1e-10 in"):
        Laplacian(example()).solve(no_solution, 1.0, torch.ones(24, 2))


@pytest.mark.parametrize("share", [0.05, 0.9])
def test_feature_products(share: float) -> None:
    x = torch.randn(30, 20) * (torch.rand(30, 20) < share)
    features = Features(x)
    assert (features.sparse is not None) == (share < 0.1)
    a, b, c, d = torch.randn(20, 4), torch.randn(30, 4), torch.randn(4, 30), torch.randn(4, 20)
    assert torch.allclose(features.times(a), x @ a, atol=1e-5)
    assert torch.allclose(features.transposed_times(b), x.t() @ b, atol=1e-5)
    assert torch.allclose(features.before(c), c @ x, atol=1e-5)
    assert torch.allclose(features.before_transposed(d), d @ x.t(), atol=1e-5)


def dense_radar(graph: Graph, alpha: float, beta: float, gamma: float, steps: int) -> tuple[Tensor, list[float]]:
    """The paper's alternation with its [N, N] inverses."""
    x, laplacian = graph.x.double(), dense_laplacian(graph)
    eye = torch.eye(graph.num_nodes, dtype=torch.float64)
    r = torch.linalg.inv((1 + beta) * eye + gamma * laplacian) @ x
    d_w, losses = eye, []
    for _ in range(steps):
        w = torch.linalg.inv(x @ x.t() + alpha * d_w) @ (x @ x.t() - x @ r.t())
        d_w = torch.diag(0.5 / w.norm(dim=1))
        r = torch.linalg.inv(eye + beta * torch.diag(0.5 / r.norm(dim=1)) + gamma * laplacian) @ (x - w.t() @ x)
        loss = (x - w.t() @ x - r).square().sum() + gamma * (r.t() @ laplacian @ r).trace()
        losses.append(float(loss + alpha * w.norm(dim=1).sum() + beta * r.norm(dim=1).sum()))
    return r, losses


@pytest.mark.parametrize(("nodes", "features"), [(24, 5), (12, 30)])
def test_radar_alternates_as_the_dense_form(nodes: int, features: int) -> None:
    graph = example(nodes, features)
    radar = Radar(alpha=0.7, beta=0.4, gamma=0.6, max_iter=8, tolerance=0).fit(graph)
    residual, losses = dense_radar(graph, 0.7, 0.4, 0.6, 8)
    assert torch.allclose(radar.residual_.double(), residual, rtol=1e-4, atol=1e-6)
    assert radar.losses_ == pytest.approx(losses, rel=1e-6)
    assert torch.allclose(radar.decision_score_.double(), residual.norm(dim=1), rtol=1e-4, atol=1e-6)


def test_radar_lowers_its_objective_and_stops() -> None:
    radar = Radar(max_iter=200, tolerance=1e-3).fit(example())
    assert radar.losses_[-1] < radar.losses_[0]
    assert all(
        after <= before * (1 + 1e-9) for before, after in zip(radar.losses_[1:], radar.losses_[2:], strict=False)
    )
    assert len(radar.losses_) < 200


def with_autograd(graph: Graph, w: Tensor, anomalous: bool, lr: float, steps: int) -> Tensor:
    """The loss of PyGOD's versions under torch.optim.Adam; returns R."""
    x, laplacian = graph.x, dense_laplacian(graph).float()
    r = torch.linalg.inv(torch.eye(graph.num_nodes) + laplacian) @ x
    w, r = (torch.nn.Parameter(t) for t in (w, r))
    adam = torch.optim.Adam([w, r], lr=lr)
    for _ in range(steps):
        explained = x @ w @ x if anomalous else w @ x
        loss = torch.linalg.norm(x - explained - r) + (r.t() @ laplacian @ r).trace()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return r.detach()


def test_radar_by_adam_is_torchs_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphlossy.outliers.methods.radar._ROWS", 7)  # several blocks
    graph = example()
    radar = Radar(solver="adam", beta=0.0, lr=0.01, epoch=15).fit(graph)
    expected = with_autograd(graph, torch.eye(graph.num_nodes), False, 0.01, 15)
    assert torch.allclose(radar.residual_, expected, atol=2e-4)
    assert torch.allclose(radar.decision_score_, expected.square().sum(1), atol=2e-3)


def test_anomalous_is_torchs_adam() -> None:
    graph = example()
    found = ANOMALOUS(lr=0.01, epoch=15, seed=3).fit(graph)
    start = torch.randn(5, 24, generator=torch.Generator().manual_seed(3))
    expected = with_autograd(graph, start, True, 0.01, 15)
    assert torch.allclose(found.residual_, expected, atol=2e-4)
    assert torch.equal(found.decision_score_, ANOMALOUS(lr=0.01, epoch=15, seed=3).fit(graph).decision_score_)
    assert not torch.equal(found.decision_score_, ANOMALOUS(lr=0.01, epoch=15, seed=4).fit(graph).decision_score_)


@pytest.mark.parametrize("detector", [Radar(), Radar(solver="adam", epoch=5), ANOMALOUS(epoch=5)])
def test_hard_graphs_give_finite_scores(detector: Radar | ANOMALOUS) -> None:
    empty = torch.empty(2, 0, dtype=torch.long)
    for x in (torch.randn(6, 3), torch.zeros(6, 3), torch.ones(1, 2)):
        assert bool(detector.fit(Data(x=x, edge_index=empty)).decision_score_.isfinite().all())


def test_radar_takes_equal_columns_of_large_numbers() -> None:
    """Beside their squares the identity is lost, and the matrix to be inverted has no Cholesky factor in float64."""
    graph = example(100, 1)
    times = 1.7e9 + 86_400 * torch.arange(100.0, dtype=torch.float64)
    gram = torch.full((2, 2), float(times.square().sum()), dtype=torch.float64)
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(gram + torch.eye(2))
    half = torch.full((2, 2), 0.5, dtype=torch.float64)  # what is left of I - (1 1^T) g / (1 + 2 g)
    assert torch.allclose(inverse_beside_identity(gram), torch.eye(2) - half, atol=1e-6)
    well = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    assert torch.allclose(inverse_beside_identity(well) @ (well + torch.eye(2)), torch.eye(2, dtype=torch.float64))
    edges = graph.edge_index
    scores = Radar().fit(Data(x=times[:, None].repeat(1, 2).float(), edge_index=edges)).decision_score_
    assert bool(scores.isfinite().all())


def test_progress_is_reported() -> None:
    for detector in (Radar(max_iter=3, tolerance=0), Radar(solver="adam", epoch=3), ANOMALOUS(epoch=3)):
        seen: list[tuple[int, float]] = []
        detector.on_epoch = lambda epoch, loss, seen=seen: seen.append((epoch, loss))
        detector.fit(example())
        assert [epoch for epoch, _ in seen] == [0, 1, 2]
        assert [loss for _, loss in seen] == detector.losses_


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (Radar, {"alpha": 0}, "alpha must be more than 0"),
        (Radar, {"gamma": -1}, "gamma must be at least 0"),
        (Radar, {"solver": "lbfgs"}, "solver must be one of 'alternating', 'adam', got 'lbfgs'"),
        (Radar, {"max_iter": 0}, "max_iter must be at least 1"),
        (ANOMALOUS, {"lr": 0}, "lr must be more than 0"),
        (ANOMALOUS, {"epoch": 0}, "epoch must be at least 1"),
    ],
)
def test_wrong_options(cls: type, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**options)
