"""The parts of a table, and their batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.recsys.data import DataError, Split
from graphlossy.recsys.data import _split as split_module
from graphlossy.recsys.data._hashing import hashed, normal, permutation, uniform
from graphlossy.recsys.data._partition import Partition, check_split, time_partition

FRACTIONS = (0.8, 0.1, 0.1)


def pieces_of(values: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    return np.split(values, sorted(cut % (len(values) + 1) for cut in cuts))


@given(st.integers(0, 2**63 - 1), st.integers(1, 500), st.lists(st.integers(0, 1000), max_size=4))
def test_random_parts_do_not_depend_on_the_pieces(seed: int, rows: int, cuts: list[int]) -> None:
    whole = Partition("random", FRACTIONS, seed, rows).part(0, rows)
    ends = [0, *sorted(cut % (rows + 1) for cut in cuts), rows]
    again = [Partition("random", FRACTIONS, seed, 10 * rows).part(*ends[k : k + 2]) for k in range(len(ends) - 1)]
    assert np.array_equal(np.concatenate(again), whole)


def test_random_parts_have_the_fractions_and_differ_by_seed() -> None:
    part = Partition("random", FRACTIONS, 5, 0).part(0, 200_000)
    share = np.bincount(part, minlength=3) / len(part)
    assert np.abs(share - FRACTIONS).max() < 4 * (0.8 * 0.2 / len(part)) ** 0.5
    other = Partition("random", FRACTIONS, 6, 0).part(0, 200_000)
    assert np.mean(part == other) == pytest.approx(0.66, abs=0.01)  # 0.8 ** 2 + 2 * 0.1 ** 2
    assert set(Partition("random", (0.5, 0.5, 0), 0, 0).part(0, 10_000)) == {0, 1}
    assert set(Partition("random", (1, 0, 0), 0, 0).part(0, 10_000)) == {0}


@given(
    st.lists(st.one_of(st.integers(-3, 3).map(float), st.floats(allow_nan=False, width=64)), min_size=1, max_size=60),
    st.lists(st.integers(0, 100), max_size=3),
    st.sampled_from([FRACTIONS, (0.5, 0.3, 0.2), (1.0, 0.0, 0.0), (0.6, 0.0, 0.4), (0.7, 0.3, 0.0)]),
)
def test_parts_by_time_are_those_of_a_stable_sort(values: list[float], cuts: list[int], fractions: Any) -> None:
    times = np.array(values)
    partition = Partition("time", fractions, 0, len(times))
    got = np.concatenate(list(time_partition(partition, lambda: iter(pieces_of(times, cuts)))))
    wanted = np.empty(len(times), np.int8)
    wanted[np.argsort(times + 0.0, kind="stable")] = partition.part(0, len(times))
    assert np.array_equal(got, wanted)
    counts = np.bincount(got, minlength=3)
    assert counts[0] == round(fractions[0] * len(times)) and counts.sum() == len(times)


@pytest.mark.parametrize(
    ("split", "fractions", "message"),
    [
        ("date", FRACTIONS, "split must be 'random' or 'time', got 'date'"),
        ("random", (0.8, 0.2), "fractions must be three numbers"),
        ("random", (0.8, 0.1, 0.2), "fractions must sum to 1"),
        ("random", (0, 0.5, 0.5), "the first above 0"),
        ("random", (1.2, -0.2, 0), "fractions must sum to 1"),
        ("random", 0.8, "fractions must be three numbers"),
    ],
)
def test_wrong_fractions_are_named(split: str, fractions: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_split(split, fractions)


def make_split(rows: int) -> Split:
    number = np.arange(rows, dtype=np.int32)
    return Split(
        {"id": number, "tags": np.stack([number, number + 1], 1), "x": number.astype(np.float32) / 2},
        (number % 2).astype(np.float32),
    )


@given(st.integers(0, 60), st.integers(1, 20), st.sampled_from([False, True, "blocks"]), st.booleans(),
       st.integers(0, 9))  # fmt: skip
def test_batches_give_each_row_once(rows: int, size: int, shuffle: bool | str, drop_last: bool, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_module, "BLOCK_ROWS", 4)
        patch.setattr(split_module, "WINDOW_BLOCKS", 3)
        batches = make_split(rows).batches(size, shuffle, seed, drop_last)
        first, second = list(batches), list(batches)
    assert len(first) == len(batches) == (rows // size if drop_last else -(-rows // size))
    assert all(a[name].equal(b[name]) for a, b in zip(first, second, strict=True) for name in a)
    seen = [number for batch in first for number in batch["id"].tolist()]
    assert len(set(seen)) == len(seen) == (rows // size * size if drop_last else rows)
    assert all(len(batch["id"]) == size for batch in first[:-1])
    if not shuffle:
        assert seen == list(range(len(seen)))
    for batch in first:
        assert {name: value.dtype for name, value in batch.items()} == {
            "id": torch.int64, "tags": torch.int64, "x": torch.float32, "label": torch.float32,
        }  # fmt: skip
        assert batch["tags"].equal(torch.stack([batch["id"], batch["id"] + 1], 1))
        assert batch["x"].equal(batch["id"] / 2) and batch["label"].equal((batch["id"] % 2).float())


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_a_shuffle_mixes_and_differs_by_seed(shuffle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_module, "BLOCK_ROWS", 16)
    monkeypatch.setattr(split_module, "WINDOW_BLOCKS", 8)
    split = make_split(2_000)
    orders = [torch.cat([batch["id"] for batch in split.batches(64, shuffle, seed)]) for seed in (0, 1)]
    assert not orders[0].equal(orders[1])
    for order in orders:
        assert (order[1:] - order[:-1] == 1).float().mean() < 0.02
        # the first batches come from everywhere: no part of the file waits for the end
        assert order[:200].float().std() > 300


def test_what_is_larger_than_memory_is_shuffled_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_split(100)
    assert split.batches(8, True).shuffle == "full"
    monkeypatch.setattr(split_module, "FULL_BYTES", split.nbytes - 1)
    assert split.batches(8, True).shuffle == "blocks" and split.batches(8).shuffle is False


def test_rows_are_picked() -> None:
    split = make_split(5)
    assert split.rows(slice(1, 3))["id"].tolist() == [1, 2]
    assert split.rows(torch.tensor([4, 0]))["id"].tolist() == [4, 0]
    assert split.rows(np.array([True, False, False, False, True]))["id"].tolist() == [0, 4]
    split.rows(slice(None))["id"].fill_(7)  # a copy
    assert split.rows(slice(None))["id"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an integer, got 2.5"),
        ({"batch_size": 2, "shuffle": "rows"}, ValueError, "shuffle must be .* got 'rows'"),
        ({"batch_size": 2, "seed": -1}, ValueError, "seed must be from 0"),
        ({"batch_size": 2, "seed": "a"}, TypeError, "seed must be an integer, got 'a'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_split(3).batches(**arguments)


def test_columns_have_as_many_rows_as_the_label() -> None:
    with pytest.raises(DataError, match="'a' has 2 rows, the label 3"):
        Split({"a": np.zeros(2, np.int32)}, np.zeros(3, np.float32))


def test_hashed_numbers_are_random() -> None:
    index = np.arange(100_000)
    assert len(set(hashed(index, 3).tolist())) == len(index)
    drawn = uniform(index, 3)
    assert 0 <= drawn.min() and drawn.max() < 1
    assert np.histogram(drawn, 50, (0, 1))[0].std() < 3 * (len(index) / 50) ** 0.5
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.015
    assert abs(np.corrcoef(drawn, uniform(index, 4))[0, 1]) < 0.015
    pair = normal(index, 3)
    assert np.abs(pair.mean(0)).max() < 0.015 and np.abs(pair.std(0) - 1).max() < 0.015
    assert abs(np.corrcoef(pair.T)[0, 1]) < 0.015 and np.isfinite(pair).all()
    assert np.array_equal(np.sort(permutation(1_000, 1)), np.arange(1_000))
    # the bits are part of what a seed means: a change of them would change every split
    assert hashed(np.array([0, 1]), 0).tolist() == PINNED


PINNED = [3531997233750407150, 5040402593580591643]
