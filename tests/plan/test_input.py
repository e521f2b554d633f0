"""Sizes in every form in which they can be given, and input that is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.data import Data

import graphlossy
from graphlossy._plan import KNOWN_GRAPHS, GraphProbe, GraphShapes
from graphlossy._plan._fit import solve
from graphlossy._plan._sizes import batch_design, graph_design, graph_pilot
from graphlossy.train import build_model

GRAPH = {"num_nodes": 100, "num_edges": 300, "num_features": 8}
NET = build_model("gcn", 8, 16, 3, 2, 0.5, True)
BAD = [
    (("model",), {}, TypeError, "model must be a torch.nn.Module, got str"),
    ((nn.ReLU(), None), {"inputs": (4, 8)}, ValueError, "has no weights to train"),
    ((nn.Linear(8, 2, device="meta"),), {"inputs": (4, 8)}, ValueError, "meta device"),
    ((NET,), {}, ValueError, "num_nodes, num_edges"),
    ((NET, "ogbn-arxif"), {}, ValueError, "did you mean 'ogbn-arxiv'"),
    ((NET, "xyz"), {}, ValueError, "known are ogbn-arxiv, "),
    ((NET, 3), {}, TypeError, "shapes must be a Data, a GraphShapes, a dict or a name"),
    ((NET, {"nodes": 3}), {}, ValueError, "unknown sizes nodes; allowed are num_nodes"),
    ((NET, SimpleNamespace(x=torch.ones(3), edge_index=torch.ones(2, 1))), {}, ValueError, "data.x must be a tensor"),
    ((NET, SimpleNamespace(x=torch.ones(3, 8), edge_index=None)), {}, ValueError, "data has no edges"),
    ((NET,), {**GRAPH, "num_nodes": 0}, ValueError, "num_nodes must be at least 1, got 0"),
    ((NET,), {**GRAPH, "num_edges": 1.5}, TypeError, "num_edges must be a whole number, got 1.5"),
    ((NET,), {**GRAPH, "num_edges": True}, TypeError, "num_edges must be a whole number, got True"),
    ((NET,), {**GRAPH, "num_train_nodes": 101}, ValueError, "only 100 nodes"),
    ((NET,), {**GRAPH, "num_classes": 4}, ValueError, "the model has 3 outputs, but num_classes is 4"),
    ((NET,), {**GRAPH, "adj": "dense"}, ValueError, "adj must be 'edge_index' or 'csr', got 'dense'"),
    ((NET,), {**GRAPH, "optimizer": "lion"}, ValueError, "optimizer must be one of adam"),
    ((NET,), {**GRAPH, "forward": 3}, TypeError, "forward must be a function of .*, got int"),
    ((NET,), {**GRAPH, "schemes": ["compress 5 bits"]}, ValueError, "'compress 5 bits' is not known"),
    ((NET,), {**GRAPH, "schemes": ["budget 3 apples"]}, ValueError, "3 apples"),
    ((NET,), {**GRAPH, "schemes": ["budget 1MiB + compress 2 bits"]}, ValueError, "without bits"),
    ((NET,), {**GRAPH, "schemes": [3]}, TypeError, "names or Scheme objects, got int"),
    ((NET,), {**GRAPH, "inputs": (4, 8)}, ValueError, "inputs is for models without a graph; leave out num_nodes"),
    ((NET,), {**GRAPH, "num_features": 9}, ValueError, "the model failed on a probe"),
    ((nn.Linear(8, 2),), {"inputs": (4, 9)}, ValueError, "the model failed on a probe of .* batch"),
    ((nn.Linear(8, 2),), {"inputs": (0, 8)}, ValueError, "positive sizes only"),
    ((nn.Linear(8, 2),), {"inputs": 3}, TypeError, "inputs must be a tensor, a shape"),
    ((nn.Linear(8, 2),), {"inputs": {}}, ValueError, "at least one example"),
]


@pytest.mark.parametrize(("args", "options", "error", "message"), BAD, ids=[case[3] for case in BAD])
def test_bad_input(args: tuple, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        graphlossy.plan(*args, **options)
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_grow_in_proportion_is_refused() -> None:
    class AllPairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(8, 3)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            h = self.lin(x)
            return (h @ h.t()).softmax(1) @ h

    with pytest.raises(ValueError, match="cannot extrapolate this model"):
        graphlossy.plan(AllPairs(), num_nodes=10**6, num_edges=10**7, num_features=8)
    small = graphlossy.plan(AllPairs(), num_nodes=1000, num_edges=3000, num_features=8, schemes=[])
    assert small["float32"].saved_bytes == pytest.approx(1000 * 1000 * 4, rel=0.05)  # run at its own size


def test_a_scheme_without_layers_to_recompute_is_left_out() -> None:
    found = graphlossy.plan(nn.Linear(8, 2), inputs=(4, 8), schemes=["checkpoint"])
    assert "no Sequential or ModuleList" in found.left_out["checkpoint"]


def test_a_loss_of_ones_own_and_one_that_is_none() -> None:
    def forward(model: nn.Module, probe: GraphProbe) -> Tensor:
        assert probe.edge_attr.shape == (300, 5) and probe.num_nodes == 100
        return model(probe.x, probe.adj).square().mean()

    shapes = GraphShapes(**GRAPH, num_edge_features=5)
    assert graphlossy.plan(NET, shapes, forward=forward, schemes=[])["float32"].saved_bytes > 0
    with pytest.raises(ValueError, match="must return the loss"):
        graphlossy.plan(NET, **GRAPH, forward=lambda model, probe: model(probe.x, probe.adj))


def test_the_same_sizes_in_every_form(data: Data) -> None:
    sizes = {"num_nodes": data.num_nodes, "num_edges": data.num_edges, "num_features": 48, "num_classes": 7}
    sizes["num_train_nodes"] = int(data.train_mask.sum())
    model = build_model("gcn", 48, 16, 7, 2, 0.5)
    plans = [
        graphlossy.plan(model, shapes, schemes=[], **numbers)
        for shapes, numbers in ((data, {}), (None, sizes), (sizes, {}), (GraphShapes(**sizes), {}))
    ]
    assert all(plan.rows == plans[0].rows and plan.fixed == plans[0].fixed for plan in plans)
    assert plans[0].fixed["features"] == data.x.nbytes and plans[0].fixed["graph"] == data.edge_index.nbytes
    changed = graphlossy.plan(model, data, schemes=[], num_nodes=2 * data.num_nodes)
    assert changed.sizes["nodes"] == 2 * data.num_nodes
    assert changed.sizes["train_nodes"] == 2 * sizes["num_train_nodes"]  # as large a share


def test_several_labels_a_node() -> None:
    shapes = KNOWN_GRAPHS["ogbn-proteins"]
    found = graphlossy.plan(build_model("sage", 8, 16, 112, 2, 0.5), "OGBN-Proteins", schemes=[])
    assert found.fixed["labels"] == shapes.num_nodes * 112 * 4 + shapes.num_train_nodes * 8
    # binary cross entropy saves its input for the training nodes, [T, 112]
    assert found["float32"].saved_bytes > shapes.num_train_nodes * 112 * 4


def test_table_and_json() -> None:
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    found = graphlossy.plan(model, inputs=(1000, 64), schemes=["compress 2 bits"])
    text = str(found)
    assert "predicted for 1,000 batch" in text and "compress 2 bits" in text and "in all = peak + weights" in text
    values = json.loads(found.to_json())
    assert [row["scheme"] for row in values["schemes"]] == ["float32", "compress 2 bits"]
    assert values["schemes"][0]["total_bytes"] == found["float32"].total_bytes
    assert values["left_out"] == {} and values["fixed_bytes"] == found.fixed
    assert found["compress 2 bit"] is found.rows[1]  # any form that plan takes
    with pytest.raises(KeyError, match="no scheme 'compress 4 bits'"):
        found["compress 4 bits"]


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, int]:
    nodes = draw(st.integers(1, 10**9))
    target = {"nodes": nodes, "edges": draw(st.integers(0, 10**11))}
    if draw(st.booleans()) and nodes > 1:
        target["train_nodes"] = draw(st.integers(1, nodes - 1))
    return target


@given(sizes(), st.floats(1, 1e7))
def test_probes_are_small_and_determine_every_coefficient(target: dict[str, int], node_bytes: float) -> None:
    pilot, design = graph_pilot(target), graph_design(target, node_bytes)
    assert pilot.keys() == target.keys() and all(pilot[name] <= target[name] for name in target)
    assert len(design.probes) == len(design.varied) + 1
    for probe in (*design.probes, *([] if design.check is None else [design.check])):
        assert probe.keys() == target.keys()
        assert probe["nodes"] <= 40_000 and probe["edges"] <= 40_000 and probe.get("train_nodes", 0) <= probe["nodes"]
        assert all(probe[name] == target[name] for name in target if name not in design.varied)
    coefficients = [7, *range(3, 3 + len(design.varied))]
    values = [[coefficients[0] + sum(c * p[n] for c, n in zip(coefficients[1:], design.varied, strict=True))]
              for p in design.probes]  # fmt: skip
    found = solve(design.probes, design.varied, values)
    assert found[:, 0] == pytest.approx(coefficients, rel=1e-6, abs=1e-3)


@given(st.integers(1, 10**9), st.floats(0, 1e12))
def test_batches_are_probed_alike(batch: int, example_bytes: float) -> None:
    design = batch_design({"batch": batch}, example_bytes)
    assert all(probe["batch"] <= 2 * 4096 for probe in design.probes)
    if not design.varied:
        assert design.probes == ({"batch": batch},)
