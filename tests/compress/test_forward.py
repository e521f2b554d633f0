"""Compression must not be seen from outside: same forward values, same model, nothing left behind."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphlossy
from graphlossy._compress._session import Session

pyg_nn = pytest.importorskip("torch_geometric.nn")


class GCN(nn.Module):
    """The shape of OGB's example models: functional relu and dropout, log-softmax inside."""

    def __init__(self, conv=pyg_nn.GCNConv, channels=(32, 64, 8)):
        super().__init__()
        self.convs = nn.ModuleList(conv(a, b) for a, b in zip(channels[:-1], channels[1:], strict=True))
        self.norms = nn.ModuleList(nn.BatchNorm1d(c) for c in channels[1:-1])

    def forward(self, x, edges):
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = F.dropout(F.relu(norm(conv(x, edges))), 0.5, self.training)
        return self.convs[-1](x, edges).log_softmax(-1)


@pytest.fixture
def graph():
    torch.manual_seed(0)
    n, e = 600, 3000
    edge_index = torch.randint(0, n, (2, e))
    return torch.randn(n, 32), edge_index, torch.randint(0, 8, (n,))


def csr(edge_index, n):
    values = torch.ones(edge_index.shape[1])
    return torch.sparse_coo_tensor(edge_index.flip(0), values, (n, n)).coalesce().to_sparse_csr()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("bits", [None, 1, 2, 3, 4, 8])
@pytest.mark.parametrize("conv", [pyg_nn.GCNConv, pyg_nn.SAGEConv], ids=["gcn", "sage"])
def test_forward_is_bitwise_the_same(graph, bits, conv):
    x, edge_index, _ = graph
    adj = csr(edge_index, x.shape[0])
    model = GCN(conv)
    twin = copy.deepcopy(model)
    torch.manual_seed(5)
    expected = twin(x, adj)
    torch.manual_seed(5)
    with graphlossy.compress(bits=bits):
        got = model(x, adj)
    assert torch.equal(got, expected)
    for (name, a), (_, b) in zip(model.state_dict().items(), twin.state_dict().items(), strict=True):
        assert torch.equal(a, b), name  # running statistics too


def test_forward_with_plain_edges_is_bitwise_the_same_without_routing(graph):
    x, edge_index, _ = graph
    model = GCN()
    torch.manual_seed(5)
    expected = copy.deepcopy(model)(x, edge_index)
    torch.manual_seed(5)
    with graphlossy.compress(bits=2, route=False):
        got = model(x, edge_index)
    assert torch.equal(got, expected)


def test_routed_forward_is_the_same_to_summation_order(graph):
    x, edge_index, _ = graph
    model = GCN()
    torch.manual_seed(5)
    expected = copy.deepcopy(model)(x, edge_index)
    torch.manual_seed(5)
    with graphlossy.compress(bits=2):
        got = model(x, edge_index)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_dropout_masks_of_the_first_pass_are_those_of_a_plain_run():
    x = torch.ones(100, 100, requires_grad=True)
    torch.manual_seed(3)
    expected = F.dropout(x * 1, 0.3, True)
    torch.manual_seed(3)
    with graphlossy.compress(bits=2):
        got = F.dropout(x * 1, 0.3, True)
    assert torch.equal(got, expected)


def test_switch_leaves_the_model_as_it_was(graph):
    x, edge_index, _ = graph
    model = GCN()
    before = (repr(model), list(model.state_dict()), [type(m) for m in model.modules()], list(model.named_parameters()))
    graphlossy.compress(model, bits=2)
    model(x, edge_index).sum().backward()
    after = (repr(model), list(model.state_dict()), [type(m) for m in model.modules()], list(model.named_parameters()))
    assert before[:3] == after[:3]
    assert all(a is b for (_, a), (_, b) in zip(before[3], after[3], strict=True))
    graphlossy.restore(model)
    assert not model._forward_hooks and not model._forward_pre_hooks and not model._forward_hooks_always_called
    for module in model.modules():
        assert "propagate" not in vars(module)


def no_global_hooks():
    from torch.nn.modules import module

    return not (module._global_forward_hooks or module._global_forward_pre_hooks)


