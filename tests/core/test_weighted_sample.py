"""Draws with replacement from many weights, and the counter-based numbers behind them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from graphlossy.core import _cpu, _random, _weighted_sample, weighted_sample


@pytest.fixture
def small_chunks(monkeypatch):
    """Many chunks and buckets from few weights and draws."""
    monkeypatch.setattr(_weighted_sample, "_CHUNK", 64)
    monkeypatch.setattr(_weighted_sample, "_PER_BUCKET", 8)


def frequencies(weights, draws, seed):
    index, counts = weighted_sample(weights, draws, seed=seed)
    assert int(counts.sum()) == draws and bool((counts > 0).all()) and bool((index.diff() > 0).all())
    return torch.zeros(weights.numel(), dtype=torch.int64).index_add_(0, index, counts)


def p_value(counts, probabilities):
    """Of a chi-square test over the weights with at least 10 expected draws, the others together."""
    expected = probabilities.double() / probabilities.double().sum() * int(counts.sum())
    large = expected >= 10
    observed = [*counts[large].tolist(), int(counts[~large].sum())]
    expected = [*expected[large].tolist(), float(expected[~large].sum())]
    if expected[-1] == 0:
        assert observed.pop() == 0
        expected.pop()
    return chisquare(observed, expected, sum_check=False).pvalue


@pytest.mark.parametrize("power", [0.0, 1.0, 5.0])
def test_frequencies_are_multinomial(power):
    weights = torch.rand(300) ** power
    weights[::7] = 0
    values = [p_value(frequencies(weights, 50_000, seed), weights) for seed in range(20)]
    assert min(values) > 1e-5
    assert kstest(values, "uniform").pvalue > 1e-4  # neither too far from the expected counts nor too close to them
    multinomial = torch.bincount(torch.multinomial(weights, 50_000, replacement=True), minlength=300)
    assert p_value(multinomial, weights) > 1e-5


def test_frequencies_over_chunks_and_buckets(small_chunks):
    weights = torch.rand(500) ** 2
    weights[64:256] = 0  # whole chunks of zeros
    values = [p_value(frequencies(weights, 4_000, seed), weights) for seed in range(20)]
    assert min(values) > 1e-5 and kstest(values, "uniform").pvalue > 1e-4


def test_a_planted_bias_is_found():
    weights = torch.rand(300) + 0.1
    wrong = weights.clone()
    wrong[:150] *= 1.1
    assert p_value(frequencies(wrong, 200_000, 0), weights) < 1e-6


@given(
    n=st.integers(1, 400),
    draws=st.integers(0, 2000),
    zeros=st.floats(0, 1),
    scale=st.sampled_from([1e-300, 1e-5, 1.0, 1e300]),
    power=st.sampled_from([0.0, 1.0, 40.0]),
    seed=st.integers(-(2**63), 2**64),
)
def test_every_draw_has_weight(small_chunks, n, draws, zeros, scale, power, seed):
    generator = torch.Generator().manual_seed(n)
    weights = torch.rand(n, generator=generator, dtype=torch.float64) ** power * scale
    weights[torch.rand(n, generator=generator) < zeros] = 0
    if draws and not bool(weights.any()):
        with pytest.raises(ValueError, match="all zero"):
            weighted_sample(weights, draws, seed)
        return
    index, counts = weighted_sample(weights, draws, seed)
    assert int(counts.sum()) == draws and bool((weights[index] > 0).all())
    assert bool((index.diff() > 0).all()) and bool((counts > 0).all())


def test_the_result_does_not_depend_on_chunks_or_threads(monkeypatch):
    weights = torch.rand(2000)
    threads = torch.get_num_threads()
    expected = weighted_sample(weights, 10_000, seed=9)
    try:
        for chunk, count in ((1 << 20, 1), (100, 1), (999, 2), (31, 2)):
            monkeypatch.setattr(_weighted_sample, "_CHUNK", chunk)
            torch.set_num_threads(count)
            found = weighted_sample(weights, 10_000, seed=9)
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    finally:
        torch.set_num_threads(threads)


def test_equal_on_every_device(device):
    weights = torch.rand(50_000) ** 3
    index, counts = weighted_sample(weights.to(device), 100_000, seed=4)
    expected = weighted_sample(weights, 100_000, seed=4)
    assert torch.equal(index.cpu(), expected[0]) and torch.equal(counts.cpu(), expected[1])


def test_a_single_weight_and_extreme_ranges():
    for value in (5e-324, 1.0, 1.7e308):
        index, counts = weighted_sample(torch.tensor([0.0, value, 0.0], dtype=torch.float64), 1000)
        assert index.tolist() == [1] and counts.tolist() == [1000]
    weights = torch.tensor([1e-40, 1.0, 1e-40], dtype=torch.float64)
    assert weighted_sample(weights, 1000)[0].tolist() == [1]
    assert weighted_sample(torch.tensor([0, 3, 0]), 5)[0].tolist() == [1]  # integers
    counts = weighted_sample(torch.tensor([1.0, 1.0, 1.0], dtype=torch.float16), 30_000, seed=0)[1]
    assert int((counts - 10_000).abs().max()) < 500


def test_the_last_weight_is_reached_and_never_passed(small_chunks):
    weights = torch.full((100,), 0.1)  # whose running sum in floats does not end at the sum
    index, _ = weighted_sample(weights, 5_000, seed=0)
    assert index.tolist() == list(range(100))


def test_ten_million_weights():
    weights = torch.zeros(10_000_000)
    weights[5::10] = torch.rand(1_000_000) + 0.5
    index, counts = weighted_sample(weights, 200_000, seed=0)
    assert int(counts.sum()) == 200_000 and bool((index % 10 == 5).all())
    # means of rising blocks: every tenth of the range gets its share
    share = torch.zeros(10, dtype=torch.int64).index_add_(0, index // 1_000_000, counts)
    assert p_value(share, weights.double().view(10, -1).sum(1)) > 1e-5


def test_errors():
    with pytest.raises(ValueError, match="num_samples must be at least 0, got -1"):
        weighted_sample(torch.ones(3), -1)
    for many in (2**40 + 1, 2**64):  # the last is no int64 either
        with pytest.raises(ValueError, match="num_samples must be at most 2"):
            weighted_sample(torch.ones(3), many)
    with pytest.raises(TypeError, match="num_samples must be an int, got float"):
        weighted_sample(torch.ones(3), 2.0)
    with pytest.raises(TypeError, match="seed must be an int or None, got float"):
        weighted_sample(torch.ones(3), 1, 0.5)
    with pytest.raises(ValueError, match="got 4 weights, all zero"):
        weighted_sample(torch.zeros(4), 1)
    with pytest.raises(ValueError, match="got 0 weights"):
        weighted_sample(torch.ones(0), 1)
    assert weighted_sample(torch.ones(0), 0)[0].numel() == 0
    late = torch.ones(3000)
    late[2500] = -1
    for value in (-1.0, torch.nan, torch.inf):
        late[2500] = value
        with pytest.raises(ValueError, match=r"weights\[2500\] is"):
            weighted_sample(late, 1)
    with pytest.raises(TypeError, match="got torch.sparse_coo"):
        weighted_sample(torch.ones(3).to_sparse(), 1)


def test_splitmix64_is_the_published_generator(device):
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    words = _random._splitmix64(1234567, 0, 4, device)
    assert [w % 2**64 for w in words.tolist()] == expected
    assert [w % 2**64 for w in _random._splitmix64(1234567, 2, 2, device).tolist()] == expected[2:]


def test_streams_and_seeds_differ_and_chunks_agree(device):
    u = _random.uniform(3, 1000, device=device)
    assert float(u.min()) >= 0 and float(u.max()) < 1 and u.dtype == torch.float64
    assert torch.equal(_random.uniform(3, 400, start=600, device=device), u[600:])
    assert kstest(u.cpu().numpy(), "uniform").pvalue > 1e-3
    for other in (_random.uniform(4, 1000), _random.uniform(3, 1000, stream=1), _random.uniform(2**40 + 3, 1000)):
        assert abs(float(torch.corrcoef(torch.stack([u.cpu(), other]))[0, 1])) < 0.15
    signs = _random.random_signs(3, 100, device=device)
    assert signs.shape == (6400,) and abs(float(signs.mean())) < 0.06 and set(signs.tolist()) == {-1.0, 1.0}
    assert _random.permutation(3, 50, device=device).sort().values.tolist() == list(range(50))


needs_kernels = pytest.mark.skipif(_cpu.kernels is None, reason=f"no CPU kernels: {_cpu.load_error}")


def kernels_of_every_kind():
    """Kernels of every instruction set this processor has, with one thread and with two."""
    before = torch.get_num_threads()
    try:
        for level in range(_cpu.kernels.highest + 1):
            for threads in (1, 2):
                torch.set_num_threads(threads)
                yield _cpu.Kernels(_cpu.LIBRARY_FILE, level)
    finally:
        torch.set_num_threads(before)


def assert_kernels_agree(weights, draws, seed):
    index, counts = _weighted_sample.draw(weights, draws, seed)
    for kernels in kernels_of_every_kind():
        found = kernels.weighted_sample(weights, draws, seed)
        assert torch.equal(found[0], index) and torch.equal(found[1], counts), (kernels.level, weights.shape, draws)


def _spike(n):
    weights = torch.zeros(n)
    weights[n // 3], weights[-1] = 1.0, 1e-4
    return weights


WEIGHTS = {
    "flat": torch.ones(5000),
    "float64": torch.rand(3000, dtype=torch.float64) ** 3,
    "half": torch.rand(700).to(torch.float16),
    "bfloat16": torch.rand(700).to(torch.bfloat16),
    "integers": torch.arange(900) % 7,
    "heavy tail": torch.rand(60_000) ** 40,
    "tiny": torch.rand(500, dtype=torch.float64) * 1e-300,
    "denormal": torch.tensor([1e-40, 3e-42, 0.0, 1e-45]),
    "huge": torch.rand(500, dtype=torch.float64) * 1e307,
    "spike": _spike(40_000),
    "one": torch.tensor([0.0, 3.0, 0.0]),
    "not contiguous": torch.rand(999, 3)[:, 1],
}


@needs_kernels
@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_kernel_is_the_definition(kind):
    for draws in (0, 1, 1000, 70_000):
        assert_kernels_agree(WEIGHTS[kind], draws, seed=draws + 7)


@needs_kernels
def test_the_kernel_over_blocks_and_buckets(monkeypatch):
    monkeypatch.setattr(_cpu, "_SAMPLE_BLOCK", 4)  # more than 64 blocks of 4 weights
    for per_bucket in (1 << 10, 8, 1):
        monkeypatch.setattr(_weighted_sample, "_PER_BUCKET", per_bucket)
        assert_kernels_agree(torch.rand(3001) ** 4, 20_000, seed=3)
        assert_kernels_agree(_spike(3001), 20_000, seed=4)


@needs_kernels
@given(
    weights=st.lists(st.sampled_from([0.0, 1e-9, 0.3, 1.0, 7.0, 1e9]), min_size=1, max_size=600),
    draws=st.integers(0, 5000),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_the_kernel_is_the_definition_of_anything(weights, draws, seed):
    weights = torch.tensor(weights)
    if bool(weights.any()):
        assert_kernels_agree(weights, draws, seed)


@needs_kernels
def test_more_than_a_byte_of_counts_and_several_blocks():
    weights = torch.zeros(70 * (1 << 14))  # more than 64 blocks of their usual size
    weights[::30_000] = torch.rand(39) + 0.1
    assert_kernels_agree(weights, 100_000, seed=5)


@needs_kernels
def test_the_comparison_finds_another_stream():
    weights = torch.rand(1000)
    one, other = (_weighted_sample.draw(weights, 1000, seed) for seed in (1, 2))
    assert not (torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]))


def test_the_operator():
    for arguments in [(torch.rand(50), 30, 1), (torch.rand(7, dtype=torch.float64), 0, 2), (torch.arange(9), 5, -3)]:
        torch.library.opcheck(torch.ops.graphlossy.weighted_sample.default, arguments)
    with pytest.raises(ValueError, match=r"weights\[1\] is nan"):  # the operator itself is safe, too
        torch.ops.graphlossy.weighted_sample(torch.tensor([1.0, torch.nan]), 5, 0)
    with pytest.raises(ValueError, match="num_samples must be at least 0, got -1"):
        torch.ops.graphlossy.weighted_sample(torch.ones(2), -1, 0)


def test_the_operator_compiles_without_a_graph_break():
    def total(weights):
        index, counts = weighted_sample(weights, 100, 5)
        return weights[index].sum(), counts.sum()

    weights = torch.rand(40)
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")(weights)
    assert [float(a) for a in compiled] == [float(a) for a in total(weights)]
