"""Methods without training: degree, norm, their ranks, chance, LOF and isolation forest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Data

from graphlossy.outliers.methods import METHODS, make_method
from graphlossy.outliers.methods.max_rank import average_rank


def cloud(nodes: int = 60, seed: int = 0) -> Data:
    """Features around one point, the last node far from it; edges at random."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(nodes, 3, generator=generator)
    x[-1] = 30
    return Data(x=x, edge_index=torch.randint(nodes, (2, 3 * nodes), generator=generator))


def scores(name: str, data: Data, **options: object) -> Tensor:
    return make_method(name, **options).fit(data).decision_score_


def test_degree_counts_distinct_neighbours_without_loops() -> None:
    edges = torch.tensor([[0, 1, 0, 0, 2, 3], [1, 0, 1, 2, 2, 0]])  # both directions, a duplicate, a loop
    assert scores("degree", Data(num_nodes=5, edge_index=edges)).tolist() == [3, 1, 1, 1, 0]


def test_norm_and_ranks() -> None:
    data = Data(x=torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]]), edge_index=torch.tensor([[1], [2]]))
    assert scores("norm", data).tolist() == [5, 0, 1]
    # degrees 0, 1, 1 rank 1, 2.5, 2.5; norms rank 3, 1, 2
    assert torch.allclose(scores("maxrank", data), torch.tensor([3, 2.5, 2.5]) / 3)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_average_rank_is_the_mean_place_in_a_sorted_list(values: list[int]) -> None:
    places = [[i + 1 for i, other in enumerate(sorted(values)) if other == value] for value in values]
    expected = torch.tensor([sum(p) / len(p) for p in places], dtype=torch.float64)
    assert torch.equal(average_rank(torch.tensor(values)), expected)


def test_random_depends_on_the_seed_alone() -> None:
    data = cloud()
    assert torch.equal(scores("random", data, seed=3), scores("random", data, seed=3))
    assert not torch.equal(scores("random", data, seed=3), scores("random", data, seed=4))
    torch.manual_seed(5)
    first = scores("random", data)
    torch.manual_seed(5)
    assert torch.equal(first, scores("random", data))


def test_injected_outliers_are_found_without_a_model() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(300, 4, generator=generator)
    edges = torch.randint(300, (2, 600), generator=generator)
    clique = torch.combinations(torch.arange(10)).t()
    x[10:20] *= 5
    data = Data(x=x, edge_index=torch.cat([edges, clique], 1))
    found = scores("maxrank", data).topk(20).indices
    assert (found < 20).sum() >= 18


def brute_lof(x: Tensor, k: int, exclude_self: bool) -> Tensor:
    """Definitions 3 to 7 of the paper; without ``exclude_self`` queries are new points beside the stored ones."""
    distance = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    others = distance.clone().fill_diagonal_(float("inf"))
    kth = others.sort(1).values[:, k - 1]

    def density(rows: Tensor) -> tuple[Tensor, Tensor]:
        near = rows.sort(dim=1, stable=True).indices[:, :k]
        reach = torch.maximum(rows.gather(1, near), kth[near])
        return near, 1 / (reach.mean(1) + 1e-10)

    near, lrd = density(others)
    if not exclude_self:
        query, own = density(distance)
        return lrd[query].mean(1) / own
    return lrd[near].mean(1) / lrd


@pytest.mark.parametrize("exclude_self", [False, True])
def test_lof_is_the_papers(exclude_self: bool) -> None:
    data = cloud(40)
    found = scores("lof", data, n_neighbors=5, exclude_self=exclude_self)
    assert torch.allclose(found.double(), brute_lof(data.x, 5, exclude_self), rtol=1e-4)
    assert int(found.argmax()) == 39


def test_lof_takes_fewer_neighbours_on_small_graphs() -> None:
    assert scores("lof", Data(x=torch.tensor([[0.0], [1.0], [9.0]]))).shape == (3,)
    with pytest.raises(ValueError, match="at least 2 nodes"):
        scores("lof", Data(x=torch.ones(1, 2)))


def test_isolation_forest_has_the_papers_sign() -> None:
    data = cloud(200)
    found = scores("if", data, seed=0)
    assert int(found.argmax()) == 199
    assert 0 < float(found.min()) and float(found.max()) <= 1
    assert float(found[-1]) > 0.7 > float(found[:-1].median()) + 0.2


def test_isolation_forest_depends_on_the_seed_alone() -> None:
    data = cloud()
    assert torch.equal(scores("if", data, seed=2**40), scores("if", data, seed=2**40))
    assert not torch.equal(scores("if", data, seed=1), scores("if", data, seed=2))


@pytest.mark.parametrize("name", ["lof", "if", "degree", "norm"])
def test_inductive_methods_score_other_graphs(name: str) -> None:
    data, other = cloud(), cloud(50, seed=4)
    detector = make_method(name, seed=0).fit(data)
    before = detector.decision_score_.clone()
    assert torch.equal(detector.decision_function(data), before)
    assert detector.decision_function(other).shape == (50,)
    assert torch.equal(detector.decision_score_, before)


@pytest.mark.parametrize("name", ["lof", "if"])
def test_another_number_of_features_is_refused(name: str) -> None:
    detector = make_method(name, seed=0).fit(cloud())
    with pytest.raises(ValueError, match="3 features a node, this graph has 2"):
        detector.decision_function(Data(x=torch.ones(4, 2)))


@pytest.mark.parametrize("name", ["lof", "if", "norm", "maxrank"])
def test_nan_features_are_refused(name: str) -> None:
    data = cloud()
    data.x[7, 1] = float("nan")
    with pytest.raises(ValueError, match="1 of 60 nodes, the first is node 7"):
        make_method(name).fit(data)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lof", {"n_neighbors": 0}, "n_neighbors must be at least 1, got 0"),
        ("lof", {"exclude_self": 1}, "exclude_self must be True or False, got 1"),
        ("if", {"n_estimators": 0}, "n_estimators must be at least 1"),
        ("if", {"max_samples": 1.5}, "max_samples must be a whole number, got 1.5"),
    ],
)
def test_wrong_options(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_method(name, **options)


@pytest.mark.parametrize("name", ["lof", "if", "scan"])
def test_a_missing_library_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sklearn.neighbors", "sklearn.ensemble", "scipy.sparse"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=r"pip install graphlossy\[outliers\]"):
        METHODS[name]().fit(cloud())
