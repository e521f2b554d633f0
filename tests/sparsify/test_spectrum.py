"""Degrees against exact resistances, and the spectral bound that follows."""

from __future__ import annotations

import math

import pytest
import torch

from graphlossy.sparsify import degree_sparsify, report, resistance_sparsify
from graphlossy.sparsify._edges import read_edges
from graphlossy.sparsify.degree import _scores, draws_for_epsilon
from graphlossy.sparsify.resistance import as_undirected, effective_resistance, laplacian


def test_resistances_are_those_of_the_pseudo_inverse(make_graph) -> None:
    edges = read_edges(make_graph(40, 80), 41, None)
    size, u, v, weight = as_undirected(edges)
    weight = torch.rand(weight.shape, dtype=torch.float64) + 0.1
    weight[::9] = 0
    inverse = torch.linalg.pinv(laplacian(size, u, v, weight), hermitian=True)
    expected = inverse[u, u] + inverse[v, v] - 2 * inverse[u, v]
    found = effective_resistance(size, u, v, weight)
    torch.testing.assert_close(found[weight > 0], expected[weight > 0])
    assert float((found * weight).sum()) == pytest.approx(size - _parts(size, u[weight > 0], v[weight > 0]))


def _parts(size: int, u: torch.Tensor, v: torch.Tensor) -> int:
    values = torch.linalg.eigvalsh(laplacian(size, u, v, torch.ones(u.numel(), dtype=torch.float64)))
    return int((values < 1e-9).sum())


def test_degrees_bound_resistances(make_graph) -> None:
    """1/2 (1/d_u + 1/d_v) <= R <= (1/alpha) (1/d_u + 1/d_v), alpha the gap of the normalised Laplacian (Lovasz)."""
    edges = read_edges(make_graph(60, 500), 60)
    size, u, v, weight = as_undirected(edges)
    resistance = effective_resistance(size, u, v, weight)
    bound = _scores(edges).double()
    degree = edges.degrees(False)[0].clamp(min=1).rsqrt()
    normalised = degree.unsqueeze(1) * laplacian(size, u, v, weight) * degree
    gap = torch.linalg.eigvalsh(normalised)
    gap = float(gap[gap > 1e-9][0])
    assert bool((resistance >= bound / 2 - 1e-6).all()) and bool((resistance <= bound / gap + 1e-6).all())


def test_more_draws_come_closer_and_the_bound_holds(make_graph) -> None:
    edges = make_graph(60, 800)
    found = {}
    for name, method in (("degree", degree_sparsify), ("resistance", resistance_sparsify)):
        for draws in (1_000, 16_000):
            epsilons = [
                report(edges, method(edges, 60, num_samples=draws, seed=seed), 60).spectral_epsilon for seed in range(5)
            ]
            found[name, draws] = sum(epsilons) / 5
    # the error falls with the square root of the draws: 4 times for 16
    for name in ("degree", "resistance"):
        assert 2.5 < found[name, 1_000] / found[name, 16_000] < 6
    # 9 N ln N / epsilon^2 draws by resistance keep x'Lx within 1 +- epsilon (Spielman and Srivastava, theorem 1)
    assert found["resistance", 16_000] < math.sqrt(9 * 60 * math.log(60) / 16_000)
    # biased weights do not converge at all
    kept, weight = degree_sparsify(edges, 60, num_samples=16_000, seed=0)
    assert report(edges, (kept, 2 * weight), 60).spectral_epsilon > 0.9


def test_epsilon_is_the_papers_number_of_draws(make_graph) -> None:
    assert draws_for_epsilon(0.4, 1000) == math.ceil(0.16 * 1000 * math.log(1000) / 0.4**2)
    assert draws_for_epsilon(1e9, 10) == 1 and draws_for_epsilon(1, 0) == 1
    edges = make_graph(200, 3000)
    shares = [degree_sparsify(edges, 200, epsilon=epsilon, seed=0)[0].shape[1] for epsilon in (0.2, 0.4, 0.8)]
    assert shares == sorted(shares, reverse=True) and shares[0] > 2 * shares[2]


def test_a_large_graph_is_refused() -> None:
    ring = torch.arange(6000)
    with pytest.raises(ValueError, match="at most 5000; this graph has 12000 .* use degree_sparsify"):
        resistance_sparsify(torch.stack([ring, ring.roll(1)]), ratio=0.5)
