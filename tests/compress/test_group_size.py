"""Elements that share a scale and an offset: their bytes, their error, and what else depends on them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import graphlossy
from graphlossy import llm

GROUPS = (64, 256)


def outlying(rows: int = 512, columns: int = 256) -> Tensor:
    """Activations with one large channel among 256, as language models have them."""
    x = torch.randn(rows, columns)
    x[:, 7] += 60
    return x


def weight_gradient(x: Tensor, **options: object) -> tuple[Tensor, int]:
    """dW of a linear layer, and the bytes kept for it."""
    layer = nn.Linear(x.shape[1], 8, bias=False)
    torch.manual_seed(1)
    made = x.clone().requires_grad_() * 1
    with graphlossy.compress(seed=3, **options) as ledger:  # type: ignore[call-overload]
        out = layer(made * 1)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)))
    assert layer.weight.grad is not None
    return layer.weight.grad, ledger.saved_bytes


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_group_costs_four_bytes(bits: int) -> None:
    x = outlying()
    for group in (8, *GROUPS):
        assert weight_gradient(x, bits=bits, group_size=group)[1] == x.numel() * bits // 8 + 4 * x.numel() // group
    assert weight_gradient(x, bits=bits)[1] == weight_gradient(x, bits=bits, group_size=256)[1]


def test_smaller_groups_shut_outliers_in() -> None:
    x = outlying()
    exact, _ = weight_gradient(x, bits=None)
    small, large = ((weight_gradient(x, bits=4, group_size=group)[0] - exact).norm() for group in GROUPS)
    assert small < 0.7 * large


def test_a_budget_counts_the_groups() -> None:
    x, sizes = outlying(), {}
    budget = x.numel() * 5 // 8  # 4 bits in any groups; 8 in none
    for group in GROUPS:
        sizes[group] = weight_gradient(x, bits=None, budget=budget, group_size=group)[1]
        assert sizes[group] <= budget
    assert sizes[64] - sizes[256] == 4 * x.numel() * 3 // 256


def test_a_language_model_has_groups_of_64_and_copies_keep_them() -> None:
    x = outlying()
    model = nn.Sequential(nn.Linear(256, 64), nn.SiLU(), nn.Linear(64, 8))
    ledger = llm.compress(model, recompute=False, seed=0)
    model(x.requires_grad_())
    small = ledger.saved_bytes
    other = copy.deepcopy(model)
    llm.compress(model, recompute=False, seed=0, group_size=256)
    model(x)
    assert small - ledger_of(model).saved_bytes == sum(4 * n * 3 // 256 for n in saved_numbers(ledger))
    other(x)
    assert ledger_of(other).saved_bytes == small


def ledger_of(model: nn.Module) -> graphlossy.Ledger:
    found: graphlossy.Ledger = next(iter(model._forward_pre_hooks.values())).__self__.ledger
    return found


def saved_numbers(ledger: graphlossy.Ledger) -> list[int]:
    return [record.plain_bytes // 4 for record in ledger.records if record.how == "quantized"]


@pytest.mark.parametrize("wrong", [0, 7, 12, 64.0, True, "64"])
def test_what_is_refused(wrong: object) -> None:
    for switch in (graphlossy.compress, llm.compress):
        with pytest.raises(ValueError, match="group_size must be a multiple of 8"):
            switch(nn.Linear(4, 4), group_size=wrong)  # type: ignore[operator]
