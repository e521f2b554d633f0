"""The judges: against scikit-learn, with ties, by type, and what they refuse."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.outliers.metrics import average_precision, evaluate, mean_and_spread, recall_at_k, roc_auc

sklearn_metrics = pytest.importorskip("sklearn.metrics")

# Few distinct values, so that most cases have ties.
cases = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


@given(cases)
def test_as_scikit_learn(pairs: list[tuple[int, bool]]) -> None:
    scores, labels = (torch.tensor(part) for part in zip(*pairs, strict=True))
    assert roc_auc(scores, labels) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(
        sklearn_metrics.average_precision_score(labels, scores), abs=1e-12
    )


@given(cases, st.randoms(use_true_random=False))
def test_the_order_of_the_nodes_changes_nothing(pairs: list[tuple[int, bool]], order) -> None:
    shuffled = list(pairs)
    order.shuffle(shuffled)
    one, other = ([torch.tensor(part) for part in zip(*p, strict=True)] for p in (pairs, shuffled))
    for metric in (roc_auc, average_precision, recall_at_k):
        assert metric(*one) == pytest.approx(metric(*other), abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_recall_is_the_mean_over_all_orders_of_equal_scores(k: int) -> None:
    scores, labels = [2.0, 1.0, 1.0, 1.0, 0.0], [0, 1, 0, 1, 1]
    orders = [
        order
        for order in itertools.permutations(range(5))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    expected = sum(sum(labels[i] for i in order[:k]) for order in orders) / len(orders) / 3
    assert recall_at_k(torch.tensor(scores), torch.tensor(labels), k) == pytest.approx(expected)


def test_by_type_and_overall() -> None:
    scores = torch.tensor([9.0, 8.0, 1.0, 2.0, 0.0])
    contextual = torch.tensor([True, False, False, False, False])
    structural = torch.tensor([False, False, False, True, False])
    none = torch.zeros(5, dtype=torch.bool)
    types = {"contextual": contextual, "structural": structural, "other": none}
    found = evaluate(scores, contextual | structural, types)
    assert found["by_type"].keys() == {"contextual", "structural"}  # nobody is of the third
    assert found["by_type"]["contextual"] == {"auc": 1.0, "ap": 1.0, "recall": 1.0}
    assert found["by_type"]["structural"]["auc"] == pytest.approx(0.5)  # the contextual outlier counts as an inlier
    assert found["recall"] == 0.5 and found["auc"] == pytest.approx(5 / 6)


def test_no_labels_give_scores_alone() -> None:
    assert evaluate(torch.rand(4), None) == {"auc": None, "ap": None, "recall": None, "by_type": {}}


@pytest.mark.parametrize("value", [0, 1])
def test_equal_labels_are_refused(value: int) -> None:
    for metric in (roc_auc, average_precision, recall_at_k):
        with pytest.raises(ValueError, match=r"all 3 labels are equal, every node is an (in|out)lier"):
            metric(torch.rand(3), torch.full((3,), value))


def test_what_is_no_score_or_no_label_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vectors of one length, got shapes \[3\] and \[2\]"):
        roc_auc(torch.rand(3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="1 of 2 scores are NaN or infinite, the first of node 1"):
        evaluate(torch.tensor([0.0, float("nan")]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        roc_auc(torch.tensor([0.0, float("nan")]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="k must be a whole number from 1 to the number of nodes, 3; got 4"):
        recall_at_k(torch.rand(3), torch.tensor([0, 1, 0]), 4)


def test_spread_of_one_trial_is_none() -> None:
    assert mean_and_spread([0.5]) == (0.5, None)
    assert mean_and_spread([0.0, 1.0]) == (0.5, pytest.approx(0.5**0.5))
