"""Rows of the compressed tables against their definitions, written out in Python integers and loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from graphlossy.recsys.tables import DHEmbedding, HashEmbedding, QREmbedding, ROBEEmbedding, TTEmbedding
from graphlossy.recsys.tables._budget import largest_that_fits
from graphlossy.recsys.tables.tensor_train import factors_of_tokens, factors_of_width

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15
LARGE_IDS = [0, 1, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**31 + 1, 2**40 - 2, 2**40 - 1]


def mix(z: int) -> int:
    """SplitMix64's output function."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def word(key: int, token: int, number: int) -> int:
    """Hash ``number`` of a token."""
    return mix((token * GAMMA + mix((key + (number + 1) * GAMMA) & MASK)) & MASK)


def test_hash() -> None:
    table = HashEmbedding(2**40, 3, rows=1000, num_hashes=2, seed=7, dtype=torch.float64)
    key = int(table.key) & MASK
    expected = [sum(table.shared[(word(key, i, k) >> 32) * 1000 >> 32] for k in range(2)).tolist() for i in LARGE_IDS]
    torch.testing.assert_close(table(torch.tensor(LARGE_IDS)), torch.tensor(expected, dtype=torch.float64))


def test_hashes_are_spread_evenly() -> None:
    """Chi-square of 50 rows and 50,000 tokens, within 5 standard deviations of its mean."""
    table = HashEmbedding(2**40, 2, rows=50, num_hashes=2)
    for start in (0, 2**33):
        places = table.places(torch.arange(start, start + 50_000))
        for k in range(2):
            counts = torch.bincount(places[:, k], minlength=50).double()
            assert abs((counts - 1000).square().sum() / 1000 - 49) < 5 * math.sqrt(2 * 49)
        both = (places[:, 0] == places[:, 1]).sum()
        assert abs(both - 1000) < 5 * math.sqrt(1000)


