"""Sizes under a byte budget: bytes predicted exactly, budgets met and used, planted scores found, ties drawn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.recsys import MultiSizeEmbedding
from graphlossy.recsys.allocate import (
    ColumnScores,
    EntryScores,
    PowerScores,
    Storage,
    allocate_one_size,
    allocate_sizes,
    allowed_sizes,
    multi_size_bytes,
)
from graphlossy.recsys.tables import BudgetError

pytestmark = pytest.mark.usefixtures("one_thread")


@given(
    tokens=st.sampled_from([0, 1, 5, 63, 64, 65, 512, 600, 1100]),
    dim=st.sampled_from([1, 2, 7, 8, 16, 33]),
    kinds=st.lists(st.integers(0, 33), min_size=1, max_size=9),
    projection=st.sampled_from(["nested", "per_size"]),
    shared=st.sampled_from([(0, None), (3, None), (5, 1)]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.float64]),
    bits=st.sampled_from([1, 2, 4, 8]),
    group_size=st.sampled_from([8, 64]),
    when=st.sampled_from(["after", "training"]),
    seed=st.integers(0, 9),
)
def test_bytes_are_those_of_the_module(
    tokens: int, dim: int, kinds: list[int], projection: str, shared: tuple[int, int | None], dtype: torch.dtype,
    bits: int, group_size: int, when: str, seed: int,
) -> None:  # fmt: skip
    allowed = torch.tensor([k % (dim + 1) for k in kinds])
    draw = torch.randint(0, len(kinds), (tokens,), generator=torch.Generator().manual_seed(seed))
    sizes, rows = allowed[draw], dict(zip(("shared_rows", "shared_size"), shared, strict=True))
    table = MultiSizeEmbedding(tokens, dim, sizes=sizes, projection=projection, dtype=dtype, **rows)
    assert table.nbytes == multi_size_bytes(sizes, dim, 0, 64, projection, *shared, dtype)
    table.quantize_(bits, group_size, trainable=when == "training", seed=0)
    assert table.nbytes == multi_size_bytes(sizes, dim, bits, group_size, projection, *shared, dtype, when)


def test_planted_bytes_that_forget_the_map_are_wrong() -> None:
    sizes = torch.tensor([8] * 100 + [2] * 900)
    without_map = 100 * 8 * 4 + 900 * 2 * 4 + 2 * 8 * 4
    assert multi_size_bytes(sizes, 8) == MultiSizeEmbedding(1000, 8, sizes=sizes).nbytes != without_map


def scores_of(seed: int, tokens: tuple[int, ...] = (300, 900, 3), dim: int = 16) -> dict[str, torch.Tensor]:
    """Entries whose scores follow a power of popularity, as saliency does."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for k, count in enumerate(tokens):
        popularity = torch.arange(1, count + 1).float() ** -0.9
        found[f"t{k}"] = popularity.unsqueeze(1) * torch.rand((count, dim), generator=generator) + 1e-6
    return found


def allocate(scores: dict[str, torch.Tensor], budget: int, bits: int = 0, dim: int = 16, **options: object):
    storage = {name: Storage(dim, bits=bits) for name in scores}
    return allocate_sizes({n: EntryScores(s.clone()) for n, s in scores.items()}, budget, storage, **options)


def built_bytes(sizes: dict[str, torch.Tensor], bits: int = 0, dim: int = 16) -> int:
    total = 0
    for found in sizes.values():
        table = MultiSizeEmbedding(len(found), dim, sizes=found)
        total += (table.quantize_(bits) if bits else table).nbytes
    return total


@pytest.mark.parametrize("rounding", ["exact", "pow2", "multiple_of:4"])
@pytest.mark.parametrize("bits", [0, 4])
@pytest.mark.parametrize("share", [2, 8, 32])
def test_budgets_are_met_and_used(rounding: str, bits: int, share: int) -> None:
    scores = scores_of(share)
    whole = sum(multi_size_bytes([16] * len(s), 16, bits) for s in scores.values())
    budget = whole // share
    found = allocate(scores, budget, bits, rounding=rounding)
    assert found.nbytes == built_bytes(found.sizes, bits)
    assert 0.97 * budget <= found.nbytes <= budget
    allowed = set(allowed_sizes(rounding, 16))
    assert all(set(sizes.unique().tolist()) <= allowed for sizes in found.sizes.values())


@given(
    seed=st.integers(0, 30),
    budget=st.integers(150, 90_000),
    rounding=st.sampled_from(["exact", "pow2", "multiple_of:3"]),
    bits=st.sampled_from([0, 2, 8]),
    min_size=st.sampled_from([0, 1]),
)
def test_no_budget_is_exceeded(seed: int, budget: int, rounding: str, bits: int, min_size: int) -> None:
    scores = scores_of(seed, (40, 500))
    try:
        found = allocate(scores, budget, bits, rounding=rounding, min_size=min_size)
    except BudgetError as error:
        assert error.minimum > budget and str(error.minimum) in str(error)
        return
    assert found.nbytes == built_bytes(found.sizes, bits) <= budget
    for sizes in found.sizes.values():
        assert int(sizes.min()) >= min_size and int(sizes.max()) <= 16
    assert any(bool(sizes.any()) for sizes in found.sizes.values())


