"""GraphSAINT's samplers: closed forms against enumeration, laws against chi-square, unbiased sums and losses."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from scipy import stats
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader

from graphlossy.sampler import SaintEdgeSampler, SaintNodeSampler, SaintWalkSampler, attach_weights
from graphlossy.sampler._pairs import is_symmetric

# directed, with a self-loop (2), parallel edges (0 -> 1 twice), edges both ways (0, 1), a node without edges (5)
SMALL = Data(edge_index=torch.tensor([[0, 0, 1, 1, 2, 3, 4, 2], [1, 1, 0, 2, 2, 4, 3, 4]]), num_nodes=6)
PATH = Data(edge_index=torch.tensor([[0, 1, 1, 2, 2, 3, 3, 3], [1, 0, 2, 1, 3, 2, 3, 3]]), num_nodes=4)


def edge_law(data: Data) -> list[tuple[float, frozenset[int]]]:
    """(probability, nodes) of a draw of the edge sampler."""
    row, col = data.edge_index
    leave, arrive = (torch.bincount(ends, minlength=data.num_nodes).double() for ends in (row, col))
    p = 1 / leave[row] + 1 / arrive[col]
    return [(q, frozenset(pair)) for q, pair in zip((p / p.sum()).tolist(), data.edge_index.t().tolist(), strict=True)]


def node_law(data: Data) -> list[tuple[float, frozenset[int]]]:
    return [(1 / data.num_edges, frozenset([node])) for node in data.edge_index[0].tolist()]


def subgraph_law(draws: list[tuple[float, frozenset[int]]], count: int) -> dict[frozenset[int], float]:
    """Probability of every set of nodes after ``count`` independent draws, by enumeration."""
    law: dict[frozenset[int], float] = {}
    for chosen in itertools.product(draws, repeat=count):
        nodes = frozenset().union(*(ends for _, ends in chosen))
        law[nodes] = law.get(nodes, 0.0) + math.prod(q for q, _ in chosen)
    return law


CASES = [
    (kind, law, data, count)
    for kind, law in ((SaintNodeSampler, node_law), (SaintEdgeSampler, edge_law))
    for data in (SMALL, PATH)
    for count in (1, 2, 3)
]


@pytest.mark.parametrize(("kind", "law", "data", "count"), CASES)
def test_closed_forms_equal_enumeration(kind, law, data: Data, count: int) -> None:
    subgraphs = subgraph_law(law(data), count)
    sampler = kind(data, count, seed=0)
    nodes = torch.arange(data.num_nodes)
    graph = sampler.graph
    edge = torch.arange(graph.num_edges)
    row, col = graph.sources(edge), nodes.repeat_interleave(graph.in_degree())
    of_node, of_edge = sampler.probabilities(nodes, row, col, edge)
    expected = [sum(p for s, p in subgraphs.items() if v in s) for v in nodes.tolist()]
    torch.testing.assert_close(of_node, torch.tensor(expected, dtype=torch.float64))
    pairs = zip(row.tolist(), col.tolist(), strict=True)
    joint = [sum(p for s, p in subgraphs.items() if u in s and v in s) for u, v in pairs]
    torch.testing.assert_close(of_edge, torch.tensor(joint, dtype=torch.float64), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(("kind", "law"), [(SaintNodeSampler, node_law), (SaintEdgeSampler, edge_law)])
@pytest.mark.parametrize("data", [SMALL, PATH])
def test_subgraphs_have_the_law_of_the_paper(kind, law, data: Data) -> None:
    subgraphs = subgraph_law(law(data), 2)
    sampler = kind(data, 2, seed=0)
    count = 3000
    found = Counter(frozenset(sampler.draw_nodes(seed).tolist()) for seed in range(count))
    assert set(found) <= set(subgraphs)
    p = stats.chisquare([found[s] for s in subgraphs], [q * count for q in subgraphs.values()]).pvalue
    assert p > 1e-4
    if kind is SaintEdgeSampler:  # PyG 2.8 draws in proportion to the degrees, not to their inverses
        row, col = data.edge_index
        degrees = torch.bincount(row)[row] + torch.bincount(col)[col]
        wrong = [(int(d) / int(degrees.sum()), s) for d, (_, s) in zip(degrees, law(data), strict=True)]
        other = subgraph_law(wrong, 2)
        assert stats.chisquare([found[s] for s in other], [q * count for q in other.values()]).pvalue < 1e-10


def saint_sampler(data: Data, which: int, coverage: int = 5):
    if which == 2:
        return SaintWalkSampler(data, 6, 3, coverage=coverage, seed=0)
    return (SaintNodeSampler(data, 25, seed=0), SaintEdgeSampler(data, 12, seed=0))[which]


def distances(data: Data, means, sampler, rounds: int = 800, plain: bool = False) -> tuple[float, float]:
    """Standard errors by which aggregations and the loss are off; ``plain``: as if there were no normalisation."""
    row, col = data.edge_index
    value = data.edge_weight.double()
    x = data.x[:, 0].double().cos() + 3
    truth = torch.zeros(60, dtype=torch.float64).index_add(0, col, value * x[row])
    aggregate, loss = means(60), means(1)
    for seed in range(rounds):
        out, weights = sampler.sample(torch.empty(0), seed)
        ids = out.edge if sampler.edge_permutation is None else sampler.edge_permutation[out.edge]
        weight = value[ids] if plain else weights["edge_weight"].double()
        node_weight = torch.full(out.node.shape, 1 / out.node.shape[0]) if plain else weights["node_weight"].double()
        total = torch.zeros(out.node.shape[0], dtype=torch.float64)
        total.index_add_(0, out.col, weight * x[out.node[out.row]])
        aggregate.add(out.node, total)
        loss.add(torch.tensor([0]), (node_weight * x[out.node] ** 2).sum().view(1))
    # A node that no sampler can reach is not part of the mean.
    reach = aggregate.count > 0
    return aggregate.off(truth), loss.off((x[reach] ** 2).sum() / 60)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("directed", [True, False])
def test_aggregations_and_losses_are_unbiased(random_data, means, which: int, directed: bool) -> None:
    data = random_data(edges=150, weight=True, directed=directed)
    sampler = saint_sampler(data, which)
    assert is_symmetric(sampler.graph) is not directed
    aggregate, loss = distances(data, means, sampler)
    assert aggregate < 5 and loss < 4.5
    aggregate, loss = distances(data, means, sampler, 800, plain=True)
    assert aggregate > 10 and loss > 6


def test_walks_are_normalised_by_counting(random_data, means) -> None:
    data = random_data(edges=150, weight=True, directed=False)
    sampler = saint_sampler(data, 2, coverage=400)
    aggregate, loss = distances(data, means, sampler, 200)  # the estimate's own error counts as well
    assert aggregate < 7 and loss < 6
    aggregate, loss = distances(data, means, sampler, 200, plain=True)
    assert aggregate > 10


def test_walks_follow_edges_and_stay_where_there_are_none() -> None:
    chain = Data(edge_index=torch.tensor([[0, 1, 2], [1, 2, 3]]), num_nodes=5)
    sampler = SaintWalkSampler(chain, 1, walk_length=2, seed=0)
    starts = {}
    for seed in range(200):
        nodes = sampler.draw_nodes(seed).tolist()
        starts[nodes[-1]] = nodes
    assert starts == {0: [0], 1: [0, 1], 2: [0, 1, 2], 3: [1, 2, 3], 4: [4]}


@pytest.mark.parametrize("which", [0, 1, 2])
def test_pygs_loader(random_data, which: int) -> None:
    data = random_data(weight=True)
    sampler = saint_sampler(data, which)
    passes = [
        list(
            NodeLoader(
                data, sampler, input_nodes=torch.arange(4), batch_size=1, transform=attach_weights, num_workers=w
            )
        )
        for w in ((0, 2) if which == 0 else (0,))
    ]
    for batches in passes:
        assert len({tuple(batch.n_id.tolist()) for batch in batches}) == 4
        for batch, same in zip(batches, passes[0], strict=True):
            assert torch.equal(batch.n_id, same.n_id) and torch.equal(batch.edge_weight, same.edge_weight)
            ends = torch.stack([batch.n_id[batch.edge_index[0]], batch.n_id[batch.edge_index[1]]])
            assert torch.equal(data.edge_index[:, batch.e_id], ends)
            inside = torch.isin(data.edge_index, batch.n_id).all(dim=0)
            assert int(inside.sum()) == batch.num_edges and batch.node_weight.shape == batch.n_id.shape


BAD = [
    (lambda d: SaintNodeSampler(d, 0), ValueError, "num_draws must be at least 1, got 0"),
    (lambda d: SaintEdgeSampler(d, 1.5), TypeError, "num_draws must be an int, got float 1.5"),
    (lambda d: SaintWalkSampler(d, 1, 0), ValueError, "walk_length must be at least 1"),
    (lambda d: SaintWalkSampler(d, 1, coverage=0), ValueError, "coverage must be at least 1"),
    (lambda d: SaintNodeSampler((torch.tensor([0, 0]), torch.tensor([]).int()), 1), ValueError, "needs a graph with"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_bad_arguments(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(SMALL)


def test_links_are_refused() -> None:
    with pytest.raises(TypeError, match="samples subgraphs, not links"):
        SaintNodeSampler(SMALL, 1).sample_from_edges(None)
