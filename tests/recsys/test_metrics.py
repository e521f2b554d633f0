"""AUC against its definition over pairs, logloss where probabilities round, rank correlation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from graphlossy.recsys.train import auc, logloss, spearman

PAIRS = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=2, max_size=40)


@given(PAIRS)
def test_auc_is_the_share_of_ordered_pairs(pairs):
    scores, labels = (torch.tensor(values, dtype=torch.float32) for values in zip(*pairs, strict=True))
    positive, negative = scores[labels == 1], scores[labels == 0]
    assume(len(positive) and len(negative))
    better = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative).double()
    assert auc(scores, labels) == pytest.approx(float(better.mean()), abs=1e-12)


def test_auc_of_many_scores_is_exact():
    count = 300_000  # the sum of ranks is beyond what float32 can hold
    scores = torch.arange(count, dtype=torch.float64)
    labels = (torch.arange(count) >= count // 2).float()
    assert auc(scores, labels) == 1.0 and auc(-scores, labels) == 0.0 and auc(scores * 0, labels) == 0.5
    labels[0] = 1
    right = 1 - (count // 2 - 1) / ((count // 2 + 1) * (count // 2 - 1))
    assert auc(scores, labels) == pytest.approx(right, abs=1e-15)


def test_auc_takes_infinite_scores():
    assert auc(torch.tensor([-math.inf, 0.0, math.inf]), torch.tensor([0.0, 1.0, 1.0])) == 1.0


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [1.0, 1.0], "got 2 of 1 and 0 of 0"),
        ([1.0, 2.0], [0.0, 0.0], "got 0 of 1 and 2 of 0"),
        ([1.0], [1.0, 0.0], "got 1 and 2"),
        ([1.0, math.nan], [1.0, 0.0], "1 of 2 scores are NaN"),
        ([], [], "must not be empty"),
    ],
)
def test_what_auc_refuses(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        auc(torch.tensor(scores), torch.tensor(labels))


@given(st.lists(st.tuples(st.floats(-30, 30), st.integers(0, 1)), min_size=1, max_size=20))
def test_logloss_is_its_definition(pairs):
    logits, labels = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True))
    p = torch.sigmoid(logits)
    expected = -(labels * p.log() + (1 - labels) * torch.sigmoid(-logits).log()).mean()
    assert logloss(logits, labels) == pytest.approx(float(expected), rel=1e-9, abs=1e-12)


def test_logloss_of_large_logits_is_finite():
    assert logloss(torch.tensor([500.0]), torch.tensor([0.0])) == 500.0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_spearman_is_that_of_scipy(pairs):
    stats = pytest.importorskip("scipy.stats")
    first, second = (torch.tensor(values) for values in zip(*pairs, strict=True))
    if len(first.unique()) == 1 or len(second.unique()) == 1:
        assert math.isnan(spearman(first, second))
    else:
        assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-9)