def columns(scores: dict[str, torch.Tensor]) -> dict[str, ColumnScores]:
    return {name: ColumnScores(s.mean(0), len(s)) for name, s in scores.items()}


@given(
    seed=st.integers(0, 30),
    budget=st.integers(150, 90_000),
    rounding=st.sampled_from(["exact", "pow2", "multiple_of:3"]),
    bits=st.sampled_from([0, 2, 8]),
    min_size=st.sampled_from([0, 1]),
)
def test_one_size_exceeds_no_budget(seed: int, budget: int, rounding: str, bits: int, min_size: int) -> None:
    scores = scores_of(seed, (40, 500, 3))
    storage = {name: Storage(16, bits=bits) for name in scores}
    try:
        found = allocate_one_size(columns(scores), budget, storage, rounding=rounding, min_size=min_size)
    except BudgetError as error:
        assert error.minimum > budget and str(error.minimum) in str(error)
        return
    assert found.nbytes == built_bytes(found.sizes, bits) <= budget
    sizes = [int(s[0]) for s in found.sizes.values()]
    assert all(s.unique().numel() == 1 for s in found.sizes.values()) and any(sizes)
    assert set(sizes) <= set(allowed_sizes(rounding, 16, min_size))


@pytest.mark.parametrize("one_size", [False, True])
@pytest.mark.parametrize("min_size", [0, 1])
def test_the_least_budget_is_possible_and_one_byte_less_is_not(one_size: bool, min_size: int) -> None:
    scores = scores_of(0)

    def found(budget: int):
        if one_size:
            return allocate_one_size(columns(scores), budget, {n: Storage(16) for n in scores}, min_size=min_size)
        return allocate(scores, budget, min_size=min_size)

    with pytest.raises(BudgetError) as caught:
        found(1)
    least = caught.value.minimum
    sizes = found(least).sizes
    assert built_bytes(sizes) <= least and any(bool(s.any()) for s in sizes.values())
    with pytest.raises(BudgetError, match=f"budget is {least - 1} bytes"):
        found(least - 1)


def test_more_bytes_keep_more() -> None:
    scores = scores_of(1)
    kept = []
    for budget in (400, 1000, 3000, 9000, 20_000, 60_000, 10**6):
        found = allocate(scores, budget)
        kept.append(sum(EntryScores(s.clone()).value(found.sizes[n]) for n, s in scores.items()))
    assert kept == sorted(kept) and kept[-1] == pytest.approx(sum(float(s.sum()) for s in scores.values()))


def test_a_budget_for_everything_keeps_everything() -> None:
    scores = scores_of(1)
    found = allocate(scores, "1MiB")
    assert all(bool((sizes == 16).all()) for sizes in found.sizes.values())


def test_one_threshold_decides_where_maps_cost_little() -> None:
    """Without what the structure costs, the size of a row is the number of its entries above one threshold."""
    scores = {"a": torch.rand((4000, 8)) ** 4, "b": 3 * torch.rand((2000, 8)) ** 4}
    found = allocate(scores, 48_000, dim=8, rounding="exact")
    every = torch.cat([scores["a"].flatten(), scores["b"].flatten()])
    numbers = sum(int(sizes.sum()) for sizes in found.sizes.values())
    threshold = every.topk(numbers).values[-1]
    for name, sizes in found.sizes.items():
        expected = (scores[name] >= threshold).sum(1)
        assert (sizes - expected).abs().float().mean() < 0.25
    by_quota = {name: (s >= s.flatten().topk(int(s.numel() * numbers / every.numel())).values[-1]).sum(1)
                for name, s in scores.items()}  # fmt: skip
    assert (found.sizes["b"] - by_quota["b"]).abs().float().mean() > 0.5  # a threshold for each table is another rule


def test_planted_tokens_get_the_wide_rows() -> None:
    scores = {"t0": torch.rand((1000, 16)) * 1e-3}
    scores["t0"][::10] += 1.0
    sizes = allocate(scores, 100 * 16 * 4 + 1000).sizes["t0"]
    assert bool((sizes[::10] == 16).all()) and sizes.sum() - sizes[::10].sum() <= 250


def test_a_small_table_is_not_narrowed_where_that_costs_more() -> None:
    """A projection of 3 rows to width 16 costs more than the rows are."""
    tokens = {"large": 5000, "small": 3}
    weights = {name: ColumnScores.proportional(1.0, count, 16) for name, count in tokens.items()}
    found = allocate_one_size(weights, 45_000, {name: Storage(16) for name in tokens}, min_size=1)
    assert int(found.sizes["large"][0]) == 2 and int(found.sizes["small"][0]) == 16


