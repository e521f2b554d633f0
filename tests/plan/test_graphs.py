"""Predicted saved bytes are those that a real step saves, for every model, adjacency and width."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch_geometric.data import Data

import graphlossy
from graphlossy.train import build_model

MODELS = ("gcn", "sage", "gat", "gcn2", "gin")
BITS = (8, 4, 2, 1)


def build(name: str, data: Data, hidden: int = 48) -> nn.Module:
    torch.manual_seed(1)
    return build_model(name, data.num_features, hidden, int(data.y.max()) + 1, 3, 0.5, True, 3)


@pytest.mark.parametrize("adj", ["edge_index", "csr"])
@pytest.mark.parametrize("name", MODELS)
def test_saved_bytes_within_five_percent(name: str, adj: str, data: Data, measured: Callable[..., int]) -> None:
    model = build(name, data)
    found = graphlossy.plan(model, data, adj=adj, schemes=[f"compress {bits} bit{'s' * (bits > 1)}" for bits in BITS])
    assert [row.scheme for row in found.rows][0] == "float32" and len(found.rows) == 5
    for row, bits in zip(found.rows, (None, *BITS), strict=True):
        real = measured(model, adj, bits)
        assert row.saved_bytes == pytest.approx(real, rel=0.05), row.scheme


@pytest.mark.parametrize("kind", ["GCNConv", "SAGEConv", "GATConv", "GINConv"])
def test_layers_of_graphlossy_nn(kind: str, data: Data, measured: Callable[..., int]) -> None:
    import graphlossy.nn as lossy

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            make = getattr(lossy, kind)
            wrap = (lambda a, b: make(nn.Linear(a, b))) if kind == "GINConv" else make
            self.first, self.block, self.second = wrap(48, 64), lossy.NormActDropout(64), wrap(64, 7)

        def forward(self, x: torch.Tensor, adj: torch.Tensor) -> torch.Tensor:
            return self.second(self.block(self.first(x, adj)), adj)

    model = Net()
    found = graphlossy.plan(model, data, schemes=[])
    assert found["float32"].saved_bytes == pytest.approx(measured(model, "edge_index", None), rel=0.05)


@pytest.mark.slow
def test_a_graph_sixty_times_as_large_as_the_probes(measured_large: Callable[[nn.Module, int | None], int]) -> None:
    data = Data(x=torch.empty(0, 128))
    torch.manual_seed(0)
    model = build_model("gcn", 128, 256, 40, 3, 0.5, True, 1)
    found = graphlossy.plan(
        model, num_nodes=120_000, num_edges=800_000, num_features=128, num_classes=40, schemes=["compress 2 bits"]
    )
    assert data.x.numel() == 0  # nothing of that size was made for the plan
    assert found["float32"].saved_bytes == pytest.approx(measured_large(model, None), rel=0.05)
    assert found["compress 2 bits"].saved_bytes == pytest.approx(measured_large(model, 2), rel=0.05)


@pytest.fixture
def measured_large() -> Callable[[nn.Module, int | None], int]:
    x = torch.randn(120_000, 128)
    edge_index = torch.randint(120_000, (2, 800_000))
    y = torch.randint(40, (120_000,))

    def run(model: nn.Module, bits: int | None) -> int:
        with graphlossy.compress(bits=bits) as ledger:
            torch.nn.functional.cross_entropy(model.train()(x, edge_index), y)
        return ledger.saved_bytes

    return run


def test_a_graph_that_no_machine_holds_is_planned_in_seconds() -> None:
    model = build_model("sage", 128, 256, 172, 3, 0.5, True, 1)
    found = graphlossy.plan(model, "ogbn-papers100M", schemes=["compress 2 bits"])
    assert found["float32"].saved_bytes > 500e9
    assert 10 < found["compress 2 bits"].ratio < 40
    assert found.fits("16GiB") == []
    largest = found.largest("16GiB", "compress 2 bits")
    assert 10**5 < largest["nodes"] < 10**8
    less = found.largest("16GiB", "float32")
    assert less["nodes"] < largest["nodes"] and abs(largest["edges"] / largest["nodes"] - 14.55) < 0.1


def test_the_model_stays_as_it_is(data: Data) -> None:
    model = build("gcn", data).eval()
    model(data.x, data.edge_index).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    random = torch.get_rng_state()
    graphlossy.plan(model, data)
    assert not model.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), grads, strict=True))
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_default_schemes_and_their_order(data: Data) -> None:
    found = graphlossy.plan(build("gcn", data), data)
    names = [row.scheme for row in found.rows]
    assert names == ["float32", "bf16 autocast", "checkpoint"] + [f"compress {b} bit{'s' * (b > 1)}" for b in BITS]
    saved = [found[f"compress {b} bit{'s' * (b > 1)}"].saved_bytes for b in BITS]
    assert saved == sorted(saved, reverse=True) and found["checkpoint"].saved_bytes < found["float32"].saved_bytes
    assert found["float32"].gradient == "exact" and found["compress 2 bits"].gradient == "approximate"


def test_a_planted_error_is_noticed(data: Data, measured: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Five percent is narrow enough: a plan that forgets one mask of a layer is outside it."""
    from graphlossy._plan._fit import Forecast

    true = Forecast.saved_bytes
    monkeypatch.setattr(Forecast, "saved_bytes", lambda self, sizes: true(self, sizes) - sizes["nodes"] * 2 * 48 // 8)
    model = build("gcn", data)
    found = graphlossy.plan(model, data, schemes=["compress 2 bits"])
    assert found["compress 2 bits"].saved_bytes != pytest.approx(measured(model, "edge_index", 2), rel=0.05)
