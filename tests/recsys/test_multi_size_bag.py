"""`MultiSizeEmbeddingBag` and `BagOf` against `torch.nn.EmbeddingBag` with the same rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graphlossy.recsys import BagOf, IdError, MultiSizeEmbedding, MultiSizeEmbeddingBag

TOKENS, WIDTH = 300, 9
SIZES = torch.tensor([9, 4, 4, 1, 0])[torch.randint(0, 5, (TOKENS,), generator=torch.Generator().manual_seed(2))]
FORMS: dict[str, dict[str, Any]] = {
    "nested": {"sizes": SIZES},
    "per_size": {"sizes": SIZES, "projection": "per_size"},
    "shared": {"sizes": SIZES, "shared_rows": 7},
    "full": {"sizes": None},
}
MODES = ("sum", "mean", "max")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def make(form: str, mode: str, how: str = "bag", **options: Any) -> nn.Module:
    """A bag with a kernel, or the wrapper around an embedding."""
    options = FORMS[form] | options
    if how == "bag":
        return MultiSizeEmbeddingBag(TOKENS, WIDTH, mode=mode, **options)
    last = options.pop("include_last_offset", False)
    return BagOf(MultiSizeEmbedding(TOKENS, WIDTH, **options), mode, last)


def twin(bag: nn.Module, mode: str, **options: Any) -> nn.EmbeddingBag:
    options.pop("dtype", None)
    return nn.EmbeddingBag(TOKENS, WIDTH, mode=mode, _weight=bag.weight.detach().clone(), **options)


def assert_gradients_agree(bag: nn.Module, dense: nn.EmbeddingBag, rtol: float) -> None:
    """Gradients of the parameters against those of the full table, through the weight."""
    params = list(bag.parameters())
    whole = torch.autograd.grad(bag.weight, params, dense.weight.grad, allow_unused=True)
    for p, g in zip(params, whole, strict=True):
        g = torch.zeros_like(p) if g is None else g
        bound = rtol * max(1.0, float(g.abs().max()) if g.numel() else 1.0)
        torch.testing.assert_close(p.grad.to_dense(), g, rtol=rtol, atol=bound)


@pytest.mark.parametrize("how", ["bag", "wrapper"])
@pytest.mark.parametrize("form", ["nested", "shared"])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=0, max_size=12),
    dtype=st.sampled_from(FLOATS),
    padding=st.sampled_from([None, 0, -1]),
    last=st.booleans(),
    weighted=st.booleans(),
    sparse=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_bags(
    how: str, form: str, mode: str, lengths: list[int], dtype: torch.dtype, padding: int | None, last: bool,
    weighted: bool, sparse: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    options = {"padding_idx": padding, "include_last_offset": last}
    bag = make(form, mode, how, dtype=dtype, sparse=sparse, **options)
    dense = twin(bag, mode, **options)
    input = torch.randint(0, TOKENS, (sum(lengths),))
    if padding is not None:
        input[torch.rand(sum(lengths)) < 0.3] = padding % TOKENS
    offsets = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
    offsets = offsets if last else offsets[:-1]
    weights = torch.randn(sum(lengths)).to(dtype) if weighted and mode == "sum" else None
    one, two = (None if weights is None else weights.clone().requires_grad_() for _ in range(2))
    found, expected = bag(input, offsets, one), dense(input, offsets, two)
    eps = torch.finfo(dtype).eps * 64
    torch.testing.assert_close(found, expected, rtol=eps, atol=eps * 4)
    assert found.dtype == dtype
    upstream = torch.randn(expected.shape).to(dtype)
    if dtype in (torch.float16, torch.bfloat16):
        return
    expected.backward(upstream)
    found.backward(upstream)
    if mode != "max":  # where two rows of a bag are the same, either may get the gradient of a maximum
        assert_gradients_agree(bag, dense, eps)
    if one is not None:
        torch.testing.assert_close(one.grad, two.grad, rtol=eps, atol=eps * 16)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_of_input_are_bags(mode: str, dtype: torch.dtype) -> None:
    bag = make("nested", mode, dtype=dtype)
    dense = twin(bag, mode)
    input = torch.randint(0, TOKENS, (20, 5))
    torch.testing.assert_close(bag(input), dense(input))
    torch.testing.assert_close(bag(input.int()), dense(input))
    assert bag(input[:0]).shape == (0, WIDTH)
    assert torch.equal(bag(input[:, :0]), torch.zeros(20, WIDTH, dtype=dtype))
    weights = torch.randn(20, 5, dtype=dtype)
    if mode == "sum":
        torch.testing.assert_close(bag(input, per_sample_weights=weights), dense(input, per_sample_weights=weights))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("how", ["bag", "wrapper"])
def test_ids_after_the_last_offset_are_in_no_bag(mode: str, dtype: torch.dtype, how: str) -> None:
    """In torch 2.13 they are in the last bag for some types and modes, and in none for others."""
    bag = make("nested", mode, how, dtype=dtype, include_last_offset=True, padding_idx=0)
    input, offsets = torch.tensor([5, 0, 7, 5, 9, 11, 0, 1, 2, 0]), torch.tensor([0, 2, 7])
    weights = (torch.randn(10, dtype=dtype, requires_grad=True),) if mode == "sum" else ()
    cut = (weights[0][:7],) if weights else ()
    found, expected = bag(input, offsets, *weights), bag(input[:7], offsets, *cut)
    assert torch.equal(found, expected)
    inputs = [*bag.parameters(), *weights]
    found, expected = (torch.autograd.grad(out.square().sum(), inputs) for out in (found, expected))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_by_frequency(mode: str, sparse: bool) -> None:
    """Against `torch.nn.Embedding`: torch 2.13's bag divides by the counts of other tokens."""
    bag = make("nested", mode, dtype=torch.float64, scale_grad_by_freq=True, sparse=sparse)
    dense = nn.Embedding(TOKENS, WIDTH, _weight=bag.weight.detach().clone(), scale_grad_by_freq=True)
    input, offsets = torch.randint(0, 20, (60,)), torch.arange(0, 60, 4)
    upstream = torch.randn(15, WIDTH, dtype=torch.float64)
    bag(input, offsets).backward(upstream)
    rows = dense(input).view(15, 4, WIDTH)
    (rows.sum(1) if mode == "sum" else rows.mean(1)).backward(upstream)
    assert_gradients_agree(bag, dense, 1e-9)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_gradcheck(mode: str) -> None:
    bag = MultiSizeEmbeddingBag(12, 5, mode=mode, sizes=[5, 2, 2, 1, 0, 3] * 2, dtype=torch.float64)
    names, values = zip(
        *((name, p.detach().clone().requires_grad_()) for name, p in bag.named_parameters()), strict=True
    )
    input, offsets = torch.tensor([3, 11, 3, 0, 7, 8]), torch.tensor([0, 0, 4])
    weights = (torch.randn(6, dtype=torch.float64, requires_grad=True),) if mode == "sum" else ()

    def run(*given: torch.Tensor) -> torch.Tensor:
        state = dict(zip(names, given, strict=False))
        return torch.func.functional_call(bag, state, (input, offsets, *given[len(names) :]))

    assert torch.autograd.gradcheck(run, (*values, *weights))


