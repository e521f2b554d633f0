"""Gradients of gradients: through the fixed-weight product, and a clear error where there are none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

import graphlossy
import graphlossy.nn as lossy

N, E, C = 60, 240, 24


def penalty(conv: nn.Module, x: Tensor, edge_index: Tensor, **compression: object) -> list[Tensor]:
    """Gradients of the squared norm of d loss / d x."""
    conv.zero_grad()
    x = x.clone().requires_grad_()
    if compression:
        with graphlossy.compress(**compression):
            out = conv(x, edge_index)
    else:
        out = conv(x, edge_index)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    return [x.grad, *(p.grad.clone() for p in conv.parameters() if p.grad is not None)]


@pytest.fixture
def case(edges: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, C), edges(N, E)


@pytest.mark.parametrize("kind", ["GCNConv", "SAGEConv"])
def test_compressed_pyg(kind: str, case: tuple[Tensor, Tensor]) -> None:
    conv = getattr(pyg, kind)(C, 16)
    expected = penalty(conv, *case)
    for a, b in zip(penalty(conv, *case, bits=8), expected, strict=True):
        assert (a - b).norm() <= 0.05 * b.norm()


@pytest.mark.parametrize(("kind", "bits", "training"), [
    ("GCNConv", None, True), ("SAGEConv", None, True), ("GCNConv", 2, False), ("SAGEConv", 2, False),
])  # fmt: skip
def test_exact_layers(kind: str, bits: int | None, training: bool, case: tuple[Tensor, Tensor]) -> None:
    plain, ours = getattr(pyg, kind)(C, 16), getattr(lossy, kind)(C, 16, bits=bits).train(training)
    ours.load_state_dict(plain.state_dict())
    for a, b in zip(penalty(ours, *case), penalty(plain, *case), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layer", [
    lossy.GCNConv(C, 16), lossy.SAGEConv(C, 16), lossy.GATConv(C, 8), lossy.GINConv(lossy.Linear(C, 16)),
    lossy.Linear(C, 16), lossy.BatchNorm(C), lossy.LayerNorm(C), lossy.NormActDropout(C), lossy.ReLU(),
    lossy.LeakyReLU(), lossy.Dropout(), lossy.Dropout(keep="seed"),
], ids=lambda layer: type(layer).__name__)  # fmt: skip
@pytest.mark.parametrize("constant", [False, True])
def test_low_bit_layers_say_that_they_have_none(layer: nn.Module, constant: bool, case: tuple[Tensor, Tensor]) -> None:
    x, edge_index = case[0].requires_grad_(), case[1]
    out = layer(x * 1.0, edge_index) if hasattr(layer, "propagate") else layer(x * 1.0)
    loss = out.sum() if constant else out.square().sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported by graphlossy's fused functions"):
        grad.square().sum().backward()
