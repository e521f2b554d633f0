"""Aggregation and linear layer in one, and the small products of GCNII and GIN."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from graphlossy.autograd import CSRGraph, _packed, identity_linear, linear, scaled_self, spmm, spmm_linear


@pytest.fixture
def case(edges: Callable[..., Tensor]) -> tuple[CSRGraph, Tensor, Tensor, Tensor]:
    graph = CSRGraph(edges(60, 300, 50), torch.rand(300), 50, 60)
    x = torch.randn(60, 32, requires_grad=True)
    return graph, x, torch.randn(20, 32, requires_grad=True), torch.randn(20, requires_grad=True)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("grad_input", [True, False])
@pytest.mark.parametrize("bits", [8, None])
def test_spmm_linear(reduce: str, grad_input: bool, bits: int | None, case: tuple) -> None:
    graph, x, weight, bias = case
    x = x * 1.0 if grad_input else x.detach()
    expected = F.linear(spmm(graph, x, reduce), weight, bias)
    out = spmm_linear(graph, x, weight, bias, reduce, bits=bits)
    assert torch.equal(out, expected)
    grad = torch.randn_like(out)
    inputs = [weight, bias, *([x] if grad_input else [])]
    mine, exact = torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    assert (mine[0] - exact[0]).norm() / exact[0].norm() < (0.02 if bits else 1e-5)
    for a, b in zip(mine[1:], exact[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("grad_input", [True, False])
@pytest.mark.parametrize("block", [1 << 20, 1000])  # elements: one block, or seven
def test_spmm_linear_with_a_root(
    reduce: str, grad_input: bool, block: int, edges: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_packed._BLOCK, "cpu", block)
    graph = CSRGraph(edges(200, 900, 200), None, 200)
    x = torch.randn(200, 32, requires_grad=True)
    x = x * 1.0 if grad_input else x.detach()
    weight, root, bias = (torch.randn(s, requires_grad=True) for s in ((20, 32), (20, 32), (20,)))
    expected = F.linear(spmm(graph, x, reduce), weight, bias) + F.linear(x, root)
    grad = torch.randn_like(expected)
    inputs = [weight, bias, root, *([x] if grad_input else [])]
    exact = torch.autograd.grad(expected, inputs, grad)
    for bits, bound in ((8, 0.02), (None, 1e-5)):
        out = spmm_linear(graph, x, weight, bias, reduce, root=root, bits=bits)
        torch.testing.assert_close(out, expected)
        mine = torch.autograd.grad(out, inputs, grad)
        for number in (0, 2):
            assert (mine[number] - exact[number]).norm() / exact[number].norm() < bound
        for number in (1, 3) if grad_input else (1,):
            torch.testing.assert_close(mine[number], exact[number], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(spmm_linear(graph, x, weight, bias, reduce, root=root), expected)


def test_a_root_needs_a_square_graph_and_the_same_shape(case: tuple) -> None:
    graph, x, weight, _ = case
    with pytest.raises(ValueError, match="as many destinations as sources; got .* 50 x 60"):
        spmm_linear(graph, x, weight, root=weight)
    square = CSRGraph(torch.tensor([[0], [1]]), None, 60)
    with pytest.raises(ValueError, match="shape of weight"):
        spmm_linear(square, x, weight, root=weight[:5])


def test_spmm_linear_with_trained_edges_or_frozen_weight(case: tuple, edges: Callable[..., Tensor]) -> None:
    graph, x, weight, bias = case
    trained = graph.with_weight(torch.rand(300, requires_grad=True))
    out = spmm_linear(trained, x, weight, bias, bits=8)
    exact = F.linear(spmm(trained, x), weight, bias)
    inputs = (trained.edge_weight, x, weight)
    grad = torch.randn_like(out)
    for a, b in zip(torch.autograd.grad(out, inputs, grad), torch.autograd.grad(exact, inputs, grad), strict=True):
        assert (a - b).norm() / b.norm() < 0.02
    frozen = spmm_linear(graph, x, weight.detach(), bias)
    (a,), (b,) = (torch.autograd.grad(y, x, grad) for y in (frozen, F.linear(spmm(graph, x), weight.detach(), bias)))
    torch.testing.assert_close(a, b)


def test_both_branches_share_one_copy(case: tuple, saved_bytes: Callable[..., int]) -> None:
    graph, x, weight, _ = case
    arrays = (*graph.transpose(), graph.values(transposed=True), graph.values(transposed=True, mean=True), weight)

    def branches() -> Tensor:
        hidden = x * 1.0
        return spmm_linear(graph, hidden, weight, reduce="mean").sum() + linear(hidden, weight).sum()

    # 7.5 groups of 256 per 60 x 32, each with 4 bytes of metadata
    assert saved_bytes(branches, *arrays) == 60 * 32 / 4 + 8 * 4
    features = x.detach()
    kept = saved_bytes(lambda: spmm_linear(graph, features, weight), *arrays)
    assert kept == 50 * 32 / 4 + 7 * 4  # A x, since x itself needs no gradient


@pytest.mark.parametrize("grad_input", [True, False])
def test_unbiased(grad_input: bool, case: tuple, bias_score: Callable[..., float]) -> None:
    graph, x, weight, bias = case
    grad = torch.rand(50, 20)
    exact = torch.autograd.grad(F.linear(spmm(graph, x), weight, bias), weight, grad)[0]

    def gradient() -> Tensor:
        source = x * 1.0 if grad_input else x.detach()
        return torch.autograd.grad(spmm_linear(graph, source, weight, bias), weight, grad)[0]

    assert bias_score(gradient, exact) < 2


@pytest.mark.parametrize("grad_input", [True, False])
def test_a_biased_copy_is_rejected(
    grad_input: bool, planted_bias: None, case: tuple, bias_score: Callable[..., float]
) -> None:
    graph, x, weight, bias = case
    grad = torch.rand(50, 20)
    exact = torch.autograd.grad(F.linear(spmm(graph, x), weight, bias), weight, grad)[0]

    def gradient() -> Tensor:
        source = x * 1.0 if grad_input else x.detach()
        return torch.autograd.grad(spmm_linear(graph, source, weight, bias), weight, grad)[0]

    assert bias_score(gradient, exact) > 4


def test_spmm_linear_errors(case: tuple) -> None:
    graph, x, weight, _ = case
    with pytest.raises(ValueError, match=r"\[num_src, 32\], got \(60, 30\)"):
        spmm_linear(graph, x[:, :30], weight)
    with pytest.raises(ValueError, match="reduce must be 'sum' or 'mean', got 'max'"):
        spmm_linear(graph, x * 1.0, weight, reduce="max")
    with pytest.raises(ValueError, match=r"60 sources, got \(59, 32\)"):
        spmm_linear(graph, x[:59] * 1.0, weight)


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("bits", [8, None])
def test_identity_linear(scale: float, bits: int | None, saved_bytes: Callable[..., int]) -> None:
    x = torch.randn(64, 32, requires_grad=True)
    weight = torch.randn(32, 32, requires_grad=True)
    expected = 0.7 * scale * x + 0.3 * (scale * x @ weight)
    out = identity_linear(x * 1.0, weight, 0.3, scale, bits=bits)
    torch.testing.assert_close(out, expected)
    grad = torch.randn(64, 32)
    mine, exact = (torch.autograd.grad(y, (x, weight), grad) for y in (out, expected))
    torch.testing.assert_close(mine[0], exact[0])
    assert (mine[1] - exact[1]).norm() / exact[1].norm() < (0.02 if bits else 1e-5)
    if bits:
        hidden = x * 1.0
        assert saved_bytes(lambda: identity_linear(hidden, weight, 0.3, scale), weight) == 64 * 32 * 2.125 / 8
        assert saved_bytes(lambda: identity_linear(hidden, weight.detach(), 0.3, 1.0), weight) == 0


@pytest.mark.parametrize("bits", [8, None])
def test_scaled_self(bits: int | None, saved_bytes: Callable[..., int]) -> None:
    aggregated, x = torch.randn(64, 32, requires_grad=True), torch.randn(64, 32, requires_grad=True)
    eps = torch.tensor([0.3], requires_grad=True)
    out, expected = scaled_self(aggregated, x * 1.0, eps, bits=bits), aggregated + (1 + eps) * x
    assert torch.equal(out, expected)
    grad = torch.randn(64, 32) + x.detach()
    mine, exact = (torch.autograd.grad(y, (aggregated, x, eps), grad) for y in (out, expected))
    assert torch.equal(mine[0], exact[0]) and torch.equal(mine[1], exact[1])
    torch.testing.assert_close(mine[2], exact[2], rtol=0.02 if bits else 1e-5, atol=0)
    hidden = x * 1.0
    if bits:
        assert saved_bytes(lambda: scaled_self(aggregated, hidden, eps), eps) == 64 * 32 * 2.125 / 8
    assert saved_bytes(lambda: scaled_self(aggregated, hidden, eps.detach(), bits=bits)) <= 4
