"""A plan leaves the model, what hangs on it, and every random generator as they were."""

from __future__ import annotations

import gc
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.data import Data

import graphlossy
from graphlossy.train import build_model


def snapshot(model: nn.Module) -> list:
    """Everything of a model that a plan could touch, as comparable values."""
    out: list = [repr(model), torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
    out += [(name, value.tolist(), value.data_ptr(), value._version) for name, value in model.state_dict().items()]
    out += [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in model.parameters()]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    for module in model.modules():
        out.append((module.training, sorted(vars(module)), [list(getattr(module, name)) for name in hooks]))
        out += [id(value) for name, value in vars(module).items() if name.startswith("_cached")]
    return out


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["gcn", "gcn2"])
def test_the_model_stays_as_it_is(name: str, training: bool, data: Data) -> None:
    model = build_model(name, data.num_features, 32, 7, 3, 0.5, True)
    model(data.x, data.edge_index).sum().backward()
    model.train(training)
    before = snapshot(model)
    assert len([value for value in before if isinstance(value, tuple)]) > 20
    graphlossy.plan(model, data, schemes=["bf16 autocast", "checkpoint", "compress 2 bits", "budget 1MiB"])
    assert snapshot(model) == before


def test_a_model_that_is_switched_on_stays_switched_on(data: Data) -> None:
    model = build_model("sage", data.num_features, 32, 7, 3, 0.5, True)
    plain = graphlossy.plan(model, data, schemes=["compress 2 bits"])
    ledger = graphlossy.compress(model, bits=4)
    model(data.x, data.edge_index).sum().backward()
    before, records = snapshot(model), list(ledger.records)
    again = graphlossy.plan(model, data, schemes=["compress 2 bits"])
    assert again.rows == plain.rows  # the copies are not switched on
    assert ledger.records == records and records and snapshot(model) == before


def test_the_same_plan_twice_whatever_the_callers_modes(data: Data) -> None:
    model = build_model("sage", data.num_features, 32, 7, 3, 0.5, True)
    first = graphlossy.plan(model, data, schemes=["compress 2 bits"]).rows
    with torch.no_grad():
        assert graphlossy.plan(model, data, schemes=["compress 2 bits"]).rows == first
    with torch.autocast("cpu", torch.bfloat16):
        assert graphlossy.plan(model, data, schemes=["compress 2 bits"]).rows == first


def test_python_and_numpy_generators_too() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lin(x) * random.random() + float(np.random.rand()) + torch.rand(())

    model = Noisy()
    before = snapshot(model)
    graphlossy.plan(model, inputs=(100, 8), schemes=[])
    assert snapshot(model) == before


def test_threads_garbage_collection_and_warnings_are_as_before(data: Data) -> None:
    assert gc.isenabled()
    filters = list(warnings.filters)
    torch.set_num_threads(2)
    graphlossy.plan(build_model("gcn", data.num_features, 32, 7, 2, 0.5), data, adj="csr", schemes=[])
    assert gc.isenabled() and warnings.filters == filters and torch.get_num_threads() == 2


def test_a_compiled_model_is_planned_as_the_model_it_wraps() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    compiled = torch.compile(model, backend="eager")
    assert graphlossy.plan(compiled, inputs=(5000, 64), schemes=["compress 2 bits"]).rows == (
        graphlossy.plan(model, inputs=(5000, 64), schemes=["compress 2 bits"]).rows
    )
