import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphlossy.train import accuracy, roc_auc


def area_by_pairs(scores, labels):
    positive = [s for s, y in zip(scores, labels, strict=True) if y]
    negative = [s for s, y in zip(scores, labels, strict=True) if not y]
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return wins / (len(positive) * len(negative))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs_in_order(rows):
    scores, labels = [s for s, _ in rows], [y for _, y in rows]
    if all(labels) or not any(labels):
        with pytest.raises(ValueError, match="both positive and negative"):
            roc_auc(torch.tensor(scores), torch.tensor(labels))
        return
    expected = area_by_pairs(scores, labels)
    assert roc_auc(torch.tensor(scores), torch.tensor(labels)) == pytest.approx(expected, abs=1e-12)


def test_auc_of_several_tasks_skips_unlabelled_entries_and_one_sided_tasks():
    nan = float("nan")
    labels = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, nan], [nan, 1.0, 0.0], [0.0, 1.0, 1.0]])
    scores = torch.tensor([[3.0, 0.0, 1.0], [1.0, 0.0, 9.0], [9.0, 0.0, 2.0], [4.0, 0.0, 3.0]])
    assert roc_auc(scores, labels) == pytest.approx((0.5 + 0.5) / 2)


def test_auc_keeps_apart_scores_that_float32_keeps_apart():
    scores = torch.tensor([1.0, 1.0 + 2**-23])
    assert roc_auc(scores, torch.tensor([0, 1])) == 1.0


def test_auc_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match=r"\(3,\), \(2,\)"):
        roc_auc(torch.zeros(3), torch.zeros(2))


def test_accuracy():
    assert accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 0.75
