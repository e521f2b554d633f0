"""PyG's convolutions with a plain edge_index go through their own sparse product, and give the same numbers."""

import copy

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import graphlossy
from graphlossy._compress import _route

pyg = pytest.importorskip("torch_geometric.nn")

N, E = 300, 2000


@pytest.fixture
def graph():
    torch.manual_seed(0)
    return torch.randn(N, 32), torch.randint(0, N, (2, E)), torch.rand(E)


CONVS = {
    "GCNConv": (lambda: pyg.GCNConv(32, 32), True),
    "GCNConv cached": (lambda: pyg.GCNConv(32, 32, cached=True), True),
    "GCNConv no norm": (lambda: pyg.GCNConv(32, 32, normalize=False), True),
    "SAGEConv": (lambda: pyg.SAGEConv(32, 32), False),
    "SAGEConv sum": (lambda: pyg.SAGEConv(32, 32, aggr="sum"), False),
    "SAGEConv normalized": (lambda: pyg.SAGEConv(32, 32, normalize=True, project=True), False),
    "GraphConv": (lambda: pyg.GraphConv(32, 32), True),
    "GraphConv mean": (lambda: pyg.GraphConv(32, 32, aggr="mean"), True),
    "GINConv": (lambda: pyg.GINConv(nn.Linear(32, 32)), False),
    "SGConv": (lambda: pyg.SGConv(32, 32, K=2), True),
    "APPNP": (lambda: pyg.APPNP(3, 0.1), True),
    "TAGConv": (lambda: pyg.TAGConv(32, 32), True),
    "ClusterGCNConv": (lambda: pyg.ClusterGCNConv(32, 32), False),
    "LEConv": (lambda: pyg.LEConv(32, 32), True),
    "ARMAConv": (lambda: pyg.ARMAConv(32, 32), True),
    "LGConv": (lambda: pyg.LGConv(), True),
    "flow reversed": (lambda: pyg.GCNConv(32, 32, flow="target_to_source"), True),
}


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("name", CONVS)
def test_values_and_gradients(graph, name, weighted, monkeypatch):
    x, edge_index, weight = graph
    make, takes_weight = CONVS[name]
    if weighted and not takes_weight:
        pytest.skip("takes no edge weights")
    args = (edge_index, weight) if weighted else (edge_index,)
    torch.manual_seed(3)
    conv = make()
    twin = copy.deepcopy(conv)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    calls = []
    real = _route.spmm
    monkeypatch.setattr(_route, "spmm", lambda *args, **kw: calls.append(1) or real(*args, **kw))
    with graphlossy.compress(bits=8):
        got = conv(a, *args)
    expected = twin(b, *args)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    noise = torch.randn_like(expected)
    (got * noise).sum().backward()
    (expected * noise).sum().backward()
    assert (a.grad - b.grad).norm() < 0.02 * b.grad.norm()
    if name not in ("LEConv", "ARMAConv", "ClusterGCNConv"):
        assert calls, "was not routed"


def test_gcn2_is_routed(graph):
    x, edge_index, _ = graph
    conv = pyg.GCN2Conv(32, 0.1, 0.5, 2)
    twin = copy.deepcopy(conv)
    with graphlossy.compress(bits=2):
        got = conv(x, x, edge_index)
    torch.testing.assert_close(got, twin(x, x, edge_index), rtol=1e-4, atol=1e-5)


def test_no_tensor_of_edges_times_channels_is_made(graph):
    from torch.utils._python_dispatch import TorchDispatchMode

    x, edge_index, _ = graph
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.layout == torch.strided:
                sizes.append(out.numel())
            return out

    model = pyg.GCNConv(32, 32)
    with graphlossy.compress(bits=2), Watch():
        loss = model(x.requires_grad_(), edge_index).sum()
    with Watch():
        loss.backward()
    assert max(sizes) < E * 32


