"""Widths under a byte budget, against the exact optimum; sizes as text."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.core.budget import allocate_bits, allocate_bits_exact, format_bytes, parse_bytes


def variance(bits, sensitivities):
    return sum(s / (2**b - 1) ** 2 for b, s in zip(bits, sensitivities, strict=True))


def spent(bits, sizes):
    return sum(math.ceil(n * (b + 0.125) / 8) for b, n in zip(bits, sizes, strict=True))


def instances(count, seed=0):
    draw = random.Random(seed)
    for _ in range(count):
        n = draw.randint(1, 7)
        sensitivities = [10 ** draw.uniform(-3, 3) for _ in range(n)]
        sizes = [draw.randint(100, 5000) for _ in range(n)]
        low, high = spent([1] * n, sizes), spent([8] * n, sizes)
        yield sensitivities, sizes, int(low + draw.random() * (high - low))


def test_exact_program_is_the_optimum_by_brute_force():
    from itertools import product

    for sensitivities, sizes, budget in instances(60, seed=1):
        if len(sizes) > 5:
            continue
        fitting = (b for b in product((1, 2, 4, 8), repeat=len(sizes)) if spent(b, sizes) <= budget)
        best = min(variance(b, sensitivities) for b in fitting)
        assert variance(allocate_bits_exact(sensitivities, sizes, budget), sensitivities) == pytest.approx(best)


def test_within_one_percent_of_the_optimum_and_never_over_budget():
    gaps = []
    for sensitivities, sizes, budget in instances(400):
        bits = allocate_bits(sensitivities, sizes, budget)
        assert spent(bits, sizes) <= budget
        best = variance(allocate_bits_exact(sensitivities, sizes, budget), sensitivities)
        gaps.append(variance(bits, sensitivities) / best - 1)
    assert max(gaps) < 0.01
    assert sum(g > 1e-9 for g in gaps) < 8


def test_the_gap_test_has_teeth():
    """Uniform widths at the same budget are far from the optimum on the same instances."""
    gaps = []
    for sensitivities, sizes, budget in instances(100):
        uniform = max(b for b in (1, 2, 4, 8) if spent([b] * len(sizes), sizes) <= budget)
        best = variance(allocate_bits_exact(sensitivities, sizes, budget), sensitivities)
        gaps.append(variance([uniform] * len(sizes), sensitivities) / best - 1)
    assert max(gaps) > 1


def test_more_budget_never_hurts():
    for sensitivities, sizes, budget in instances(50, seed=2):
        values = [
            variance(allocate_bits(sensitivities, sizes, budget + extra), sensitivities) for extra in (0, 500, 5000)
        ]
        assert values[0] * 1.01 >= values[1] and values[1] * 1.01 >= values[2]


def test_choices_may_be_an_array():
    assert allocate_bits([1.0, 4.0], [800, 800], 600, choices=np.array([1, 2, 4])) == allocate_bits(
        [1.0, 4.0], [800, 800], 600, choices=(1, 2, 4)
    )


def test_many_tensors():
    draw = random.Random(3)
    sensitivities = [10 ** draw.uniform(-3, 3) for _ in range(600)]
    sizes = [draw.randint(10**4, 10**7) for _ in range(600)]
    budget = spent([3] * 600, sizes)
    bits = allocate_bits(sensitivities, sizes, budget)
    assert 0.999 * budget < spent(bits, sizes) <= budget


def test_edges():
    assert allocate_bits([], [], 0) == []
    assert allocate_bits([0.0, 0.0], [1000, 1000], 10**6) in ([1, 1], [8, 8])
    assert allocate_bits([1.0], [1000], 10**9) == [8]
    with pytest.raises(ValueError, match="needs 282 bytes"):
        allocate_bits([1.0, 2.0], [1000, 1000], 281)
    with pytest.raises(ValueError, match="one sensitivity for each size"):
        allocate_bits([1.0], [1, 2], 100)
    with pytest.raises(ValueError, match=r"sensitivities\[1\] is nan"):
        allocate_bits([1.0, math.nan], [1, 2], 100)
    with pytest.raises(ValueError, match=r"sizes\[0\] is -1"):
        allocate_bits([1.0], [-1], 100)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("12", 12), ("12 B", 12), ("800k", 800_000), ("1.5GiB", 3 * 2**29), ("512mb", 512 * 10**6), (7.9, 7)],
)
def test_sizes_as_text(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-1", "1.2.3MB", "5 parsecs", "1e3", float("nan"), -5])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)


def test_no_numbers():
    for value in (None, True, [1]):
        with pytest.raises(TypeError, match="size"):
            parse_bytes(value)


@given(st.integers(0, 2**50))
def test_text_of_a_size_reads_back_to_within_a_twentieth(size):
    assert abs(parse_bytes(format_bytes(size)) - size) <= 0.05 * size + 1
