"""The transforms: attributes follow their edges, also of the reverse direction, in graphs of one and of many kinds."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import BaseTransform, Compose, ToUndirected

from graphlossy.sparsify import (
    METHODS,
    DegreeSparsify,
    KNeighborSparsify,
    LocalDegreeSparsify,
    RandomSparsify,
    ResistanceSparsify,
    degree_sparsify,
)

TRANSFORMS = [DegreeSparsify, RandomSparsify, KNeighborSparsify, LocalDegreeSparsify, ResistanceSparsify]


def code(edges: torch.Tensor) -> torch.Tensor:
    """A number that says which edge it is, direction included."""
    return edges[0] * 1000 + edges[1]


@pytest.fixture(params=[True, False], ids=["directed", "undirected"])
def data(request, make_graph) -> Data:
    edges = make_graph(directed=request.param)
    edges = torch.cat([edges, torch.tensor([[4, 7], [4, 7]])], 1)
    marks = code(edges)
    return Data(
        x=torch.randn(31, 4), edge_index=edges, y=torch.arange(31), edge_attr=torch.stack([marks, -marks], 1).float(),
        edge_type=marks, edge_kinds=marks.tolist(), edge_label_index=edges[:, :5], edge_label=torch.ones(5),
        edge_time=marks.numpy(), name="toy",
    )  # fmt: skip


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_attributes_follow(transform, data) -> None:
    before = {name: value for name, value in data.items()}
    thin = transform(ratio=0.5, seed=1)(data)
    assert all(data[name] is value for name, value in before.items())  # the input stays as it is
    edges = thin.edge_index
    assert 0 < thin.num_edges < data.num_edges and thin.num_nodes == 31
    assert torch.equal(thin.edge_attr[:, 0].long(), code(edges)) and torch.equal(
        thin.edge_attr[:, 1].long(), -code(edges)
    )
    assert torch.equal(thin.edge_type, code(edges)) and thin.edge_kinds == code(edges).tolist()
    assert thin.edge_time.tolist() == code(edges).tolist()
    assert thin.edge_label_index is data.edge_label_index and thin.y is data.y and thin.name == "toy"
    assert thin.edge_weight.shape == (thin.num_edges,) and thin.validate()


def test_the_same_graph_as_the_function(data) -> None:
    thin = DegreeSparsify(ratio=0.4, seed=5)(data)
    edges, weight = degree_sparsify(data.edge_index, 31, ratio=0.4, seed=5)
    assert torch.equal(thin.edge_index, edges) and torch.equal(thin.edge_weight, weight)


def test_weights_are_read_and_written(data) -> None:
    data.edge_weight = 1 + (data.edge_index.sum(0) % 4).double()
    thin = DegreeSparsify(num_samples=40, seed=0)(data)
    plain = DegreeSparsify(num_samples=40, seed=0, reweight=False)(data)
    assert torch.equal(plain.edge_index, thin.edge_index)
    assert torch.equal(plain.edge_weight, 1 + (plain.edge_index.sum(0) % 4).double())
    assert not torch.equal(thin.edge_weight, plain.edge_weight) and thin.edge_weight.dtype == torch.float64
    named = data.clone()
    named.strength = named.edge_weight
    del named.edge_weight
    other = DegreeSparsify(num_samples=40, seed=0, weight_name="strength")(named)
    assert torch.equal(other.strength, thin.edge_weight) and "edge_weight" not in other
    del data.edge_weight
    assert "edge_weight" not in DegreeSparsify(ratio=0.5, reweight=False, seed=0)(data)


def test_parallel_edges_with_attributes_of_their_own() -> None:
    edges = torch.tensor([[0, 1, 0, 1, 1, 2], [1, 0, 1, 0, 2, 1]])
    weight = torch.tensor([1.0, 5.0, 5.0, 1.0, 2.0, 2.0])
    data = Data(edge_index=edges, edge_weight=weight, edge_type=torch.arange(6), num_nodes=3)
    for seed in range(10):
        thin = DegreeSparsify(num_samples=2, seed=seed, reweight=False)(data)
        half = thin.num_edges // 2
        assert torch.equal(thin.edge_weight[:half], thin.edge_weight[half:])
        assert torch.equal(thin.edge_weight, weight[thin.edge_type])  # a row of a parallel edge of the same weight
        assert torch.equal(edges[:, thin.edge_type], thin.edge_index)


@pytest.fixture
def hetero(make_graph) -> HeteroData:
    graph = HeteroData()
    graph["author"].x, graph["paper"].num_nodes = torch.randn(31, 2), 40
    graph["author", "writes", "paper"].edge_index = make_graph(directed=True)
    graph["author", "writes", "paper"].edge_attr = code(make_graph(directed=True)).float()
    graph["paper", "cites", "paper"].edge_index = make_graph(30, 60, 3, directed=True)
    graph["author", "knows", "author"].edge_index = make_graph(30, 60, 4)
    return graph


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_relation_by_itself(transform, hetero) -> None:
    thin = transform(ratio=0.6, seed=2)(hetero)
    for kind in hetero.edge_types:
        assert 0 < thin[kind].num_edges < hetero[kind].num_edges
        assert thin[kind].edge_weight.shape == (thin[kind].num_edges,)
    writes = thin["author", "writes", "paper"]
    assert torch.equal(writes.edge_attr, code(writes.edge_index).float())
    knows = thin["author", "knows", "author"].edge_index
    assert sorted(code(knows).tolist()) == sorted(code(knows.flip(0)).tolist())
    assert hetero["author", "writes", "paper"].num_edges == 90 and thin.validate()


def test_reverse_relations_keep_the_same_edges(hetero) -> None:
    both = ToUndirected()(hetero)
    reverse = both["paper", "rev_writes", "author"]
    order = torch.randperm(reverse.num_edges)  # in another order, and with attributes of its own
    reverse.edge_index = reverse.edge_index[:, order]
    reverse.edge_attr = code(reverse.edge_index).float()
    thin = DegreeSparsify(ratio=0.5, seed=0)(both)
    one, other = thin["author", "writes", "paper"], thin["paper", "rev_writes", "author"]
    assert torch.equal(one.edge_index, other.edge_index.flip(0)) and torch.equal(one.edge_weight, other.edge_weight)
    assert torch.equal(other.edge_attr, code(other.edge_index).float())
    turned = HeteroData()  # the reverse relation comes first
    turned["author"].num_nodes, turned["paper"].num_nodes = both["author"].num_nodes, both["paper"].num_nodes
    for kind in (("paper", "rev_writes", "author"), ("author", "writes", "paper")):
        turned[kind].edge_index = both[kind].edge_index
    turned = DegreeSparsify(ratio=0.5, seed=0)(turned)
    again = turned["paper", "rev_writes", "author"].edge_index.flip(0)
    assert torch.equal(turned["author", "writes", "paper"].edge_index, again)
    cites = thin["paper", "cites", "paper"].edge_index  # homogeneous: ToUndirected made it symmetric
    assert sorted(code(cites).tolist()) == sorted(code(cites.flip(0)).tolist())
    # a relation that only sounds like a reverse is drawn by itself
    reverse.edge_index = reverse.edge_index[:, 1:]
    reverse.edge_attr = reverse.edge_attr[1:]
    apart = DegreeSparsify(ratio=0.5, seed=0)(both)
    assert not torch.equal(
        apart["author", "writes", "paper"].edge_index[0], apart["paper", "rev_writes", "author"].edge_index[1]
    )


def test_relations_are_not_drawn_alike() -> None:
    graph, ring = HeteroData(), torch.stack([torch.arange(50), torch.arange(50).roll(1)])
    graph["a"].num_nodes = 50
    for name in ("one", "two"):
        graph["a", name, "a"].edge_index = ring
    thin = RandomSparsify(ratio=0.5, seed=0)(graph)
    assert not torch.equal(thin["a", "one", "a"].edge_index, thin["a", "two", "a"].edge_index)


def test_in_a_pipeline_and_with_a_model(data) -> None:
    from torch_geometric.nn import GCNConv

    thin = Compose([DegreeSparsify(ratio=0.5)])(data)
    assert issubclass(DegreeSparsify, BaseTransform) and "ratio=0.5" in repr(DegreeSparsify(ratio=0.5))
    assert GCNConv(4, 2)(thin.x, thin.edge_index, thin.edge_weight).shape == (31, 2)
    torch.manual_seed(0)
    transform = DegreeSparsify(ratio=0.5)
    assert not torch.equal(transform(data).edge_index[0, :8], transform(data).edge_index[0, :8])


def test_bad_arguments(data) -> None:
    with pytest.raises(ValueError, match="exactly one of ratio, epsilon, num_samples; got none"):
        DegreeSparsify()
    with pytest.raises(ValueError, match="got ratio, epsilon"):
        DegreeSparsify(0.5, epsilon=1.0)
    with pytest.raises(TypeError, match="RandomSparsify takes ratio, got epsilon"):
        RandomSparsify(epsilon=1.0)
    with pytest.raises(ValueError, match="no edge_index; sparsify before transforms such as ToSparseTensor"):
        DegreeSparsify(ratio=0.5)(Data(x=torch.ones(3, 1)))
    data.edge_weight = -torch.ones(data.num_edges)
    with pytest.raises(ValueError, match="finite and at least 0"):
        DegreeSparsify(ratio=0.5)(data)


def test_there_is_a_transform_of_every_method() -> None:
    assert {transform.method for transform in TRANSFORMS} == set(METHODS)
