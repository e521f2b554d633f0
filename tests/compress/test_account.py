"""Saved bytes are those of what is really kept, and widths that an operation asks for stay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphlossy
from graphlossy._compress import _codecs
from graphlossy._compress._codecs import LowBit
from graphlossy.autograd import CSRGraph, spmm_linear


def test_what_is_kept_after_it_was_computed_again_counts() -> None:
    x, w, v = (torch.randn(*shape, requires_grad=True) for shape in ((100, 64), (64, 64), (100, 3)))
    with graphlossy.compress(bits=None, recompute=True) as ledger:
        y = F.silu(x * 1)
        _ = (y @ w).sum() + (y.t() @ v).sum()  # y is computed again, its transpose is kept
    assert ledger.saved_bytes == 2 * 100 * 64 * 4
    assert ledger.plain_bytes == 2 * 100 * 64 * 4


def test_what_is_kept_after_it_became_a_mask_counts() -> None:
    x = torch.randn(100, 64, requires_grad=True)
    with graphlossy.compress(bits=2) as ledger:
        y = F.relu(x + 0)
        _ = y.amax(1).sum()  # asks which elements are the largest: y is kept
    assert ledger.saved_bytes >= 100 * 64 * 4


def test_a_parameter_that_is_frozen_costs_nothing() -> None:
    layer = nn.Linear(64, 64).requires_grad_(False)
    x = torch.randn(100, 64, requires_grad=True)
    with graphlossy.compress(bits=None) as ledger:
        layer(x).sum()
    assert ledger.saved_bytes == ledger.plain_bytes == 0


def test_the_arrays_of_a_graph_that_was_there_before_cost_nothing() -> None:
    x, weight = torch.randn(90, 8), torch.randn(8, 8, requires_grad=True)
    edges, values = torch.randint(90, (2, 2000)), torch.rand(2000)
    graph = CSRGraph(edges, values, 90, 90)

    def saved(graph: CSRGraph, bits: int | None) -> int:
        with graphlossy.compress(bits=bits) as ledger:
            spmm_linear(graph, F.linear(x, weight), weight).sum().backward()
        return ledger.saved_bytes

    for bits in (None, 2):
        first, second = saved(graph, bits), saved(graph, bits)
        fresh = CSRGraph(edges, values, 90, 90)
        arrays = sum(t.numel() * t.element_size() for t in fresh.transpose_pattern()) + 4 * 2000
        assert second <= first and saved(CSRGraph(edges, values, 90, 90), bits) == second + arrays  # made in the pass


@pytest.mark.parametrize("recompute", [False, True])
def test_a_budget_leaves_attention_its_bits(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """q is saved by a square, which takes any width, and by attention, which takes exponentials of it."""
    widths: list[int] = []
    plain = LowBit.unpack

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rest = nn.Linear(64, 64), nn.ModuleList(nn.Linear(64, 64) for _ in range(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = self.first(x)
            extra = q.square().mean()
            q = (q * 0.5).view(4, 1, -1, 64) if recompute else q.view(4, 1, -1, 64)
            y = F.scaled_dot_product_attention(q, q, q)
            y.register_hook(lambda grad: widths.append(-1))  # the next that is unpacked is attention's
            y = y.view(-1, 64)
            for layer in self.rest:
                y = F.silu(layer(y))
            return y.square().mean() + extra

    def unpack(self: LowBit) -> torch.Tensor:
        widths.append(self.bits)
        return plain(self)

    monkeypatch.setattr(LowBit, "unpack", unpack)
    torch.manual_seed(0)
    model = Model().train()
    ledger = graphlossy.compress(model, budget=200_000, recompute=recompute)
    model(torch.randn(400, 64)).backward()
    attention = [r for r in ledger.records if r.op == "scaled_dot_product_attention" and r.how != "exact"]
    assert attention and all(r.bits >= 8 for r in attention)
    after = widths[widths.index(-1) + 1 :]
    assert min(widths) == -1 and after and after[0] >= 8
    assert any(0 < width < 8 for width in widths)  # the budget was too small for 8 bits everywhere


def test_freed_memory_goes_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """The C library keeps freed blocks below 32 MiB: given back, here, after 64 KiB of them and before the backward."""
    given: list[int] = []
    monkeypatch.setattr(_codecs, "release_free_memory", lambda device, nbytes: given.append(nbytes))
    monkeypatch.setattr(_codecs, "_FREED_AT_ONCE", 2**16)
    x, w = torch.randn(256, 64, requires_grad=True), torch.randn(64, 64, requires_grad=True)

    def step(layers: int) -> tuple[int, int, int]:
        """Bytes freed, and how often memory was given back in the forward and in the backward pass."""
        given.clear()
        y = x * 1
        with graphlossy.compress(bits=4) as ledger:
            for _ in range(layers):
                y = F.silu(y @ w)
        forward = len(given)
        y.sum().backward()
        return ledger.plain_bytes - ledger.saved_bytes, forward, len(given) - forward

    freed, forward, backward = step(1)
    assert 2**16 <= freed < 2**17 and forward == 1 and backward == 1
    freed, forward, backward = step(9)
    assert freed > 15 * 2**16 and forward == 9 and backward == 1  # with every second of 18 tensors
    monkeypatch.setattr(_codecs, "MUCH", 2**10)  # larger blocks go back by themselves
    assert step(9)[1:] == (0, 1)
