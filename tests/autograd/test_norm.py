"""Batch and layer norm with a low-bit normalised input, alone and fused with ReLU and dropout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from graphlossy.autograd import _packed, batch_norm, dropout, layer_norm, linear, norm_act_dropout, relu
from graphlossy.autograd.recipe import recipe_of

BATCH = torch.tensor([0] * 120 + [1] * 79 + [3])  # graph 2 is empty, graph 3 has one node


def graph_norm(x: Tensor, weight: Tensor, bias: Tensor, batch: Tensor | None) -> Tensor:
    """PyG's LayerNorm in mode "graph", written out."""
    if batch is None:
        x = x - x.mean()
        return x / (x.std(unbiased=False) + 1e-5) * weight + bias
    out = torch.zeros_like(x)
    for graph in batch.unique():
        member = (batch == graph).unsqueeze(1)
        part = x[member.expand_as(x)]
        out = torch.where(member, (x - part.mean()) / (part.var(unbiased=False) + 1e-5).sqrt(), out)
    return out * weight + bias


def reference(kind: str) -> Callable[..., Tensor]:
    return {
        "batch": lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
        "node": lambda x, w, b: F.layer_norm(x, (x.size(1),), w, b),
        "graph": lambda x, w, b: graph_norm(x, w, b, None),
        "graphs": lambda x, w, b: graph_norm(x, w, b, BATCH),
    }[kind]


def lossy(kind: str, bits: int | None, p: float | None = None) -> Callable[..., Tensor]:
    if p is not None:
        batch = BATCH if kind == "graphs" else None
        norm = "graph" if kind == "graphs" else kind
        return lambda x, w, b: norm_act_dropout(x, w, b, norm=norm, p=p, batch=batch, bits=bits)
    if kind == "batch":
        return lambda x, w, b: batch_norm(x, None, None, w, b, True, bits=bits)
    mode, batch = ("graph", BATCH) if kind == "graphs" else (kind, None)
    return lambda x, w, b: layer_norm(x, w, b, mode=mode, batch=batch, bits=bits)


KINDS = ["batch", "node", "graph", "graphs"]


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(200, 40) * (torch.rand(40) * 5 + 0.1) + torch.randn(40)
    return x.requires_grad_(), torch.randn(40, requires_grad=True), torch.randn(40, requires_grad=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, None])
def test_values_and_gradients(kind: str, bits: int | None, inputs: tuple[Tensor, ...]) -> None:
    out, expected = lossy(kind, bits)(*inputs), reference(kind)(*inputs)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(out)
    mine, theirs = torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).norm() / b.norm() < (0.03 if bits else 1e-4)
    torch.testing.assert_close(mine[2], theirs[2], rtol=1e-4, atol=1e-4)  # the bias's gradient needs no x_hat


@pytest.mark.parametrize("kind", ["batch", "node"])
def test_values_are_torchs_bit_for_bit(kind: str, inputs: tuple[Tensor, ...]) -> None:
    assert torch.equal(lossy(kind, 2)(*inputs), reference(kind)(*inputs))
    for p in (0.0, 0.5):
        torch.manual_seed(1)
        out = lossy(kind, None, p)(*inputs)
        torch.manual_seed(1)
        assert torch.equal(out, F.dropout(F.relu(reference(kind)(*inputs)), p))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 2, None])