def test_what_is_left_widens_tables_by_one_size() -> None:
    tokens = {"large": 1000, "other": 900, "small": 400}
    weights = {name: ColumnScores.proportional(1.0, count, 16) for name, count in tokens.items()}
    storage = {name: Storage(16) for name in tokens}
    equal = sum(storage[name].of_one_size(count, 4) for name, count in tokens.items())
    found = allocate_one_size(weights, equal + 1400 * 4 + 3 * 64, storage)
    assert {name: int(s[0]) for name, s in found.sizes.items()} == {"large": 5, "other": 4, "small": 5}


@given(st.integers(0, 20), st.floats(1e-4, 2.0), st.integers(1, 40))
def test_column_scores_are_entry_scores_of_equal_rows(seed: int, threshold: float, tokens: int) -> None:
    scores = torch.rand(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    column, entries = ColumnScores(scores, tokens), EntryScores(scores.expand(tokens, 8).clone())
    groups = column.kept(threshold)
    assert torch.equal(groups, entries.kept(threshold)) and column.range() == entries.range()
    torch.testing.assert_close(column.sums(groups), entries.sums(groups))


def test_tables_without_any_score_get_the_smallest_size() -> None:
    scores = {"t0": torch.rand((100, 16)), "t1": torch.zeros((100, 16))}
    assert int(allocate(scores, 10**6).sizes["t1"].max()) == 0
    assert allocate(scores, 10**6, min_size=1).sizes["t1"].unique().tolist() == [1]


def test_ties_are_drawn_by_the_seed() -> None:
    weights = PowerScores(torch.ones(1000), 8)
    first, again, other = (
        allocate_sizes({"t": weights}, 3000, {"t": Storage(8)}, seed=seed).sizes["t"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.unique().numel() == 2 and torch.equal(first.bincount(), other.bincount())
    positions = (first == first.max()).nonzero().float().mean()
    assert 400 < positions < 600  # not the first ids


def test_sizes_are_proportional_to_weights() -> None:
    weights = torch.tensor([64.0, 32.0, 16.0, 8.0]).repeat_interleave(1000)
    found = allocate_sizes({"t": PowerScores(weights, 64)}, 130_000, {"t": Storage(64)}, rounding="exact")
    means = found.sizes["t"].view(4, 1000).float().mean(1)
    assert means[0] / means[1] == pytest.approx(2, rel=0.2) and means[1] / means[2] == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize(
    ("rounding", "dim", "least", "expected"),
    [
        ("exact", 4, 0, [0, 1, 2, 3, 4]),
        ("exact", 4, 2, [2, 3, 4]),
        ("pow2", 16, 0, [0, 1, 2, 4, 8, 16]),
        ("pow2", 10, 1, [1, 2, 4, 8, 10]),
        ("multiple_of:4", 16, 0, [0, 4, 8, 12, 16]),
        ("pow2", 1, 0, [0, 1]),
        ("pow2", 8, 8, [8]),
    ],
)
def test_allowed_sizes(rounding: str, dim: int, least: int, expected: list[int]) -> None:
    assert allowed_sizes(rounding, dim, least) == expected


def test_there_are_never_more_sizes_than_a_table_can_have() -> None:
    assert len(allowed_sizes("exact", 4096)) <= 255 >= len(allowed_sizes("multiple_of:2", 4096))


@pytest.mark.parametrize("rounding", ["nearest", "multiple_of:0", "multiple_of:x", "pow3", ""])
def test_unknown_roundings(rounding: str) -> None:
    with pytest.raises(ValueError, match="rounding must be 'exact', 'pow2' or 'multiple_of:4'"):
        allowed_sizes(rounding, 8)


def test_wrong_scores_and_sizes() -> None:
    for bad in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="finite and at least 0"):
            EntryScores(torch.tensor([[1.0, bad]]))
        with pytest.raises(ValueError, match="finite and at least 0"):
            PowerScores(torch.tensor([bad]), 4)
    with pytest.raises(ValueError, match="min_size must be an int from 0 to embedding_dim = 8, got 9"):
        allowed_sizes("pow2", 8, 9)
    with pytest.raises(ValueError, match="sizes must be from 0 to embedding_dim = 4, got 0 to 5"):
        multi_size_bytes([0, 5], 4)
    with pytest.raises(ValueError, match="bits of rows must be 0"):
        multi_size_bytes([1], 4, bits=3)
    with pytest.raises(ValueError, match="bits_when must be one of"):
        Storage(4, bits_when="never")


@given(st.integers(0, 20), st.floats(1e-4, 2.0))
def test_power_scores_are_entry_scores_of_weight_over_rank(seed: int, threshold: float) -> None:
    weights = torch.rand(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    power = PowerScores(weights, 8)
    entries = EntryScores(weights.unsqueeze(1) / (torch.arange(1, 9) - 0.5))
    groups = power.kept(threshold)
    assert torch.equal(groups, entries.kept(threshold))
    torch.testing.assert_close(power.sums(groups), entries.sums(groups))
    assert power.value(groups) == pytest.approx(entries.value(groups))
