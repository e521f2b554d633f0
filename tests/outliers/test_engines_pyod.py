"""PyOD's detectors behind our interface; skipped where it is not installed."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Data

pytest.importorskip("pyod")

from graphlossy.outliers import engines  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def data() -> Data:
    """A ring of 24 with chords, hence triangles; the last node has no edge."""
    ring = torch.arange(23)
    edges = torch.cat([torch.stack([ring, (ring + step) % 23]) for step in (1, 2)], 1)
    return Data(x=torch.rand(24, 6), edge_index=torch.cat([edges, edges.flip(0), edges[:, :3]], 1))


def fitted(method: str, data: Data, seed: int = 0, **params: object) -> torch.Tensor:
    few = {} if method in ("scan", "lof", "if") else {"max_iter" if method == "radar" else "epoch": 3}
    return engines.make("pyod", method, {**few, **params}, seed).fit(data).decision_score_


@pytest.mark.parametrize("method", engines.METHODS["pyod"])
def test_runs_seeded(method: str, data: Data) -> None:
    before, state = data.clone(), torch.get_rng_state()
    first = fitted(method, data)
    assert first.shape == (24,) and first.dtype == torch.float32 and bool(torch.isfinite(first).all())
    assert torch.equal(first, fitted(method, data)) and torch.equal(state, torch.get_rng_state())
    if method not in ("scan", "radar", "anomalous", "lof"):
        assert not torch.equal(first, fitted(method, data, seed=1))
    assert data.keys() == before.keys() and all(torch.equal(data[key], before[key]) for key in data.keys())


def test_lof_is_ours(data: Data) -> None:
    """A node counts among its own neighbours in both."""
    ours = engines.make("native", "lof", {"n_neighbors": 5}).fit(data).decision_score_
    torch.testing.assert_close(fitted("lof", data, n_neighbors=5), ours)


def test_the_forest_finds_what_ours_finds() -> None:
    x = torch.randn(300, 4)
    x[:6] += 8
    data = Data(x=x, edge_index=torch.tensor([[0], [1]]))
    for detector in (engines.make(name, "if", seed=0).fit(data) for name in ("native", "pyod")):
        assert set(detector.decision_score_.topk(6).indices.tolist()) == set(range(6))


def test_guide_says_that_it_needs_triangles() -> None:
    with pytest.raises(ValueError, match="no triangles"):
        fitted("guide", Data(x=torch.rand(3, 2), edge_index=torch.tensor([[0, 1], [1, 2]])))


def test_the_weight_of_the_structure_is_what_ours_leaves_to_it(data: Data) -> None:
    detector = engines.make("pyod", "dominant", {"weight": 0.8, "weight_decay": 0.1}, seed=0)
    assert detector.arguments == {"alpha": pytest.approx(0.2)} and detector.dropped == ("weight_decay",)
