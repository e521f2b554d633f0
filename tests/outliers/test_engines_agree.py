"""Ours against PyGOD's on the same graph, where both are the same model; skipped where it is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data

pytest.importorskip("pygod")
stats = pytest.importorskip("scipy.stats")

from graphlossy.outliers import engines  # noqa: E402
from graphlossy.outliers._checks import prepare  # noqa: E402
from graphlossy.outliers.generate import generate  # noqa: E402
from graphlossy.outliers.motifs import motif_degrees  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def data() -> Data:
    """Rows that sum to 1, as in PyGOD's injected sets: what is learned depends little on the first weights."""
    made = generate(200, num_features=16, seed=0)
    made.x = made.x.softmax(1)
    return made


def scores(engine: str, method: str, data: Data, seed: int, **params: object) -> torch.Tensor:
    return engines.make(engine, method, params, seed).fit(data).decision_score_


@pytest.mark.parametrize("method", ["gcnae", "dominant"])
def test_ranks_of_trained_methods(method: str, data: Data) -> None:
    """The two libraries start from other weights for one seed."""
    ours, theirs = (scores(engine, method, data, 0, hid_dim=16, epoch=100) for engine in ("native", "pygod"))
    assert stats.spearmanr(ours, theirs).statistic > 0.9


def test_the_same_weights_give_the_same_scores(data: Data) -> None:
    """AnomalyDAE draws its weights in PyGOD's order: one seed, one result."""
    settings = {"hid_dim": 16, "emb_dim": 8, "epoch": 10, "theta": 10.0, "eta": 3.0, "alpha": 0.3}
    ours = scores("native", "anomalydae", data, 3, structure="dense", **settings)
    torch.testing.assert_close(ours, scores("pygod", "anomalydae", data, 3, **settings), rtol=1e-3, atol=1e-3)


def test_residuals_for_twenty_steps(data: Data) -> None:
    """Beyond some twenty, Adam magnifies what rounding leaves of gradients near 0."""
    settings = {"epoch": 20, "gamma": 0.5, "lr": 0.01}
    ours = scores("native", "radar", data, 0, solver="adam", beta=0.0, **settings)
    torch.testing.assert_close(ours, scores("pygod", "radar", data, 0, **settings), rtol=1e-3, atol=1e-5)


def test_motif_degrees(tmp_path: Path) -> None:
    """A random graph, a clique of five in it, no isolated nodes, which PyGOD does not count."""
    from pygod.nn import GUIDEBase

    generator = torch.Generator().manual_seed(0)
    edges = torch.cat([torch.randint(20, (2, 40), generator=generator), torch.arange(5).repeat(2, 5).sort(1).values], 1)
    edges[1, 40:] = torch.arange(5).repeat(5)
    graph = prepare(Data(x=torch.zeros(20, 1), edge_index=edges)).undirected.without_self_loops
    assert int(graph.degrees.min()) > 0
    theirs = GUIDEBase.calc_gdd(Data(x=graph.x, edge_index=graph.edge_index), str(tmp_path))
    assert bool((theirs.amax(0) > 0).all())  # every motif occurs
    torch.testing.assert_close(motif_degrees(graph).float(), theirs)
