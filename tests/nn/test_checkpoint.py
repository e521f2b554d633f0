"""A region that is run a second time by torch's checkpointing has the dropout masks of the first."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import graphlossy.nn as lossy

N, E, C = 60, 240, 32

BLOCKS: dict[str, Callable[[], list[nn.Module]]] = {
    "linear": lambda: [lossy.Linear(C, C, bits=8)],
    "two linear": lambda: [lossy.Linear(C, C, bits=8), lossy.ReLU(), lossy.Linear(C, C, bits=8)],
    "gcn": lambda: [lossy.GCNConv(C, C, bits=8)],
    "sage": lambda: [lossy.SAGEConv(C, C, bits=8)],
    "gat": lambda: [lossy.GATConv(C, 8, heads=4, dropout=0.3, bits=8)],
    "gin": lambda: [lossy.GINConv(lossy.Linear(C, C, bits=8), train_eps=True, bits=8)],
    "batch norm": lambda: [lossy.BatchNorm(C, bits=8)],
    "layer norm": lambda: [lossy.LayerNorm(C, bits=8)],
    "norm, act, dropout": lambda: [lossy.NormActDropout(C, bits=8), lossy.Linear(C, C, bits=8)],
    "layer norm, act, dropout": lambda: [lossy.NormActDropout(C, "layer", bits=8), lossy.Linear(C, C, bits=8)],
    "dropout": lambda: [lossy.Dropout(0.4), lossy.Linear(C, C, bits=8)],
    "seeded dropout": lambda: [lossy.Dropout(0.4, keep="seed"), lossy.Linear(C, C, bits=8)],
    "exact": lambda: [lossy.GCNConv(C, C, bits=None)],
}


class Block(nn.Module):
    """Layers, then dropout."""

    def __init__(self, layers: list[nn.Module], edge_index: Tensor) -> None:
        super().__init__()
        self.layers, self.edge_index = nn.ModuleList(layers), edge_index

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, self.edge_index) if hasattr(layer, "propagate") else layer(x)
        return F.dropout(x, 0.5)


@pytest.mark.filterwarnings("ignore::UserWarning:torch.utils.checkpoint")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("shared", [False, True], ids=["", "shared input"])
@pytest.mark.parametrize("name", BLOCKS)
def test_masks_of_the_recomputation(name: str, shared: bool, reentrant: bool, edges: Callable[..., Tensor]) -> None:
    torch.manual_seed(1)
    block = Block(BLOCKS[name](), edges(N, E))
    before, beside = nn.Linear(C, C), lossy.Linear(C, C, bits=8)
    x, grad = torch.randn(N, C), torch.randn(N, C)
    results = []
    for run in (block, lambda h: checkpoint(block, h, use_reentrant=reentrant)):
        for module in (block, before, beside):
            module.zero_grad()
        torch.manual_seed(2)
        h = before(x)
        other = beside(h) if shared else 0.0
        out = run(h)
        (out + other).backward(grad)
        results.append((out.detach(), [p.grad for p in (*block.parameters(), *before.parameters())]))
    (expected, exact), (out, mine) = results
    torch.testing.assert_close(out, expected)
    for a, b in zip(mine, exact, strict=True):
        # other rounding noise at 8 bits, about 1 %; another mask would be an error of about 100 %
        size = b.norm() if b.numel() > 1 else (N * C) ** 0.5  # eps: one sum of N C products of either sign
        assert (a - b).norm() <= 0.05 * size + 1e-4


def test_the_draws_do_not_depend_on_gradients(edges: Callable[..., Tensor]) -> None:
    edge_index, weight = edges(N, E), torch.rand(E, requires_grad=True)
    for make in BLOCKS.values():
        block = Block(make(), edge_index)
        x = torch.randn(N, C, requires_grad=True)
        numbers = []
        for given, recorded in ((x * 1.0, True), (x, True), (x.detach(), True), (x * 1.0, False)):
            torch.manual_seed(3)
            with torch.set_grad_enabled(recorded):
                block(given)
            numbers.append(torch.rand(()).item())
        assert len(set(numbers)) == 1, block
    conv, numbers = lossy.GCNConv(C, C, normalize=False), []
    for recorded in (True, False):
        torch.manual_seed(3)
        with torch.set_grad_enabled(recorded):
            conv(x, edge_index, weight)
        numbers.append(torch.rand(()).item())
    assert len(set(numbers)) == 1
