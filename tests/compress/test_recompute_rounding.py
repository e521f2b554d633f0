"""What follows from rounded numbers: unbiased, approximate or refused, as the ledger says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from recompute_steps import D, Fn, N, recomputed, rms_norm, step, x_and
from torch import Tensor

from graphlossy._compress import _recompute
from graphlossy._compress._codecs import Recomputed

SQUARE = (D, D)


def kinds(fn: Fn, *inputs: Tensor, bits: int = 4) -> dict[str, set[str]]:
    """Gradients of the recomputed tensors by the operation that saves them."""
    ledger = step(fn, *inputs, bits=bits)[2]
    found: dict[str, set[str]] = {}
    for record in ledger.records:
        if record.how == "recomputed":
            found.setdefault(record.op, set()).add(record.gradient)
    return found


ROUNDED: dict[str, tuple[Fn, dict[str, set[str]]]] = {
    "w * (x * rstd)": (lambda x, g, w: rms_norm(x + 0, g) @ w, {"mul": {"unbiased"}, "matmul": {"unbiased"}}),
    "layer norm": (lambda x, g, w: F.layer_norm(x + 0, (D,), g) @ w, {"matmul": {"unbiased"}}),
    "F.rms_norm": (lambda x, g, w: F.rms_norm(x + 0, (D,), g) @ w, {"matmul": {"approximate"}}),
    "two rounded": (
        lambda x, g, w: ((x @ w).square().mean() + (lambda a, b: (a * b) @ w)(x * 2, x @ w)),
        {"matmul": {"approximate"}},
    ),
    "one rounded twice": (
        lambda x, g, w: (lambda a: a.square().mean() + (a * (a + 1)) @ w)(x * 2),
        {"mul": {"unbiased"}, "matmul": {"approximate"}},
    ),
    "activation": (lambda x, g, w: F.silu(x * 2) @ w, {"matmul": {"approximate"}}),
    "into a smooth one": (
        lambda x, g, w: (lambda a: a.square().mean() + F.gelu(a * 3))(x * 2), {"gelu": {"approximate"}},
    ),
    # None of these may be given rounded numbers. Once a number is kept for one of them, others follow from it.
    "softmax and others": (
        lambda x, g, w: (lambda a: a.square().mean() + (a * 3).softmax(-1) + (a * 2).square().add(1).sqrt()
                         + (a + 1).exp().sin() + 1 / (a.abs() + 9) + (a * 2).logsumexp(-1, keepdim=True))(x * 2),
        {"square": {"unbiased"}, "logsumexp": {"exact"}},
    ),
    # The signs, and the mask of a ReLU, are not those of a rounded number.
    "thresholds": (lambda x, g, w: (lambda a: a.square().mean() + F.relu(a * 3).sum() + F.relu6(a - 1))(x * 2), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUNDED)
def test_what_the_ledger_says_of_rounded_sources(name: str) -> None:
    fn, expected = ROUNDED[name]
    assert kinds(fn, *x_and((D,), SQUARE)) == expected


@pytest.mark.parametrize("name", ["softmax and others", "thresholds"])
def test_exact_operations_are_given_exact_numbers(name: str) -> None:
    fn = ROUNDED[name][0]
    _, _, ledger = step(fn, *x_and((D,), SQUARE), bits=1)
    exact = {"softmax", "sqrt", "sin", "abs", "reciprocal", "rtruediv", "logsumexp", "relu", "relu6"}
    saved = [r for r in ledger.records if r.op in exact]
    assert saved and all(r.gradient == "exact" for r in saved)


def test_attention_is_given_no_fewer_than_8_bits() -> None:
    def fn(x: Tensor) -> Tensor:
        q = x * 2
        out = q.square().mean()  # saves q in 2 bits
        q = (q * 0.5).view(2, 3, -1, D)
        return F.scaled_dot_product_attention(q, q, q) + out

    _, _, ledger = step(fn, torch.randn(N, D), bits=2)
    widths = {r.bits for r in ledger.records if r.op == "scaled_dot_product_attention"}
    assert widths <= {8, 32} and "scaled_dot_product_attention" not in recomputed(ledger)


def z_score(samples: Tensor, exact: Tensor) -> float:
    """Mean squared z-score of the mean of ``samples`` over random sums of entries: about 1 without bias."""
    signs = torch.randint(0, 2, (exact.numel(), 400), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    errors = (samples - exact).flatten(1) @ signs
    return ((errors.mean(0) / (errors.std(0) / samples.shape[0] ** 0.5)) ** 2).mean().item()


UNBIASED: dict[str, Fn] = {
    "rms norm": lambda x, g, w: rms_norm(x + 0, g) @ w,
    "layer norm": lambda x, g, w: F.layer_norm(x + 0, (D,), g, torch.ones(D)) @ w,
}


def weight_gradients(name: str) -> tuple[Tensor, Tensor]:
    """Of 100 roundings, and the exact one."""
    x, g, w = x_and((D,), SQUARE)
    x = x * torch.rand(N, 1) * 5 + 2
    samples = [step(UNBIASED[name], x, g, w, bits=2, seed=seed) for seed in range(100)]
    assert all("matmul" in recomputed(ledger) for _, _, ledger in samples)
    return torch.stack([grads[2] for _, grads, _ in samples]), step(UNBIASED[name], x, g, w, recompute=False)[1][2]


@pytest.mark.parametrize("name", UNBIASED)
def test_gradient_of_the_weight_behind_a_norm_is_unbiased(name: str) -> None:
    assert z_score(*weight_gradients(name)) < 1.35


@pytest.mark.parametrize("name", UNBIASED)
def test_that_test_has_teeth(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of the rounded input, which is of larger variance, are to be found out."""

    def rms(x: Tensor, inverse: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    original = Recomputed.__init__

    def planted(self: Recomputed, func: Fn, args: tuple, kwargs: dict) -> None:
        inner = func.args[0]
        if getattr(inner, "func", None) is _recompute._normalize:

            def norm(x, mean, inverse, *affine, **options):
                return F.layer_norm(x, (D,), affine[0], torch.ones(D))

            func = norm
        elif len(args) == 2 and args[1].shape == (N, 1):
            func = rms
        original(self, func, args, kwargs)

    monkeypatch.setattr(Recomputed, "__init__", planted)
    assert z_score(*weight_gradients(name)) > 1.35
