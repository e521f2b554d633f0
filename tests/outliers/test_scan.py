"""SCAN against the definitions of its paper, node by node in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data

from graphlossy.outliers._checks import Graph, prepare
from graphlossy.outliers.methods import SCAN, scan
from graphlossy.outliers.methods.scan import common_neighbors


def neighbourhoods(graph: Graph) -> list[set[int]]:
    gamma = [{v} for v in range(graph.num_nodes)]
    for a, b in graph.edge_index.t().tolist():
        gamma[a].add(b)
        gamma[b].add(a)
    return gamma


def by_definition(graph: Graph, eps: float, mu: int) -> tuple[list[set[int]], set[int]]:
    """The cores of each cluster, and all members of clusters (definitions 2 to 9)."""
    gamma = neighbourhoods(graph)
    near = [{w for w in g if len(g & gamma[w]) / math.sqrt(len(g) * len(gamma[w])) >= eps - 1e-12} for g in gamma]
    cores = {v for v in range(graph.num_nodes) if len(near[v]) >= mu}
    clusters: list[set[int]] = []
    left = set(cores)
    while left:
        cluster, edge = set(), {left.pop()}
        while edge:
            cluster |= edge
            edge = {w for v in edge for w in near[v] & cores} - cluster
        clusters.append(cluster)
        left -= cluster
    return clusters, {w for v in cores for w in near[v]}


graphs = st.integers(1, 14).flatmap(
    lambda n: st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=3 * n).map(
        lambda pairs: prepare(
            Data(num_nodes=n, edge_index=torch.tensor(pairs, dtype=torch.long).view(-1, 2).t()), needs=("edges",)
        )
    )
)


@given(graphs, st.sampled_from([0.3, 0.5, 0.7, 0.8, 1.0]), st.integers(1, 5))
def test_clusters_are_the_papers(graph: Graph, eps: float, mu: int) -> None:
    detector = SCAN(eps=eps, mu=mu).fit(graph)
    clusters, members = by_definition(graph, eps, mu)
    assert set(detector.decision_score_.nonzero().flatten().tolist()) == members
    assert {int(c) for c in detector.cluster_[detector.cluster_ >= 0]} == set(range(len(clusters)))
    for cluster in clusters:
        assert len({int(detector.cluster_[v]) for v in cluster}) == 1
    gamma = neighbourhoods(graph)
    for v in range(graph.num_nodes):
        touched = {int(detector.cluster_[w]) for w in gamma[v]} - {-1}
        assert bool(detector.hub_[v]) == (v not in members and len(touched) > 1)
        assert bool(detector.outlier_[v]) == (v not in members and len(touched) <= 1)


@given(graphs)
def test_common_neighbours(graph: Graph) -> None:
    graph = graph.without_self_loops.undirected
    dense = graph.dense_adjacency()
    assert torch.equal(common_neighbors(graph), (dense @ dense)[tuple(graph.edge_index)].long())


def test_common_neighbours_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = torch.randint(30, (2, 200))
    graph = prepare(Data(num_nodes=30, edge_index=edges), needs=("edges",)).without_self_loops.undirected
    whole = common_neighbors(graph)
    monkeypatch.setattr(scan, "_CHUNK", 3)
    assert torch.equal(common_neighbors(graph), whole)


def test_the_other_class_and_a_planted_clique() -> None:
    generator = torch.Generator().manual_seed(0)
    edges = torch.cat([torch.randint(200, (2, 200), generator=generator), torch.combinations(torch.arange(8)).t()], 1)
    data = Data(num_nodes=200, edge_index=edges)
    members, others = SCAN(mu=5).fit(data), SCAN(mu=5, outliers="non-members").fit(data)
    assert set(range(8)) <= set(members.decision_score_.nonzero().flatten().tolist())
    assert members.decision_score_.sum() < 40
    assert torch.equal(members.decision_score_, 1 - others.decision_score_)


def test_no_edges_and_one_node() -> None:
    empty = torch.empty(2, 0, dtype=torch.long)
    assert SCAN(mu=2).fit(Data(num_nodes=4, edge_index=empty)).decision_score_.tolist() == [0] * 4
    assert SCAN(mu=1).fit(Data(num_nodes=1, edge_index=empty)).decision_score_.tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0}, "eps must be more than 0"),
        ({"eps": 1.5}, "at most 1"),
        ({"mu": 0}, "mu must be at least 1"),
        ({"outliers": "cores"}, "outliers must be one of 'members', 'non-members', got 'cores'"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SCAN(**options)  # type: ignore[arg-type]
