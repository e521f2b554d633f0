"""Column-row sampling: unbiasedness and variance of each estimator, its corner cases, and errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.core import RowSample, sample_rows, sampled_matmul

UNBIASED = ["crs", "wta", "pps", "uniform"]


def factors(rows=24, d=3, k=4):
    """Rows of very different norms, a few of them zero."""
    generator = torch.Generator().manual_seed(5)
    size = torch.logspace(1, -1, rows, dtype=torch.float64).unsqueeze(1)
    x = torch.randn(rows, d, generator=generator, dtype=torch.float64) * size
    g = torch.randn(rows, k, generator=generator, dtype=torch.float64)
    x[7] = 0
    g[11] = 0
    return x, g


def largest_z(estimates, truth):
    """Largest |z| of the mean over seeds against the truth; about N(0, 1) for each entry of an unbiased estimate."""
    error = (estimates.mean(0) - truth).abs()
    spread = estimates.std(0) / len(estimates) ** 0.5
    exact = spread <= 1e-12
    assert bool((error[exact] <= 1e-6 * truth.abs().max()).all())
    return float((error[~exact] / spread[~exact]).max()) if bool((~exact).any()) else 0.0


def estimates(x, g, k, method, seeds=800, change=None):
    weights = x.norm(dim=1) * g.norm(dim=1)
    samples = [sample_rows(weights, k, method, seed=s) for s in range(seeds)]
    samples = samples if change is None else [change(s) for s in samples]
    return torch.stack([s.matmul(x[s.index], g) for s in samples])


@pytest.mark.parametrize("k", [1, 5, 15])
@pytest.mark.parametrize("method", UNBIASED)
def test_unbiased(method, k):
    x, g = factors()
    assert sample_rows(x.norm(dim=1), k, method, seed=0).unbiased
    assert largest_z(estimates(x, g, k, method), x.T @ g) < 4.5


def _changed(sample, **fields):
    return RowSample(**{**sample.__dict__, **fields})


PLANTED = {
    "drawn rows not rescaled": lambda s: _changed(s, scale=torch.ones_like(s.scale)),
    "rescaled a quarter too much": lambda s: _changed(
        s, scale=torch.cat([s.scale[: s.deterministic_count], 1.25 * s.scale[s.deterministic_count :]])
    ),
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("method", UNBIASED)
def test_a_planted_bias_is_found(method, name):
    x, g = factors()
    g = g.abs()  # rows that add up, so that a factor shows
    x = x.abs()
    assert largest_z(estimates(x, g, 6, method), x.T @ g) < 4.5
    assert largest_z(estimates(x, g, 6, method, change=PLANTED[name]), x.T @ g) > 6


def test_topk_is_biased_and_says_so():
    x, g = factors()
    sample = sample_rows(x.norm(dim=1) * g.norm(dim=1), 6, "topk")
    assert not sample.unbiased and sample.deterministic_count == 6
    assert sample.scale.tolist() == [1] * 6
    assert float((sample.matmul(x[sample.index], g) - x.T @ g).norm()) > 1e-3


def test_variance_of_crs_is_the_closed_form():
    x, g = factors()
    weights = x.norm(dim=1) * g.norm(dim=1)
    for k in (2, 8):
        squares = (estimates(x, g, k, "crs", seeds=2000) - x.T @ g).square().sum((1, 2))
        expected = float((weights.sum() ** 2 - (x.T @ g).square().sum()) / k)
        assert abs(float(squares.mean()) - expected) < 4.5 * float(squares.std()) / len(squares) ** 0.5


def test_variance_of_pps_is_the_closed_form_for_single_draws():
    """At one draw pps is crs: the same variance."""
    x, g = factors()
    expected = float((x.norm(dim=1) * g.norm(dim=1)).sum() ** 2 - (x.T @ g).square().sum())
    squares = (estimates(x, g, 1, "pps", seeds=2000) - x.T @ g).square().sum((1, 2))
    assert abs(float(squares.mean()) - expected) < 4.5 * float(squares.std()) / len(squares) ** 0.5


def test_variance_falls_from_uniform_to_crs_to_wta_to_pps():
    x, g = factors(rows=40)
    error = {m: float((estimates(x, g, 14, m, seeds=300) - x.T @ g).square().sum((1, 2)).mean()) for m in UNBIASED}
    assert error["pps"] < 0.8 * error["wta"] < 0.8 * error["crs"] < error["uniform"]


def test_wta_keeps_the_number_of_winners_that_minimises_its_criterion():
    for seed in range(50):
        w = torch.rand(30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** (1 + seed % 7)
        k = 1 + seed % 20
        sample = sample_rows(w, k, "wta", seed=seed)
        p = (w / w.sum()).sort(descending=True).values
        criterion = [(1 - float(p[:c].sum())) / (k - c) for c in range(k)]
        assert sample.deterministic_count == min(range(k), key=lambda c: criterion[c])
        kept = sample.index[: sample.deterministic_count]
        assert kept.tolist() == w.argsort(descending=True)[: len(kept)].tolist()
        assert sample.scale[: len(kept)].eq(1).all()
        # the drawn factors times their weights: (1 - P_C) sum w in all, however many were drawn twice
        tail = float(w.sum() - w[kept].sum())
        drawn = sample.index[len(kept) :]
        assert float((sample.scale[len(kept) :] * w[drawn]).sum()) == pytest.approx(tail, rel=1e-5)


def test_wta_without_winners_is_crs():
    """The reference implementation drops the factor here."""
    w = torch.ones(40)
    sample = sample_rows(w, 10, "wta", seed=3)
    assert sample.deterministic_count == 0
    assert float(sample.scale.sum()) == pytest.approx(40)
    crs = sample_rows(w, 10, "crs", seed=3)
    assert torch.equal(sample.index, crs.index) and torch.equal(sample.scale, crs.scale)


def test_winners_with_all_the_mass():
    w = torch.full((1000,), 1e-30, dtype=torch.float64)
    w[17] = 1.0
    sample = sample_rows(w, 4, "wta", seed=0)
    assert sample.index[0] == 17 and sample.deterministic_count == 1
    assert float(sample.scale[1:].sum()) == pytest.approx(999)  # 1 - P_C is 0 in floats, and yet the tail is rescaled
    sample = sample_rows(w, 4, "pps", seed=0)
    assert sample.index[0] == 17 and len(sample) == 1 or float(sample.scale[1:].sum()) == pytest.approx(999)


@pytest.mark.parametrize("method", ["wta", "pps", "topk"])
def test_exact_when_k_reaches_the_rows_that_count(method):
    x, g = factors()  # 22 of 24 rows count
    for k in (22, 24, 1000):
        sample = sample_rows(x.norm(dim=1) * g.norm(dim=1), k, method, seed=0)
        assert len(sample) == 22 and sample.unbiased and sample.deterministic_count == 22
        torch.testing.assert_close(sample.matmul(x[sample.index], g), x.T @ g)


def test_uniform_is_exact_with_all_rows():
    x, g = factors()
    torch.testing.assert_close(sampled_matmul(x, g, 24, "uniform"), x.T @ g)
    assert len(sample_rows(torch.zeros(24), 5, "uniform")) == 5  # it does not look at the weights


@pytest.mark.parametrize("method", ["crs", "wta", "pps", "topk"])
def test_nothing_counts(method):
    sample = sample_rows(torch.zeros(5), 3, method)
    assert len(sample) == 0 and sample.nbytes == 0
    x, g = torch.zeros(5, 2), torch.ones(5, 3)
    assert torch.equal(sampled_matmul(x, g, 3, method), torch.zeros(2, 3))
    assert sampled_matmul(x[:0], g[:0], 3, method).shape == (2, 3)


def test_pps_inclusion_probabilities():
    w = torch.tensor([10.0, 5.0, 1.0, 1.0, 1.0, 0.0, 2.0, 1.0])
    k = 4
    seen = torch.zeros(8, dtype=torch.float64)
    for seed in range(2000):
        sample = sample_rows(w, k, "pps", seed=seed)
        assert len(sample) == k == sample.index.unique().numel()
        seen[sample.index] += 1
    # 10 and 5 are certain (4 * 10 >= 21, 3 * 5 >= 11), then 2 draws from weights that add up to 6
    expected = torch.tensor([1, 1, 1 / 3, 1 / 3, 1 / 3, 0, 2 / 3, 1 / 3], dtype=torch.float64)
    z = (seen / 2000 - expected) / (expected * (1 - expected) / 2000).sqrt().clamp_min(1e-9)
    assert float(z.abs().max()) < 4.5


@given(
    n=st.integers(1, 80),
    k=st.integers(1, 100),
    method=st.sampled_from([*UNBIASED, "topk"]),
    power=st.floats(0, 30),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 2**62),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64, torch.bfloat16]),
)
def test_every_sample_is_sound(n, k, method, power, zeros, seed, dtype):
    generator = torch.Generator().manual_seed(seed % 1000)
    w = (torch.rand(n, generator=generator) ** power).to(dtype)
    w[torch.rand(n, generator=generator) < zeros] = 0
    sample = sample_rows(w, k, method, seed=seed)
    again = sample_rows(w, k, method, seed=seed)
    assert torch.equal(sample.index, again.index) and torch.equal(sample.scale, again.scale)
    assert len(sample) <= k and sample.index.unique().numel() == len(sample)
    assert len(sample) == 0 or (int(sample.index.min()) >= 0 and int(sample.index.max()) < n)
    assert method == "uniform" or bool((w[sample.index] > 0).all())
    assert bool(sample.scale.isfinite().all()) and bool((sample.scale > 0).all())
    assert bool((sample.probabilities > 0).all()) and bool((sample.probabilities <= 1 + 1e-6).all())
    assert sample.nbytes == 16 * len(sample) and sample.rows == n
    assert 0 <= sample.deterministic_count <= len(sample)


@given(shape=st.lists(st.integers(1, 4), min_size=0, max_size=3), d=st.integers(0, 4), k=st.integers(0, 4))
def test_leading_dimensions_are_rows(shape, d, k):
    x, g = torch.randn(*shape, 2, d), torch.randn(*shape, 2, k)
    out = sampled_matmul(x, g, 1000)
    torch.testing.assert_close(out, torch.einsum("...d,...k->dk", x, g))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_large_rows_do_not_overflow(dtype, device):
    x, g = torch.ones(64, 8, dtype=dtype, device=device), torch.ones(64, 4, dtype=dtype, device=device)
    out = sampled_matmul(x, g, 16, "wta", seed=0)
    assert out.dtype == dtype and out.device.type == device.type
    torch.testing.assert_close(out, torch.full_like(out, 64))
    if dtype == torch.float32:
        huge = sampled_matmul(x * 1e30, g * 1e30, 16, "topk")  # the product of norms leaves float32
        assert bool(huge.isinf().all())
        tiny = sample_rows((x * 1e-30).double().norm(dim=1) * (g * 1e-30).double().norm(dim=1), 64)
        assert len(tiny) == 64


def test_the_global_generator_governs_the_seed():
    w = torch.rand(100)
    torch.manual_seed(1)
    first = sample_rows(w, 10).index
    second = sample_rows(w, 10).index
    torch.manual_seed(1)
    assert torch.equal(sample_rows(w, 10).index, first) and not torch.equal(first, second)


def test_gradients_do_not_flow_through_the_choice():
    x, g = torch.randn(8, 2, requires_grad=True), torch.randn(8, 3)
    sampled_matmul(x, g, 4, seed=0).sum().backward()
    used = sample_rows(x.detach().norm(dim=1).double() * g.norm(dim=1).double(), 4, seed=0).index
    assert set(x.grad.abs().sum(1).nonzero().flatten().tolist()) == set(used.tolist())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((torch.ones(3), 0), ValueError, "k must be at least 1, got 0"),
        ((torch.ones(3), 1.5), TypeError, "k must be an int, got float"),
        ((torch.ones(3), True), TypeError, "k must be an int, got bool"),
        ((torch.ones(3), 1, "crs", 1.5), TypeError, "seed must be an int or None, got float"),
        ((torch.ones(3), 1, "best"), ValueError, "method must be one of .*'wta'.*got 'best'"),
        ((torch.tensor([1.0, -2.0]), 1), ValueError, r"weights\[1\] is -2.0"),
        ((torch.tensor([1.0, torch.nan]), 1), ValueError, r"weights\[1\] is nan"),
        ((torch.tensor([torch.inf]), 1), ValueError, r"weights\[0\] is inf"),
        ((torch.ones(2, 2), 1), ValueError, r"one dimension, got shape \(2, 2\)"),
        (([1.0, 2.0], 1), TypeError, "must be a dense torch.Tensor, got list"),
        ((torch.ones(3, dtype=torch.uint32), 1), TypeError, "real numbers, got dtype torch.uint32"),
        ((torch.ones(3, dtype=torch.bool), 1), TypeError, "real numbers, got dtype torch.bool"),
    ],
)
def test_errors(arguments, error, text):
    with pytest.raises(error, match=text):
        sample_rows(*arguments)


def test_shape_errors():
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(4, 2\)"):
        sampled_matmul(torch.ones(3, 2), torch.ones(4, 2), 1)
    with pytest.raises(ValueError, match="one entry for each of the 3 rows"):
        sampled_matmul(torch.ones(3, 2), torch.ones(3, 2), 1, weights=torch.ones(2))
    for name in "xg":
        finite = {"x": torch.ones(3, 2), "g": torch.ones(3, 2)}
        finite[name][1, 0] = torch.nan
        with pytest.raises(ValueError, match=f"{name} must be finite, but row 1 holds"):
            sampled_matmul(**finite, k=1)
    sample = sample_rows(torch.ones(4), 2, "uniform")
    with pytest.raises(ValueError, match="the 2 sampled rows"):
        sample.matmul(torch.ones(4, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="all 4 rows"):
        sample.matmul(torch.ones(2, 2), torch.ones(2, 2))
