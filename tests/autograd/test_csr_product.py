"""A CSR product without torch's matrix of zeros and repeated sorting: the same bits, the same gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphlossy
import graphlossy.autograd.csr_product as csr_module
from graphlossy.autograd.csr_product import csr_product, is_csr_product

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def operands(request) -> tuple[torch.Tensor, torch.Tensor]:
    adj = torch.randn(70, 50, dtype=request.param) * (torch.rand(70, 50) < 0.2)
    adj[3] = 0  # a row without entries
    return adj.to_sparse_csr(), torch.randn(50, 9, dtype=request.param)


def test_values_are_those_of_torch_bit_for_bit(operands) -> None:
    adj, x = operands
    assert torch.equal(csr_product(adj, x), adj @ x)
    assert torch.equal(csr_product(adj, x.t().contiguous().t()), adj @ x)


def test_gradients_of_first_and_second_order(operands) -> None:
    adj, x = operands
    found = []
    for product in (csr_product, torch.mm):
        leaf = x.clone().requires_grad_()
        weight = torch.randn(70, 9, dtype=x.dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (first,) = torch.autograd.grad((product(adj, leaf) * weight).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), weight)
        found.append((first.detach(), second))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_reductions_of_the_sparse_product(operands, reduce: str) -> None:
    adj, x = operands
    weight = torch.randn(70, 9, dtype=x.dtype)
    found = []
    for product in (csr_product, torch.sparse.mm):
        leaf = x.clone().requires_grad_()
        out = product(adj, leaf, reduce)
        (out * weight).sum().backward()
        found.append((out.detach(), leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_the_transpose_is_made_once_for_a_graph(operands, monkeypatch: pytest.MonkeyPatch) -> None:
    made, transpose = [], csr_module._transpose
    monkeypatch.setattr(csr_module, "_transpose", lambda *a: made.append(a) or transpose(*a))
    adj, x = operands

    def gradient(reduce: str | None = None) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        csr_product(adj, leaf, reduce).square().sum().backward()
        return leaf.grad

    first = gradient()
    assert torch.equal(gradient(), first) and len(made) == 1
    gradient("mean"), gradient("mean"), gradient()
    assert len(made) == 2
    adj.values().mul_(2.0)  # an edit of the weights is seen
    torch.testing.assert_close(gradient(), 4 * first)
    assert len(made) == 3


def test_what_it_is_not_for(operands) -> None:
    adj, x = operands
    assert is_csr_product((adj, x)) and is_csr_product((adj, x, "sum")) and is_csr_product((adj, x, "mean"))
    weighted = torch.sparse_csr_tensor(adj.crow_indices(), adj.col_indices(), adj.values().clone(), adj.shape)
    others = [(x, x.t()), (adj, x[0]), (adj, x.half()), (adj, x[:10]), (adj, x[:, :0]), (adj, x, "amax"), (adj, 3)]
    others += [(adj.to_dense().to_sparse_csc(), x), (weighted.requires_grad_(), x)]
    assert not any(is_csr_product(other) for other in others)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_csr_product((adj, x))


def test_a_model_under_compression_takes_it(operands, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphlossy._compress import _route

    class Net(nn.Module):
        def __init__(self, adj: torch.Tensor) -> None:
            super().__init__()
            self.lin, self.adj = nn.Linear(9, 5).to(adj.dtype), adj

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.adj @ self.lin(x)

    adj, x = operands
    taken = []
    monkeypatch.setattr(_route, "csr_product", lambda *a: taken.append(a) or csr_product(*a))
    model = Net(adj)
    plain = model(x)
    plain.sum().backward()
    expected, model.lin.weight.grad = model.lin.weight.grad, None
    graphlossy.compress(model)
    out = model(x)
    out.sum().backward()
    assert len(taken) == 1 and torch.equal(out, plain)
    torch.testing.assert_close(model.lin.weight.grad, expected)
