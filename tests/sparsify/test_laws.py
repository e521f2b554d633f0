"""The expected graph is the original: every unbiased method, over seeds, with planted wrong variants."""

from __future__ import annotations

import pytest
import torch

from graphlossy.sparsify import METHODS, degree_sparsify, sparsify
from graphlossy.sparsify._choice import graph_of
from graphlossy.sparsify._edges import read_edges

SEEDS = 250
UNBIASED = [name for name, method in METHODS.items() if method.unbiased]


def mean_is(samples: list[torch.Tensor], expected: torch.Tensor) -> bool:
    """Whether the mean of the samples is ``expected``, entry by entry and in all, within 5 standard errors.

    Every entry must be there in a dozen samples, or its spread is not known: no edge may be too unlikely.
    """
    stack = torch.stack(samples)
    assert int((stack != 0).sum(0)[expected != 0].min()) >= 12
    error = stack.std(0) / len(samples) ** 0.5
    mean = stack.mean(0)
    entries = bool(((mean - expected).abs() <= 5 * error + 1e-6).all())
    totals = stack.flatten(1).sum(1)
    spread = float(totals.std()) / len(samples) ** 0.5
    return entries and abs(float(totals.mean()) - float(expected.sum())) <= 4 * spread + 1e-4


GRAPHS = ["undirected", "directed", "weighted", "weighted directed", "parallel", "self-loops", "bipartite"]


@pytest.fixture(params=GRAPHS)
def graph(request, make_graph):
    """(edge_index, num_nodes, edge_weight) of every kind of graph."""
    kind = request.param
    edges = make_graph(directed="directed" in kind.split() or kind == "bipartite")
    size: int | tuple[int, int] = 31  # the last node has no edge
    weight = None
    if kind == "weighted":  # both directions of a pair weigh the same
        weight = 1.0 + ((edges[0] * edges[1] * 7 + edges.sum(0)) % 5)
    if kind == "weighted directed":
        weight = torch.rand(edges.shape[1], generator=torch.Generator().manual_seed(1)) + 0.3
    if kind == "parallel":
        edges = torch.cat([edges, edges[:, :40], edges[:, :40].flip(0)], 1)
    if kind == "self-loops":
        edges = torch.cat([edges, torch.tensor([[3, 3, 30], [3, 3, 30]])], 1)
    if kind == "bipartite":
        size = (31, 40)
    return edges, size, weight


@pytest.mark.parametrize("method", UNBIASED)
def test_the_expected_adjacency_matrix_is_the_original(graph, method, dense) -> None:
    edges, size, weight = graph
    shape = size if isinstance(size, tuple) else (size, size)
    samples = []
    for seed in range(SEEDS):
        kept, factor = sparsify(edges, size, method, ratio=0.4, edge_weight=weight, seed=seed)
        samples.append(dense(kept, factor, *shape))
    assert mean_is(samples, dense(edges, weight, *shape))


def test_the_expected_laplacian_is_the_original(make_graph, dense) -> None:
    edges = make_graph()

    def laplacian(matrix):
        return torch.diag(matrix.sum(1)) - matrix

    samples = [laplacian(dense(*degree_sparsify(edges, 30, ratio=0.3, seed=seed), 30)) for seed in range(SEEDS)]
    assert mean_is(samples, laplacian(dense(edges, None, 30)))


def test_planted_wrong_weights_are_found(make_graph, dense) -> None:
    edges = make_graph()
    expected = dense(edges, None, 30)
    doubled, unweighted, uniform, once = [], [], [], []
    listed = read_edges(edges, 30, undirected=False)
    for seed in range(SEEDS):
        kept, weight = degree_sparsify(edges, 30, ratio=0.4, seed=seed)
        # both directions drawn apart, then summed with their reverses: weight 2, as the authors' code has it
        one, own = degree_sparsify(edges, 30, ratio=0.4, seed=seed, undirected=False)
        doubled.append(dense(one, own, 30) + dense(one.flip(0), own, 30))
        unweighted.append(dense(kept, None, 30))
        uniform.append(dense(kept, torch.full_like(weight, edges.shape[1] / kept.shape[1]), 30))
        choice = METHODS["degree"].choose(listed, seed, ratio=0.4)
        choice.factor = choice.factor.clamp(max=2)  # counts thrown away
        once.append(dense(*graph_of(listed, choice, True), 30))
    assert mean_is([sample / 2 for sample in doubled], expected)
    for wrong in (doubled, unweighted, uniform, once):
        assert not mean_is(wrong, expected)


def test_local_degree_says_that_it_is_biased(make_graph) -> None:
    edges = make_graph()
    assert not METHODS["local-degree"].unbiased
    assert not METHODS["local-degree"].choose(read_edges(edges), 0, ratio=0.5).unbiased
    assert bool((sparsify(edges, 30, "local-degree", ratio=0.5)[1] == 1).all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("directed", [False, True])
def test_the_ratio_is_reached(method, directed, make_graph) -> None:
    edges = make_graph(300, 3000, directed=directed)
    for ratio in (0.35, 0.6, 0.9):
        shares = [
            sparsify(edges, 300, method, ratio=ratio, seed=seed)[0].shape[1] / edges.shape[1] for seed in range(10)
        ]
        assert abs(sum(shares) / 10 - ratio) < 0.012, (ratio, shares)


@pytest.mark.parametrize("method", METHODS)
def test_one_seed_one_result_for_any_number_of_threads(method, make_graph) -> None:
    edges = make_graph(400, 4000)
    weight = ((edges.sum(0) % 5) + 0.1).float()
    found = []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        found.append(sparsify(edges, 400, method, ratio=0.5, edge_weight=weight, seed=11))
    for edge_index, edge_weight in found[1:]:
        assert torch.equal(edge_index, found[0][0]) and torch.equal(edge_weight, found[0][1])
    other = sparsify(edges, 400, method, ratio=0.5, edge_weight=weight, seed=12)[0]
    assert torch.equal(other, found[0][0]) != METHODS[method].random


def test_seeds_come_from_torch(make_graph) -> None:
    edges = make_graph()
    torch.manual_seed(3)
    one, two = (degree_sparsify(edges, 30, ratio=0.5)[0] for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(degree_sparsify(edges, 30, ratio=0.5)[0], one) and not torch.equal(one, two)
