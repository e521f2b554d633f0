"""ReLU, LeakyReLU and dropout: exact values, exact gradients, one bit kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphlossy.autograd import activation, dropout, fused, leaky_relu, linear, relu, relu_dropout
from graphlossy.core import quantize

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SPECIAL = torch.tensor([0.0, -0.0, 1e-38, -1e-38, 1e-45, float("inf"), float("-inf"), 2.0, -3.0])


def both(mine: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Values and gradients are equal bit for bit, under one seed."""
    grads, outs = [], []
    for function in (mine, theirs):
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_()
        outs.append(function(leaf * 1.0))
        torch.manual_seed(4)
        outs[-1].backward(torch.randn(x.shape, dtype=torch.float32).to(x.dtype))
        grads.append(leaf.grad)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(grads[0], grads[1])


@given(shape=st.lists(st.integers(0, 7), max_size=3), dtype=st.sampled_from(DTYPES))
def test_relu_and_leaky_relu(shape: list[int], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    both(relu, F.relu, x)
    both(lambda t: relu(t, inplace=True), F.relu, x)
    both(leaky_relu, F.leaky_relu, x)
    both(lambda t: leaky_relu(t, 0.3), lambda t: F.leaky_relu(t, 0.3), x)


def test_special_values() -> None:
    both(relu, F.relu, SPECIAL)
    both(leaky_relu, F.leaky_relu, SPECIAL)
    x = torch.tensor([float("nan"), 1.0], requires_grad=True)
    out = relu(x)
    out.backward(torch.ones(2))
    assert out[0].isnan() and x.grad.tolist() == [1.0, 1.0]  # as torch's


def test_leaky_relu_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(activation._BLOCK, "cpu", 16)
    both(leaky_relu, F.leaky_relu, torch.randn(7, 11))


def test_small_positives_keep_their_gradient(bias_score: Callable[..., float]) -> None:
    """A low-bit copy of the output loses them, which is a bias; the exact mask has none."""
    x = torch.linspace(-1, 1, 512)[torch.randperm(512)]

    def gradient(function: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(function(leaf).sum(), leaf)[0]

    class FromLowBits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            out = x.relu()
            ctx.kept = quantize(out, 2)
            return out

        @staticmethod
        def backward(ctx, grad):
            return grad * (ctx.kept.dequantize() > 0)

    exact = gradient(F.relu)
    assert bias_score(lambda: gradient(relu), exact, 32) == 0
    assert bias_score(lambda: gradient(FromLowBits.apply), exact, 32) > 4


@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    p=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0]),
)
def test_dropout_equals_torch(shape: list[int], dtype: torch.dtype, p: float) -> None:
    x = torch.randn(shape).to(dtype)
    both(lambda t: dropout(t, p), lambda t: F.dropout(t, p), x)
    both(lambda t: dropout(t, p, inplace=True), lambda t: F.dropout(t, p), x)
    both(lambda t: relu_dropout(t, p), lambda t: F.dropout(F.relu(t), p), x)
    assert dropout(x, p, training=False) is x


def test_dropout_from_its_seed() -> None:
    x = torch.rand(1000, 20, requires_grad=True) + 1
    out = dropout(x, 0.25, keep="seed")
    (grad,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
    assert torch.equal(grad != 0, out != 0)  # the same noise again
    torch.testing.assert_close(out[out != 0], (x / 0.75)[out != 0])
    assert abs((out == 0).float().mean() - 0.25) < 0.02
    state = torch.get_rng_state()
    first = dropout(x, 0.25, keep="seed")
    torch.set_rng_state(state)
    assert torch.equal(first, dropout(x, 0.25, keep="seed"))  # governed by torch's generator
    assert not torch.equal(first, dropout(x, 0.25, keep="seed"))


def test_kept_bytes(saved_bytes: Callable[..., int]) -> None:
    x = torch.randn(512, 64, requires_grad=True) * 1.0
    for function in (relu, leaky_relu, dropout, relu_dropout):
        assert saved_bytes(lambda function=function: function(x)) == x.numel() / 8
    assert saved_bytes(lambda: dropout(x, keep="seed")) == 8
    leaf = torch.randn(512, 64)
    weight = torch.randn(3, 64, requires_grad=True)
    # input features that are only dropped out: the reference and the mask
    assert saved_bytes(lambda: linear(dropout(leaf), weight), leaf, weight) == leaf.numel() / 8


def test_no_gradient_no_graph() -> None:
    x = torch.randn(5, requires_grad=True)
    with torch.no_grad():
        for function in (relu, leaky_relu, dropout, relu_dropout):
            assert function(x).grad_fn is None


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1.5"):
        dropout(torch.zeros(3), 1.5)
    with pytest.raises(ValueError, match=r"keep must be one of \('mask', 'seed'\), got 'noise'"):
        dropout(torch.zeros(3), keep="noise")
    leaf = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        dropout(leaf, inplace=True)


@pytest.mark.parametrize("block", [1 << 20, 64])
def test_relu_dropout_in_blocks_is_torchs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_BLOCK", block)
    x = torch.randn(37, 11, requires_grad=True)
    torch.manual_seed(3)
    expected = torch.nn.functional.dropout(x.relu(), 0.4)
    torch.manual_seed(3)
    out = relu_dropout(x * 1.0, 0.4)
    assert torch.equal(out, expected)
    grad = torch.randn_like(out)
    mine, theirs = (torch.autograd.grad(y, x, grad)[0] for y in (out, expected))
    assert torch.equal(mine, theirs)
