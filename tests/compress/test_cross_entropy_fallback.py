"""Losses and logits that are left to torch: the same numbers to the last bit, the same errors."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphlossy
from graphlossy._compress import _cross_entropy

D, V, N = 16, 1024, 40
Loss = Callable[[nn.Linear, Tensor], Tensor]


def targets(n: int = N, classes: int = V) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(3))


def step(loss_of: Loss, layer: nn.Linear, x: Tensor, lossy: bool, amp: bool = False):
    """Loss, gradients of the input and of the layer, ledger."""
    layer = copy.deepcopy(layer)
    x = x.detach().clone().requires_grad_(x.requires_grad)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        with graphlossy.compress(bits=None, recompute=lossy) as ledger:
            loss = loss_of(layer, x * 1.0)
    loss.backward()
    return loss.detach(), [t.grad for t in (x, *layer.parameters())], ledger


def compare(loss_of: Loss, x: Tensor | None = None, layer: nn.Linear | None = None, tolerance: float = 1e-6,
            amp: bool = False, pieces: int = 1):  # fmt: skip
    """Checks the loss bit for bit and the gradients of torch's and ours; returns the ledger."""
    layer = nn.Linear(D, V) if layer is None else layer
    x = torch.randn(N, D, requires_grad=True) if x is None else x
    (expected, theirs, _), (loss, ours, ledger) = (step(loss_of, layer, x, lossy, amp) for lossy in (False, True))
    assert torch.equal(loss.nan_to_num(7e7), expected.nan_to_num(7e7))
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert a.dtype == b.dtype and a.shape == b.shape and bool(a.isfinite().all()) == bool(b.isfinite().all())
            assert (a - b).norm() <= tolerance * b.norm()
    assert len(in_pieces(ledger)) == pieces
    return ledger


def in_pieces(ledger) -> list:
    return [r for r in ledger.records if r.op == "cross_entropy" and r.how == "recomputed"]


def in_place(layer: nn.Linear, x: Tensor) -> Tensor:
    logits = layer(x)
    logits[:, 3] = -5.0
    return F.cross_entropy(logits, targets())


def in_place_unseen(layer: nn.Linear, x: Tensor) -> Tensor:
    logits = layer(x)
    with torch.no_grad():
        logits.mul_(2)
    return F.cross_entropy(logits, targets())


def hooked(layer: nn.Linear, x: Tensor) -> Tensor:
    logits = layer(x)
    logits.register_hook(lambda grad: 2 * grad)
    return F.cross_entropy(logits.view(-1, V), targets())


def module_hooked(layer: nn.Linear, x: Tensor) -> Tensor:
    layer.register_full_backward_hook(lambda module, grads, outs: (grads[0] * 2,))
    return F.cross_entropy(layer(x), targets())


def retained(layer: nn.Linear, x: Tensor) -> Tensor:
    logits = layer(x)
    logits.retain_grad()
    loss = F.cross_entropy(logits, targets())
    loss.backward(retain_graph=True)
    assert logits.grad is not None
    return loss


def detached(layer: nn.Linear, x: Tensor) -> Tensor:
    logits = layer(x)
    return F.cross_entropy(logits.detach(), targets()) + logits.square().mean()


def not_recorded(layer: nn.Linear, x: Tensor) -> Tensor:
    logits = layer(x)
    with torch.no_grad():
        F.cross_entropy(logits, targets())
    return logits.square().mean()


def in_three_dimensions(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.cross_entropy(layer(x).view(4, 10, V).transpose(1, 2), targets().view(4, 10))


def with_three_dimensions_in_a_row(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.cross_entropy(layer(x).view(4, V, 10), targets().view(4, 10))


TORCHS_WAY: dict[str, Loss] = {
    "label smoothing": lambda m, x: F.cross_entropy(m(x), targets(), label_smoothing=0.1),
    "class weights": lambda m, x: F.cross_entropy(m(x), targets(), weight=torch.linspace(0, 1, V)),
    "soft targets": lambda m, x: F.cross_entropy(m(x), torch.full((N, V), 1.0 / V)),
    "no reduction": lambda m, x: F.cross_entropy(m(x), targets(), reduction="none").square().sum(),
    "some rows": lambda m, x: F.cross_entropy(m(x)[: N // 2], targets(N // 2)),
    "some classes": lambda m, x: F.cross_entropy(m(x)[:, :-8], targets(classes=V - 8)),
    "scaled": lambda m, x: F.cross_entropy(m(x) * 0.5, targets()),
    "a narrower type": lambda m, x: F.cross_entropy(m(x).bfloat16().float(), targets()),
    "16 bits": lambda m, x: F.cross_entropy(m(x).bfloat16(), targets()),
    "another matrix product": lambda m, x: F.cross_entropy(x @ m.weight.t(), targets()) + 0 * m.bias.sum(),
    **{
        f.__name__: f
        for f in (
            in_place, in_place_unseen, hooked, module_hooked, retained, detached, not_recorded, in_three_dimensions,
            with_three_dimensions_in_a_row,
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TORCHS_WAY)
def test_what_is_left_to_torch(name: str) -> None:
    compare(TORCHS_WAY[name], tolerance=0.0, pieces=0)


def test_few_classes_are_left_to_torch() -> None:
    few = _cross_entropy._LEAST_CLASSES - 1
    compare(lambda m, x: F.cross_entropy(m(x), targets(classes=few)), None, nn.Linear(D, few), 0.0, pieces=0)
    wide = torch.randn(N, V, requires_grad=True)
    compare(lambda m, x: F.cross_entropy(m(x), targets()), wide, nn.Linear(V, V), 0.0, pieces=0)


def test_logits_that_were_changed_after_a_first_loss() -> None:
    def loss_of(layer: nn.Linear, x: Tensor) -> Tensor:
        logits = layer(x)
        first = F.cross_entropy(logits, targets())
        return first + F.cross_entropy(logits.mul_(2), targets())  # this one is torch's

    compare(loss_of)


@pytest.mark.parametrize("when", ["before the loss", "after the loss"])
def test_features_that_were_changed(when: str) -> None:
    """Gradients of what the layer was given can no longer be had, and nobody is given others."""
    layer, x = nn.Linear(D, V), torch.randn(N, D, requires_grad=True)
    for lossy in (False, True):
        with graphlossy.compress(bits=None, recompute=lossy):
            hidden = x * 1.0
            logits = layer(hidden)
            if when == "before the loss":
                hidden.add_(1)
            loss = F.cross_entropy(logits, targets())
            if when == "after the loss":
                hidden.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("wrong", [V, -1, -V])
def test_a_target_that_is_no_class(wrong: int) -> None:
    y = targets()
    y[5] = wrong
    messages = []
    for lossy in (False, True):
        with pytest.raises(IndexError, match="out of bounds") as caught, graphlossy.compress(recompute=lossy):
            F.cross_entropy(nn.Linear(D, V)(torch.randn(N, D)), y)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
