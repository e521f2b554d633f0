"""Models without a graph; peaks; budgets of memory; bad input."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch_geometric.data import Data

import graphlossy
from graphlossy.train import build_model

MLP = [nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10)]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layers(x).mean(1))


def saved(model: nn.Module, x: torch.Tensor, classes: int, bits: int | None) -> int:
    with graphlossy.compress(bits=bits) as ledger:
        nn.functional.cross_entropy(model.train()(x), torch.zeros(len(x), dtype=torch.int64) % classes)
    return ledger.saved_bytes


@pytest.mark.parametrize("bits", [None, 8, 2])
def test_batches(bits: int | None) -> None:
    scheme = "float32" if bits is None else f"compress {bits} bits"
    for model, shape, classes in ((nn.Sequential(*MLP), (3000, 64), 10), (Encoder(), (700, 12, 32), 5)):
        found = graphlossy.plan(model, inputs=shape, schemes=[scheme])
        assert found[scheme].saved_bytes == pytest.approx(saved(model, torch.randn(shape), classes, bits), rel=0.05)


def test_checkpointing_keeps_the_layers_inputs() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(9)))
    found = graphlossy.plan(model, inputs=(50_000, 64), schemes=["checkpoint"])
    assert found["checkpoint"].saved_bytes < 0.7 * found["float32"].saved_bytes


def test_the_peak_is_that_of_live_tensors() -> None:
    """Against the highest sum of live storages of a step that really runs."""
    from graphlossy._plan._tracker import AllocationTracker

    torch.manual_seed(0)
    model = build_model("gcn", 32, 64, 5, 3, 0.5, True, 1)
    data = Data(x=torch.randn(20_000, 32), edge_index=torch.randint(20_000, (2, 90_000)), y=torch.arange(20_000) % 5)
    found = graphlossy.plan(model, data, schemes=["compress 2 bits"])
    for scheme, bits in (("float32", None), ("compress 2 bits", 2)):
        tracker = AllocationTracker()
        with tracker:
            for _ in range(2):
                model.zero_grad(set_to_none=True)
                with graphlossy.compress(bits=bits):
                    loss = nn.functional.cross_entropy(model(data.x, data.edge_index), data.y)
                loss.backward()
                del loss
        peak = max(live for _, live in tracker.events)
        assert found[scheme].peak_bytes == pytest.approx(peak, rel=0.1), scheme


def test_table_and_json() -> None:
    found = graphlossy.plan(nn.Sequential(*MLP), inputs=(1000, 64), schemes=["compress 2 bits"])
    text = str(found)
    assert "predicted for 1,000 batch" in text and "compress 2 bits" in text and "in all = peak + weights" in text
    values = json.loads(found.to_json())
    assert [row["scheme"] for row in values["schemes"]] == ["float32", "compress 2 bits"]
    assert values["schemes"][0]["total_bytes"] == found["float32"].total_bytes
    with pytest.raises(KeyError, match="no scheme 'compress 4 bits'"):
        found["compress 4 bits"]


def test_memory_that_is_enough_and_memory_that_is_not() -> None:
    found = graphlossy.plan(nn.Sequential(*MLP), inputs=(100_000, 64), schemes=["compress 2 bits"])
    needed = {row.scheme: row.total_bytes for row in found.rows}
    assert found.fits(needed["float32"]) == ["float32", "compress 2 bits"]
    assert found.fits(needed["float32"] - 1) == ["compress 2 bits"]
    assert found.fits(needed["compress 2 bits"] - 1) == []
    batch = found.largest(needed["float32"], "float32")["batch"]
    assert batch == pytest.approx(100_000, rel=0.01)
    assert found.largest(1, "float32") == {"batch": 0}


GRAPH = {"num_nodes": 100, "num_edges": 300, "num_features": 8}
NET = build_model("gcn", 8, 16, 3, 2, 0.5, True, 1)
BAD = [
    (("model",), {}, TypeError, "model must be a torch.nn.Module, got str"),
    ((nn.ReLU(), None), {"inputs": (4, 8)}, ValueError, "has no weights to train"),
    ((NET,), {}, ValueError, "num_nodes, num_edges"),
    ((NET, "ogbn-arxif"), {}, ValueError, "ogbn-arxiv"),
    ((NET,), {**GRAPH, "num_nodes": 0}, ValueError, "num_nodes must be at least 1, got 0"),
    ((NET,), {**GRAPH, "num_edges": 1.5}, TypeError, "num_edges must be a whole number, got 1.5"),
    ((NET,), {**GRAPH, "num_train_nodes": 101}, ValueError, "only 100 nodes"),
    ((NET,), {**GRAPH, "adj": "dense"}, ValueError, "adj must be 'edge_index' or 'csr', got 'dense'"),
    ((NET,), {**GRAPH, "optimizer": "lion"}, ValueError, "optimizer must be one of adam"),
    ((NET,), {**GRAPH, "schemes": ["compress 5 bits"]}, ValueError, "'compress 5 bits' is not known"),
    ((NET,), {**GRAPH, "schemes": [3]}, TypeError, "names or Scheme objects, got int"),
    ((NET,), {**GRAPH, "inputs": (4, 8)}, ValueError, "inputs is for models without a graph; leave out num_nodes"),
    ((NET,), {**GRAPH, "num_features": 9}, ValueError, "the model failed on a probe"),
    ((nn.Linear(8, 2),), {"inputs": (4, 9)}, ValueError, "the model failed on a probe of .* batch"),
    ((nn.Linear(8, 2),), {"inputs": (4, 8), "schemes": ["checkpoint"]}, ValueError, "could be checkpointed"),
]


@pytest.mark.parametrize(("args", "options", "error", "message"), BAD, ids=lambda v: str(v)[:40])
def test_bad_input(args: tuple, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        graphlossy.plan(*args, **options)


def test_a_model_that_does_not_grow_in_proportion_is_refused() -> None:
    class AllPairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
            h = self.lin(x)
            return (h @ h.t()).softmax(1) @ h

    with pytest.raises(ValueError, match="cannot extrapolate this model"):
        graphlossy.plan(AllPairs(), num_nodes=10**6, num_edges=10**7, num_features=8)


def test_a_loss_of_ones_own() -> None:
    def forward(model: nn.Module, probe: graphlossy._plan.GraphProbe) -> torch.Tensor:
        return model(probe.x, probe.adj).square().mean()

    found = graphlossy.plan(NET, **GRAPH, forward=forward)
    assert found["float32"].saved_bytes > 0
    with pytest.raises(ValueError, match="should|must return the loss"):
        graphlossy.plan(NET, **GRAPH, forward=lambda model, probe: model(probe.x, probe.adj))
