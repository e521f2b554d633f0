"""Hooks and replacements of the layers inside a convolution act as they do in PyG's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import graphlossy.nn as lossy

N, E, C = 60, 240, 24

LAYERS: dict[str, tuple[Callable[[Any], nn.Module], str]] = {
    "gcn": (lambda m: m.GCNConv(C, 16), "lin"),
    "sage": (lambda m: m.SAGEConv(C, 16), "lin_l"),
    "sage root": (lambda m: m.SAGEConv(C, 16), "lin_r"),
    "sage project": (lambda m: m.SAGEConv(C, 16, project=True), "lin"),
    "gat": (lambda m: m.GATConv(C, 8, heads=2), "lin"),
    "gat residual": (lambda m: m.GATConv(C, 8, heads=2, residual=True), "res"),
    "gat edges": (lambda m: m.GATConv(C, 8, heads=2, edge_dim=3), "lin_edge"),
    "gin": (lambda m: m.GINConv(m.Linear(C, 16)), "nn"),
}


class Doubled(nn.Module):
    """An adapter around a linear layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


def pruned(conv: nn.Module, name: str) -> None:
    prune.l1_unstructured(getattr(conv, name), "weight", 0.5)


def hooked(conv: nn.Module, name: str) -> None:
    getattr(conv, name).register_forward_hook(lambda module, args, out: 3 * out)


def gradient_hooked(conv: nn.Module, name: str) -> None:
    getattr(conv, name).register_full_backward_hook(lambda module, into, out: (5 * into[0],))


def parametrized(conv: nn.Module, name: str) -> None:
    parametrizations.weight_norm(getattr(conv, name))


def replaced(conv: nn.Module, name: str) -> None:
    setattr(conv, name, Doubled(getattr(conv, name)))


@pytest.mark.parametrize("change", [pruned, hooked, gradient_hooked, parametrized, replaced])
@pytest.mark.parametrize("name", LAYERS)
def test_changed_linear_layers(name: str, change: Callable, edges: Callable[..., Tensor]) -> None:
    make, inner = LAYERS[name]
    torch.manual_seed(0)
    edge_index, x, features = edges(N, E), torch.randn(N, C), torch.randn(E, 3, requires_grad=True)
    plain, ours = make(pyg), make(lossy)
    ours.load_state_dict(plain.state_dict())
    results = []
    for conv in (plain, ours):
        for module in conv.modules():
            if hasattr(module, "bits"):
                module.bits = 8
        change(conv, inner)
        leaf = x.clone().requires_grad_()
        for _ in range(2):  # a second step: nothing may be left of the first one's graph
            h = leaf * 1.0
            out = conv(h, edge_index, features) if name == "gat edges" else conv(h, edge_index)
            out.square().sum().backward()
        results.append((out.detach(), leaf.grad, {key: p.grad for key, p in conv.named_parameters()}))
    (expected, leaf_grad, exact), (out, grad, mine) = results
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert (grad - leaf_grad).norm() <= 0.04 * leaf_grad.norm()
    assert mine.keys() == exact.keys()
    for key, value in exact.items():
        assert (mine[key] - value).norm() <= 0.04 * value.norm() + 1e-4, key


def test_plain_linear_layers_stay_fused(edges: Callable[..., Tensor]) -> None:
    conv = lossy.SAGEConv(C, 16)
    fused = conv(torch.randn(N, C, requires_grad=True) * 1.0, edges(N, E))
    assert "SpMMLinear" in str(fused.grad_fn)  # both branches


@pytest.mark.parametrize("kind", ["SAGEConv", "GATConv"])
@pytest.mark.parametrize("options", [{}, {"residual": True}])
def test_lazy_layers_draw_pygs_weights(kind: str, options: dict, edges: Callable[..., Tensor]) -> None:
    if kind == "SAGEConv":
        options = {}
    pair, into = [], (-1, -1)
    x, y, across = torch.randn(N, C), torch.randn(25, 10), edges(N, E, 25)
    for module in (pyg, lossy):
        conv = getattr(module, kind)(into, 16, **options)
        torch.manual_seed(4)
        conv((x.clone().requires_grad_(), y), across)
        pair.append(conv.state_dict())
    assert pair[0].keys() == pair[1].keys()
    assert all(torch.equal(pair[0][key], pair[1][key]) for key in pair[0] if not key.startswith(("att", "bias")))
