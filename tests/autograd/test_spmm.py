"""Sparse times dense: values, gradients, and what is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphlossy.autograd import CSRGraph, spmm


def reference(edge_index: Tensor, weight: Tensor | None, x: Tensor, num_dst: int, mean: bool) -> Tensor:
    messages = x.index_select(0, edge_index[0])
    messages = messages if weight is None else messages * weight.view(-1, *[1] * (x.dim() - 1))
    out = x.new_zeros(num_dst, *x.shape[1:]).index_add(0, edge_index[1], messages)
    counts = torch.bincount(edge_index[1], minlength=num_dst).clamp(min=1).to(x.dtype)
    return out / counts.view(-1, *[1] * (x.dim() - 1)) if mean else out


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("weighting", ["none", "fixed", "trained"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients(reduce: str, weighting: str, dtype: torch.dtype, edges: Callable[..., Tensor]) -> None:
    edge_index = edges(40, 200, 30)
    weight = None if weighting == "none" else torch.rand(200, dtype=dtype)
    inputs = [torch.randn(40, 9, dtype=dtype, requires_grad=True)]
    if weighting == "trained":
        inputs.append(weight.requires_grad_())
    out = spmm(CSRGraph(edge_index, weight, 30, 40), inputs[0], reduce)
    expected = reference(edge_index, weight, inputs[0], 30, reduce == "mean")
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    got, wanted = torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, edges: Callable[..., Tensor]) -> None:
    graph = CSRGraph(edges(40, 200), torch.rand(200), 40)
    x = torch.randn(40, 9).to(dtype).requires_grad_()
    out = spmm(graph, x)
    assert out.dtype is dtype
    out.sum().backward()
    assert x.grad.dtype is dtype
    torch.testing.assert_close(out.float(), spmm(graph, x.detach().float()), rtol=2e-2, atol=2e-2)
    # float32 accumulation: 4096 ones do not stop at 256
    star = CSRGraph(torch.stack([torch.arange(4096), torch.zeros(4096, dtype=torch.long)]), None, 1, 4096)
    assert spmm(star, torch.ones(4096, 1, dtype=dtype)).item() == 4096


@pytest.mark.parametrize(("num_dst", "num_src", "num_edges", "width"), [(0, 0, 0, 3), (4, 3, 0, 5), (3, 4, 6, 0)])
def test_empty(num_dst: int, num_src: int, num_edges: int, width: int) -> None:
    edge_index = torch.zeros(2, num_edges, dtype=torch.long)
    x = torch.randn(num_src, width, requires_grad=True)
    weight = torch.rand(num_edges, requires_grad=True)
    for graph in (CSRGraph(edge_index, None, num_dst, num_src), CSRGraph(edge_index, weight, num_dst, num_src)):
        out = spmm(graph, x, "mean")
        assert out.shape == (num_dst, width)
        out.sum().backward()
        assert x.grad.eq(0).all()


def test_features_of_other_ranks(edges: Callable[..., Tensor]) -> None:
    edge_index = edges(20, 60)
    graph = CSRGraph(edge_index, None, 20)
    for shape in ((20,), (20, 3, 4)):
        x = torch.randn(shape, requires_grad=True)
        torch.testing.assert_close(spmm(graph, x), reference(edge_index, None, x, 20, False))
    x = torch.randn(6, 20).t()  # not contiguous
    torch.testing.assert_close(spmm(graph, x), reference(edge_index, None, x, 20, False))


def test_nothing_dense_is_kept_for_fixed_weights(edges: Callable[..., Tensor], saved_bytes: Callable[..., int]) -> None:
    graph = CSRGraph(edges(200, 400), torch.rand(400), 200)
    x = torch.randn(200, 512, requires_grad=True) * 1.0
    arrays = (*graph.transpose(), graph.values(transposed=True))
    assert saved_bytes(lambda: spmm(graph, x), *arrays) == 0
    assert saved_bytes(lambda: spmm(graph, x.detach()), *arrays) == 0


@pytest.mark.parametrize(("bits", "per_row"), [(2, 128 + 2 * 4), (8, 512 + 2 * 4), (None, 2048)])
def test_low_bit_operand_for_trained_weights(
    bits: int | None, per_row: int, edges: Callable[..., Tensor], saved_bytes: Callable[..., int]
) -> None:
    weight = torch.rand(400, requires_grad=True)
    graph = CSRGraph(edges(200, 400), weight, 200)
    x = torch.randn(200, 512, requires_grad=True) * 1.0
    assert saved_bytes(lambda: spmm(graph, x, bits=bits), weight) == 200 * per_row


def test_weight_gradient_at_eight_bits(edges: Callable[..., Tensor]) -> None:
    edge_index, weight = edges(50, 300), torch.rand(300, requires_grad=True)
    x, grad = torch.randn(50, 64), torch.randn(50, 64)
    graph = CSRGraph(edge_index, weight, 50)
    exact, lossy = (torch.autograd.grad(spmm(graph, x, bits=bits), weight, grad)[0] for bits in (None, 8))
    assert 0 < (lossy - exact).norm() / exact.norm() < 0.02


def test_weight_gradient_is_unbiased(edges: Callable[..., Tensor], bias_score: Callable[..., float]) -> None:
    edge_index, weight = edges(50, 300), torch.rand(300, requires_grad=True)
    x, grad = torch.rand(50, 64), torch.randn(50, 64)
    graph = CSRGraph(edge_index, weight, 50)

    def gradient(bits: int | None) -> Tensor:
        return torch.autograd.grad(spmm(graph, x, bits=bits), weight, grad)[0]

    assert bias_score(lambda: gradient(2), gradient(None)) < 2


def test_a_biased_weight_gradient_is_rejected(
    planted_bias: None, edges: Callable[..., Tensor], bias_score: Callable[..., float]
) -> None:
    edge_index, weight = edges(50, 300), torch.rand(300, requires_grad=True)
    x, grad = torch.rand(50, 64), torch.rand(50, 64)
    graph = CSRGraph(edge_index, weight, 50)

    def gradient(bits: int | None) -> Tensor:
        return torch.autograd.grad(spmm(graph, x, bits=bits), weight, grad)[0]

    assert bias_score(lambda: gradient(2), gradient(None)) > 4


def test_no_tensor_of_edges_by_channels(edges: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampled product runs in chunks of edges, with the result of one piece."""
    from graphlossy.autograd import _ops

    weight = torch.rand(300, requires_grad=True)
    graph = CSRGraph(edges(50, 300), weight, 50)
    x, grad = torch.randn(50, 64), torch.randn(50, 64)
    whole = torch.autograd.grad(spmm(graph, x), weight, grad)[0]
    largest = []
    unpack = _ops.unpack_rows
    monkeypatch.setitem(_ops._CHUNK, "cpu", 640)
    monkeypatch.setattr(_ops, "unpack_rows", lambda kept, index: largest.append(index.numel()) or unpack(kept, index))
    torch.testing.assert_close(torch.autograd.grad(spmm(graph, x), weight, grad)[0], whole)
    assert max(largest) == 10 and sum(largest) == 300


