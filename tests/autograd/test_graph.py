"""CSRGraph: the sparse matrix and its transpose."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphlossy.autograd import CSRGraph


def dense(edge_index: Tensor, weight: Tensor | None, num_dst: int, num_src: int) -> Tensor:
    weight = torch.ones(edge_index.size(1)) if weight is None else weight
    return torch.zeros(num_dst, num_src).index_put_((edge_index[1], edge_index[0]), weight, accumulate=True)


@given(
    num_src=st.integers(1, 9), num_dst=st.integers(1, 9), num_edges=st.integers(0, 30), weighted=st.booleans(),
    narrow=st.booleans(), ordered=st.booleans(),
)  # fmt: skip
def test_matrix_and_transpose(
    num_src: int, num_dst: int, num_edges: int, weighted: bool, narrow: bool, ordered: bool
) -> None:
    edge_index = torch.stack([torch.randint(num_src, (num_edges,)), torch.randint(num_dst, (num_edges,))])
    if ordered:
        edge_index = edge_index[:, edge_index[1].argsort()]
    weight = torch.rand(num_edges) if weighted else None
    expected = dense(edge_index, weight, num_dst, num_src)
    graph = CSRGraph(edge_index.int() if narrow else edge_index, weight, num_dst, num_src)
    assert torch.allclose(graph.adj.to_dense(), expected)
    assert torch.allclose(graph.adj_t_csr.to_dense(), expected.t())
    assert graph.crow.dtype is graph.col.dtype is torch.int32
    counts = torch.bincount(edge_index[1], minlength=num_dst).clamp(min=1)
    crow_t, col_t, _ = graph.transpose()
    mean_t = torch.sparse_csr_tensor(
        crow_t, col_t, graph.values(transposed=True, mean=True), (num_src, num_dst), check_invariants=False
    )
    assert torch.allclose(mean_t.to_dense(), (expected / counts[:, None]).t(), atol=1e-6)


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc, torch.sparse_coo])
def test_from_sparse(layout: torch.layout) -> None:
    expected = torch.rand(5, 7).relu_() * (torch.rand(5, 7) > 0.5)
    graph = CSRGraph(expected.to_sparse(layout=layout))
    assert (graph.num_dst, graph.num_src) == (5, 7)
    assert torch.equal(graph.adj.to_dense(), expected)
    assert torch.equal(graph.adj_t_csr.to_dense(), expected.t())


def test_flow_and_default_sizes() -> None:
    edge_index = torch.tensor([[0, 4], [1, 2]])
    forward, backward = CSRGraph(edge_index), CSRGraph(edge_index, flow="target_to_source")
    assert (forward.num_dst, forward.num_src) == (5, 5)
    assert torch.equal(forward.adj.to_dense(), backward.adj.to_dense().t())
    assert CSRGraph(edge_index, num_src=9).num_dst == 3  # the largest destination plus one


def test_a_snapshot_does_not_change(edges: Callable[..., Tensor]) -> None:
    edge_index, weight = edges(10, 30), torch.rand(30)
    graph = CSRGraph(edge_index, weight, 10)
    before = graph.adj.to_dense()
    edge_index.zero_(), weight.zero_()
    assert torch.equal(graph.values(torch.float64), graph.adj.values().double())
    assert torch.equal(graph.adj.to_dense(), before)
    assert copy.deepcopy(graph).num_edges == 30
    assert graph.nbytes >= 30 * (4 + 4) + 11 * 4


def test_with_weight_keeps_the_order_of_the_edge_list(edges: Callable[..., Tensor]) -> None:
    edge_index, weight = edges(10, 30), torch.rand(30)
    graph = CSRGraph(edge_index, None, 10).with_weight(weight)
    assert torch.allclose(graph.adj.to_dense(), dense(edge_index, weight, 10, 10))
    assert not CSRGraph(edge_index, weight, 10).with_weight(None).weighted


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((torch.zeros(3, 4, dtype=torch.long),), ValueError, r"shape \[2, E\].*int64 \(3, 4\)"),
        ((torch.zeros(2, 4),), TypeError, "int64 or int32, got torch.float32"),
        (([[0], [1]],), TypeError, "must be a tensor"),
        ((torch.tensor([[0], [5]]), None, 3), ValueError, "destination indices from 5 to 5, but num_dst is 3"),
        ((torch.tensor([[-1], [0]]), None, 3), ValueError, "source indices from -1"),
        ((torch.tensor([[0], [1]]), torch.ones(2)), ValueError, r"E = 1, got torch.float32 \(2,\)"),
        ((torch.tensor([[0], [1]]), torch.ones(1).long()), TypeError, "floating-point"),
        ((torch.tensor([[0], [1]]), None, None, None, "up"), ValueError, "flow must be one of"),
        ((torch.eye(3).to_sparse_csr(), torch.ones(3)), ValueError, "put the weights in its values"),
        ((torch.eye(3).to_sparse_csr(), None, 4), ValueError, r"num_dst is 4.*\(3, 3\)"),
        ((torch.eye(4).to_sparse_bsr((2, 2)),), TypeError, "CSR, CSC or COO"),
    ],
)
def test_errors_name_the_argument(arguments: tuple, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        CSRGraph(*arguments)


def test_an_undirected_graph_is_its_own_transpose() -> None:
    edges = torch.tensor([[0, 1, 1, 2, 3], [1, 0, 2, 1, 3]])
    graph = CSRGraph(edges, num_dst=4)
    crow, col, _ = graph.transpose()
    assert crow is graph.crow and col is graph.col
    directed = CSRGraph(edges[:, 1:], num_dst=4)
    assert directed.transpose()[1] is not directed.col
    assert torch.equal(directed.adj_t_csr.to_dense(), directed.adj.to_dense().t())


def test_only_weights_need_the_permutation_of_the_transpose() -> None:
    edges = torch.tensor([[0, 1, 2, 3, 1], [1, 0, 0, 2, 2]])
    graph = CSRGraph(edges, num_dst=4)
    crow, col = graph.transpose_pattern()
    assert graph._pattern._transpose[2] is None
    weighted = graph.with_weight(torch.rand(5))
    assert torch.equal(weighted.adj_t_csr.to_dense(), weighted.adj.to_dense().t())  # sorts again, with positions
    assert graph._pattern._transpose[2] is not None
    assert torch.equal(graph.transpose_pattern()[0], crow) and torch.equal(graph.transpose_pattern()[1], col)
