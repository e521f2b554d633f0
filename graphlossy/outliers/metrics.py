"""How well scores find the outliers: area under the ROC curve, average precision and recall among the first k."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["average_precision", "evaluate", "recall_at_k", "roc_auc"]


def roc_auc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve: the chance that an outlier scores higher than an inlier, equal scores counting half.

    By ranks (Mann-Whitney): AUC = (sum of the outliers' ranks - k (k + 1) / 2) / (k (N - k)), equal scores sharing
    their mean rank, k outliers among N nodes.

    Args:
        scores: [N], higher is more outlying.
        labels: [N], true or non-zero for outliers.

    Raises:
        ValueError: the lengths differ, a score is NaN, or all labels are equal.

    Example:
        >>> roc_auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1]))
        0.875
    """
    scores, outlier = _check(scores, labels)
    found = int(outlier.sum())
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0).double() - (counts.double() - 1) / 2)[place]
    return (float(ranks[outlier].sum()) - found * (found + 1) / 2) / (found * (len(scores) - found))


def average_precision(scores: Tensor, labels: Tensor) -> float:
    """Average precision: sum over the distinct scores, highest first, of (R_i - R_{i-1}) P_i, without interpolation.

    P_i and R_i are precision and recall of the nodes that score at least as high as the i-th distinct score: nodes of
    equal scores come in together, whatever their order in memory.

    Args:
        scores: [N], higher is more outlying.
        labels: [N], true or non-zero for outliers.

    Raises:
        ValueError: as `roc_auc`.

    Example:
        >>> round(average_precision(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1])), 4)
        0.8333
    """
    scores, outlier = _check(scores, labels)
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    hits = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, place, outlier.double()).flip(0)
    taken = counts.flip(0).cumsum(0).double()
    return float((hits * hits.cumsum(0) / taken).sum() / outlier.sum())


def recall_at_k(scores: Tensor, labels: Tensor, k: int | None = None) -> float:
    """Share of the outliers among the k nodes of the highest scores; equal scores at the cut count in proportion.

    Where t nodes share the score at the cut, h of them outliers, and r of them still fit, they add h r / t: the mean
    over all orders of the equal ones, so that the figure does not depend on the order of the nodes.

    Args:
        scores: [N], higher is more outlying.
        labels: [N], true or non-zero for outliers.
        k: number of nodes that are looked at; None: the number of outliers.

    Raises:
        ValueError: as `roc_auc`, or k is not between 1 and N.

    Example:
        >>> recall_at_k(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1]))
        0.75
    """
    scores, outlier = _check(scores, labels)
    found = int(outlier.sum())
    k = found if k is None else k
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(scores):
        raise ValueError(f"k must be a whole number from 1 to the number of nodes, {len(scores)}; got {k!r}")
    cut = scores.topk(k).values[-1]
    above, at = scores > cut, scores == cut
    room = k - int(above.sum())
    return (int(outlier[above].sum()) + int(outlier[at].sum()) * room / int(at.sum())) / found


def evaluate(scores: Tensor, labels: Tensor | None, types: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """AUC, average precision and recall at k, of all outliers and of every type of them.

    Of a type, its members are the outliers, all other nodes the inliers (outliers of other types among them, as in
    BOND, arXiv 2206.10071), and k is the number of its members.

    Args:
        scores: [N], higher is more outlying.
        labels: [N], true for outliers; None: there are no labels, and the figures are None.
        types: name and members, [N] bool, of each type.

    Returns:
        ``auc``, ``ap``, ``recall`` and ``by_type``, a dictionary of the same three for each type that has members.

    Raises:
        ValueError: the lengths differ, a score is NaN or infinite, or all labels are equal.

    Example:
        >>> evaluate(torch.tensor([0.1, 0.4, 0.3, 0.8]), torch.tensor([0, 0, 1, 1]))
        {'auc': 0.75, 'ap': 0.8333333333333333, 'recall': 0.5, 'by_type': {}}
        >>> evaluate(torch.tensor([0.1, 0.4]), None)
        {'auc': None, 'ap': None, 'recall': None, 'by_type': {}}
    """
    check_scores(scores)
    if labels is None:
        return {"auc": None, "ap": None, "recall": None, "by_type": {}}
    by_type = {
        name: _three(scores, members) for name, members in (types or {}).items() if 0 < int(members.sum()) < len(scores)
    }
    return {**_three(scores, labels), "by_type": by_type}


def check_scores(scores: Tensor) -> None:
    """Raises ValueError unless every score is a finite number."""
    bad = ~torch.as_tensor(scores).isfinite()
    if bool(bad.any()):
        first = int(bad.nonzero()[0, 0]) if bad.dim() == 1 else 0
        raise ValueError(f"{int(bad.sum())} of {bad.numel()} scores are NaN or infinite, the first of node {first}")


def _three(scores: Tensor, labels: Tensor) -> dict[str, float]:
    return {
        "auc": roc_auc(scores, labels),
        "ap": average_precision(scores, labels),
        "recall": recall_at_k(scores, labels),
    }


def _check(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    scores = torch.as_tensor(scores).detach().cpu()
    labels = torch.as_tensor(labels).detach().cpu()
    if scores.dim() != 1 or scores.shape != labels.shape:
        raise ValueError(
            f"scores and labels must be vectors of one length, got shapes {list(scores.shape)} and {list(labels.shape)}"
        )
    scores = scores.double()
    if bool(scores.isnan().any()):
        raise ValueError(f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN")
    outlier = labels != 0
    found = int(outlier.sum())
    if found in (0, len(scores)):
        kind = "an inlier (0)" if found == 0 else "an outlier (1)"
        raise ValueError(
            f"all {len(scores)} labels are equal, every node is {kind}: AUC, average precision and recall need both "
            "kinds; correct the labels, or leave them out to get scores alone"
        )
    return scores, outlier


def mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation with n - 1 (None of one value).

    Example:
        >>> mean_and_spread([1.0, 3.0]), mean_and_spread([2.0])
        ((2.0, 1.4142135623730951), (2.0, None))
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
