"""Each convolution against PyG's: state_dict, values, and gradients tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

import graphlossy.nn as lossy

N, F_IN, E = 60, 24, 240

# name -> (factory(module, extra keyword arguments), what it is called with)
LAYERS: dict[str, tuple[Callable, str]] = {
    "gcn": (lambda m, k: m.GCNConv(F_IN, 16, **k), "graph"),
    "gcn weighted": (lambda m, k: m.GCNConv(F_IN, 16, improved=True, **k), "weighted"),
    "gcn trained edges": (lambda m, k: m.GCNConv(F_IN, 16, **k), "trained"),
    "gcn plain": (lambda m, k: m.GCNConv(F_IN, 16, normalize=False, bias=False, **k), "weighted"),
    "gcn csr": (lambda m, k: m.GCNConv(F_IN, 16, **k), "csr"),
    "gcn csr plain": (lambda m, k: m.GCNConv(F_IN, 16, normalize=False, **k), "csr"),
    "gcn mean, backwards": (lambda m, k: m.GCNConv(F_IN, 16, aggr="mean", flow="target_to_source", **k), "graph"),
    "gcn max": (lambda m, k: m.GCNConv(F_IN, 16, aggr="max", **k), "graph"),
    "gcn lazy": (lambda m, k: m.GCNConv(-1, 16, **k), "graph"),
    "sage": (lambda m, k: m.SAGEConv(F_IN, 16, **k), "graph"),
    "sage csr": (lambda m, k: m.SAGEConv(F_IN, 16, **k), "csr"),
    "sage sum": (lambda m, k: m.SAGEConv(F_IN, 16, aggr="sum", root_weight=False, normalize=True, **k), "graph"),
    "sage max": (lambda m, k: m.SAGEConv(F_IN, 16, aggr="max", **k), "graph"),
    "sage project": (lambda m, k: m.SAGEConv(F_IN, 16, project=True, **k), "graph"),
    "sage bipartite": (lambda m, k: m.SAGEConv((F_IN, 10), 16, **k), "bipartite"),
    "sage sources": (lambda m, k: m.SAGEConv((F_IN, 10), 16, **k), "sources"),
    "sage lazy": (lambda m, k: m.SAGEConv((-1, -1), 16, **k), "bipartite"),
    "gat": (lambda m, k: m.GATConv(F_IN, 8, heads=3, **k), "graph"),
    "gat csr": (lambda m, k: m.GATConv(F_IN, 8, heads=3, **k), "csr"),
    "gat mean residual": (lambda m, k: m.GATConv(F_IN, 8, heads=3, concat=False, residual=True, **k), "graph"),
    "gat no loops": (lambda m, k: m.GATConv(F_IN, 8, add_self_loops=False, bias=False, **k), "graph"),
    "gat edge features": (lambda m, k: m.GATConv(F_IN, 8, heads=2, edge_dim=3, **k), "features"),
    "gat bipartite": (lambda m, k: m.GATConv((F_IN, 10), 8, heads=2, add_self_loops=False, **k), "bipartite"),
    "gat bipartite loops": (lambda m, k: m.GATConv((F_IN, 10), 8, heads=2, **k), "bipartite"),
    "gat sources": (lambda m, k: m.GATConv((F_IN, 10), 8, add_self_loops=False, **k), "sources"),
    "gcn2": (lambda m, k: m.GCN2Conv(F_IN, 0.1, theta=0.5, layer=2, **k), "two"),
    "gcn2 two weights": (lambda m, k: m.GCN2Conv(F_IN, 0.2, 0.5, 1, shared_weights=False, **k), "two"),
    "gin": (lambda m, k: m.GINConv(mlp(m, k), **k), "graph"),
    "gin csr": (lambda m, k: m.GINConv(mlp(m, k), **k), "csr"),
    "gin trained eps": (lambda m, k: m.GINConv(mlp(m, k), eps=0.3, train_eps=True, **k), "graph"),
}


def mlp(module: object, extra: dict) -> nn.Sequential:
    relu = lossy.ReLU() if module is lossy else nn.ReLU()
    return nn.Sequential(module.Linear(F_IN, 20, **extra), relu, module.Linear(20, 16, **extra))


@pytest.fixture
def case(edges: Callable[..., Tensor], adjacency: Callable[..., Tensor]) -> Callable[[str], tuple]:
    """(leaves that get a gradient, call(layer, inputs)) of a kind of input."""

    def make(kind: str) -> tuple[list[Tensor], Callable]:
        torch.manual_seed(5)
        edge_index, x = edges(N, E), torch.randn(N, F_IN)
        if kind == "csr":
            adj = adjacency(N, E)
            return [x], lambda layer, x: layer(x, adj)
        if kind == "weighted":
            weight = torch.rand(E)
            return [x], lambda layer, x: layer(x, edge_index, weight)
        if kind == "trained":
            return [x, torch.rand(E)], lambda layer, x, weight: layer(x, edge_index, weight)
        if kind == "features":
            return [x, torch.randn(E, 3)], lambda layer, x, features: layer(x, edge_index, features)
        if kind == "two":
            return [x, torch.randn(N, F_IN)], lambda layer, x, x_0: layer(x, x_0, edge_index)
        if kind == "bipartite":
            across = edges(N, E, 25)
            return [x, torch.randn(25, 10)], lambda layer, x, y: layer((x, y), across)
        if kind == "sources":
            across = edges(N, E, 25)
            return [x], lambda layer, x: layer((x, None), across, size=(N, 25))
        return [x], lambda layer, x: layer(x, edge_index)

    return make


def pair(name: str, bits: int | None) -> tuple[nn.Module, nn.Module]:
    layers = []
    for module, extra in ((pyg, {}), (lossy, {"bits": bits})):
        torch.manual_seed(7)
        layers.append(LAYERS[name][0](module, extra))
    return layers[0], layers[1]


def run(layer: nn.Module, leaves: list[Tensor], call: Callable) -> tuple[Tensor, dict[str, Tensor]]:
    inputs = [leaf.clone().requires_grad_() for leaf in leaves]
    torch.manual_seed(7)
    with torch.no_grad():
        call(layer, *leaves)  # lazy layers draw their weights now
    out = call(layer, *[t * 1.0 if t.is_floating_point() and t.dim() > 1 else t for t in inputs])
    torch.manual_seed(11)
    out.backward(torch.randn_like(out))
    grads = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return out.detach(), grads | {f"input {i}": t.grad for i, t in enumerate(inputs) if t.grad is not None}


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients(name: str, bits: int | None, case: Callable[[str], tuple]) -> None:
    plain, ours = pair(name, bits)
    leaves, call = case(LAYERS[name][1])
    expected, exact = run(plain, leaves, call)
    out, mine = run(ours, leaves, call)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert mine.keys() == exact.keys()
    for tensor, grad in exact.items():
        # The gradient of eps is one sum of N F products of either sign: its error is measured against their size.
        size = (N * F_IN) ** 0.5 if tensor == "eps" else grad.norm()
        error = (mine[tensor] - grad).norm() / size
        assert error < (0.04 if bits else 2e-5), f"{tensor}: {error:.2e}"


@pytest.mark.parametrize("name", LAYERS)
def test_state_dict_round_trip(name: str, case: Callable[[str], tuple]) -> None:
    plain, ours = pair(name, 2)
    leaves, call = case(LAYERS[name][1])
    with torch.no_grad():
        for layer in (plain, ours):  # lazy layers take their width and draw their weights
            torch.manual_seed(7)
            call(layer, *leaves)
    assert list(plain.state_dict()) == list(ours.state_dict())
    for a, b in zip(plain.state_dict().values(), ours.state_dict().values(), strict=True):
        assert torch.equal(a, b)  # the same first weights under one seed
    with torch.no_grad():
        for p in plain.parameters():
            p.normal_()
    ours.load_state_dict(plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(call(ours, *leaves), call(plain, *leaves), rtol=1e-4, atol=1e-4)
        for p in ours.parameters():
            p.normal_()
    plain.load_state_dict(ours.state_dict())
    assert str(plain) == str(ours)


@pytest.mark.parametrize("name", ["gcn", "sage", "gat", "gcn2", "gin"])
def test_evaluation_is_exact(name: str, case: Callable[[str], tuple]) -> None:
    plain, ours = pair(name, 2)
    leaves, call = case(LAYERS[name][1])
    (expected, exact), (out, mine) = run(plain.eval(), leaves, call), run(ours.eval(), leaves, call)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    for tensor, grad in exact.items():
        torch.testing.assert_close(mine[tensor], grad, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        assert call(ours.train(), *leaves).grad_fn is None


def test_norms_and_activations_match() -> None:
    x = torch.randn(50, 12)
    pairs = [
        (pyg.BatchNorm(12), lossy.BatchNorm(12)),
        (pyg.BatchNorm(12, momentum=None, affine=False), lossy.BatchNorm(12, momentum=None, affine=False)),
        (pyg.BatchNorm(12, track_running_stats=False), lossy.BatchNorm(12, track_running_stats=False)),
        (pyg.LayerNorm(12), lossy.LayerNorm(12)),
        (pyg.LayerNorm(12, mode="node", affine=False), lossy.LayerNorm(12, mode="node", affine=False)),
        (pyg.Linear(12, 5), lossy.Linear(12, 5)),
        (nn.ReLU(), lossy.ReLU()),
        (nn.LeakyReLU(0.2), lossy.LeakyReLU(0.2)),
        (nn.LeakyReLU(0.2), lossy.LeakyReLU(0.2, inplace=True)),
        (nn.Dropout(0.3), lossy.Dropout(0.3)),
    ]
    for plain, ours in pairs:
        ours.load_state_dict(plain.state_dict())
        for mode in (True, False):
            plain.train(mode), ours.train(mode)
            for _ in range(2):
                torch.manual_seed(1)
                expected = plain(x.clone().requires_grad_())
                torch.manual_seed(1)
                assert torch.equal(ours(x.clone().requires_grad_()), expected), (ours, mode)
        for a, b in zip(plain.state_dict().values(), ours.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        plain.load_state_dict(ours.state_dict())
    batch = torch.tensor([0] * 20 + [1] * 30)
    torch.testing.assert_close(lossy.LayerNorm(12)(x.requires_grad_(), batch), pyg.LayerNorm(12)(x, batch))
    single = lossy.BatchNorm(12, allow_single_element=True)
    assert torch.equal(single(x[:1]), pyg.BatchNorm(12, allow_single_element=True)(x[:1]))


@pytest.mark.parametrize("norm", ["batch", "layer", None])
@pytest.mark.parametrize("training", [True, False])
def test_norm_act_dropout_is_its_three_layers(norm: str | None, training: bool) -> None:
    x = torch.randn(50, 12, requires_grad=True)
    kind = {"batch": pyg.BatchNorm, "layer": pyg.LayerNorm}.get(norm)
    plain = nn.Sequential(nn.Identity() if kind is None else kind(12), nn.ReLU(), nn.Dropout(0.4)).train(training)
    exact, ours = (lossy.NormActDropout(12, norm, 0.4, bits=bits).train(training) for bits in (None, 2))
    torch.manual_seed(2)
    expected = plain(x)
    torch.manual_seed(2)
    assert torch.equal(exact(x), expected)
    torch.manual_seed(2)
    out = ours(x)
    torch.testing.assert_close(out, expected)  # the same noise, whatever the rounding draws
    mask, scale = out.detach() != 0, 1 / 0.6 if training else 1.0
    torch.testing.assert_close(out, plain[:2](x) * mask * scale)
    assert out.shape == x.shape and "bits=2" in repr(ours)
    with torch.no_grad():
        assert ours(x).grad_fn is None
    with pytest.raises(ValueError, match="norm must be one of"):
        lossy.NormActDropout(12, "instance")
    with pytest.raises(TypeError, match=r"without a norm there are no further arguments, got \['eps'\]"):
        lossy.NormActDropout(12, None, eps=1.0)
