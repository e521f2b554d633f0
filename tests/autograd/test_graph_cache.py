"""The graph cache hits on the same tensors and never returns a stale graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from graphlossy.autograd import CSRGraph, GraphCache, cached_graph, clear_graph_cache


@pytest.fixture(autouse=True)
def _empty() -> None:
    clear_graph_cache()


def test_same_tensors_hit(edges: Callable[..., Tensor]) -> None:
    edge_index, weight = edges(10, 30), torch.rand(30)
    first = cached_graph(edge_index, weight, 10)
    assert cached_graph(edge_index, weight, 10) is first
    assert cached_graph(edge_index.view(2, -1), weight, 10) is first  # another view of the same memory
    assert cached_graph(edge_index, None, 10) is not first
    assert cached_graph(edge_index, weight, 11).num_dst == 11
    assert cached_graph(edge_index, weight, 10, flow="target_to_source") is not first
    assert cached_graph(edge_index.clone(), weight, 10) is not first


@pytest.mark.parametrize("which", ["edge_index", "edge_weight"])
def test_in_place_edits_are_seen(which: str, edges: Callable[..., Tensor]) -> None:
    edge_index, weight = edges(10, 30), torch.rand(30)
    before = cached_graph(edge_index, weight, 10).adj.to_dense()
    if which == "edge_index":
        edge_index[0, 5] = (edge_index[0, 5] + 1) % 10
    else:
        weight[3:4].mul_(5)  # through a view
    after = cached_graph(edge_index, weight, 10).adj.to_dense()
    assert not torch.equal(before, after)
    assert torch.equal(after, CSRGraph(edge_index, weight, 10).adj.to_dense())


def _columns(graph: CSRGraph) -> list[int]:
    return graph.col.tolist() + graph.crow.tolist()


def _replace(rounds: int) -> int:
    """How often the graph of an edge list that was freed comes back for another at the same address, of its shape."""
    stale = 0
    memory = np.empty((2, 1000), dtype=np.int64)  # one piece of memory for all, so that no allocator has a say
    generator = np.random.default_rng(0)
    for _ in range(rounds):
        memory[:] = generator.integers(0, 20, memory.shape)
        edge_index = torch.from_numpy(memory)
        pointer, version = edge_index.data_ptr(), edge_index._version
        cached_graph(edge_index, None, 20)
        del edge_index
        memory[:] = generator.integers(0, 20, memory.shape)
        other = torch.from_numpy(memory)
        assert (other.data_ptr(), other._version) == (pointer, version)
        stale += _columns(cached_graph(other, None, 20)) != _columns(CSRGraph(other, None, 20))
    return stale


def test_memory_used_again_is_not_mistaken() -> None:
    """Freed and used again at the same address, with the same shape and version: a new graph all the same."""
    assert _replace(10) == 0


def test_an_identity_without_the_storages_life_would_be_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard is what saves it: without the watch on the storage's life the wrong graph comes back."""
    monkeypatch.setattr("graphlossy.autograd.graph_cache._Entry.alive", lambda self: True)
    assert _replace(10) > 0


def test_sparse_values_are_compared() -> None:
    values = torch.tensor([1.0, 2.0])
    adj = torch.sparse_csr_tensor(torch.tensor([0, 1, 2]), torch.tensor([1, 0]), values, (2, 2))
    first = cached_graph(adj)
    assert cached_graph(adj) is first
    values.mul_(3)  # torch does not count this edit on the sparse tensor
    assert torch.equal(cached_graph(adj).values(), torch.tensor([3.0, 6.0]))


def test_sparse_adjacency_with_trained_values() -> None:
    for layout in (torch.sparse_csr, torch.sparse_coo):
        adj = torch.tensor([[0.0, 2.0], [3.0, 0.0]]).to_sparse(layout=layout).requires_grad_()
        graph = cached_graph(adj)
        assert graph.edge_weight is not None and graph.edge_weight.requires_grad
        assert torch.equal(graph.adj.to_dense(), adj.detach().to_dense())


def test_least_recently_used_and_freed_entries_leave() -> None:
    cache = GraphCache(maxsize=2)
    tensors = [torch.zeros(2, 1, dtype=torch.long) for _ in range(3)]
    built = []
    for index in (0, 1, 0, 2, 0, 1):
        cache.get((tensors[index],), None, lambda index=index: built.append(index))
    assert built == [0, 1, 2, 1]
    assert len(cache) == 2
    del tensors
    cache.get((torch.zeros(1),), None, lambda: None)
    assert len(cache) == 1
    with pytest.raises(ValueError, match="maxsize must be at least 1, got 0"):
        GraphCache(0)


def test_inference_tensors_are_not_cached() -> None:
    with torch.inference_mode():
        edge_index = torch.tensor([[0, 1], [1, 0]])
    assert cached_graph(edge_index) is not cached_graph(edge_index)


def test_a_prepared_graph_passes_through(edges: Callable[..., Tensor]) -> None:
    graph = CSRGraph(edges(10, 30))
    assert cached_graph(graph) is graph
    with pytest.raises(TypeError, match="must be a tensor, got list"):
        cached_graph([[0], [1]])
    with pytest.raises(ValueError, match="put the weights in its values"):
        cached_graph(torch.eye(2).to_sparse_csr(), torch.ones(2))
