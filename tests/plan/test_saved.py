"""Predicted saved bytes are those that a real step saves, for every model, adjacency and scheme."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

import graphlossy
import graphlossy.nn as lossy
from graphlossy.train import MODELS, build_model

BITS = (8, 4, 2, 1)
COMPRESSED = [f"compress {bits} bit{'s' * (bits > 1)}" for bits in BITS]


def build(name: str, data: Data, hidden: int = 48) -> nn.Module:
    torch.manual_seed(1)
    return build_model(name, data.num_features, hidden, int(data.y.max()) + 1, 3, 0.5, True, 3)


@pytest.mark.parametrize("adj", ["edge_index", "csr"])
@pytest.mark.parametrize("name", MODELS)
def test_within_five_percent(name: str, adj: str, data: Data, measured: Callable[..., tuple]) -> None:
    model = build(name, data)
    found = graphlossy.plan(model, data, adj=adj, schemes=COMPRESSED)
    assert [row.scheme for row in found.rows] == ["float32", *COMPRESSED]
    assert found["float32"].saved_bytes == pytest.approx(measured(model, data, adj).live, rel=0.05)
    for scheme, bits in zip(COMPRESSED, BITS, strict=True):
        assert found[scheme].saved_bytes == pytest.approx(measured(model, data, adj, bits=bits).saved, rel=0.05), scheme


@pytest.mark.parametrize("name", MODELS)
def test_graphs_larger_than_the_probes(name: str, larger: Data, measured: Callable[..., tuple]) -> None:
    model = build(name, larger)
    plain, low = graphlossy.plan(model, larger, schemes=["compress 2 bits"]).rows
    assert plain.saved_bytes == pytest.approx(measured(model, larger).live, rel=0.05)
    real = measured(model, larger, bits=2)
    assert low.saved_bytes == pytest.approx(real.saved, rel=0.05)
    assert low.saved_bytes == pytest.approx(real.live, rel=0.05)  # the ledger leaves nothing out


def test_a_planted_error_is_noticed(
    data: Data, measured: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five percent is narrow enough: a plan that forgets one mask is outside it."""
    from graphlossy._plan._fit import Forecast

    true = Forecast.saved_bytes
    monkeypatch.setattr(Forecast, "saved_bytes", lambda self, sizes: true(self, sizes) - sizes["nodes"] * 2 * 48 // 8)
    model = build("gcn", data)
    found = graphlossy.plan(model, data, schemes=["compress 2 bits"])
    assert found["compress 2 bits"].saved_bytes != pytest.approx(measured(model, data, bits=2).saved, rel=0.05)


@pytest.mark.parametrize("name", ["gcn", "sage", "gat"])
def test_budgets(name: str, larger: Data, measured: Callable[..., tuple]) -> None:
    """The widths that compress will choose are chosen here too, so the bytes that a budget leaves unused are known."""
    model = build(name, larger)
    most, least = (row.saved_bytes for row in graphlossy.plan(model, larger, schemes=COMPRESSED[::3]).rows[1:])
    budget, ample, tight = least + (most - least) // 3, 2 * most, least // 2
    found = graphlossy.plan(model, larger, schemes=[f"budget {size}" for size in (budget, ample, tight)])
    plain, chosen, lavish = found.rows
    assert chosen.saved_bytes == pytest.approx(measured(model, larger, budget=budget).saved, rel=0.05)
    assert chosen.saved_bytes <= budget and lavish.saved_bytes == pytest.approx(most, rel=0.001)
    assert chosen.peak_bytes <= lavish.peak_bytes < plain.peak_bytes
    (reason,) = found.left_out.values()
    assert "cannot be met: at least" in reason
    with pytest.raises(ValueError, match="cannot be met"):
        measured(model, larger, budget=tight)


class Net(nn.Module):
    """conv, norm, ReLU, dropout, conv from graphlossy.nn."""

    def __init__(self, kind: str, bits: int | None) -> None:
        super().__init__()
        make = getattr(lossy, kind)

        def conv(a: int, b: int) -> nn.Module:
            if kind == "GINConv":
                return make(nn.Sequential(lossy.Linear(a, b, bits=bits), lossy.ReLU()), bits=bits)
            return make(a, b, bits=bits)

        self.first, self.block, self.second = conv(48, 64), lossy.NormActDropout(64, bits=bits), conv(64, 7)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        return self.second(self.block(self.first(x, adj)), adj)


class DeepNet(nn.Module):
    """linear, then two GCN2 layers, from graphlossy.nn."""

    def __init__(self, kind: str, bits: int | None) -> None:
        super().__init__()
        self.first, self.last = lossy.Linear(48, 64, bits=bits), lossy.Linear(64, 7, bits=bits)
        self.convs = nn.ModuleList(lossy.GCN2Conv(64, 0.1, 0.5, i + 1, bits=bits) for i in range(2))
        self.blocks = nn.ModuleList(lossy.NormActDropout(64, bits=bits) for _ in range(2))

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        x = x_0 = self.first(x).relu()
        for conv, block in zip(self.convs, self.blocks, strict=True):
            x = block(conv(x, x_0, adj))
        return self.last(x)


@pytest.mark.parametrize("bits", [2, None])
@pytest.mark.parametrize("kind", ["GCNConv", "SAGEConv", "GATConv", "GINConv", "GCN2Conv"])
def test_layers_of_graphlossy_nn(kind: str, bits: int | None, larger: Data, measured: Callable[..., tuple]) -> None:
    model = (DeepNet if kind == "GCN2Conv" else Net)(kind, bits)
    row = graphlossy.plan(model, larger, schemes=[])["float32"]
    assert row.saved_bytes == pytest.approx(measured(model, larger).live, rel=0.05)
    assert row.gradient == ("exact" if bits is None else "approximate")


def test_default_schemes_and_their_order(data: Data) -> None:
    found = graphlossy.plan(build("sage", data), data)
    assert [row.scheme for row in found.rows] == ["float32", "bf16 autocast", "checkpoint", *COMPRESSED]
    saved = [found[scheme].saved_bytes for scheme in ("float32", "bf16 autocast", *COMPRESSED)]
    assert saved == sorted(saved, reverse=True) and found["checkpoint"].saved_bytes < found["float32"].saved_bytes
    assert found["float32"].gradient == "exact" and found["compress 2 bits"].gradient == "approximate"
    assert found["float32"].ratio == 1 and found["compress 2 bits"].ratio > 10 and not found.left_out


def test_a_scheme_that_torch_cannot_run_is_left_out_with_its_reason(data: Data) -> None:
    """On a CPU torch has no bfloat16 product with a sparse CSR matrix."""
    found = graphlossy.plan(build("gcn", data), data, adj="csr", schemes=["bf16 autocast", "compress 2 bits"])
    assert [row.scheme for row in found.rows] == ["float32", "compress 2 bits"]
    assert "not implemented for 'BFloat16'" in found.left_out["bf16 autocast"]
    assert "bf16 autocast left out" in str(found)
    with pytest.raises(KeyError, match="left out"):
        found["bf16 autocast"]


@pytest.mark.parametrize("scheme", ["bf16 autocast", "bf16 autocast + compress 4 bits"])
def test_autocast(scheme: str, data: Data, measured: Callable[..., tuple]) -> None:
    class Autocast(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor, adj: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x, adj)

    model = build("sage", data)
    options = {"bits": 4} if "compress" in scheme else {}
    row = graphlossy.plan(model, data, schemes=[scheme])[scheme]
    assert row.saved_bytes == pytest.approx(measured(Autocast(model), data, **options).saved, rel=0.05)
