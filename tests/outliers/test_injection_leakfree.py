"""Injection that leaves no trace: degrees, rows and norms stay, and yet nodes and neighbours no longer fit."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from graphlossy.outliers._rewire import Rewiring, groups_by_degree, join_cliques
from graphlossy.outliers._rows import exchange_rows, other_copies, row_norms, spread_draw
from graphlossy.outliers.injection import (
    inject,
    inject_contextual_norm_matched,
    inject_structural_degree_preserving,
)


def random_data(nodes: int, edges: int, seed: int = 0, features: int = 6) -> Data:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(nodes, (2, edges), generator=generator)
    ends = torch.cat([ends, ends.flip(0)], 1)
    return Data(x=torch.randn(nodes, features, generator=generator), edge_index=ends.unique(dim=1))


def degrees(edge_index: torch.Tensor, nodes: int) -> list[int]:
    return torch.bincount(edge_index[0], minlength=nodes).tolist()


@given(nodes=st.integers(8, 60), density=st.floats(1, 6), m=st.integers(2, 8), seed=st.integers(0, 2**40))
def test_every_degree_stays_as_it_was(nodes: int, density: float, m: int, seed: int) -> None:
    data = random_data(nodes, int(density * nodes), seed % 1000)
    loops = (data.edge_index[0] == data.edge_index[1]).sum()
    plain = data.edge_index[:, data.edge_index[0] != data.edge_index[1]]
    n = max(1, len(plain[0].unique()) // (2 * m))
    if m * n > len(plain[0].unique()):
        return
    found = inject_structural_degree_preserving(data, m, n, seed)
    assert degrees(found.edge_index, nodes) == degrees(data.edge_index, nodes)
    assert found.is_undirected()
    assert (found.edge_index[0] == found.edge_index[1]).sum() == loops
    assert torch.equal(found.x, data.x)
    assert m * n - 1 <= int((found.y == 2).sum()) <= m * n
    assert set(found.y.tolist()) <= {0, 2}


@given(seed=st.integers(0, 2**40))
def test_groups_become_cliques(seed: int) -> None:
    """On a graph with room for it, every pair of every group is joined."""
    data = random_data(300, 900, seed % 1000)
    edges = data.edge_index[:, data.edge_index[0] != data.edge_index[1]].numpy()
    degree, rng = np.bincount(edges[0], minlength=300), np.random.default_rng(seed)
    groups = groups_by_degree(rng.permutation(np.flatnonzero(degree))[:30], degree, 6, rng)
    after, failed = join_cliques(edges, 300, groups, rng)
    present = set(map(tuple, after.T.tolist()))
    assert failed == 0
    assert len(present) == after.shape[1] == edges.shape[1]
    assert all(pair in present for group in groups for pair in combinations(group.tolist(), 2))


@given(st.lists(st.integers(1, 12), min_size=2, max_size=40), st.integers(2, 7), st.integers(0, 99))
def test_groups_fit_the_degrees_in_them(degree: list[int], largest: int, seed: int) -> None:
    values = np.array(degree)
    groups = groups_by_degree(np.arange(len(values)), values, largest, np.random.default_rng(seed))
    members = np.concatenate(groups)
    assert len(set(members.tolist())) == len(members) >= len(values) - 1
    assert all(2 <= len(group) <= min(largest, values[group].min() + 1) for group in groups)


def test_the_last_node_is_not_left_alone_where_a_group_can_share() -> None:
    groups = groups_by_degree(np.arange(5), np.full(5, 3), 4, np.random.default_rng(0))
    assert [len(group) for group in groups] == [3, 2]


def test_a_join_that_is_impossible_changes_nothing() -> None:
    """Nodes 1 and 2 hang on node 0, and there are no other edges."""
    edges = to_undirected(torch.tensor([[0, 0], [1, 2]])).numpy()
    rewiring = Rewiring(edges, 3, np.array([-1, 0, 0]), np.random.default_rng(0))
    assert not rewiring.join(1, 2)
    assert set(map(tuple, rewiring.edges().T.tolist())) == set(map(tuple, edges.T.tolist()))


def test_a_third_edge_helps_where_two_cannot() -> None:
    """Nodes 1 and 2 share their only neighbour, 0: of the edge 3-4, all of 1-2, 0-3 and 0-4 can be made."""
    edges = to_undirected(torch.tensor([[0, 0, 3], [1, 2, 4]])).numpy()
    rewiring = Rewiring(edges, 5, np.array([-1, 0, 0, -1, -1]), np.random.default_rng(0))
    assert rewiring.join(1, 2)
    after = {tuple(sorted(pair)) for pair in rewiring.edges().T.tolist()}
    assert after == {(1, 2), (0, 3), (0, 4)}


def test_an_edge_of_another_clique_is_no_third_edge() -> None:
    edges = to_undirected(torch.tensor([[0, 0, 3], [1, 2, 4]])).numpy()
    rewiring = Rewiring(edges, 5, np.array([-1, 0, 0, 1, 1]), np.random.default_rng(0))
    assert not rewiring.join(1, 2)
    assert 4 in rewiring.neighbours(3)


def test_what_cannot_be_joined_is_said() -> None:
    star = to_undirected(torch.stack([torch.zeros(9, dtype=torch.long), torch.arange(1, 10)]))
    found = inject_structural_degree_preserving(Data(x=torch.eye(10), edge_index=star), 2, 4, seed=0)
    assert degrees(found.edge_index, 10) == degrees(star, 10)
    assert "pairs could not be joined" in found.note


def test_isolated_nodes_are_never_structural_outliers() -> None:
    edges = to_undirected(torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]))
    for seed in range(10):
        found = inject_structural_degree_preserving(Data(x=torch.ones(30, 1), edge_index=edges), 2, 3, seed)
        assert not found.y[6:].any()


@pytest.mark.parametrize("edges", [torch.empty(2, 0, dtype=torch.long), torch.tensor([[0, 1], [0, 1]])])
def test_without_edges_nothing_can_be_rewired(edges: torch.Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"m \* n must be at most 0, the number of nodes that have an edge, got 3 \* 1"
    ):
        inject_structural_degree_preserving(Data(x=torch.ones(9, 2), edge_index=edges), 3, 1)


def test_a_directed_graph_is_refused() -> None:
    data = Data(x=torch.ones(4, 2), edge_index=torch.tensor([[0, 1], [1, 2]]))
    with pytest.raises(ValueError, match="data must be undirected.*to_undirected"):
        inject(data, "leakfree")


@given(
    nodes=st.integers(6, 60), k=st.integers(2, 20), features=st.integers(2, 5), half=st.integers(1, 8),
    seed=st.integers(0, 2**40),
)  # fmt: skip
def test_rows_are_exchanged_in_pairs(nodes: int, k: int, features: int, half: int, seed: int) -> None:
    data = random_data(nodes, 2 * nodes, seed % 1000, features)
    n, k = 2 * min(half, nodes // 6), min(k, nodes)
    found = inject_contextual_norm_matched(data, n, k, seed)
    moved = (found.x != data.x).any(1)
    assert torch.equal(moved, found.y == 1)
    assert int(moved.sum()) == n
    assert sorted(map(tuple, found.x.tolist())) == sorted(map(tuple, data.x.tolist()))
    for node in moved.nonzero().flatten().tolist():
        partner = int((data.x == found.x[node]).all(1).nonzero())
        assert torch.equal(found.x[partner], data.x[node])
        rank = data.x.norm(dim=1).argsort().argsort()
        assert abs(int(rank[partner] - rank[node])) <= k


def test_the_least_similar_of_the_candidates_is_the_partner() -> None:
    angle = torch.linspace(0, torch.pi, 9)  # of one norm, half a circle: an end's partner is the other end
    x = torch.stack([angle.cos(), angle.sin()], 1).numpy().copy()
    before = x.copy()
    first, second = exchange_rows(x, 2, 9, np.random.default_rng(0)).tolist()
    similarity = before @ before[first]
    assert similarity[second] == similarity.min()
    assert np.array_equal(x[[first, second]], before[[second, first]])


def test_equal_rows_are_not_exchanged() -> None:
    data = Data(x=torch.ones(20, 3), edge_index=torch.empty(2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="n must be at most 0, got 4: no more pairs of different rows"):
        inject_contextual_norm_matched(data, 4, 10)


def test_runs_of_zero_rows_are_made_up_for_elsewhere() -> None:
    x = np.zeros((100, 4), np.float32)
    x[80:] = np.random.default_rng(0).standard_normal((20, 4))
    found = exchange_rows(x, 12, 10, np.random.default_rng(0))
    assert len(found) == len(set(found.tolist())) == 12


def test_leak_free_outliers_do_not_fit_their_neighbours() -> None:
    """Two communities with features of their own, all of one norm: the similarity to the neighbours falls."""
    generator = torch.Generator().manual_seed(0)
    side = torch.arange(400) % 2
    ends = torch.randint(200, (2, 1500), generator=generator) * 2 + torch.randint(2, (1, 1500), generator=generator)
    x = torch.nn.functional.normalize(torch.eye(2)[side] + 0.2 * torch.randn(400, 2, generator=generator))
    data = Data(x=x, edge_index=torch.cat([ends, ends.flip(0)], 1).unique(dim=1))
    found = inject_contextual_norm_matched(data, 20, 50, seed=0)

    def similarity(graph: Data) -> torch.Tensor:
        source, target = graph.edge_index
        total = torch.zeros_like(graph.x).index_add_(0, source, graph.x[target])
        return (total * graph.x).sum(1) / torch.bincount(source, minlength=400).clamp(min=1)

    moved = found.y == 1
    assert similarity(data)[moved].mean() > 0.7
    assert similarity(found)[moved].mean() < 0.3


@given(count=st.integers(1, 20), extra=st.integers(0, 40), seed=st.integers(0, 99))
def test_a_spread_draw_takes_one_of_each_run(count: int, extra: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(5, size=count + extra).astype(np.float64)
    drawn = spread_draw(np.arange(len(values)), values, count, np.random.default_rng(seed))
    assert len(set(drawn.tolist())) == count
    ordered = np.sort(values)
    for value, run in zip(np.sort(values[drawn]), np.array_split(ordered, count), strict=True):
        assert run[0] <= value <= run[-1]


@given(nodes=st.integers(1, 40), kinds=st.integers(1, 5), seed=st.integers(0, 99))
def test_copies_are_counted(nodes: int, kinds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((kinds, 3)).astype(np.float32)[rng.integers(kinds, size=nodes)]
    expected = [sum(np.array_equal(one, other) for other in x) - 1 for one in x]
    assert other_copies(x).tolist() == expected


def test_norms_of_many_rows() -> None:
    x = np.random.default_rng(0).standard_normal((5_000, 300)).astype(np.float32)
    assert np.allclose(row_norms(x), np.linalg.norm(x.astype(np.float64), axis=1), rtol=1e-12)


def test_the_two_zeros_are_one() -> None:
    assert other_copies(np.array([[0.0, 1], [-0.0, 1], [1, 0]], np.float32)).tolist() == [1, 1, 0]
