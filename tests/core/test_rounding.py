"""Stochastic rounding is unbiased, its noise independent, its seeds as promised; a biased variant is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from graphlossy.core import _reference, quantize

BITS = (1, 2, 3, 4, 8)
SEEDS, ROWS, WIDTH = 20, 150, 48  # one seed gives every row noise of its own
# The largest of WIDTH values |z| of an unbiased rounding passes this once in 10,000 times.
LARGEST_Z = 5.0

Quantize = Callable[[torch.Tensor, int, int, bool, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def values() -> torch.Tensor:
    x = torch.randn(WIDTH, generator=torch.Generator().manual_seed(8))
    x[:8] = torch.tensor([-2.5, 3.1, 0.0, 1e-3, -1e-3, 0.7, 0.7, 3.0])
    return x


def estimates(op: Quantize, bits: int, group: int) -> torch.Tensor:
    """[SEEDS * ROWS, WIDTH] rounded copies of the same values."""
    x = values().expand(ROWS, WIDTH).contiguous()
    back = torch.ops.graphlossy.dequantize
    rounded = [back(*op(x, bits, group, True, seed), bits, group, WIDTH, torch.float32) for seed in range(SEEDS)]
    return torch.cat(rounded).double()


def largest_z(found: torch.Tensor, bits: int) -> float:
    error = (found.mean(0) - values().double()).abs()
    step = float((values().max() - values().min()) / (2**bits - 1))  # of any group, at most
    spread = (found.std(0) + 1e-3 * step) / len(found) ** 0.5
    # Allowed beside chance: 16 bits of noise (2**-17 of a step), rounding to float32, and the up to ten rare events
    # that are no normal distribution where a value lies close to a code.
    return float(((error - 1e-4 - 10 * step / len(found)) / (spread + 1e-6)).max())


@pytest.mark.parametrize("group", [8, 24, 48])
@pytest.mark.parametrize("bits", BITS)
def test_stochastic_rounding_is_unbiased(bits: int, group: int) -> None:
    assert largest_z(estimates(torch.ops.graphlossy.quantize, bits, group), bits) < LARGEST_Z


PLANTED = {
    "noise squared": lambda u: u * u,
    "always floor(x + 0.4)": lambda u: torch.full_like(u, 0.4),
    "nearest": lambda u: torch.full_like(u, 0.5),
    "noise up to 0.95": lambda u: u * 0.95,
    "noise of 4 bits": lambda u: (u * 16).floor() / 16,
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bias_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert largest_z(estimates(_reference.quantize, 2, 24), 2) < LARGEST_Z
    right = _reference.uniform
    monkeypatch.setattr(_reference, "uniform", lambda *arguments: PLANTED[name](right(*arguments)))
    assert largest_z(estimates(_reference.quantize, 2, 24), 2) > LARGEST_Z + 1


def test_unrounded_metadata_would_be_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding with the exact least value and step, then decoding with the stored ones, is found as well."""
    right = _reference.affine

    def exact(lo: torch.Tensor, hi: torch.Tensor, poisoned: torch.Tensor, levels: int) -> tuple[torch.Tensor, ...]:
        _, _, poisoned = right(lo, hi, poisoned, levels)
        return (hi - lo) / levels, lo, poisoned

    monkeypatch.setattr(_reference, "affine", exact)
    assert largest_z(estimates(_reference.quantize, 4, 24), 4) > LARGEST_Z + 1


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_variance_is_that_of_two_neighbouring_codes(bits: int) -> None:
    x, group = values(), 48
    found = estimates(torch.ops.graphlossy.quantize, bits, group)
    q = quantize(x, bits, group, seed=0)
    step, offset = float(q.scale), float(q.offset)
    share = ((x.double() - offset) / step).frac()
    expected = share * (1 - share) * step**2
    assert float((found.var(0) - expected).abs().max()) < 0.1 * step**2 / 4
    assert bool((found.unique(dim=1).diff(dim=0).abs() <= step * (2**bits - 1) + 1e-5).all())