def test_bipartite_sage(graph):
    x, edge_index, _ = graph
    edge_index = torch.stack([edge_index[0], edge_index[1] % 100])
    conv = pyg.SAGEConv((32, 32), 32)
    twin = copy.deepcopy(conv)
    with graphlossy.compress(bits=2):
        got = conv((x, x[:100]), edge_index)
    torch.testing.assert_close(got, twin((x, x[:100]), edge_index), rtol=1e-4, atol=1e-5)


def test_trained_edge_weights_are_not_routed_and_get_their_gradient(graph):
    x, edge_index, weight = graph
    conv = pyg.GraphConv(32, 32)
    grads = []
    for lossy in (False, True):
        w = weight.clone().requires_grad_()
        if lossy:
            with graphlossy.compress(bits=8):
                out = conv(x * 1.0, edge_index, w)
        else:
            out = conv(x * 1.0, edge_index, w)
        out.square().sum().backward()
        grads.append(w.grad)
    assert (grads[1] - grads[0]).norm() < 0.02 * grads[0].norm()


def test_a_users_own_message_is_respected(graph):
    class Doubled(pyg.GCNConv):
        def message(self, x_j, edge_weight):
            return 2 * super().message(x_j, edge_weight)

    x, edge_index, _ = graph
    conv = Doubled(32, 32)
    twin = copy.deepcopy(conv)
    with graphlossy.compress(bits=2):
        got = conv(x, edge_index)
    assert torch.equal(got, twin(x, edge_index))


def test_a_users_message_hook_is_respected(graph):
    x, edge_index, _ = graph
    conv = pyg.SAGEConv(32, 32)
    conv.register_message_forward_hook(lambda module, inputs, out: out * 2)
    with graphlossy.compress(bits=2):
        got = conv(x, edge_index)
    assert torch.equal(got, conv(x, edge_index))


def test_max_aggregation_is_left_alone(graph):
    x, edge_index, _ = graph
    conv = pyg.SAGEConv(32, 32, aggr="max")
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    with graphlossy.compress(bits=1):
        got = conv(a, edge_index)
    expected = conv(b, edge_index)
    assert torch.equal(got, expected)
    got.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_edge_index_class_of_pyg(graph):
    from torch_geometric import EdgeIndex

    x, edge_index, _ = graph
    wrapped = EdgeIndex(edge_index, sparse_size=(N, N))
    conv = pyg.SAGEConv(32, 32)
    with graphlossy.compress(bits=2):
        got = conv(x, wrapped)
    torch.testing.assert_close(got, conv(x, edge_index), rtol=1e-4, atol=1e-5)


def test_a_changed_graph_is_seen(graph):
    x, edge_index, _ = graph
    conv = pyg.SAGEConv(32, 32)
    graphlossy.compress(conv, bits=2)
    conv(x, edge_index)
    edge_index[:, :1000] = edge_index[:, 1000:]
    got = conv(x, edge_index)
    graphlossy.restore(conv)
    torch.testing.assert_close(got, conv(x, edge_index), rtol=1e-4, atol=1e-5)


def test_cache_recognises_by_identity_and_by_content_only():
    cache = _route.EdgeCache(capacity=2)
    edges = [torch.randint(0, 50, (2, 200)) for _ in range(3)]
    first = cache.lookup(edges[0], None, 50, 50, "source_to_target")
    assert cache.lookup(edges[0], None, 50, 50, "source_to_target") is first
    assert cache.lookup(edges[0].clone(), None, 50, 50, "source_to_target") is first
    assert cache.lookup(edges[0], torch.ones(200), 50, 50, "source_to_target") is not first
    cache.lookup(edges[1], None, 50, 50, "source_to_target")
    assert cache.lookup(edges[0], None, 50, 50, "source_to_target") is not first  # dropped, least recently used
    address = edges[2].data_ptr()
    kept = cache.lookup(edges[2], None, 50, 50, "source_to_target")
    weak = StorageWeakRef(edges[2].untyped_storage())
    del edges[2]
    assert weak.expired()
    for _ in range(20):  # until the address is used again
        other = torch.randint(0, 50, (2, 200))
        if other.data_ptr() == address:
            break
    assert cache.lookup(other, None, 50, 50, "source_to_target") is not kept
