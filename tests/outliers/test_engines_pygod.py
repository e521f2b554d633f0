"""PyGOD's detectors behind our interface: each of its faults that is dealt with; skipped where it is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data

pytest.importorskip("pygod")

from graphlossy.outliers import engines  # noqa: E402
from graphlossy.outliers.engines import pygod  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]
FEW = {"epoch": 3, "hid_dim": 8}
DENSE = ("dominant", "done", "adone", "anomalydae", "gaan", "conad", "radar", "anomalous", "guide")


def few(method: str) -> dict[str, int]:
    return {} if method == "scan" else {"epoch": 3} if method in ("radar", "anomalous") else FEW


@pytest.fixture
def data() -> Data:
    """24 nodes in a ring with chords; 5 and the last two have no edge, 7 has a self loop, one edge is there twice."""
    ring = torch.arange(24)
    edges = torch.cat([torch.stack([ring, (ring + step) % 24]) for step in (1, 2)], 1)
    edges = edges[:, ~torch.isin(edges, torch.tensor([5, 22, 23])).any(0)]
    edges = torch.cat([edges, edges.flip(0), edges[:, :1], torch.tensor([[7], [7]])], 1)
    return Data(x=torch.rand(24, 6), edge_index=edges)


def scores(method: str, data: Data, seed: int = 0, **params: object) -> torch.Tensor:
    return engines.make("pygod", method, {**few(method), **params}, seed).fit(data).decision_score_


@pytest.mark.parametrize("method", engines.METHODS["pygod"])
def test_runs_seeded_on_a_graph_with_every_trap(method: str, data: Data) -> None:
    before, state = data.clone(), torch.get_rng_state()
    first = scores(method, data)
    assert first.shape == (24,) and bool(torch.isfinite(first).all())
    assert torch.equal(first, scores(method, data))
    if method not in ("scan", "radar"):
        assert not torch.equal(first, scores(method, data, seed=1))
    assert torch.equal(state, torch.get_rng_state())
    assert data.keys() == before.keys() and all(torch.equal(data[key], before[key]) for key in data.keys())


def test_nothing_is_patched(data: Data) -> None:
    base = sys.modules["pygod.detector.base"]
    loader, fit = base.NeighborLoader, base.DeepDetector.fit
    scores("dominant", data)
    from torch_geometric.loader import NeighborLoader

    assert base.NeighborLoader is loader is NeighborLoader and base.DeepDetector.fit is fit
    assert fit.__globals__ is vars(base)


def test_a_dropout_of_zero_as_an_int(data: Data) -> None:
    assert torch.equal(scores("mlpae", data, dropout=0), scores("mlpae", data, dropout=0.0))


@pytest.mark.parametrize("method", ["gaan", "dominant"])
def test_duplicate_edges_count_once(method: str, data: Data) -> None:
    once = Data(x=data.x, edge_index=data.edge_index.unique(dim=1))
    assert torch.equal(scores(method, data), scores(method, once))


@pytest.mark.parametrize("method", ["radar", "scan"])
def test_the_place_of_isolated_nodes_does_not_matter(method: str, data: Data) -> None:
    """These two draw nothing, so that nodes in another order have the same scores in that order."""
    order = torch.arange(24).roll(2)
    turned = Data(x=torch.empty_like(data.x), edge_index=order[data.edge_index])
    turned.x[order] = data.x
    assert int(turned.edge_index.max()) == 23 and int(data.edge_index.max()) < 22
    torch.testing.assert_close(scores(method, turned)[order], scores(method, data))


@pytest.mark.parametrize("method", DENSE)
def test_no_edges_are_refused_in_one_line(method: str) -> None:
    with pytest.raises(ValueError, match="takes no graph without edges; engine='native' does"):
        scores(method, Data(x=torch.rand(4, 2), edge_index=torch.empty(2, 0, dtype=torch.long)))


def test_motif_counts_are_not_taken_from_another_graph(
    data: Data, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    other = Data(x=data.x, edge_index=data.edge_index.clone())
    other.edge_index[:, :2], other.edge_index[:, -5:-3] = torch.tensor([[0, 9], [9, 3]]), torch.tensor([[9, 3], [0, 9]])
    assert not torch.equal(scores("guide", data), scores("guide", other))
    assert list(tmp_path.iterdir()) == []


def test_motifs_do_not_see_self_loops(data: Data) -> None:
    plain = Data(x=data.x, edge_index=data.edge_index[:, data.edge_index[0] != data.edge_index[1]])
    assert torch.equal(scores("guide", data), scores("guide", plain))


def test_every_node_in_a_cluster() -> None:
    """SCAN stops with an error of NumPy here."""
    edges = torch.tensor([[i, j] for i in range(5) for j in range(5) if i != j]).T
    assert scores("scan", Data(x=torch.rand(5, 2), edge_index=edges)).tolist() == [1] * 5


def test_arguments_arrive(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    import pygod.detector

    seen = {}
    given = pygod.detector.GAE.__init__

    def init(self: object, **arguments: object) -> None:
        seen.update(arguments)
        given(self, **arguments)

    monkeypatch.setattr(pygod.detector.GAE, "__init__", init)
    detector = engines.make("pygod", "mlpae", {**FEW, "lr": 0.05, "contamination": 0.2, "bits": 2}, seed=0)
    detector.fit(data)
    from torch_geometric.nn import MLP

    wanted = {"hid_dim": 8, "epoch": 3, "lr": 0.05, "contamination": 0.2, "backbone": MLP, "num_neigh": 0}
    assert seen == wanted and detector.dropped == ("bits",)
    assert detector.label_.sum() == 5 and "pygod.GAE" in repr(detector)


def test_scores_that_are_not_finite_are_an_error(data: Data) -> None:
    with pytest.raises(FloatingPointError, match=r"DOMINANT gave \d+ of 24 nodes a score that is not finite"):
        scores("dominant", data, lr=1e30, epoch=5)


def test_a_batch_is_the_whole_graph(data: Data) -> None:
    loader = pygod._OneBatch(data, [-1], batch_size=24)
    (batch,) = loader
    assert batch.batch_size == 24 and torch.equal(batch.n_id, torch.arange(24)) and batch is not data
    with pytest.raises(ValueError, match="full batches only"):
        pygod._OneBatch(data, [-1], batch_size=8)