def test_elements_are_rounded_independently() -> None:
    found = estimates(torch.ops.graphlossy.quantize, 1, 48)
    moving = found[:, found.std(0) > 1e-6]
    correlation = torch.corrcoef(moving.T) - torch.eye(moving.shape[1])
    # pairs i and i + 24 share a 32-bit hash, neighbours a counter: neither may show
    assert float(correlation.abs().max()) < 5 / len(found) ** 0.5
    rows = found.view(SEEDS, ROWS, WIDTH)[:, :, 30]
    between = torch.corrcoef(rows) - torch.eye(SEEDS)
    assert float(between.abs().max()) < 5 / ROWS**0.5  # seeds 0, 1, 2, ... give unrelated noise


def test_noise_is_uniform() -> None:
    u = _reference.uniform(7, torch.arange(2000), 64)
    assert float(u.min()) >= 0 and float(u.max()) < 1
    counts = torch.histc(u, 64, 0, 1)
    chi_square = float(((counts - 2000) ** 2 / 2000).sum())
    assert 20 < chi_square < 130  # 63 degrees of freedom
    assert torch.equal(u * 65536, (u * 65536).round())  # 16 bits


def test_equal_seeds_give_equal_codes(device) -> None:
    x = torch.randn(300, 100, device=device)
    codes = [quantize(x, 2, 32, seed=s).packed for s in (5, 5, 6, 5 + 2**32, 5 + 2**63, -5)]
    assert torch.equal(codes[0], codes[1])
    for other in codes[2:]:
        share = float((codes[0] != other).float().mean())
        assert share > 0.3
    # 64 bits of a seed count: what lies beyond wraps
    assert torch.equal(codes[0], quantize(x, 2, 32, seed=5 + 2**64).packed)
    assert torch.equal(quantize(x, 2, 32, seed=-1).packed, quantize(x, 2, 32, seed=2**64 - 1).packed)


def test_codes_do_not_depend_on_threads_or_the_reference_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1000, 131)
    threads = torch.get_num_threads()
    try:
        codes = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            codes.append(quantize(x, 2, 32, seed=1).packed)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[0], codes[2])
    for chunk in (1, 1000, 50_000):
        monkeypatch.setattr(_reference, "_CHUNK", chunk)
        part = x[:50] if chunk == 1 else x
        stored = _reference.quantize(part, 2, 32, True, 1)
        assert torch.equal(stored[0], codes[0][: len(part)])
        back = _reference.dequantize(*stored, 2, 32, 131, torch.float32)
        assert torch.equal(back, quantize(x, 2, 32, seed=1).dequantize()[: len(part)])


def test_the_global_generator_governs_the_seed() -> None:
    x = torch.randn(50, 50)
    torch.manual_seed(3)
    first, second, follows = quantize(x, 2).packed, quantize(x, 2).packed, torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(quantize(x, 2).packed, first) and torch.equal(quantize(x, 2).packed, second)
    assert torch.equal(torch.rand(3), follows) and not torch.equal(first, second)
    torch.manual_seed(3)
    quantize(x, 2, rounding="nearest")
    quantize(x, 2, seed=4)
    assert torch.equal(quantize(x, 2).packed, first)  # neither of them drew


def test_nearest_is_nearest_and_ignores_the_seed(device) -> None:
    x = torch.randn(40, 64, device=device)
    q = quantize(x, 3, 32, "nearest", seed=1)
    assert torch.equal(q.packed, quantize(x, 3, 32, "nearest", seed=2).packed)
    scale, offset = (t.float().repeat_interleave(32, 1).unsqueeze(2) for t in (q.scale, q.offset))
    choices = torch.arange(8, device=device) * scale + offset
    best = (choices - x.unsqueeze(2)).abs().amin(2)
    torch.testing.assert_close((q.dequantize() - x).abs(), best, rtol=1e-4, atol=1e-6)