def test_fused_equals_its_parts(kind: str, bits: int | None, inputs: tuple[Tensor, ...]) -> None:
    """The same mask, so the same values; the gradient at 8 bits, exactly the mask's zeros at any width."""
    out = lossy(kind, bits, 0.4)(*inputs)
    mask = out.detach() != 0
    expected = F.relu(reference(kind)(*inputs)) * mask / 0.6
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(out)
    mine, theirs = torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    torch.testing.assert_close(mine[2], theirs[2], rtol=1e-4, atol=1e-4)
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).norm() / b.norm() < {8: 0.03, 2: 2.5, None: 1e-4}[bits]


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_linears_input_is_computed_again(kind: str, inputs: tuple[Tensor, ...]) -> None:
    out = lossy(kind, 8, 0.4)(*inputs)
    again = recipe_of(out).compute()
    assert torch.equal(again == 0, out == 0) or (again - out).abs().max() < 0.2
    assert torch.equal((again != 0) & (out == 0), torch.zeros_like(out, dtype=torch.bool))  # the mask is exact
    assert (again - out).norm() / out.norm() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_three_layers_apart_pass_the_recipe_on(kind: str, inputs: tuple[Tensor, ...]) -> None:
    y = lossy(kind, 8)(*inputs)
    h = dropout(relu(y), 0.3)
    assert (recipe_of(y).compute() - y).norm() / y.norm() < 0.02
    assert (recipe_of(h).compute() - h).norm() / h.norm() < 0.02
    weight = torch.randn(7, 40, requires_grad=True)
    grad = torch.randn(200, 7)
    mine = torch.autograd.grad(linear(h, weight, bits=1), weight, grad)[0]  # bits of the recipe, not of the linear
    exact = torch.autograd.grad(F.linear(h.detach(), weight), weight, grad)[0]
    assert (mine - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_unbiased_where_it_is_said(kind: str, inputs: tuple[Tensor, ...], bias_score: Callable[..., float]) -> None:
    x, weight, bias = inputs
    grad = torch.rand(200, 40) + reference(kind)(x, torch.ones(40), torch.zeros(40)).detach()
    exact = torch.autograd.grad(reference(kind)(x, weight, bias), weight, grad)[0]

    def gradient() -> Tensor:
        return torch.autograd.grad(lossy(kind, 2)(x, weight, bias), weight, grad)[0]

    assert bias_score(gradient, exact) < 2


def test_the_product_over_a_recipe_is_unbiased(inputs: tuple[Tensor, ...], bias_score: Callable[..., float]) -> None:
    # About half of each column passes the ReLU: the score takes sums over many elements for normal.
    inputs = (inputs[0], torch.ones(40), torch.zeros(40))
    weight, grad = torch.randn(7, 40, requires_grad=True), torch.rand(200, 7)
    h = lossy("batch", None, 0.0)(*inputs).detach()
    exact = torch.autograd.grad(F.linear(h, weight), weight, grad)[0]

    def gradient() -> Tensor:
        return torch.autograd.grad(linear(lossy("batch", 2, 0.0)(*inputs), weight), weight, grad)[0]

    assert bias_score(gradient, exact) < 2


@pytest.mark.parametrize("kind", ["batch", "node"])
def test_a_biased_copy_is_rejected(
    kind: str, planted_bias: None, inputs: tuple[Tensor, ...], bias_score: Callable[..., float]
) -> None:
    x, weight, bias = inputs
    grad = torch.rand(200, 40) + reference(kind)(x, torch.ones(40), torch.zeros(40)).detach()
    exact = torch.autograd.grad(reference(kind)(x, weight, bias), weight, grad)[0]
    assert bias_score(lambda: torch.autograd.grad(lossy(kind, 2)(x, weight, bias), weight, grad)[0], exact) > 4


def test_running_statistics_are_torchs(inputs: tuple[Tensor, ...]) -> None:
    mine = [torch.zeros(40), torch.ones(40)]
    theirs = [t.clone() for t in mine]
    fused = [t.clone() for t in mine]
    x, weight, bias = inputs
    for _ in range(2):
        F.batch_norm(x, *theirs, weight, bias, True, 0.3)
        batch_norm(x, *mine, weight, bias, True, 0.3)
        norm_act_dropout(x, weight, bias, *fused, momentum=0.3)
    for a, b, c in zip(mine, theirs, fused, strict=True):
        assert torch.equal(a, b) and torch.equal(c, b)
    out = batch_norm(x, *mine, weight, bias, False)
    assert torch.equal(out, F.batch_norm(x, *theirs, weight, bias, False))


@pytest.mark.parametrize("p", [None, 0.5])
def test_a_bias_before_batch_norm_gets_no_noise(p: float | None, inputs: tuple[Tensor, ...]) -> None:
    """The norm cancels it, so its gradient, the sum over the rows of dx, is zero at any width."""
    (grad,) = torch.autograd.grad(lossy("batch", 1, p)(*inputs), inputs[0], torch.rand(200, 40))
    assert grad.sum(0).abs().max() < 1e-4 * grad.abs().sum(0).max()


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_give_the_same_gradient(kind: str, inputs: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    grad = torch.randn(200, 40)
    exact = torch.autograd.grad(reference(kind)(*inputs), inputs, grad)
    monkeypatch.setitem(_packed._BLOCK, "cpu", 40 * 64)
    for a, b in zip(torch.autograd.grad(lossy(kind, 8)(*inputs), inputs, grad), exact, strict=True):
        assert (a - b).norm() / b.norm() < 0.03


def test_blocks_do_not_share_their_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_packed._BLOCK, "cpu", 64 * 256)
    x = torch.randn(64, 256).repeat(2, 1).requires_grad_()
    kept = recipe_of(batch_norm(x, None, None, training=True, bits=2)).kept.dequantize()
    assert not torch.equal(kept[:64], kept[64:])


@pytest.mark.parametrize(("kind", "extra"), [("batch", 2 * 4 * 128 + 4 * 128), ("node", 4 * 512 + 4 * 128)])
def test_kept_bits(kind: str, extra: int, saved_bytes: Callable[..., int]) -> None:
    x = torch.randn(512, 128, requires_grad=True) * 1.0
    weight, bias = torch.ones(128, requires_grad=True), torch.zeros(128, requires_grad=True)
    kept = saved_bytes(lambda: lossy(kind, 2)(x, weight, bias), weight, bias)
    assert x.numel() * 2.125 / 8 < kept <= x.numel() * 2.125 / 8 + extra
    fused = saved_bytes(lambda: lossy(kind, 2, 0.5)(x, weight, bias), weight, bias)
    assert fused - kept == x.numel() / 8  # one joint mask


def test_a_constant_graph_has_finite_gradients() -> None:
    x = torch.full((20, 8), 3.0, requires_grad=True)
    for kind in ("batch", "node", "graph"):
        out = lossy(kind, 2)(x, None, None)
        (grad,) = torch.autograd.grad(out, x, torch.randn(20, 8))
        assert out.isfinite().all() and grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["batch", "node"])
