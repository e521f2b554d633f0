"""Generated rows, and negatives for pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.recsys.data import CTRData, DataError, Encoder, default_name, load, names, sample_negatives, zipf


def columns(data: CTRData) -> dict[str, np.ndarray]:
    parts = (data.train, data.valid, data.test)
    return {name: np.concatenate([part.columns[name] for part in parts]) for name in data.train.columns}


@given(st.integers(1, 300), st.integers(1, 400), st.sampled_from(["random", "time"]))
def test_rows_do_not_depend_on_the_chunks(rows: int, chunk: int, split: str) -> None:
    arguments: dict[str, Any] = {"vocab": (30, 7), "floats": 1, "split": split, "seed": 3}
    whole, pieces = (columns(zipf(rows, chunk=size, **arguments)) for size in (rows, chunk))
    assert all(np.array_equal(whole[name], pieces[name]) for name in whole)
    if split == "time":  # and are the first ones of a longer table
        longer = columns(zipf(rows + 50, **arguments))
        assert all(np.array_equal(whole[name], longer[name][:rows]) for name in whole)


def test_tokens_follow_zipfs_law() -> None:
    data = zipf(200_000, (100, 100), exponent=1.2, seed=1, fractions=(1, 0, 0))
    expected = np.arange(1, 101) ** -1.2
    expected *= 200_000 / expected.sum()
    for field in data.fields:
        assert field.num_tokens == 101 and field.counts.sum() == 200_000 and field.counts[0] == 0
        counts = field.counts[1:].numpy()
        assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
        assert np.array_equal(counts, np.bincount(data.train.columns[field.name], minlength=101)[1:])
    assert not np.array_equal(data.train.columns["f0"], data.train.columns["f1"])


def auc(label: np.ndarray, score: np.ndarray) -> float:
    rank = np.argsort(np.argsort(score)) + 1
    positives = int(label.sum())
    return (rank[label == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(label) - positives))


def additive_auc(strength: float) -> float:
    """Of a sum of one smoothed log-odds for each token: what a linear model can learn."""
    data = zipf(40_000, (200, 50, 20), strength=strength, seed=2)
    base = data.train.columns["label"].mean()
    score = np.zeros(len(data.test))
    for field in data.fields:
        ids = data.train.columns[field.name]
        clicks = np.bincount(ids, data.train.columns["label"], minlength=field.num_tokens)
        rate = (clicks + 10 * base) / (field.counts.numpy() + 10)
        score += np.log(rate / (1 - rate))[data.test.columns[field.name]]
    return auc(data.test.columns["label"], score)


def test_there_is_a_structure_to_be_found() -> None:
    assert additive_auc(1.5) > 0.65
    assert abs(additive_auc(0.0) - 0.5) < 0.03


def test_pairs_of_tokens_matter() -> None:
    """Beyond what the tokens say one by one: the clicks of a pair vary more than an additive model allows."""
    data = zipf(200_000, (8, 8), exponent=0, strength=2, seed=4, fractions=(1, 0, 0))
    first, second, label = (data.train.columns[name] for name in ("f0", "f1", "label"))
    clicks, rows = np.zeros((8, 8)), np.zeros((8, 8))
    np.add.at(clicks, (first - 1, second - 1), label)
    np.add.at(rows, (first - 1, second - 1), 1)
    logit = np.log(clicks / (rows - clicks))
    interaction = logit - logit.mean(0) - logit.mean(1, keepdims=True) + logit.mean()
    noise = np.sqrt((1 / clicks + 1 / (rows - clicks)).mean())
    assert interaction.std() > 5 * noise


def test_on_disk_it_is_the_same(tmp_path: Path) -> None:
    in_memory, on_disk = zipf(500, (20, 5), floats=1), zipf(500, (20, 5), floats=1, folder=str(tmp_path / "z"))
    assert isinstance(on_disk.train.columns["f0"], np.memmap)
    found, wanted = columns(on_disk), columns(in_memory)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    with pytest.raises(DataError, match="exists already and is no empty folder"):
        zipf(500, folder=str(tmp_path / "z"))


def test_it_encodes_its_tokens(tmp_path: Path) -> None:
    data = zipf(100, (20, 5), floats=1)
    rows = {"f0": ["0", "19", "20", "x", "01", "-1"], "f1": [0, 1, 2, 3, 4, 5], "x0": [0.5] * 6}
    data.encoder.save(tmp_path / "e")
    for encoder in (data.encoder, Encoder.load(tmp_path / "e")):
        batch = encoder.encode(rows)
        assert batch["f0"].tolist() == [1, 20, 0, 0, 0, 0] and batch["f1"].tolist() == [1, 2, 3, 4, 5, 0]
        assert batch["x0"].tolist() == [0.5] * 6
        words = encoder.vocabularies["f0"]
        assert len(words) == 21 and "19" in words and "20" not in words
        assert (words.token(0), words.token(20)) == (None, "19")
        with pytest.raises(IndexError):
            words.token(21)
    assert data.synthetic and "synthetic" in str(data)


def test_by_name() -> None:
    data = load("zipf", rows=200, vocab=(10, 4), seed=5, split="time", fractions=(0.5, 0.5, 0))
    assert (len(data.train), len(data.valid), len(data.test)) == (100, 100, 0)
    assert np.array_equal(data.train.columns["f0"], zipf(200, (10, 4), seed=5, split="time").train.columns["f0"][:100])
    assert "zipf" in names() and default_name("/nonexistent") in names()
    assert [field.num_tokens for field in load("zipf", rows=10, vocab=30).fields] == [31, 31]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "rows must be an integer from 1"),
        ({"rows": 1.5}, "rows must be an integer"),
        ({"vocab": (5, 0)}, r"vocab\[1\] must be an integer from 1"),
        ({"vocab": 2**31}, r"vocab\[0\] must be"),
        ({"vocab": ()}, "at least one field"),
        ({"exponent": -1}, "exponent must be at least 0, got -1"),
        ({"strength": float("nan")}, "strength must be at least 0, got nan"),
        ({"positives": 1}, "positives must be between 0 and 1, got 1"),
        ({"factors": 0}, "factors must be"),
        ({"fields": 3}, "zipf: there is no option 'fields'; they are rows, vocab"),
        ({"min_count": 2}, "leave min_count = 2 out"),
        ({"schema": {}}, "has a schema of its own"),
        ({"fractions": (1, 1, 1)}, "fractions must sum to 1"),
        ({"seed": -1}, "seed must be from 0"),
    ],
)
def test_wrong_parameters_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("zipf", **arguments)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 11)), min_size=1, max_size=30, unique=True),
    st.integers(0, 2**40),
)
def test_negatives_are_new_pairs_of_the_same_user(pairs: list[tuple[int, int]], seed: int) -> None:
    users, items = np.array(pairs).T
    if max(np.bincount(users)) > 6:
        with pytest.raises(DataError, match="of 12 items, which leaves fewer than the"):
            sample_negatives(users, items, 12, seed=seed)
        return
    drawn_users, drawn = sample_negatives(users, items, 12, seed=seed)
    assert np.array_equal(drawn_users, users) and ((drawn >= 0) & (drawn < 12)).all()
    found = list(zip(drawn_users.tolist(), drawn.tolist(), strict=True))
    assert len(set(found)) == len(found) and not set(found) & set(pairs)
    assert np.array_equal(sample_negatives(users, items, 12, seed=seed)[1], drawn)


def test_negatives_are_uniform() -> None:
    users = np.arange(50_000)
    _, drawn = sample_negatives(users, np.zeros(50_000, np.int64), 11, seed=1)
    counts = np.bincount(drawn, minlength=11)
    assert counts[0] == 0 and np.abs(counts[1:] - 5_000).max() < 5 * 5_000**0.5
    several, _ = sample_negatives(np.array([7, 9]), np.array([1, 2]), 50, per_positive=3)
    assert several.tolist() == [7, 7, 7, 9, 9, 9]


@pytest.mark.parametrize(
    ("items", "per_positive", "message"),
    [([0, 5], 1, "items must be from 0 to num_items - 1 = 4"), ([0, 1], 0, "per_positive must be at least 1, got 0")],
)
def test_wrong_pairs_are_named(items: list[int], per_positive: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample_negatives(np.array([0, 1]), np.array(items), 5, per_positive)
