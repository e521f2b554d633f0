"""Accuracy and area under the ROC curve, in plain torch."""

from __future__ import annotations

from torch import Tensor

__all__ = ["accuracy", "roc_auc"]


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of rows whose highest score is at the label.

    Args:
        scores: ``[N, classes]``.
        labels: int64 ``[N]``.

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        0.5
    """
    return (scores.argmax(dim=-1) == labels).double().mean().item()


def roc_auc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve by ranks (Mann-Whitney), the mean over tasks that have both classes.

    Equal scores share their mean rank, so a constant score gives 0.5. Tasks with one class only are left out, as OGB
    does; entries whose label is NaN count as unlabelled.

    Args:
        scores: ``[N]`` or ``[N, tasks]``.
        labels: 0 or 1, of the same shape; float labels may hold NaN.

    Raises:
        ValueError: no task has both a positive and a negative label, or the shapes differ.

    Example:
        >>> import torch
        >>> roc_auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
        0.75
    """
    if scores.shape != labels.shape:
        raise ValueError(
            f"scores and labels must have the same shape, got {tuple(scores.shape)}, {tuple(labels.shape)}"
        )
    columns_of_scores, columns = scores.reshape(len(scores), -1), labels.reshape(len(labels), -1)
    areas = []
    for j in range(columns.shape[1]):
        known = ~columns[:, j].isnan() if columns.is_floating_point() else slice(None)
        area = _area(columns_of_scores[:, j][known].double(), columns[:, j][known] > 0)
        if area is not None:
            areas.append(area)
    if not areas:
        raise ValueError("ROC-AUC needs at least one task with both positive and negative labels")
    return sum(areas) / len(areas)


def _area(scores: Tensor, positive: Tensor) -> float | None:
    n_positive = int(positive.sum())
    n_negative = positive.numel() - n_positive
    if n_positive == 0 or n_negative == 0:
        return None
    _, where, counts = scores.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    mean_rank = last - (counts - 1).double() / 2
    rank_sum = mean_rank[where][positive].sum().item()
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
