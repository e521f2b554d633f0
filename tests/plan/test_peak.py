"""Predicted peaks are the highest sums of live tensors of steps that really run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch_geometric.data import Data

import graphlossy
from graphlossy._plan._tracker import AllocationTracker
from graphlossy.train import build_model


@pytest.mark.parametrize("adj", ["edge_index", "csr"])
@pytest.mark.parametrize("name", ["gcn", "gat", "gcn2"])
def test_the_peak_of_live_tensors(name: str, adj: str, larger: Data, measured: Callable[..., tuple]) -> None:
    torch.manual_seed(0)
    model = build_model(name, 48, 48, 7, 3, 0.5, True, 3)
    found = graphlossy.plan(model, larger, adj=adj, schemes=["compress 2 bits"])
    for scheme, options in (("float32", {}), ("compress 2 bits", {"bits": 2})):
        for module in model.modules():  # each way of training fills GCN's cache itself
            for cached in ("_cached_edge_index", "_cached_adj_t"):
                if hasattr(module, cached):
                    setattr(module, cached, None)
        assert found[scheme].peak_bytes == pytest.approx(measured(model, larger, adj, **options).peak, rel=0.05), scheme


def test_the_peak_of_a_budget(larger: Data, measured: Callable[..., tuple]) -> None:
    torch.manual_seed(0)
    model = build_model("sage", 48, 48, 7, 3, 0.5, True)
    budget = graphlossy.plan(model, larger, schemes=["compress 4 bits"]).rows[1].saved_bytes
    scheme = graphlossy._plan.Scheme(budget=budget)
    row = graphlossy.plan(model, larger, schemes=[scheme])[scheme.name]
    assert row.peak_bytes == pytest.approx(measured(model, larger, budget=budget).peak, rel=0.1)


def test_the_tracker_counts_storages_once_and_notices_when_they_go() -> None:
    x = torch.ones(1000)
    with AllocationTracker() as tracker:
        y = x + 1
        view, same = y.view(10, 100), y.mul_(2)
        assert tracker.live_bytes == 4000
        z = y.double()
        assert tracker.live_bytes == 12000
        tracker.exclude(z)
        assert tracker.live_bytes == 4000
        del view, same, y
        assert tracker.live_bytes == 0
    assert max(live for _, live in tracker.events) == 12000


def test_the_tracker_counts_the_arrays_of_sparse_matrices() -> None:
    crow, col, values = torch.arange(101), torch.arange(100), torch.ones(100)
    with AllocationTracker() as tracker:
        sparse = torch.sparse_csr_tensor(crow.clone(), col.clone(), values.clone(), (100, 100), check_invariants=False)
        assert tracker.live_bytes == 101 * 8 + 100 * (8 + 4)
        other = torch.sparse_coo_tensor(torch.stack([col, col]), values.clone(), (100, 100), check_invariants=False)
        assert tracker.live_bytes == 101 * 8 + 100 * (8 + 4) + 100 * (2 * 8 + 4)
    del sparse, other
    assert tracker.live_bytes == 0
