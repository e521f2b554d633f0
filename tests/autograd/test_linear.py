"""Linear with a low-bit input, and the recipes that replace it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphlossy.autograd import _packed, dropout, linear
from graphlossy.autograd._packed import pack, row_blocks
from graphlossy.autograd.linear import weight_grad
from graphlossy.autograd.recipe import Recipe, attach, keep, recipe_of


@pytest.fixture
def layer() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(300, 48, requires_grad=True) * 1.0 + 0.3
    x.retain_grad()
    return x, torch.randn(20, 48, requires_grad=True), torch.randn(20, requires_grad=True)


def gradients(bits: int | None, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(linear(x, weight, bias, bits=bits), (x, weight, bias), grad)


@pytest.mark.parametrize("bits", [8, 2, None])
def test_against_torch(bits: int | None, layer: tuple[Tensor, ...]) -> None:
    grad = torch.randn(300, 20)
    out = F.linear(*layer)
    assert torch.equal(linear(*layer, bits=bits), out)
    exact = torch.autograd.grad(out, layer, grad)
    lossy = gradients(bits, *layer, grad)
    if bits is None:
        assert all(torch.equal(a, b) for a, b in zip(lossy, exact, strict=True))
    else:
        torch.testing.assert_close(lossy[0], exact[0])
        torch.testing.assert_close(lossy[2], exact[2])
        error = (lossy[1] - exact[1]).norm() / exact[1].norm()
        assert 0 < error < (0.02 if bits == 8 else 1.5)


def test_weight_gradient_is_unbiased(layer: tuple[Tensor, ...], bias_score: Callable[..., float]) -> None:
    grad = torch.rand(300, 20)
    x, weight, bias = layer
    exact = gradients(None, *layer, grad)[1]
    assert bias_score(lambda: gradients(2, x * 1.0, weight, bias, grad)[1], exact) < 2


def test_a_biased_weight_gradient_is_rejected(
    planted_bias: None, layer: tuple[Tensor, ...], bias_score: Callable[..., float]
) -> None:
    grad = torch.rand(300, 20)
    x, weight, bias = layer
    exact = gradients(None, *layer, grad)[1]
    assert bias_score(lambda: gradients(2, x * 1.0, weight, bias, grad)[1], exact) > 4


@pytest.mark.parametrize(("bits", "group"), [(1, 256), (2, 256), (3, 64), (4, 256), (8, 32)])
def test_kept_bytes(bits: int, group: int, saved_bytes: Callable[..., int]) -> None:
    x = torch.randn(512, 64, requires_grad=True) * 1.0
    weight = torch.randn(8, 64, requires_grad=True)
    kept = saved_bytes(lambda: linear(x, weight, bits=bits, group_size=group), weight)
    assert kept * 8 / x.numel() == bits + 32 / group


def test_what_is_not_kept(saved_bytes: Callable[..., int]) -> None:
    weight, bias = torch.randn(8, 64, requires_grad=True), torch.zeros(8, requires_grad=True)
    x = torch.randn(512, 64, requires_grad=True)
    hidden = x * 1.0
    assert saved_bytes(lambda: linear(hidden, weight.detach(), bias), weight) == 0  # frozen weight
    assert saved_bytes(lambda: linear(x, weight, bias), weight, x) == 0  # a leaf lives anyway
    assert saved_bytes(lambda: linear(x.detach(), weight, bias), weight, x) == 0
    once = saved_bytes(lambda: linear(hidden, weight), weight)
    twice = saved_bytes(lambda: linear(hidden, weight) + linear(hidden, weight), weight)
    assert once == twice == 512 * 64 * 2.125 / 8  # two layers share one copy
    with torch.no_grad():
        assert linear(hidden, weight).grad_fn is None


@given(
    rows=st.integers(1, 60), width=st.integers(1, 40), bits=st.sampled_from([None, 1, 2, 3, 4, 8]),
    group=st.sampled_from([8, 32, 256]), masks=st.integers(0, 2), affine=st.booleans(), limit=st.integers(1, 700),
)  # fmt: skip
def test_blocks_add_up(
    rows: int, width: int, bits: int | None, group: int, masks: int, affine: bool, limit: int
) -> None:
    """Whatever the block size, the blocks are those of the whole tensor, and so is the product over them."""
    kept = pack(torch.randn(rows, width), bits, group)
    whole = kept.dequantize()
    recipe = Recipe(kept)
    if affine:
        weight, bias = torch.randn(width), torch.randn(width)
        recipe, whole = recipe._replace(affine=(weight, bias)), whole * weight + bias
    for _ in range(masks):
        mask = torch.rand(rows, width) < 0.5
        recipe, whole = recipe.masked(torch.ops.graphlossy.pack_mask(mask), 1.5), whole * mask * 1.5
    before = dict(_packed._BLOCK)
    _packed._BLOCK["cpu"] = limit
    try:
        assert torch.equal(recipe.compute(), whole)
        assert [start for start, _, _ in row_blocks(kept)][0] == 0
        grad = torch.randn(rows, 3)
        torch.testing.assert_close(weight_grad(grad, recipe), grad.t() @ whole, rtol=1e-4, atol=1e-4)
    finally:
        _packed._BLOCK.update(before)
    rebuilt = recipe.layout.rebuild(list(recipe.tensors))
    assert torch.equal(rebuilt.compute(), whole)


def test_the_full_input_is_never_unpacked(monkeypatch: pytest.MonkeyPatch, layer: tuple[Tensor, ...]) -> None:
    monkeypatch.setitem(_packed._BLOCK, "cpu", 48 * 32)
    sizes = []
    unpack = _packed._dequantize
    monkeypatch.setattr(
        _packed, "_dequantize", lambda tensors, meta, width: sizes.append(width) or unpack(tensors, meta, width)
    )
    gradients(2, *layer, torch.randn(300, 20))
    assert max(sizes) == 48 * 32 and sum(sizes) == 48 * 300


def test_a_recipe_dies_with_an_edit(layer: tuple[Tensor, ...]) -> None:
    x = layer[0] * 1.0
    recipe = keep(x, 2)
    assert recipe_of(x) is recipe and keep(x, 2) is recipe
    assert recipe_of(x.view_as(x)) is None
    x.add_(1)
    assert recipe_of(x) is None
    assert keep(x, 2) is not recipe
    column = torch.ones(48)
    h = dropout(torch.randn(300, 48), 0.5)
    recipe = recipe_of(h)
    assert recipe is not None and torch.equal(recipe.compute(), h)  # a leaf's dropout: reference and mask
    h2 = layer[0] * 1.0
    attach(h2, recipe._replace(affine=(column, column)))
    assert recipe_of(h2) is not None
    column.mul_(2)  # what the recipe is made of has changed
    assert recipe_of(h2) is None


def test_other_ranks_and_types() -> None:
    weight = torch.randn(5, 16, requires_grad=True)
    for shape in ((16,), (3, 16), (2, 3, 4, 16), (0, 16)):
        x = torch.randn(shape, requires_grad=True) * 1.0
        out = linear(x, weight, bits=8)
        assert torch.equal(out, F.linear(x, weight))
        out.sum().backward()
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        w = weight.detach().to(dtype).requires_grad_()
        x = torch.randn(64, 16, dtype=dtype, requires_grad=True) * 1.0
        grad = torch.randn(64, 5, dtype=dtype)
        mine = torch.autograd.grad(linear(x, w, bits=8), w, grad)[0]
        exact = torch.autograd.grad(F.linear(x, w), w, grad)[0]
        assert mine.dtype is dtype
        assert (mine - exact).float().norm() / exact.float().norm() < 0.03


def test_autocast(layer: tuple[Tensor, ...]) -> None:
    x, weight, bias = layer
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = linear(x, weight, bias, bits=8)
        exact = F.linear(x, weight, bias)
    assert out.dtype is torch.bfloat16 and torch.equal(out, exact)
    grad = torch.randn_like(out)
    mine, theirs = (torch.autograd.grad(y, (x, weight, bias), grad) for y in (out, exact))
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype is b.dtype is torch.float32
        assert (a - b).norm() / b.norm() < 0.03


def test_errors(layer: tuple[Tensor, ...]) -> None:
    with pytest.raises(ValueError, match=r"bits must be one of \(1, 2, 3, 4, 8\) or None \(exact\), got 5"):
        linear(*layer, bits=5)
    with pytest.raises(ValueError, match=r"weight \(20, 48\) takes 48 columns"):
        linear(torch.zeros(3, 4), layer[1])


def test_double_backward_says_so(layer: tuple[Tensor, ...]) -> None:
    x, weight, bias = layer
    (grad,) = torch.autograd.grad(linear(x, weight, bias).square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
