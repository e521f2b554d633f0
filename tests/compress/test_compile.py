"""Compression and torch.compile. The backend that needs no C++ compiler is enough: it saves tensors the same way."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphlossy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Using .torch.compile:UserWarning")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(64, 128), nn.LayerNorm(128), nn.Linear(128, 64)

    def forward(self, x):
        return F.log_softmax(self.b(F.relu(self.norm(self.a(x)))), -1)


@pytest.fixture
def setup():
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = Model()
    x, y = torch.randn(2000, 64), torch.randint(0, 64, (2000,))
    twin = copy.deepcopy(model)
    F.nll_loss(twin(x), y).backward()
    return model, twin, x, y


def errors(model, twin):
    return [
        float((p.grad - q.grad).norm() / q.grad.norm())
        for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    ]


def test_switch_on_a_compiled_model(setup):
    model, twin, x, y = setup
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    ledger = graphlossy.compress(compiled, bits=2)
    for _ in range(2):
        model.zero_grad()
        F.nll_loss(compiled(x), y).backward()
        assert ledger.ratio > 2
    assert max(errors(model, twin)) < 0.05
    assert all(r.bits >= 8 for r in ledger.records if r.how == "quantized")
    graphlossy.restore(compiled)
    model.zero_grad()
    F.nll_loss(compiled(x), y).backward()
    assert max(errors(model, twin)) < 1e-5


def test_context_around_a_compiled_model(setup):
    model, twin, x, y = setup
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with graphlossy.compress(bits=2) as ledger:
        loss = F.nll_loss(compiled(x * 1.0) * 1.0, y)
    loss.backward()
    assert {r.op for r in ledger.records if r.how == "quantized"} >= {"compiled"}
    assert max(errors(model, twin)) < 0.05


def test_compiling_a_switched_model_is_exact_and_harmless(setup):
    """Inside the compiler nothing is compressed: compile first, then switch on."""
    model, twin, x, y = setup
    ledger = graphlossy.compress(model, bits=2)
    compiled = torch.compile(model, backend="aot_eager")
    F.nll_loss(compiled(x), y).backward()
    assert max(errors(model, twin)) < 1e-5
    assert not ledger.records
