"""Which edges come out: pairs, loops, order, types, empty and odd graphs, errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.sparsify import (
    METHODS,
    degree_sparsify,
    k_neighbor_sparsify,
    local_degree_sparsify,
    random_sparsify,
    sparsify,
)
from graphlossy.sparsify._choice import columns, graph_of
from graphlossy.sparsify._components import components
from graphlossy.sparsify._edges import fingerprint, match, read_edges


@st.composite
def graphs(draw: st.DrawFn):
    """(edge_index, num_nodes, weight or None) with self-loops, parallel edges, isolated nodes, or no edge at all."""
    nodes = draw(st.integers(1, 12))
    ends = st.integers(0, nodes - 1)
    pairs = draw(st.lists(st.tuples(ends, ends), max_size=30))
    edges = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).t()
    weight = torch.tensor([draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])) for _ in pairs])
    if draw(st.booleans()):
        proper = edges[0] != edges[1]
        edges, weight = torch.cat([edges, edges[:, proper].flip(0)], 1), torch.cat([weight, weight[proper]])
        order = torch.randperm(edges.shape[1])
        edges, weight = edges[:, order], weight[order]
    edges = edges.to(draw(st.sampled_from([torch.int64, torch.int32, torch.int16, torch.uint8])))
    if draw(st.booleans()):
        edges = edges.t().contiguous().t()  # the columns lie together
    return edges, nodes, weight if draw(st.booleans()) else None


def multiset(edges: torch.Tensor) -> list[tuple[int, int]]:
    return sorted(map(tuple, edges.t().tolist()))


def test_symmetric_graphs_are_recognised_and_only_they(make_graph) -> None:
    edges = make_graph()
    weight = (edges.sum(0) % 3).float()
    assert read_edges(edges).undirected and read_edges(edges, edge_weight=weight).undirected
    assert not read_edges(make_graph(directed=True)).undirected
    assert not read_edges(edges[:, 1:]).undirected and not read_edges(edges, undirected=False).undirected
    weight[0] += 1e-3
    assert not read_edges(edges, edge_weight=weight).undirected
    doubled = torch.cat([edges, edges[:, :1]], 1)  # one direction twice
    assert not read_edges(doubled).undirected
    assert read_edges(torch.cat([doubled, edges[:, :1].flip(0)], 1)).undirected
    assert read_edges(torch.cat([edges, torch.tensor([[2], [2]])], 1)).undirected  # a self-loop is its own reverse


@given(graph=graphs(), method=st.sampled_from(list(METHODS)), ratio=st.sampled_from([0.5, 0.9, 1.0]))
def test_every_graph(graph, method, ratio) -> None:
    edges, nodes, weight = graph
    before = edges.clone()
    listed = read_edges(edges, nodes, weight)
    try:
        kept, factor = sparsify(edges, nodes, method, ratio=ratio, edge_weight=weight, seed=3)
    except ValueError as error:
        assert "out of reach" in str(error) and ratio < 1
        return
    assert torch.equal(edges, before) and kept.dtype == edges.dtype
    assert factor.shape == (kept.shape[1],) and factor.dtype == torch.float32 and bool((factor >= 0).all())
    held = multiset(edges)
    assert all(multiset(kept).count(edge) <= held.count(edge) for edge in multiset(kept))
    loops = [edge for edge in held if edge[0] == edge[1]]
    assert [edge for edge in multiset(kept) if edge[0] == edge[1]] == loops
    if listed.undirected:
        assert multiset(kept) == multiset(kept.flip(0))
        assert read_edges(kept, nodes, factor).undirected
    if ratio == 1:
        assert multiset(kept) == held
        expected = float(edges.shape[1]) if weight is None else float(weight.sum())
        assert float(factor.sum()) == pytest.approx(expected)
    # the columns that attributes follow are these very edges, each once
    choice = METHODS[method].choose(listed, 3, ratio=ratio)
    at = columns(listed, choice)
    assert torch.equal(edges[:, at], kept) and at.unique().numel() == at.numel()
    if weight is not None:
        plain = graph_of(listed, choice, False)[1]
        assert torch.equal(plain, weight[at])


def test_directed_edges_keep_their_order(make_graph) -> None:
    edges = torch.cat([make_graph(directed=True), torch.tensor([[5], [5]])], 1)[:, torch.randperm(91)]
    listed = read_edges(edges, 30)
    at = columns(listed, METHODS["degree"].choose(listed, 0, ratio=0.5))
    assert bool((at.diff() > 0).all())


def test_without_weights(make_graph) -> None:
    edges = make_graph()
    assert degree_sparsify(edges, ratio=0.5, reweight=False, seed=0)[1] is None
    weight = (1.0 + edges.sum(0) % 3).double()
    kept, own = degree_sparsify(edges, ratio=0.5, reweight=False, edge_weight=weight, seed=0)
    assert torch.equal(own, (1.0 + kept.sum(0) % 3).double())
    assert degree_sparsify(edges, ratio=0.5, edge_weight=weight, seed=0)[1].dtype == torch.float64


def test_edges_of_weight_zero_are_left_out_and_all_zero_is_empty(make_graph) -> None:
    edges = make_graph()
    weight = (edges.sum(0) % 2).float()
    kept, _ = degree_sparsify(edges, edge_weight=weight, num_samples=5000, seed=0)
    assert multiset(kept) == multiset(edges[:, weight > 0])
    assert degree_sparsify(edges, edge_weight=0 * weight, ratio=0.5)[0].shape == (2, 0)
    share = float((weight > 0).float().mean())
    with pytest.raises(ValueError, match=f"ratio 0.999 is out of reach.*expected to keep {share:.4f} of the edges"):
        degree_sparsify(edges, edge_weight=weight, ratio=0.999)


def test_low_degrees_are_favoured(make_graph) -> None:
    edges = make_graph(200, 600)
    inverse = 1 / torch.bincount(edges[0]).double()
    score = inverse[edges].sum(0)
    kept, weight = degree_sparsify(edges, ratio=0.3, seed=0)
    assert float(inverse[kept].sum(0).mean() / score.mean()) > 1.1
    uniform, _ = random_sparsify(edges, ratio=0.3, seed=0)
    assert 0.93 < float(inverse[uniform].sum(0).mean() / score.mean()) < 1.07
    counts = weight * inverse[kept].sum(0)  # weight = count / (Q p)
    counts /= counts.min()
    torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)


def test_k_neighbors_keep_at_most_k(make_graph) -> None:
    edges = make_graph(100, 1200, directed=True)
    into = torch.bincount(edges[1], minlength=100)
    kept, weight = k_neighbor_sparsify(edges, 100, k=3, seed=0)
    assert torch.equal(torch.bincount(kept[1], minlength=100), into.clamp(max=3))
    torch.testing.assert_close(weight, (into[kept[1]] / 3).clamp(min=1))
    both = make_graph(100, 1200)
    kept, weight = k_neighbor_sparsify(both, 100, k=2, seed=0)
    assert bool((torch.bincount(kept[0], minlength=100) >= torch.bincount(both[0], minlength=100).clamp(max=2)).all())
    half = torch.bincount(k_neighbor_sparsify(edges, 100, k=1.5, seed=0)[0][1], minlength=100)
    assert int(half.max()) == 2 and 20 < int((half == 1).sum()) < 80


def test_local_degree_against_its_definition(make_graph) -> None:
    edges = make_graph(60, 400)
    degree = torch.bincount(edges[0], minlength=60)
    for alpha in (0.0, 0.4, 0.8):
        expected = set()
        for node in range(60):
            neighbours = edges[1][edges[0] == node].tolist()
            most = -int(-(len(neighbours) ** alpha) // 1) if neighbours else 0
            neighbours.sort(key=lambda other: -int(degree[other]))
            if len(neighbours) > most > 0:  # ties at the border may be broken either way
                border = degree[neighbours[most - 1]]
                must = [n for n in neighbours if degree[n] > border]
            else:
                must = neighbours
            expected |= {(node, other) for other in must} | {(other, node) for other in must}
        kept = set(multiset(local_degree_sparsify(edges, 60, alpha=alpha)[0]))
        assert expected <= kept
        assert all(any(node in edge for edge in kept) for node in range(60) if degree[node])
    assert multiset(local_degree_sparsify(edges, 60, alpha=1)[0]) == multiset(edges)


def test_edge_index_of_pyg() -> None:
    from torch_geometric import EdgeIndex

    edges = EdgeIndex([[0, 1, 1, 2], [1, 0, 2, 1]], sparse_size=(5, 5), sort_order="row")
    assert read_edges(edges).sizes == (5, 5) and read_edges(edges).undirected
    kept, _ = degree_sparsify(edges, num_samples=1, seed=0)
    assert type(kept) is torch.Tensor and kept.shape == (2, 2)


def test_fingerprint_and_match(make_graph) -> None:
    edges = make_graph(directed=True)
    order = torch.randperm(90)
    turned = edges[:, order].flip(0)
    assert fingerprint(edges, 30) == fingerprint(turned, 30, flipped=True) != fingerprint(turned, 30)
    place = match((edges[0], edges[1]), (turned[1], turned[0]), 30)
    assert torch.equal(turned[:, place].flip(0), edges)


def test_components_against_scipy(make_graph) -> None:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    for seed in range(5):
        edges = make_graph(200, 150, seed, directed=True)
        matrix = coo_matrix((torch.ones(150).numpy(), edges.numpy()), shape=(200, 200))
        count, label = connected_components(matrix, directed=False)
        found = components(200, *edges)
        assert found.unique().numel() == count
        assert torch.equal(found == found[:, None], torch.tensor(label == label[:, None]))
    path = torch.randperm(5000)
    assert bool((components(5000, path[1:], path[:-1]) == 0).all())


EDGES = torch.tensor([[0, 1, 2], [1, 2, 0]])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ValueError, "exactly one of ratio, epsilon and num_samples; got none"),
        ({"ratio": 0.5, "epsilon": 1}, ValueError, "got ratio and epsilon"),
        ({"ratio": 0}, ValueError, "above 0 and at most 1; got 0"),
        ({"ratio": 1.5}, ValueError, "at most 1; got 1.5"),
        ({"ratio": float("nan")}, ValueError, "got nan"),
        ({"ratio": "half"}, TypeError, "got str 'half'"),
        ({"ratio": True}, TypeError, "got bool"),
        ({"epsilon": 0}, ValueError, "epsilon must be above 0 and finite, got 0"),
        ({"epsilon": -1.0}, ValueError, "got -1.0"),
        ({"epsilon": 1e-9}, ValueError, "give a larger one"),
        ({"epsilon": "x"}, TypeError, "got str"),
        ({"num_samples": 0}, ValueError, "at least 1; got 0"),
        ({"num_samples": 2.5}, ValueError, "got 2.5"),
        ({"ratio": 0.5, "seed": 0.1}, TypeError, "seed must be an int or None"),
        (
            {"ratio": 0.5, "num_nodes": 2},
            ValueError,
            "holds source 2 in column 2; the numbers of 2 nodes go from 0 to 1",
        ),
        ({"ratio": 0.5, "num_nodes": -1}, ValueError, "num_nodes must be at least 0, got -1"),
        ({"ratio": 0.5, "num_nodes": 2.0}, TypeError, "num_nodes must be an int"),
        ({"ratio": 0.5, "num_nodes": (3, 2)}, ValueError, "holds target 2 in column 1"),
        ({"ratio": 0.5, "num_nodes": (3, 3), "undirected": True}, ValueError, "bipartite"),
        ({"ratio": 0.5, "undirected": True}, ValueError, "does not hold every edge in both directions"),
        ({"ratio": 0.5, "undirected": 1}, TypeError, "True, False or None, got 1"),
        ({"ratio": 0.5, "edge_weight": torch.ones(2)}, ValueError, r"must be \[3\], one for an edge; got \(2,\)"),
        ({"ratio": 0.5, "edge_weight": torch.tensor([1, 2, -3])}, ValueError, r"edge_weight\[2\] is -3"),
        ({"ratio": 0.5, "edge_weight": torch.tensor([1, torch.nan, 1])}, ValueError, r"edge_weight\[1\] is nan"),
        ({"ratio": 0.5, "edge_weight": torch.tensor([torch.inf, 1, 1])}, ValueError, r"edge_weight\[0\] is inf"),
        ({"num_samples": 2**40 + 1}, ValueError, "num_samples must be at most"),
        ({"epsilon": 1e-7, "num_nodes": 3}, ValueError, "asks for .* draws from 3 nodes"),
        ({"ratio": 0.5, "num_nodes": 2**32}, ValueError, "at most 3,037,000,499 nodes, got 4294967296"),
        ({"ratio": 0.5, "edge_index": EDGES + 2**62}, ValueError, "is a number in edge_index wrong"),
        ({"ratio": 0.5, "edge_weight": [1, 2, 3]}, TypeError, "edge_weight must be a dense real"),
        ({"ratio": 0.5, "edge_index": EDGES.float()}, TypeError, "must hold integers, got torch.float32"),
        ({"ratio": 0.5, "edge_index": EDGES[0]}, ValueError, r"got shape \(3,\)"),
        ({"ratio": 0.5, "edge_index": [[0], [1]]}, TypeError, "got list"),
        ({"ratio": 0.5, "edge_index": -EDGES}, ValueError, "holds source -1 in column 1"),
    ],
    ids=str,
)
def test_bad_input(arguments, error, words) -> None:
    arguments = {"edge_index": EDGES, **arguments}
    with pytest.raises(error, match=words) as found:
        degree_sparsify(**arguments)
    assert "\n" not in str(found.value)


def test_weights_whose_sum_overflows() -> None:
    weight = torch.full((3,), 1.7e308, dtype=torch.float64)
    star = torch.tensor([[1, 2, 3], [0, 0, 0]])
    with pytest.raises(ValueError, match="overflow float64"):
        degree_sparsify(star, ratio=0.5, edge_weight=weight)


@pytest.mark.parametrize(
    ("method", "target", "words"),
    [
        ("dgree", {"ratio": 0.5}, "method must be one of 'degree', 'random'"),
        ("random", {"epsilon": 0.5}, "'random' takes ratio, got epsilon=0.5"),
        ("random", {}, "'random' needs ratio"),
        ("k-neighbor", {"k": 0}, "above 0; got 0"),
        ("k-neighbor", {"k": 1, "ratio": 0.5}, "exactly one of ratio and k"),
        ("local-degree", {"alpha": 2}, "0 to 1; got 2"),
        ("local-degree", {"ratio": 0.01}, "out of reach: local degree always keeps"),
    ],
)
def test_bad_targets(method, target, words, make_graph) -> None:
    with pytest.raises(ValueError, match=words):
        sparsify(make_graph(), 30, method, **target)


def test_memory_is_linear_and_small(monkeypatch) -> None:
    """Beside input and result: some bytes an edge, no matrix of nodes, at the kernel's block size and above."""
    from benchmarks._live import LiveBytes

    peaks = []
    for edges in (100_000, 400_000):
        generator = torch.Generator().manual_seed(0)
        ends = torch.randint(20_000, (2, edges), generator=generator)
        both = torch.cat([ends, ends.flip(0)], 1)
        monkeypatch.setattr("graphlossy.sparsify._edges._CHUNK", 1 << 14)
        with LiveBytes() as live:
            degree_sparsify(both, 20_000, ratio=0.5, seed=0)
        peaks.append(live.peak)
    growth = (peaks[1] - peaks[0]) / 600_000  # bytes a column of the input, which has 16
    assert growth < 32, peaks


def test_more_neighbours_than_there_are(make_graph) -> None:
    edges = make_graph()
    for k in (10**6, 1e300, 2**70):
        kept, weight = k_neighbor_sparsify(edges, k=k, seed=0)
        assert multiset(kept) == multiset(edges) and bool((weight == 1).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_new_weights_that_overflow_are_no_infinities(dtype, make_graph) -> None:
    edges = make_graph()
    weight = torch.full((edges.shape[1],), torch.finfo(dtype).max / 2, dtype=dtype)
    with pytest.raises(ValueError, match=f"{str(dtype)[6:]} overflows"):
        random_sparsify(edges, ratio=0.25, edge_weight=weight, seed=0)


def test_resistance_of_weights_that_no_matrix_can_hold(make_graph) -> None:
    edges = make_graph()
    weight = 10.0 ** (edges.sum(0) % 2 * 300).double()
    with pytest.raises(ValueError, match="too many orders of magnitude"):
        sparsify(edges, None, "resistance", ratio=0.5, edge_weight=weight, seed=0)
