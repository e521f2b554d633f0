"""Compression beside the other things that people do when they train."""

import copy
import gc
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import graphlossy


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.LayerNorm(64), nn.Linear(64, 8))


def close(a, b, tolerance=0.03):
    return (a - b).norm() <= tolerance * b.norm()


def grads(model):
    return [p.grad.clone() for p in model.parameters()]


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(500, 64)


def test_gradient_accumulation(x):
    model, twin = mlp(), mlp()
    graphlossy.compress(model, bits=8)
    for part in x.split(250):
        model(part).square().mean().backward()
        twin(part).square().mean().backward()
    assert all(close(a, b) for a, b in zip(grads(model), grads(twin), strict=True))


def test_several_forwards_before_one_backward(x):
    model, twin = mlp(), mlp()
    graphlossy.compress(model, bits=8)
    (model(x).square().mean() + model(x * 2).abs().mean()).backward()
    (twin(x).square().mean() + twin(x * 2).abs().mean()).backward()
    assert all(close(a, b) for a, b in zip(grads(model), grads(twin), strict=True))


def test_retain_graph_gives_the_same_gradient_twice(x):
    model = mlp()
    graphlossy.compress(model, bits=2)
    loss = model(x).square().mean()
    loss.backward(retain_graph=True)
    first = grads(model)
    model.zero_grad()
    loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(first, grads(model), strict=True))


def test_double_backward_works(x):
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    twin = copy.deepcopy(model)
    graphlossy.compress(model, bits=8)
    penalties = []
    for m in (model, twin):
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(m(leaf).sum(), leaf, create_graph=True)
        penalty = g.square().sum()
        penalty.backward()
        penalties.append(m[0].weight.grad)
    assert close(penalties[0], penalties[1], 0.05)


def test_autocast_bfloat16(x):
    model, twin = mlp(), mlp()
    ledger = graphlossy.compress(model, bits=8)
    with torch.autocast("cpu", torch.bfloat16):
        a, b = model(x), twin(x)
    assert torch.equal(a, b)
    a.float().square().mean().backward()
    b.float().square().mean().backward()
    assert all(close(p, q, 0.05) for p, q in zip(grads(model), grads(twin), strict=True))
    assert any(r.dtype == "bfloat16" and r.how == "quantized" for r in ledger.records)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = mlp()[:4], nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5), nn.Linear(64, 8))

    def forward(self, x):
        return self.b(checkpoint(self.a, x, use_reentrant=False))


def test_non_reentrant_checkpoint(x):
    torch.manual_seed(0)
    model = Checkpointed()
    twin = copy.deepcopy(model)
    ledger = graphlossy.compress(model, bits=8)
    for m in (model, twin):
        torch.manual_seed(4)
        m(x).square().mean().backward()
    assert all(close(a, b) for a, b in zip(grads(model), grads(twin), strict=True))
    assert ledger.records and not any(r.module.startswith("a.") for r in ledger.records)


def test_checkpointed_convolution_is_not_routed_in_one_pass_only(x):
    """The recomputation happens outside the context: what it saves must match what the forward saved."""
    pyg = pytest.importorskip("torch_geometric.nn")
    edge_index = torch.randint(0, 500, (2, 3000))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.out = pyg.GCNConv(64, 64), nn.Linear(64, 8)

        def forward(self, x):
            return self.out(checkpoint(self.conv, x, edge_index, use_reentrant=False))

    model, twin = Model(), Model()
    graphlossy.compress(model, bits=8)
    model(x).square().mean().backward()
    twin(x).square().mean().backward()
    assert all(close(a, b) for a, b in zip(grads(model), grads(twin), strict=True))


def test_inside_save_on_cpu_and_around_it(x):
    model, twin = mlp(), mlp()
    twin(x).square().mean().backward()
    with graphlossy.compress(bits=8), torch.autograd.graph.save_on_cpu():
        loss = model(x).square().mean()
    loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(grads(model), grads(twin), strict=True))


def test_nested_switches_and_context(x):
    """A switched part inside a context: one session, no double work."""
    model, twin = mlp(), mlp()
    twin(x).square().mean().backward()
    graphlossy.compress(model[3], bits=8)
    with graphlossy.compress(bits=8) as ledger:
        loss = model(x).square().mean()
    loss.backward()
    assert all(close(a, b) for a, b in zip(grads(model), grads(twin), strict=True))
    assert ledger.records


def test_distributed_data_parallel(x, tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model, twin = mlp(), mlp()
        ledger = graphlossy.compress(model, bits=8)
        parallel = nn.parallel.DistributedDataParallel(model)
        parallel(x).square().mean().backward()
        twin(x).square().mean().backward()
        assert all(close(a, b) for a, b in zip(grads(model), grads(twin), strict=True))
        assert ledger.ratio > 2
    finally:
        torch.distributed.destroy_process_group()


def test_saved_state_can_be_loaded_without_us(x, tmp_path):
    model = mlp()
    graphlossy.compress(model, bits=2)
    model(x).sum().backward()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh = mlp()
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    model.eval()
    assert torch.equal(fresh.eval()(x), model(x))


def test_no_memory_is_leaked_from_step_to_step(x):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8), nn.LogSoftmax(-1))
    graphlossy.compress(model, bits=2)
    counts = []
    for _ in range(6):
        F.nll_loss(model(x), torch.zeros(500, dtype=torch.long)).backward()
        counts.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
    assert counts[-1] <= counts[2]


@pytest.mark.skipif(os.name == "nt", reason="threads of this test rely on fork-free start")
def test_other_threads_are_not_disturbed(x):
    import threading

    model, other = mlp(), mlp()
    results = []
    with graphlossy.compress(bits=2) as ledger:
        thread = threading.Thread(target=lambda: results.append(other(x).detach()))
        thread.start()
        thread.join()
        assert not ledger.records
        model(x)
    assert torch.equal(results[0], other(x))
    assert ledger.records
