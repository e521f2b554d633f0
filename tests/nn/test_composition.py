"""The layers inside what people do with models: autocast, copies, accumulation, odd graphs, compile."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_geometric import EdgeIndex

import graphlossy.nn as lossy
from graphlossy.autograd import CSRGraph

N, E, F_IN = 60, 240, 24
KINDS = ["GCNConv", "SAGEConv", "GATConv"]


def grads(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind: str, nets: Callable[..., tuple], edges: Callable[..., Tensor]) -> None:
    plain, ours = nets(kind, [F_IN, 32, 8], p=0.0, bits=8)
    ours.convs.load_state_dict(plain.convs.state_dict())
    x, edge_index = torch.randn(N, F_IN), edges(N, E)
    for model in (plain, ours):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(x, edge_index)
        out.float().square().mean().backward()
    for a, b in zip(grads(ours), grads(plain), strict=True):
        assert a.dtype is torch.float32
        assert (a - b).norm() <= 0.1 * b.norm() + 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_and_retained_graphs(kind: str, nets: Callable[..., tuple], edges: Callable[..., Tensor]) -> None:
    _, model = nets(kind, [F_IN, 32, 8])
    x, edge_index = torch.randn(N, F_IN), edges(N, E)
    out = model(x, edge_index)
    out.sum().backward(retain_graph=True)
    once = grads(model)
    out.sum().backward()  # the same kept tensors: the same gradient
    for a, b in zip(grads(model), once, strict=True):
        torch.testing.assert_close(a, 2 * b)
    model.zero_grad()
    torch.manual_seed(1)
    first, second = model(x, edge_index), model(x * 2, edge_index)  # two forwards before one backward
    (first.sum() + second.sum()).backward()
    both = grads(model)
    model.zero_grad()
    torch.manual_seed(1)
    for scale in (1, 2):
        model(x * scale, edge_index).sum().backward()
    for a, b in zip(grads(model), both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_reproducible_and_copied(kind: str, nets: Callable[..., tuple], edges: Callable[..., Tensor]) -> None:
    _, model = nets(kind, [F_IN, 32, 8])
    x, edge_index = torch.randn(N, F_IN), edges(N, E)
    model(x, edge_index)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [model, copy.deepcopy(model), torch.load(buffer, weights_only=False)]
    results = []
    for one in copies:
        torch.manual_seed(3)
        one.zero_grad()
        out = one(x, edge_index)
        out.sum().backward()
        results.append([out.detach(), *grads(one)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing(kind: str, nets: Callable[..., tuple], edges: Callable[..., Tensor]) -> None:
    _, model = nets(kind, [F_IN, 32, 8])
    x, edge_index = torch.randn(N, F_IN, requires_grad=True), edges(N, E)
    results = []
    for run in (lambda: model(x, edge_index), lambda: checkpoint(model, x, edge_index, use_reentrant=False)):
        torch.manual_seed(4)
        model.zero_grad()
        run().sum().backward()
        results.append(grads(model))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_cached_graph_is_kept_until_reset(edges: Callable[..., Tensor]) -> None:
    x, edge_index = torch.randn(N, F_IN), edges(N, E)
    for conv, arguments in (
        (lossy.GCNConv(F_IN, F_IN, cached=True), ()),
        (lossy.GCN2Conv(F_IN, 0.1, cached=True), (x,)),
    ):
        first = conv(x, *arguments, edge_index)
        assert torch.equal(conv(x, *arguments, edge_index[:, :5]), first)  # as PyG's
        assert copy.deepcopy(conv)(x, *arguments, edge_index[:, :5]).equal(first)
        conv._cached_graph = None
        assert not torch.equal(conv(x, *arguments, edge_index[:, :5]), first)
        conv.reset_parameters()
        assert conv._cached_graph is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_edge_index_is_seen(kind: str, edges: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    conv = getattr(lossy, kind)(F_IN, 8)
    x, edge_index = torch.randn(N, F_IN), edges(N, E)
    before = conv(x, edge_index)
    edge_index[0, :50] = 7
    after = conv(x, edge_index)
    assert not torch.equal(before, after)
    assert torch.equal(after, conv(x, edge_index.clone()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edge_index", [torch.zeros(2, 0, dtype=torch.long), torch.tensor([[3, 3, 3], [3, 3, 3]])])
def test_graphs_of_no_edges_or_self_loops(kind: str, edge_index: Tensor) -> None:
    torch.manual_seed(0)
    plain = getattr(pyg, kind)(F_IN, 8)
    ours = getattr(lossy, kind)(F_IN, 8, bits=8)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(6, F_IN, requires_grad=True)
    out, expected = ours(x * 1.0, edge_index), plain(x, edge_index)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(out)
    (a,), (b,) = (torch.autograd.grad(y, x, grad) for y in (out, expected))
    assert (a - b).norm() <= 0.03 * b.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_no_nodes(kind: str) -> None:
    conv = getattr(lossy, kind)(F_IN, 8)
    out = conv(torch.zeros(0, F_IN, requires_grad=True) * 1.0, torch.zeros(2, 0, dtype=torch.long))
    assert out.shape == (0, 8)
    out.sum().backward()


def test_edge_index_class_and_prepared_graphs(edges: Callable[..., Tensor]) -> None:
    x, edge_index = torch.randn(N, F_IN), edges(N, E)
    for kind in KINDS:
        conv = getattr(lossy, kind)(F_IN, 8)
        expected = conv(x, edge_index)
        assert torch.equal(conv(x, EdgeIndex(edge_index, sparse_size=(N, N))), expected)
        graph = conv.prepare(x, edge_index)
        assert isinstance(graph, CSRGraph) and torch.equal(conv(x, graph), expected)


def test_who_looks_at_messages_gets_pygs_path(edges: Callable[..., Tensor]) -> None:
    x, edge_index = torch.randn(N, F_IN), edges(N, E)
    for kind in KINDS:
        conv = getattr(lossy, kind)(F_IN, 8)
        expected, seen = conv(x, edge_index), []
        handle = conv.register_message_forward_hook(lambda module, inputs, out, seen=seen: seen.append(out.shape))
        torch.testing.assert_close(conv(x, edge_index), expected, rtol=1e-4, atol=1e-5)
        assert len(seen) == 1 and seen[0][0] >= E - 3  # self-loops are counted once
        handle.remove()
    out, (index, alpha) = lossy.GATConv(F_IN, 8, heads=2)(x, edge_index, return_attention_weights=True)
    assert alpha.shape == (index.size(1), 2)


def test_errors_are_clear(edges: Callable[..., Tensor]) -> None:
    x, edge_index = torch.randn(N, F_IN), edges(N, E)
    with pytest.raises(ValueError, match="bits must be one of"):
        lossy.GCNConv(4, 4, bits=16)
    with pytest.raises(ValueError, match="num_dst is 10"):
        lossy.SAGEConv(F_IN, 4)(x[:10], edge_index)
    with pytest.raises(ValueError, match="received a tuple"):
        lossy.GCNConv(F_IN, 4)((x, x), edge_index)
    with pytest.raises(ValueError, match="theta and layer set beta together"):
        lossy.GCN2Conv(4, 0.1, theta=0.5)
    with pytest.raises(ValueError, match="keep must be one of"):
        lossy.Dropout(keep="all")
    with pytest.raises(AttributeError, match="no attribute 'GCN'; its names are BatchNorm, Dropout"):
        _ = lossy.GCN


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("kind", ["GCNConv", "SAGEConv"])
def test_compiled_as_one_graph(kind: str, nets: Callable[..., tuple], edges: Callable[..., Tensor]) -> None:
    _, model = nets(kind, [F_IN, 32, 8], p=0.0, bits=8)
    x = torch.randn(N, F_IN)
    graph = model.convs[0].prepare(x, edges(N, E))
    results = []
    torch.compiler.reset()
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        out = run(x, graph)
        out.square().mean().backward()
        results.append([out.detach(), *grads(model)])
    torch.compiler.reset()
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= 0.03 * a.norm() + 1e-6
