"""Each layer learns at 2 bits as the exact one does."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as pyg
from torch import Tensor, nn

import graphlossy.nn as lossy

NODES, CLASSES, FEATURES, HIDDEN = 400, 4, 32, 32


@pytest.fixture(scope="module")
def communities() -> tuple[Tensor, Tensor, Tensor]:
    """A stochastic block model with weakly informative features: (x, edge_index, y)."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(NODES) % CLASSES
    probability = torch.where(y[:, None] == y[None, :], 0.06, 0.005)
    edge_index = (torch.rand(NODES, NODES, generator=generator) < probability).nonzero().t().contiguous()
    centers = torch.randn(CLASSES, FEATURES, generator=generator)
    return centers[y] * 0.5 + torch.randn(NODES, FEATURES, generator=generator), edge_index, y


class Net(nn.Module):
    """Two layers of one kind with norm, ReLU and dropout in between."""

    def __init__(self, kind: str, bits: int | None) -> None:
        super().__init__()
        ours = kind.startswith("lossy ")
        self.kind, module = kind.removeprefix("lossy "), lossy if ours else pyg
        extra = {"bits": bits} if ours else {}

        def mlp(into: int, out: int) -> nn.Sequential:
            relu = lossy.ReLU() if ours else nn.ReLU()
            return nn.Sequential(module.Linear(into, HIDDEN, **extra), relu, module.Linear(HIDDEN, out, **extra))

        def conv(into: int, out: int) -> nn.Module:
            if self.kind == "GINConv":
                return module.GINConv(mlp(into, out), train_eps=True, **extra)
            if self.kind == "GATConv":
                return module.GATConv(into, out // 4, heads=4, dropout=0.1, **extra)
            if self.kind == "GCN2Conv":
                return module.GCN2Conv(into, 0.1, 0.5, 1, **extra)
            return getattr(module, self.kind)(into, out, **extra)

        self.first = module.Linear(FEATURES, HIDDEN, **extra)
        self.conv1, self.conv2 = conv(HIDDEN, HIDDEN), conv(HIDDEN, HIDDEN)
        self.last = module.Linear(HIDDEN, CLASSES, **extra)
        if ours:
            self.act = lossy.NormActDropout(HIDDEN, p=0.2, bits=bits)
        else:
            self.act = nn.Sequential(pyg.BatchNorm(HIDDEN), nn.ReLU(), nn.Dropout(0.2))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = x_0 = self.first(x)
        middle = (x_0,) if self.kind == "GCN2Conv" else ()
        x = self.act(self.conv1(x, *middle, edge_index))
        return self.last(self.conv2(x, *middle, edge_index))


def train(kind: str, data: tuple[Tensor, Tensor, Tensor], bits: int | None = 2, steps: int = 40) -> list[float]:
    torch.manual_seed(0)
    x, edge_index, y = data
    net = Net(kind, bits)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x, edge_index), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        losses.append(F.cross_entropy(net.eval()(x, edge_index), y).item())
    return losses


@pytest.mark.parametrize("kind", ["GCNConv", "SAGEConv", "GATConv", "GCN2Conv", "GINConv"])
def test_two_bits_learn_as_float32(kind: str, communities: tuple[Tensor, Tensor, Tensor]) -> None:
    exact, ours = train(kind, communities), train(f"lossy {kind}", communities)
    assert ours[0] == pytest.approx(exact[0], rel=0.15)  # the same weights, other dropout noise
    assert exact[-1] < 0.4 * exact[0]
    assert ours[-1] < 0.4 * ours[0]
    assert ours[-1] < exact[-1] + 0.12


def test_a_wrong_gradient_would_not_pass(
    communities: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weight gradients of the wrong sign the same test fails."""
    module = importlib.import_module("graphlossy.autograd.linear")
    honest: Callable[..., Tensor] = module.weight_grad
    monkeypatch.setattr(module, "weight_grad", lambda grad, recipe: -honest(grad, recipe))
    losses = train("lossy GCNConv", communities)
    assert losses[-1] > 0.4 * losses[0]