def test_max_norm() -> None:
    bag = make("nested", "sum", max_norm=1.5)
    dense = twin(bag, "sum", max_norm=1.5)
    input, offsets = torch.randint(0, TOKENS, (60,)), torch.arange(0, 60, 4)
    torch.testing.assert_close(bag(input, offsets), dense(input, offsets), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bag.weight, dense.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"bits": 4}, {"bits": 8, "trainable": True}], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_low_bit_rows(mode: str, options: dict[str, Any]) -> None:
    bag = make("shared", mode).quantize_(**options)
    dense = twin(bag, mode)
    input, offsets = torch.randint(0, TOKENS, (60,)), torch.arange(0, 60, 4)
    torch.testing.assert_close(bag(input, offsets), dense(input, offsets))


@pytest.mark.parametrize("how", ["bag", "wrapper"])
def test_bad_arguments(how: str) -> None:
    bag, ids = make("nested", "mean", how), torch.arange(6)
    for args, message in (
        ((ids.view(2, 3), torch.tensor([0])), "offsets must be None"),
        ((ids,), "offsets must be given"),
        ((ids.view(1, 2, 3),), "input must have 1 dimension"),
        ((ids, torch.tensor([1, 3])), "begin with 0"),
        ((ids, torch.tensor([0, 5, 3])), "rise"),
        ((ids, torch.tensor([0, 7])), "end by 6"),
        ((ids, torch.tensor([0.0])), "offsets must be int64"),
        ((ids, torch.tensor([0]), torch.ones(6)), "mode='sum'"),
    ):
        with pytest.raises(ValueError, match=message):
            bag(*args)
    with pytest.raises(ValueError, match="one shape"):
        make("nested", "sum", how)(ids, torch.tensor([0]), torch.ones(5))
    with pytest.raises(IdError, match=f"id {TOKENS} is not in the table"):
        bag(torch.tensor([0, TOKENS]), torch.tensor([0]))
    with pytest.raises(ValueError, match="at least one entry"):
        make("nested", "sum", how, include_last_offset=True)(ids, torch.empty(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="mode must be"):
        make("nested", "median", how)