@pytest.mark.parametrize(
    ("x", "reduce", "kind", "message"),
    [
        (torch.zeros(5, 2), "max", ValueError, "reduce must be 'sum' or 'mean', got 'max'"),
        (torch.zeros(4, 2), "sum", ValueError, r"5 sources, got \(4, 2\)"),
        (torch.zeros(5, 2).long(), "sum", TypeError, "floating-point tensor, got torch.int64"),
        (torch.zeros(5, 2, device="meta"), "sum", ValueError, "x is on meta, the graph on cpu"),
    ],
)
def test_errors(x: Tensor, reduce: str, kind: type, message: str) -> None:
    graph = CSRGraph(torch.tensor([[0], [1]]), None, 5)
    with pytest.raises(kind, match=message):
        spmm(graph, x, reduce)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("shape", [(9, 13), (13, 9)])
def test_second_and_third_derivatives(reduce: str, shape: tuple[int, int], edges: Callable[..., Tensor]) -> None:
    num_dst, num_src = shape
    edge_index, weight = edges(num_src, 40, num_dst), torch.rand(40, dtype=torch.float64)
    graph = CSRGraph(edge_index, weight, num_dst, num_src)
    x = torch.randn(num_src, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: spmm(graph, x, reduce).sin(), x)

    def third(product: Callable[[Tensor], Tensor]) -> Tensor:
        value = product(x).pow(4).sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(value, x, create_graph=True)
            value = grad.square().sum()
        return grad

    expected = third(lambda x: reference(edge_index, weight, x, num_dst, reduce == "mean"))
    torch.testing.assert_close(third(lambda x: spmm(graph, x, reduce)), expected)


def test_trained_weights_have_first_derivatives_only(edges: Callable[..., Tensor]) -> None:
    graph = CSRGraph(edges(9, 40), torch.rand(40, requires_grad=True), 9)
    x = torch.randn(9, 3, requires_grad=True)
    # even where the incoming gradient is a constant: the weights' share would silently be missing
    (grad,) = torch.autograd.grad(spmm(graph, x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.square().sum().backward()