@pytest.mark.parametrize("mode", ["mult", "add", "concat"])
def test_quotient_remainder(mode: str) -> None:
    table = QREmbedding(2**40, 5, buckets=2**27 + 1, mode=mode, device="meta")
    assert table.quotient.shape[0] == -(-(2**40) // (2**27 + 1))
    tokens, buckets = 2**33 + 5, 2**17 + 3
    table = QREmbedding(tokens, 5, buckets=buckets, mode=mode)
    ids = [0, 1, buckets - 1, buckets, 2**24 + 1, 2**31 + 1, tokens - 1]
    for i, row in zip(ids, table(torch.tensor(ids)), strict=True):
        r, q = table.remainder[i % buckets].tolist(), table.quotient[i // buckets].tolist()
        if mode == "concat":
            expected = r + q
        else:
            expected = [a * b if mode == "mult" else a + b for a, b in zip(r, q, strict=True)]
        torch.testing.assert_close(row, torch.tensor(expected))


def test_quotient_remainder_is_drawn_symmetrically() -> None:
    """Products are as often negative as positive: an initial value above zero would make every one of them so."""
    table = QREmbedding(10_000, 16, buckets=200)
    assert abs((table.weight > 0).double().mean() - 0.5) < 0.03


def test_different_tokens_have_different_rows() -> None:
    for mode in ("mult", "add", "concat"):
        table = QREmbedding(500, 4, buckets=23, mode=mode)
        assert table.weight.unique(dim=0).shape[0] == 500


@pytest.mark.parametrize("embedding_dim", [1, 7, 16])
def test_tensor_train(embedding_dim: int) -> None:
    table = TTEmbedding(90, embedding_dim, ranks=(3, 2), dtype=torch.float64)
    (n1, n2, n3), (d1, d2, d3), (r1, r2) = table.shape, table.dim_shape, table.ranks
    assert n1 * n2 * n3 >= 90 and d1 * d2 * d3 >= embedding_dim
    a, b, c = table.cores[0].view(n1, d1, r1), table.cores[1].view(n2, r1, d2, r2), table.cores[2].view(n3, r2, d3)
    every = torch.einsum("iar,jrbs,ksc->ijkabc", a, b, c).reshape(n1 * n2 * n3, -1)[:90, :embedding_dim]
    torch.testing.assert_close(table(torch.arange(90)), every)
    torch.testing.assert_close(table.weight, every)


def test_tensor_train_ids_beyond_int32() -> None:
    table = TTEmbedding(2**40, 4, ranks=2)
    _, n2, n3 = table.shape
    ids = torch.tensor(LARGE_IDS)
    found = table(ids)
    for i, row in zip(LARGE_IDS, found, strict=True):
        one = table.cores[0][i // (n2 * n3)].view(-1, 2) @ table.cores[1][i // n3 % n2].view(2, -1)
        one = one.view(-1, 2) @ table.cores[2][i % n3].view(2, -1)
        torch.testing.assert_close(row, one.flatten()[:4])


def test_tensor_train_scores_are_made_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    table, queries = TTEmbedding(1000, 8, ranks=3, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    whole = table.scores(queries)
    monkeypatch.setattr("graphlossy.recsys.tables.tensor_train._BLOCK", 1500)
    assert len(list(table._blocks())) > 5
    torch.testing.assert_close(table.scores(queries), whole)
    torch.testing.assert_close(queries @ table(torch.arange(1000)).T, whole)


@pytest.mark.parametrize("count", [*range(1, 130), 999, 1000, 1001, 10**6, 2**31 + 1])
def test_factors_of_tokens(count: int) -> None:
    found = factors_of_tokens(count)
    assert math.prod(found) >= count and max(found) - min(found) <= 1 and min(found) == found[1]
    less = sorted(found)
    less[-1] -= 1  # as equal as they were, with one less in sum
    assert math.prod(less) < count


def test_factors_of_width() -> None:
    every = [f for f in itertools.combinations_with_replacement(range(1, 131), 3) if sum(f) <= 20]
    for width in range(1, 130):
        found = factors_of_width(width)
        assert (sum(found), math.prod(found)) == min((sum(f), math.prod(f)) for f in every if math.prod(f) >= width)
        assert min(found) == found[1]


def test_robe() -> None:
    table = ROBEEmbedding(2**40, 7, size=11, block=3, seed=2)
    key, shared = int(table.key) & MASK, table.shared.tolist()
    for i, row in zip(LARGE_IDS, table(torch.tensor(LARGE_IDS)), strict=True):
        expected = []
        for column in range(7):
            hashed, t = word(key, i, column // 3), column % 3
            value = shared[(((hashed >> 32) * 11 >> 32) + t) % 11]
            expected.append(-value if hashed >> t & 1 else value)
        torch.testing.assert_close(row, torch.tensor(expected))


def test_robe_signs_and_places_are_even() -> None:
    table = ROBEEmbedding(10**6, 8, size=100, block=4)
    at, negative = table.places(torch.arange(20_000))
    assert abs(negative.double().mean() - 0.5) < 0.01
    counts = torch.bincount(at.flatten(), minlength=100).double()
    assert counts.min() > 1400 and counts.max() < 1800  # 1600 each
    assert abs(table.weight[:20_000].mean()) < 0.02  # signs make rows of mean zero whatever the array's is


@pytest.mark.parametrize(("encoding", "kurtosis"), [("uniform", 1.8), ("gaussian", 3.0)])
def test_deep_hash_encoding(encoding: str, kurtosis: float) -> None:
    table = DHEmbedding(2**40, 4, num_hashes=20, width=4, encoding=encoding)
    ids = torch.tensor(LARGE_IDS)
    assert table.encode(ids).unique(dim=0).shape[0] == len(LARGE_IDS)
    assert torch.equal(table.encode(ids), torch.cat([table.encode(i.view(1)) for i in ids]))
    codes = table.encode(torch.arange(20_000)).double()
    assert torch.isfinite(codes).all()
    assert abs(codes.mean()) < 0.01 and abs(codes.var() - 1) < 0.01
    assert abs(codes.pow(4).mean() - kurtosis) < 0.05
    correlation = torch.corrcoef(codes.T) - torch.eye(20)
    assert correlation.abs().max() < 5 / math.sqrt(20_000)


def test_deep_hash_is_the_network_of_the_codes() -> None:
    table = DHEmbedding(50, 6, num_hashes=10, width=8, depth=3)
    ids = torch.tensor([4, 49, 4])
    x = table.encode(ids)
    linear = [m for m in table.network if isinstance(m, torch.nn.Linear)]
    for layer in linear[:-1]:
        x = torch.nn.functional.mish(torch.nn.functional.layer_norm(layer(x), (8,)))
    torch.testing.assert_close(table(ids), linear[-1](x))


def test_deep_hash_codes_are_made_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    table = DHEmbedding(300, 6, num_hashes=10, width=8)
    whole, queries = table.encode(torch.arange(300)), torch.randn(2, 6)
    scores = table.scores(queries)
    monkeypatch.setattr("graphlossy.recsys.tables.deep_hash._CODES", 70)
    monkeypatch.setattr("graphlossy.recsys.tables.deep_hash._ACTIVATIONS", 70)
    assert torch.equal(table.encode(torch.arange(300)), whole)
    torch.testing.assert_close(table.scores(queries), scores)


def test_seeds() -> None:
    for make in (
        lambda seed: HashEmbedding(100, 4, rows=10, seed=seed).places(torch.arange(100)),
        lambda seed: ROBEEmbedding(100, 4, size=10, seed=seed).places(torch.arange(100))[0],
        lambda seed: DHEmbedding(100, 4, width=4, num_hashes=4, seed=seed).encode(torch.arange(100)),
    ):
        assert torch.equal(make(1), make(1)) and not torch.equal(make(1), make(2))
    with pytest.raises(TypeError, match="seed"):
        HashEmbedding(100, 4, rows=10, seed=0.5)


def test_concat_needs_two_columns() -> None:
    with pytest.raises(ValueError, match="concat"):
        QREmbedding(10, 1, buckets=3, mode="concat")


def test_shapes_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="shape must be three numbers whose product is at least 10"):
        TTEmbedding(10, 4, shape=(2, 2, 2))
    with pytest.raises(ValueError, match="dim_shape must be three numbers"):
        TTEmbedding(10, 4, dim_shape=(2, 2))
    with pytest.raises(ValueError, match="ranks must be one number or two"):
        TTEmbedding(10, 4, ranks=(2, 2, 2))


def test_largest_that_fits() -> None:
    for budget in range(3, 40):
        assert largest_that_fits(lambda n: 3 * n, budget, 1, 10, "it") == min(10, budget // 3)
