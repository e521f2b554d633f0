"""Tensors, calls and interruptions that the hooks meet in the wild."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import graphlossy

pyg = pytest.importorskip("torch_geometric.nn")
C, N = 64, 500


class Calls(nn.Module):
    """A model whose forward is one function of its parts and arguments."""

    def __init__(self, run: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: object) -> Tensor:
        return self.run(self, *args)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(N, C)


@pytest.fixture
def edge_index() -> Tensor:
    return torch.randint(N, (2, 6 * N))


def gradients(model: nn.Module, *args: object) -> list[Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    model(*args).square().mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def leftovers() -> tuple[int, int, int]:
    from torch.nn.modules import module

    hooks = len(module._global_forward_pre_hooks), len(module._global_forward_hooks)
    return torch._C._len_torch_function_stack(), *hooks


@pytest.mark.parametrize("route", [True, False])
@pytest.mark.parametrize("conv", ["GCNConv", "SAGEConv", "GATConv", "GraphConv"])
def test_pygs_edge_index_class(conv: str, route: bool, x: Tensor, edge_index: Tensor) -> None:
    from torch_geometric import EdgeIndex

    edges = EdgeIndex(edge_index, sparse_size=(N, N)).sort_by("col")[0]
    model = Calls(lambda self, x, e: self.conv(self.lin(x), e), lin=nn.Linear(C, C), conv=getattr(pyg, conv)(C, C))
    expected = gradients(model, x, edges)
    graphlossy.compress(model, bits=8, route=route)
    for a, b in zip(gradients(model, x, edges), expected, strict=True):
        assert (a - b).norm() <= 0.05 * b.norm() + 1e-6


def test_vmap_inside_the_model(x: Tensor) -> None:
    model = Calls(lambda self, x: torch.vmap(lambda row: row.tanh() * 2)(self.lin(x)), lin=nn.Linear(C, C))
    expected = gradients(model, x)
    graphlossy.compress(model, bits=8)
    for a, b in zip(gradients(model, x), expected, strict=True):
        assert (a - b).norm() <= 0.05 * b.norm()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupted_forward_leaves_nothing_behind(kind: type[BaseException], x: Tensor) -> None:
    class Stops(nn.Module):
        armed = True

        def forward(self, x: Tensor) -> Tensor:
            if self.armed:
                raise kind
            return x

    model = nn.Sequential(nn.Linear(C, C), nn.ReLU(), Stops())
    before = leftovers()
    ledger = graphlossy.compress(model)
    with pytest.raises(kind):
        model(x)
    # Nothing is done to others in the meantime ...
    other = nn.Sequential(nn.Linear(C, C), nn.Tanh())
    exact = [g.clone() for g in torch.autograd.grad(other(x).sum(), list(other.parameters()))]
    assert all(map(torch.equal, exact, torch.autograd.grad(other(x).sum(), list(other.parameters()))))
    # ... and the next forward is a pass again, with nothing left after it.
    Stops.armed = False
    model(x).sum().backward()
    assert ledger.plain_bytes > 10 * ledger.saved_bytes > 0 and leftovers() == before
    Stops.armed = True
    with pytest.raises(kind):
        model(x)
    graphlossy.restore(model)
    assert leftovers() == before


@pytest.mark.parametrize("what", ["weight", "input"])
def test_what_was_not_copied_may_not_change_before_the_backward(what: str, x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(C, C), nn.ReLU(), nn.Linear(C, C))
    graphlossy.compress(model)
    loss = model(x).square().mean()
    with torch.no_grad():
        (model[2].weight if what == "weight" else x).mul_(-3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_nor_may_an_adjacency(x: Tensor) -> None:
    adj = (torch.rand(N, N) < 0.02).float().to_sparse_csr()
    lin = nn.Linear(C, C)
    with graphlossy.compress():
        out = adj @ lin(x)
    adj.mul_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_slice_of_gathered_rows(x: Tensor) -> None:
    lin, rows, weight = nn.Linear(C, C), torch.randint(N, (2 * N,)), torch.randn(N, C)
    with graphlossy.compress(bits=8):
        out = (lin(x).index_select(0, rows)[:N] * weight).sum()
    out.backward()
    expected = torch.autograd.grad((lin(x).index_select(0, rows)[:N] * weight).sum(), lin.weight)[0]
    torch.testing.assert_close(lin.weight.grad, expected)


def test_rows_gathered_from_an_input_are_exact(x: Tensor) -> None:
    rows, weight = torch.randint(N, (2 * N,)), torch.randn(2 * N, C, requires_grad=True)
    with graphlossy.compress(bits=2) as ledger:
        out = (x.index_select(0, rows) * weight).square().sum()
    out.backward()
    gathered = [r for r in ledger.records if r.how == "gathered"]
    assert [(r.saved_bytes, r.gradient) for r in gathered] == [(0, "exact")]


def test_inference_features_may_be_gathered() -> None:
    with torch.inference_mode():
        x = torch.randn(N, C)
    lin, rows = nn.Linear(C, C), torch.randint(N, (2 * N,))
    with graphlossy.compress(bits=2):
        messages = x.index_select(0, rows)
        out = lin(messages.clone()).sum()
    out.backward()
    assert lin.weight.grad is not None


@pytest.mark.parametrize("aggr", ["max", "min", "mul", "sum", "mean"])
def test_bias_after_every_aggregation(aggr: str, x: Tensor, edge_index: Tensor) -> None:
    model = Calls(lambda self, x, e: self.conv(x, e), conv=pyg.GCNConv(C, C, aggr=aggr))
    expected = gradients(model, x, edge_index)
    graphlossy.compress(model, bits=8)
    for a, b in zip(gradients(model, x, edge_index), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_checkpointed_product_with_an_adjacency(x: Tensor) -> None:
    adj = (torch.rand(N, N) < 0.02).float().to_sparse_csr()

    def block(model: nn.Module, h: Tensor) -> Tensor:
        return (adj @ model.b(h)).relu()

    def run(model: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(block, model, model.a(x), use_reentrant=False)

    model = Calls(run, a=nn.Linear(C, C), b=nn.Linear(C, C))
    expected = gradients(model, x)
    graphlossy.compress(model)
    for a, b in zip(gradients(model, x), expected, strict=True):
        assert (a - b).norm() < 0.03 * b.norm()  # the region's input is kept at 8 bits


def test_one_switched_model_in_two_threads(x: Tensor) -> None:
    barrier, errors = threading.Barrier(2, timeout=30), []

    def run(model: nn.Module, x: Tensor, turn: int) -> Tensor:
        h = model.lin(x)
        barrier.wait()  # both are inside
        if turn == 1:
            barrier.wait()  # the first is out
        return h.relu()

    model = Calls(run, lin=nn.Linear(C, C))
    graphlossy.compress(model)

    def work(turn: int) -> None:
        try:
            out = model(x, turn)
            if turn == 0:
                barrier.wait()
            out.sum().backward()
            assert torch._C._len_torch_function_stack() == 0
        except BaseException as error:
            errors.append(error)

    before = leftovers()
    threads = [threading.Thread(target=work, args=(turn,)) for turn in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and leftovers() == before


def test_log_softmax_inside_torchscript(x: Tensor) -> None:
    lin, target = nn.Linear(C, C), torch.randint(C, (N,))
    code = "def f(x):\n    return torch.log_softmax(x * 5.0, -1)\n"
    unit = torch.jit.CompilationUnit(code)

    def gradient(compressed: bool) -> Tensor:
        lin.zero_grad()
        if compressed:
            with graphlossy.compress(bits=2):
                loss = F.nll_loss(unit.f(lin(x)), target)
        else:
            loss = F.nll_loss(unit.f(lin(x)), target)
        loss.backward()
        return lin.weight.grad.clone()

    expected = gradient(False)
    assert (gradient(True) - expected).norm() < 0.02 * expected.norm()


def test_a_negated_view_is_another_tensor() -> None:
    lin, x = nn.Linear(C, 2 * C), torch.randn(N, C)
    first, second = (torch.randn(N, C, requires_grad=True) for _ in range(2))
    with graphlossy.compress(bits=8):
        z = torch.view_as_complex(lin(x).view(N, C, 2))
        loss = (z.imag * first).sum() + (z.conj().imag * second).sum()
    loss.backward()
    expected = torch.view_as_complex(lin(x).view(N, C, 2)).imag
    assert (first.grad - expected).norm() < 0.05 * expected.norm()
    assert (second.grad + expected).norm() < 0.05 * expected.norm()


def test_a_budget_leaves_no_hooks_on_parameters(x: Tensor) -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    model = Calls(lambda self, x: Twice.apply(self.lin(x)) @ self.lin.weight.to(torch.float32), lin=nn.Linear(C, C))
    graphlossy.compress(model, budget="1MiB")
    for _ in range(5):
        model(x).sum().backward()
    assert not model.lin.weight._backward_hooks


def test_a_convolution_that_is_the_model_is_routed(x: Tensor, edge_index: Tensor) -> None:
    conv = pyg.GCNConv(C, C)
    plain = conv.message
    graphlossy.compress(conv)
    conv.message = lambda *args, **kwargs: pytest.fail("messages were made")
    conv(x, edge_index).sum().backward()
    conv.message = plain
    assert "propagate" not in vars(conv)


def test_a_model_compiled_in_place_is_refused() -> None:
    model = nn.Linear(C, C)
    model.compile(backend="eager")
    with pytest.raises(ValueError, match=r"use model = torch.compile\(model\)"):
        graphlossy.compress(model)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_function_inside_the_model_is_in_the_ledger(x: Tensor) -> None:
    inner = torch.compile(lambda h: (h.tanh() * 2).exp(), backend="aot_eager")
    model = Calls(lambda self, x: inner(self.lin(x)), lin=nn.Linear(C, C))
    expected = gradients(model, x)
    ledger = graphlossy.compress(model)
    for a, b in zip(gradients(model, x), expected, strict=True):
        assert (a - b).norm() < 0.05 * b.norm()
    assert ledger.saved_bytes > 0


def test_our_own_layers_are_left_alone(x: Tensor, edge_index: Tensor) -> None:
    from graphlossy.nn import GATConv

    model = Calls(lambda self, x, e: self.conv(self.lin(x), e), lin=nn.Linear(C, C), conv=GATConv(C, 4, 16, bits=None))
    expected = gradients(model, x, edge_index)
    graphlossy.compress(model, bits=2)
    found = gradients(model, x, edge_index)
    names = [name for name, _ in model.named_parameters()]
    for name, a, b in zip(names, found, expected, strict=True):
        if name.startswith("conv.att"):  # no rounding before or in them
            torch.testing.assert_close(a, b)
