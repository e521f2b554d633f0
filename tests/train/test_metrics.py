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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_auc_of_every_type_of_score(dtype):
    scores = torch.tensor([-3, -1, 0, 0, 2, -7, 5]).to(dtype)
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    assert roc_auc(scores, labels) == pytest.approx(area_by_pairs(scores.tolist(), labels.tolist()), abs=1e-12)


def test_auc_takes_minus_zero_for_zero():
    assert roc_auc(torch.tensor([0.0, -0.0]), torch.tensor([0, 1])) == 0.5


def test_auc_of_many_tasks_is_the_mean_of_theirs():
    scores, labels = torch.randn(60, 37).round(decimals=1), (torch.rand(60, 37) < 0.4).float()
    labels[torch.rand(60, 37) < 0.1] = float("nan")
    expected = []
    for j in range(37):
        known = ~labels[:, j].isnan()
        expected.append(area_by_pairs(scores[known, j].tolist(), labels[known, j].tolist()))
    assert roc_auc(scores, labels) == pytest.approx(sum(expected) / 37, abs=1e-12)


def test_scores_are_those_of_ogbs_evaluator(task):
    from dataclasses import replace

    from graphlossy.datasets import ogb_evaluate

    rows = torch.arange(200)
    out = torch.randn(300, 40).round(decimals=1)
    accuracy_task = replace(task, y=torch.randint(40, (300,)))
    official = ogb_evaluate("ogbn-arxiv", accuracy_task.y[rows], out[rows].argmax(dim=1))
    assert accuracy_task.score(out, rows) == pytest.approx(official, abs=1e-12)
    out = torch.randn(300, 112).round(decimals=1)
    several = replace(task, y=(torch.rand(300, 112) < 0.3).float(), metric="rocauc")
    official = ogb_evaluate("ogbn-proteins", several.y[rows], out[rows])
    assert several.score(out, rows) == pytest.approx(official, abs=1e-9)
