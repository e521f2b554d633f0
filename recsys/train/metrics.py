"""Area under the ROC curve and logarithmic loss, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["auc", "logloss", "spearman"]


def auc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve by ranks (Mann-Whitney): a click and a non-click of equal scores count one half.

    Args:
        scores: [N], any increasing function of the probability.
        labels: [N], 0 or 1.

    Raises:
        ValueError: the shapes differ, a score is NaN, or the labels are all 0 or all 1.

    Example:
        >>> auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1]))
        0.875
    """
    scores, labels = _check(scores, labels)
    positive = labels > 0.5
    clicks = int(positive.sum())
    others = len(labels) - clicks
    if not clicks or not others:
        raise ValueError(f"AUC needs labels of both kinds, got {clicks} of 1 and {others} of 0")
    ranks = _ranks(scores)
    return (float(ranks[positive].sum()) - clicks * (clicks + 1) / 2) / (clicks * others)


def logloss(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log p(label), natural logarithm, from logits: exact where a probability rounds to 0 or 1.

    Args:
        logits: [N].
        labels: [N], from 0 to 1.

    Example:
        >>> round(logloss(torch.zeros(3), torch.tensor([0.0, 1.0, 1.0])), 4)
        0.6931
    """
    logits, labels = _check(logits, labels)
    return float(torch.nn.functional.binary_cross_entropy_with_logits(logits.double(), labels.double()))


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation of two vectors, equal values sharing their mean rank; NaN where one of them is constant.

    Example:
        >>> round(spearman(torch.tensor([1, 2, 3]), torch.tensor([10, 20, 15])), 4)
        0.5
    """
    one, two = (_ranks(values.double()) - (len(values) + 1) / 2 for values in (first, second))
    return float(one @ two / (one.norm() * two.norm()))


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1 in float64, equal values sharing their mean rank."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def _check(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    scores, labels = scores.detach().reshape(-1), labels.detach().reshape(-1)
    if scores.shape != labels.shape:
        raise ValueError(f"scores and labels must have one length, got {len(scores)} and {len(labels)}")
    if not len(scores):
        raise ValueError("scores must not be empty")
    if bool(scores.isnan().any()):
        raise ValueError(f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN")
    return scores, labels
