"""Copies in another type, as autocast makes them: of weights, exact and made again; of what attention is given."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphlossy
from graphlossy._compress._storages import weight_copy


class Transposed(nn.Module):
    """A weight that is stored the other way round, as GPT-2's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 48))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(torch.ones(48), x.flatten(0, -2), self.weight)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(64, 48),
    "transposed": Transposed,
    "convolution": lambda: nn.Sequential(nn.Unflatten(-1, (4, 16)), nn.Conv1d(4, 8, 3)),
    "twice": lambda: (lambda layer: nn.Sequential(layer, nn.SiLU(), layer))(nn.Linear(64, 64)),
}


def step(module: nn.Module, x: Tensor, **options: object) -> tuple[list[Tensor | None], graphlossy.Ledger]:
    """Gradients of the input and the parameters, and the ledger."""
    leaf = x.clone().requires_grad_()
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16), graphlossy.compress(seed=1, **options) as ledger:  # type: ignore[call-overload]
        out = module(leaf * 1)
    out.float().square().sum().backward()
    return [leaf.grad, *(p.grad for p in module.parameters())], ledger


def weights_in(ledger: graphlossy.Ledger, module: nn.Module) -> list[graphlossy.core.ledger.Record]:
    shapes = {shape for p in module.parameters() for shape in (tuple(p.shape), tuple(p.shape[::-1]))}
    return [record for record in ledger.records if record.shape in shapes]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_gradients_are_torchs_and_no_copy_is_kept(name: str, frozen: bool) -> None:
    module, x = MODULES[name]().requires_grad_(not frozen), torch.randn(200, 64)
    expected, counted = step(module, x, bits=None)
    found, ledger = step(module, x, bits=None, recompute=True)
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    plain = weights_in(counted, module)
    assert plain and all(r.how in ("exact", "shared") and r.dtype == "bfloat16" for r in plain)
    assert sum(r.saved_bytes for r in plain) == sum(r.plain_bytes for r in plain) > 0
    again = weights_in(ledger, module)
    assert len(again) == len(plain) and all(r.how == "recomputed" and r.saved_bytes == 0 for r in again)
    assert ledger.plain_bytes == counted.plain_bytes