def test_types(kind: str, dtype: torch.dtype) -> None:
    inputs = [torch.randn(s, dtype=dtype, requires_grad=True) for s in ((100, 16), (16,), (16,))]
    for p in (None, 0.0):
        out = lossy(kind, 8, p)(*inputs)
        expected = reference(kind)(*inputs)
        expected = expected if p is None else expected.relu()
        assert out.dtype is dtype and torch.equal(out, expected)
        grad = torch.randn(100, 16, dtype=dtype)
        mine, theirs = torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad)
        for a, b in zip(mine, theirs, strict=True):
            assert a.dtype is dtype
            assert (a - b).double().norm() / b.double().norm() < 0.04


def test_errors() -> None:
    x = torch.randn(1, 4, requires_grad=True)
    with pytest.raises(ValueError, match=r"more than one row in training mode, got x of shape \(1, 4\)"):
        batch_norm(x, None, None, training=True)
    with pytest.raises(ValueError, match=r"shape \[N, C\], got \(4,\)"):
        batch_norm(torch.zeros(4), None, None, training=True)
    with pytest.raises(ValueError, match="mode must be 'node' or 'graph', got 'batch'"):
        layer_norm(x, mode="batch")
    with pytest.raises(ValueError, match="norm must be 'batch', 'node' or 'graph', got 'instance'"):
        norm_act_dropout(x, None, None, norm="instance")
    with pytest.raises(ValueError, match="got 2.0"):
        norm_act_dropout(x, None, None, p=2.0)
    assert norm_act_dropout(torch.zeros(0, 4, requires_grad=True), None, None, norm="node").shape == (0, 4)


def test_double_backward_says_so(inputs: tuple[Tensor, ...]) -> None:
    for kind in KINDS:
        for p in (None, 0.5):
            (grad,) = torch.autograd.grad(lossy(kind, 2, p)(*inputs).square().sum(), inputs[0], create_graph=True)
            with pytest.raises(RuntimeError, match="once_differentiable"):
                grad.sum().backward()
