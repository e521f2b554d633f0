"""Published injection: who is labelled, what changes, what does not, and seeds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data

from graphlossy.outliers.data import types
from graphlossy.outliers.injection import (
    KINDS,
    inject,
    inject_contextual,
    inject_contextual_norm_matched,
    inject_structural,
    inject_structural_degree_preserving,
)

CALLS: dict[str, Callable[[Data, int | None], Data]] = {
    "structural": lambda data, seed: inject_structural(data, 4, 3, seed=seed),
    "contextual": lambda data, seed: inject_contextual(data, 6, 10, seed=seed),
    "degree-preserving": lambda data, seed: inject_structural_degree_preserving(data, 4, 3, seed=seed),
    "norm-matched": lambda data, seed: inject_contextual_norm_matched(data, 6, 10, seed=seed),
    "published": lambda data, seed: inject(data, "published", 0.2, seed),
    "leakfree": lambda data, seed: inject(data, "leakfree", 0.2, seed),
}


def random_data(nodes: int, edges: int, features: int = 5, seed: int = 0, directed: bool = False) -> Data:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(nodes, (2, edges), generator=generator)
    ends = ends if directed else torch.cat([ends, ends.flip(0)], 1)
    return Data(x=torch.randn(nodes, features, generator=generator), edge_index=ends)


def pairs(data: Data) -> set[tuple[int, int]]:
    return set(map(tuple, data.edge_index.t().tolist()))


@pytest.mark.parametrize("name", CALLS)
def test_the_input_is_untouched_and_not_shared(name: str) -> None:
    data = random_data(60, 150)
    data.y, data.name = torch.arange(60) % 3, "mine"
    before = copy.deepcopy(data)
    found = CALLS[name](data, 0)
    found.x.fill_(7)
    found.edge_index.fill_(7)
    found.y.fill_(7)
    assert sorted(data.keys()) == sorted(before.keys())
    assert all(torch.equal(data[key], before[key]) for key in ("x", "edge_index", "y"))


@pytest.mark.parametrize("name", CALLS)
def test_one_seed_gives_one_result_and_zero_is_a_seed(name: str) -> None:
    data = random_data(60, 150)
    results = []
    for seed in (0, 0, 1, 2):
        torch.manual_seed(len(results))  # what governs unseeded draws must not matter
        results.append(CALLS[name](data, seed))
    first, again, *others = results
    assert all(torch.equal(first[key], again[key]) for key in ("x", "edge_index", "y"))
    assert all(not torch.equal(first.y, other.y) for other in others)


@pytest.mark.parametrize("name", CALLS)
def test_without_a_seed_torch_governs(name: str) -> None:
    data = random_data(60, 150)
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(CALLS[name](data, None).y)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@given(
    nodes=st.integers(4, 40), edges=st.integers(0, 60), m=st.integers(2, 6), n=st.integers(1, 5),
    p=st.sampled_from([0.0, 0.2, 0.5, 0.99]), directed=st.booleans(), seed=st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_structural_outliers_form_thinned_cliques(
    nodes: int, edges: int, m: int, n: int, p: float, directed: bool, seed: int
) -> None:
    if m * n > nodes:
        n = 1
        m = min(m, nodes)
    data = random_data(nodes, edges, seed=seed % 1000, directed=directed)
    before = pairs(data)
    is_directed = any((b, a) not in before for a, b in before)
    found = inject_structural(data, m, n, p, seed)
    after, members = pairs(found), set(found.y.nonzero().flatten().tolist())
    assert torch.equal(found.x, data.x)
    assert before <= after
    assert len(after) == found.num_edges, "duplicates are merged"
    assert set(found.y.tolist()) <= {0, 2}
    assert len(members) == m * n
    new = after - before
    assert all(set(pair) <= members for pair in new)
    kept = n * m * (m - 1) // 2 - round(p * n * m * (m - 1) // 2)
    assert len(new) <= kept * (1 if is_directed else 2)
    if not is_directed:
        assert all((b, a) in after for a, b in new)
    if p == 0:
        joined = {tuple(sorted(pair)) for pair in after if pair[0] != pair[1] and set(pair) <= members}
        assert len(joined) >= n * m * (m - 1) // 2


def test_the_published_number_of_new_edges() -> None:
    """315 pairs in 7 cliques of 10, of which a fifth is dropped, are the 252 that inj_cora has."""
    data = Data(x=torch.ones(2708, 1), edge_index=torch.empty(2, 0, dtype=torch.long))
    assert inject_structural(data, 10, 7, seed=0).num_edges == 2 * 252


def test_a_clique_is_whole_where_nothing_is_dropped() -> None:
    data = Data(x=torch.ones(20, 1), edge_index=torch.empty(2, 0, dtype=torch.long))
    found = inject_structural(data, 5, 1, p=0.0, seed=3)
    members = found.y.nonzero().flatten().tolist()
    assert {pair for pair in pairs(found) if pair[0] < pair[1]} == set(combinations(members, 2))


@given(
    nodes=st.integers(1, 30), features=st.integers(1, 6), share=st.floats(0.1, 1), k=st.integers(1, 30),
    seed=st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_contextual_outliers_are_copies(nodes: int, features: int, share: float, k: int, seed: int) -> None:
    data = random_data(nodes, 2 * nodes, features, seed=seed % 1000)
    n, k = max(1, int(share * nodes)), min(k, nodes)
    found = inject_contextual(data, n, k, seed)
    members = found.y == 1
    assert int(members.sum()) == n
    assert torch.equal(found.x[~members], data.x[~members])
    rows = {tuple(row) for row in data.x.tolist()}
    assert all(tuple(row) in rows for row in found.x[members].tolist())
    assert pairs(found) == pairs(data)


def test_of_all_candidates_the_most_distant_is_taken() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0]])
    data = Data(x=x, edge_index=torch.empty(2, 0, dtype=torch.long))
    for seed in range(5):
        found = inject_contextual(data, 1, 5, seed)
        node = int(found.y.argmax())
        assert float(found.x[node]) == (0.0 if node == 4 else 10.0)


def test_distances_of_huge_features_do_not_overflow() -> None:
    x = torch.tensor([[1e30], [2e30], [-3e30], [0.0]])
    data = Data(x=x, edge_index=torch.empty(2, 0, dtype=torch.long))
    for seed in range(4):
        found = inject_contextual(data, 1, 4, seed)
        node = int(found.y.argmax())
        assert float(found.x[node]) == float(x[(x - x[node]).double().abs().argmax()])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("nodes", "share", "each"), [(2_000, 0.05, 48), (2_000, 0.5, 496), (100, 0.05, 2)])
def test_both_types_in_the_share_that_is_asked_for(kind: str, nodes: int, share: float, each: int) -> None:
    """In cliques of about twice the mean degree, 8, or fewer nodes where there are fewer outliers."""
    found = inject(random_data(nodes, 2 * nodes), kind, share, seed=0)
    counts = {name: int(mask.sum()) for name, mask in types(found).items()}
    assert counts == pytest.approx({"contextual": each, "structural": each}, abs=max(1, share * nodes / 40))
    assert "seed 0" in found.note


def test_a_clique_size_of_ones_own() -> None:
    found = inject(random_data(2_000, 4_000), "published", seed=0, m=25)
    assert "50 structural outliers in 2 cliques of 25" in found.note


def test_types_draw_different_nodes_from_one_seed() -> None:
    found = inject(random_data(400, 800), "published", 0.5, seed=0)
    contextual, structural = types(found).values()
    assert 0 < int((contextual & structural).sum()) < int(contextual.sum())


def test_labels_of_a_typed_graph_stay_and_class_numbers_do_not() -> None:
    data = random_data(50, 100)
    data.y = torch.zeros(50, dtype=torch.int64).index_fill_(0, torch.arange(10), 5)
    assert set(inject_contextual(data, 5, seed=0).y.tolist()) == {0, 1}
    first = inject_structural(data, 5, 2, seed=0)
    second = inject_contextual(first, 30, 10, seed=0)
    assert torch.equal(second.y & 2, first.y)
    assert int((second.y & 1).sum()) == 30


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda data: inject_structural(data, 1, 1), "m must be at least 2, got 1"),
        (lambda data: inject_structural(data, 5, 0), "n must be at least 1, got 0"),
        (lambda data: inject_structural(data, 5, 5), r"m \* n must be at most 20, the number of nodes, got 5 \* 5"),
        (lambda data: inject_structural(data, 5, 1, p=1.0), "p must be below 1, got 1"),
        (lambda data: inject_structural(data, 5, 1, p=-0.1), "p must be at least 0"),
        (lambda data: inject_contextual(data, 21), "n must be at most 20, the number of nodes, got 21"),
        (lambda data: inject_contextual(data, 2, 21), "k must be at most 20, the number of nodes, got 21"),
        (lambda data: inject_contextual(data, 2, 5, seed=-1), "seed must be at least 0, got -1"),
        (lambda data: inject_contextual_norm_matched(data, 3, 5), "n must be even.* got 3: take 2 or 4"),
        (lambda data: inject(data, "hidden"), "kind must be 'published' or 'leakfree', got 'hidden'"),
        (lambda data: inject(data, share=0.6), "share must be more than 0 and at most 0.5, got 0.6"),
        (lambda data: inject(data, m=1), "m must be at least 2, got 1"),
    ],
)
def test_what_is_out_of_range_is_named(call: Callable[[Data], Data], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(random_data(20, 40))


def test_numbers_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match="n must be a whole number, got 2.5"):
        inject_contextual(random_data(20, 40), 2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="seed must be an int or None"):
        inject(random_data(20, 40), seed="one")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CALLS)
def test_features_must_be_finite(name: str) -> None:
    data = random_data(60, 150)
    data.x[7, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite features in 1 of 60 nodes, the first is node 7"):
        CALLS[name](data, 0)


def test_the_result_lies_on_the_cpu_in_float32() -> None:
    data = random_data(30, 60)
    data.x = data.x.double()
    found = inject(data, "published", 0.2, 0)
    assert (found.x.dtype, found.edge_index.dtype, found.y.dtype) == (torch.float32, torch.int64, torch.int64)
    assert np.array_equal(found.edge_index.numpy(), np.unique(found.edge_index.numpy(), axis=1))
