"""One compressed step and its comparison with torch's, for the tests of recomputation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import graphlossy

N, D = 96, 64
Fn = Callable[..., Tensor]


def weigh(t: Tensor) -> Tensor:
    """A fixed random projection to a scalar, so that no gradient entry is special."""
    return (t * torch.randn(t.shape, generator=torch.Generator().manual_seed(9)).to(t.dtype)).sum()


def step(fn: Fn, *inputs: Tensor, bits: int | None = None, recompute: bool = True, seed: int = 0, amp: bool = False):
    """Output of ``fn(*inputs)``, the gradients of the inputs, and the ledger."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        with graphlossy.compress(bits=bits, recompute=recompute) as ledger:
            out = fn(*leaves)
    weigh(out).backward()
    return out.detach(), [t.grad for t in leaves], ledger


def recomputed(ledger) -> list[str]:
    return [r.op for r in ledger.records if r.how == "recomputed"]


def compare(fn: Fn, *inputs: Tensor, amp: bool = False) -> list[str]:
    """Output and gradients are torch's, bit for bit; returns which operations' tensors are computed again."""
    expected, theirs, plain = step(fn, *inputs, recompute=False, amp=amp)
    out, ours, ledger = step(fn, *inputs, amp=amp)
    assert torch.equal(out, expected)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    assert ledger.plain_bytes == plain.plain_bytes and ledger.saved_bytes <= plain.saved_bytes
    return recomputed(ledger)


def x_and(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return torch.randn(N, D), *(torch.randn(shape) for shape in shapes)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """As transformers writes it."""
    wide = x.to(torch.float32)
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (F.silu(x @ gate) * (x @ up)) @ down