def test_hooks_are_removed_when_the_forward_raises(graph):
    x, edge_index, _ = graph
    model = GCN()
    ledger = graphlossy.compress(model, bits=2)
    with pytest.raises(RuntimeError):
        model(x[:, :5], edge_index)
    assert no_global_hooks()
    assert torch.overrides._len_torch_function_stack() == 0
    for module in model.modules():
        assert "propagate" not in vars(module)
    model(x, edge_index).sum().backward()  # and it still works
    assert ledger.ratio > 4

    with pytest.raises(ZeroDivisionError), graphlossy.compress(bits=2):
        1 / 0  # noqa: B018
    assert no_global_hooks()
    assert torch.overrides._len_torch_function_stack() == 0


def test_eval_and_no_grad_cost_nothing(graph, monkeypatch):
    x, edge_index, _ = graph
    model = GCN()
    graphlossy.compress(model, bits=2)

    def forbidden(*args, **kwargs):
        raise RuntimeError("a session was opened")

    monkeypatch.setattr(Session, "__init__", forbidden)
    with torch.no_grad():
        model(x, edge_index)
        with graphlossy.compress(bits=2):
            model(x, edge_index)
    model.eval()
    model(x, edge_index)
    model.train()
    with pytest.raises(RuntimeError, match="a session was opened"):
        model(x, edge_index)


def test_compressing_again_replaces_the_switch(graph):
    x, edge_index, _ = graph
    model = GCN()
    first = graphlossy.compress(model, bits=8)
    second = graphlossy.compress(model, bits=2)
    model(x, edge_index)
    assert len(model._forward_pre_hooks) == 1
    assert not first.records and second.records


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_switched_too(graph, copier):
    x, edge_index, _ = graph
    model = GCN()
    ledger = graphlossy.compress(model, bits=2)
    model(x, edge_index).sum().backward()
    other = copier(model)
    records = list(ledger.records)
    other(x, edge_index).sum().backward()
    assert ledger.records == records  # its own ledger, not ours
    inner = next(iter(other._forward_pre_hooks.values())).__self__.ledger
    assert inner.ratio > 4
    graphlossy.restore(other)
    assert model._forward_pre_hooks and not other._forward_pre_hooks


def test_one_seed_one_result_and_resumable(graph):
    x, edge_index, y = graph

    def gradient(seed):
        torch.manual_seed(1)
        model = GCN()
        torch.manual_seed(seed)
        ledger = graphlossy.compress(model, bits=2)
        F.nll_loss(model(x, edge_index), y).backward()
        assert ledger.saved_bytes
        return model.convs[0].lin.weight.grad

    assert torch.equal(gradient(7), gradient(7))
    assert not torch.equal(gradient(7), gradient(8))


def test_consecutive_passes_round_differently():
    x = torch.randn(200, 64, requires_grad=True)
    w = torch.randn(64, 64, requires_grad=True)
    grads = []
    for _ in range(2):
        w.grad = None
        with graphlossy.compress(bits=2):
            loss = ((x * 1.5) @ w).sum()
        loss.backward()
        grads.append(w.grad)
    assert not torch.equal(*grads)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 5}, "bits must be one of"),
        ({"bits": 0}, "bits must be one of"),
        ({"bits": True}, "bits must be one of"),
        ({"bits": 4, "budget": "1GiB"}, "not both"),
        ({"budget": "lots"}, "lots"),
        ({"budget": 0}, "positive"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        graphlossy.compress(**arguments)


def test_not_a_module():
    with pytest.raises(TypeError, match="torch.nn.Module"):
        graphlossy.compress([1, 2])
    with pytest.raises(TypeError, match="torch.nn.Module"):
        graphlossy.restore("model")


def test_empty_graph_and_empty_batch():
    model = GCN(channels=(32, 64, 8)).train()
    graphlossy.compress(model, bits=2)
    x = torch.randn(50, 32)
    model(x, torch.empty(2, 0, dtype=torch.int64)).sum().backward()
    linear = nn.Linear(32, 32)
    with graphlossy.compress(bits=2) as ledger:
        out = linear(torch.empty(0, 32)).relu()
    out.sum().backward()
    assert ledger.saved_bytes == 0