def test_parameters_stay_exact_under_autocast() -> None:
    x = torch.randn(1000, 64)
    linear = nn.Linear(64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        with graphlossy.compress(bits=2) as ledger:
            out = linear(linear(linear(x)))
    out.float().sum().backward()
    assert all(r.dtype == "bfloat16" for r in ledger.records)
    assert {(r.shape, r.how) for r in ledger.records} == {
        ((1000, 64), "quantized"), ((64, 64), "exact"), ((64, 64), "shared")
    }  # fmt: skip


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_weight_is_never_rounded(frozen: bool, recompute: bool) -> None:
    """The gradient of the input is a product with the weight alone."""
    module, x = nn.Linear(64, 96).requires_grad_(not frozen), torch.randn(300, 64)
    expected, found = (
        step(module, x, bits=bits, recompute=recompute)[0][0] for bits in (None, 1)
    )  # fmt: skip
    assert expected is not None and found is not None and torch.equal(found, expected)


def test_another_argument_of_as_many_elements_is_not_the_weight() -> None:
    module, x = nn.Linear(64, 64).requires_grad_(False), torch.randn(64, 64)
    expected, _ = step(module, x, bits=None)
    found, _ = step(module, x, bits=None, recompute=True)
    assert torch.equal(found[0], expected[0])  # type: ignore[arg-type]
    w = nn.Parameter(torch.randn(64, 64), requires_grad=False)
    a, b = torch.randn(64, 64, requires_grad=True), torch.randn(64, 64)
    with torch.autocast("cpu", torch.bfloat16), graphlossy.compress(bits=None, recompute=True) as ledger:
        out = (a * 1) @ w + (a * 1) @ b
    out.sum().backward()
    exact = torch.ones(64, 64).bfloat16() @ w.t().bfloat16() + torch.ones(64, 64).bfloat16() @ b.t().bfloat16()
    assert torch.allclose(a.grad, exact.float(), rtol=0.05, atol=0.5)  # type: ignore[arg-type]
    assert [r.how for r in ledger.records if r.shape == (64, 64)].count("recomputed") == 1


def test_a_weight_that_was_changed_is_noticed() -> None:
    module, x = nn.Linear(64, 64), torch.randn(100, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), graphlossy.compress(bits=4, recompute=True):
        out = module(x * 1)
    with torch.no_grad():
        module.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.float().sum().backward()


def test_a_model_switched_on_learns_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 8))
    model[2].requires_grad_(False)
    other = copy.deepcopy(model)
    graphlossy.compress(other, bits=None, recompute=True, seed=0)
    for each in (model, other):
        optimizer = torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=0.1)
        for number in range(3):
            x = torch.randn(64, 64, generator=torch.Generator().manual_seed(number))
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.mse_loss(each(x).float(), torch.ones(64, 8))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_autocast_casts_for_attention_keeps_eight_bits() -> None:
    """Rotary embeddings leave queries and keys in 32 bits, and autocast casts them."""

    def attend(x: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x * 1.5, x + 1, x @ torch.eye(32), attn_mask=mask).float()

    def error(amp: bool) -> float:
        """Of the gradient, beside that of exact activations."""
        x, mask = torch.randn(2, 4, 64, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 1, 64, 64)
        grads = []
        for bits in (None, 2):
            leaf = x.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=amp), graphlossy.compress(bits=bits, seed=0) as ledger:
                out = attend(leaf, mask)
            out.square().sum().backward()
            assert leaf.grad is not None
            grads.append(leaf.grad)
        saved = [r for r in ledger.records if r.op == "scaled_dot_product_attention" and r.shape == (2, 4, 64, 32)]
        assert len(saved) == 4 and all(r.how == "quantized" and r.bits == 8 for r in saved)
        return float((grads[1] - grads[0]).norm() / grads[0].norm())

    assert 0 < error(True) < 1.5 * error(False)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda p: p,
    "reshaped": lambda p: p.view(64, 96),
    "transposed twice": lambda p: p.T.T,
    "some rows": lambda p: p[:64],
    "an expert": lambda p: p.view(2, 48, 64)[1],
    "a matrix of others": lambda p: p.view(64, 96).t(),
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", VIEWS)
def test_views_of_a_weight_are_never_rounded(name: str, frozen: bool, recompute: bool) -> None:
    p = nn.Parameter(torch.randn(96, 64), requires_grad=not frozen)
    view = VIEWS[name](p)
    x, grads, held = torch.randn(300, view.shape[1]), [], []
    for bits in (None, 1):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16), graphlossy.compress(bits=bits, recompute=recompute) as ledger:
            out = F.linear(leaf * 1, VIEWS[name](p))
        out.float().square().sum().backward()
        grads.append(leaf.grad)
        held.append([r for r in ledger.records if r.shape != tuple(x.shape)])
    assert torch.equal(grads[0], grads[1])  # type: ignore[arg-type]
    for records in held:
        assert [r.bits for r in records] == [16.0] and records[0].plain_bytes > 0
        assert records[0].saved_bytes in (0, records[0].plain_bytes) and (recompute or records[0].saved_bytes)


COPIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "channels last": lambda x, p: F.conv2d(
        x.view(-1, 8, 4, 4).bfloat16(),
        p.view(8, 8, 3, 3).to(torch.bfloat16, memory_format=torch.channels_last),
        padding=1,
    ),
    "another order": lambda x, p: (
        x[:, :24].bfloat16() @ p.view(24, 24).t().to(torch.bfloat16, memory_format=torch.contiguous_format).t()
    ),
    "two roundings": lambda x, p: x[:, :24] @ (p.view(24, 24) * 1e-6).to(torch.float16).to(torch.bfloat16).float(),
    "widened": lambda x, p: x[:, :24].double() @ p.view(24, 24).to(torch.bfloat16).double(),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_that_is_no_plain_cast_stays(name: str) -> None:
    p, x, grads = nn.Parameter(torch.randn(576)), torch.randn(40, 128), []
    for recompute in (False, True):
        leaf = x.clone().requires_grad_()
        with graphlossy.compress(bits=None, recompute=recompute):
            out = COPIES[name](leaf * 1, p)
        out.float().square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(grads[0], grads[1])  # type: ignore[arg-type]


def test_a_copy_that_was_changed_stays() -> None:
    p, x, grads = nn.Parameter(torch.randn(64, 64)), torch.randn(100, 64), []
    for recompute in (False, True):
        leaf = x.clone().requires_grad_()
        with graphlossy.compress(bits=None, recompute=recompute):
            w = p.to(torch.bfloat16)
            with torch.no_grad():
                w.mul_(3)
            out = (leaf * 1).bfloat16() @ w
        out.float().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(grads[0], grads[1])  # type: ignore[arg-type]


def test_a_statistic_of_as_many_elements_is_not_the_weight() -> None:
    weight = nn.Parameter(torch.ones(64, dtype=torch.bfloat16), requires_grad=False)
    assert weight_copy(torch.randn(64, 1), (torch.randn(64, 64).bfloat16(), (64,), weight)) == (False, None)
