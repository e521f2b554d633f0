"""What a model is given: the full graph's numbers, and unbiased estimates of them where edges are left out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.nn import GCN2Conv, GCNConv, GINConv, SAGEConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_torch_csr_tensor

from graphlossy.train import _adjacency
from graphlossy.train._adjacency import csr_adjacency, in_degree, is_symmetric, model_graph

NODES = 12


@st.composite
def edge_lists(draw):
    edges = draw(st.lists(st.tuples(*[st.integers(0, NODES - 1)] * 2), max_size=40, unique=True))
    edges = torch.tensor(edges or [(0, 1)]).T
    if draw(st.booleans()):
        both = torch.cat([edges, edges.flip(0)], dim=1)
        edges = both.unique(dim=1)
    return edges


def dense(edge_index, weight=None):
    out = torch.zeros(NODES, NODES)
    weight = torch.ones(edge_index.shape[1]) if weight is None else weight
    return out.index_put_((edge_index[1], edge_index[0]), weight, accumulate=True)


@pytest.fixture(params=[1 << 24, 5], ids=["one chunk", "many chunks"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(_adjacency, "_CHUNK", request.param)


@given(edge_index=edge_lists())
def test_csr_is_pygs(edge_index, chunk):
    expected = to_torch_csr_tensor(edge_index.flip(0), size=(NODES, NODES))
    found = csr_adjacency(edge_index, NODES)
    assert torch.equal(found.to_dense(), expected.to_dense())
    assert found.col_indices().dtype == torch.int32
    assert torch.equal(in_degree(edge_index, NODES), expected.to_dense().sum(1))


@given(edge_index=edge_lists())
def test_symmetry_is_that_of_the_matrix(edge_index, chunk):
    by_source = edge_index[:, edge_index[0].sort(stable=True).indices]
    assert is_symmetric(by_source) == torch.equal(dense(by_source), dense(by_source).T)
    if (edge_index[0].diff() < 0).any():
        assert not is_symmetric(edge_index)


def test_a_cycle_is_not_taken_for_its_reverse():
    ring = torch.arange(6)
    assert not is_symmetric(torch.stack([ring, ring.roll(1)]))  # every node is as often a source as a target


@given(edge_index=edge_lists())
def test_gcns_values_are_gcn_norms(edge_index, chunk):
    index, weight = gcn_norm(edge_index, None, NODES)
    found = model_graph("gcn", edge_index, NODES, "edge_index", normalized_outside=True)
    torch.testing.assert_close(found.to_dense(), dense(index, weight))


@pytest.mark.parametrize("model", ["gcn", "gcn2", "sage", "gin"])
def test_a_full_graph_with_weights_of_one_is_the_full_graph(model, toy):
    ones = torch.ones(toy.num_edges)
    adj = model_graph(model, toy.edge_index, 300, "csr", ones, in_degree(toy.edge_index, 300), model in ("gcn", "gcn2"))
    x = torch.randn(300, 8)
    layers = {
        "gcn": lambda n: GCNConv(8, 8, normalize=n),
        "gcn2": lambda n: GCN2Conv(8, 0.1, 0.5, 1, normalize=n),
        "sage": lambda n: SAGEConv(8, 8),
        "gin": lambda n: GINConv(torch.nn.Linear(8, 8)),
    }
    inside, outside = layers[model](True), layers[model](False)
    outside.load_state_dict(inside.state_dict())
    arguments = (x, x) if model == "gcn2" else (x,)
    expected = inside(*arguments, toy.edge_index)
    torch.testing.assert_close(outside(*arguments, adj), expected, atol=1e-4, rtol=1e-4)


def own_degrees(model, edge_index, nodes, weight, degree):
    """The planted wrong variant: degrees of what is left instead of the full graph's."""
    return model_graph(model, edge_index, nodes, "csr", weight, None, model == "gcn")


def right(model, edge_index, nodes, weight, degree):
    return model_graph(model, edge_index, nodes, "csr", weight, degree, model == "gcn")


def z_scores(build, model, toy, draws=400):
    """By how many standard errors the mean over random thinnings misses the full graph's product."""
    x = torch.randn(300, 4)
    degree = in_degree(toy.edge_index, 300)
    full = right(model, toy.edge_index, 300, torch.ones(toy.num_edges), degree)
    reduce = (lambda adj: torch.sparse.mm(adj, x, "mean")) if model == "sage" else (lambda adj: adj @ x)
    found = []
    for _ in range(draws):
        keep = torch.rand(toy.num_edges) < 0.5
        weight = torch.full((int(keep.sum()),), 2.0)
        found.append(reduce(build(model, toy.edge_index[:, keep], 300, weight, degree)))
    found = torch.stack(found).double()
    error = (found.mean(0) - reduce(full)) / (found.std(0) / draws**0.5).clamp(min=1e-9)
    return error


@pytest.mark.parametrize("model", ["gcn", "sage", "gin"])
def test_thinned_sums_and_means_are_unbiased(model, toy, one_thread):
    error = z_scores(right, model, toy)
    assert error.abs().max() < 5.5 and 0.8 < error.std() < 1.2


@pytest.mark.parametrize("model", ["gcn", "sage"])
def test_degrees_of_what_is_left_are_found_to_be_biased(model, toy, one_thread):
    error = z_scores(own_degrees, model, toy)
    assert error.abs().max() > 5.5 or error.std() > 1.2


def test_gat_gets_edges_without_weights(toy):
    weight = torch.rand(toy.num_edges)
    assert model_graph("gat", toy.edge_index, 300, "edge_index", weight) is toy.edge_index
    assert model_graph("gat", toy.edge_index, 300, "csr", weight).values().eq(1).all()


def test_nothing_that_was_given_is_changed(toy):
    edges, weight = toy.edge_index.clone(), torch.rand(toy.num_edges)
    kept = weight.clone()
    for model in ("gcn", "sage", "gin"):
        model_graph(model, toy.edge_index, 300, "csr", weight, in_degree(toy.edge_index, 300), True)
    assert torch.equal(toy.edge_index, edges) and torch.equal(weight, kept)
