"""Accuracy and area under the ROC curve, in plain torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["accuracy", "roc_auc"]

_COLUMNS = 16  # tasks at a time, which bounds the memory for many tasks
_NEGATIVE, _POSITIVE, _UNLABELLED = 0, 1, 2


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
    scores, labels = scores.detach().reshape(len(scores), -1), labels.reshape(len(labels), -1)
    pairs = zip(scores.split(_COLUMNS, dim=1), labels.split(_COLUMNS, dim=1), strict=True)
    found = torch.cat([_areas(*pair) for pair in pairs])
    found = found[~found.isnan()]
    if not found.numel():
        raise ValueError("ROC-AUC needs at least one task with both positive and negative labels")
    return found.mean().item()


def _areas(scores: Tensor, labels: Tensor) -> Tensor:
    """The area of every column, float64 ``[columns]``; NaN where one of the classes is missing."""
    scores, labels = scores.T.contiguous(), labels.T.contiguous()
    code = (labels > 0).to(torch.int64)
    if labels.is_floating_point():
        code[labels.isnan()] = _UNLABELLED
    # One sort of numbers that hold score and label is many times faster than one that also tracks positions.
    keys = _sort_rows((_ordered(scores) << 2) | code)
    positive, negative = keys & 3 == _POSITIVE, keys & 3 == _NEGATIVE
    below = negative.cumsum(dim=1)  # among equal scores negatives stand first: those at or below a positive's score
    starts = torch.ones_like(positive)
    starts[:, 1:] = keys[:, 1:] >> 2 != keys[:, :-1] >> 2
    strictly = ((below - negative.long()) * starts).cummax(dim=1).values  # negatives before the run of equal scores
    halves = ((below + strictly) * positive).sum(dim=1).double()
    pairs = (positive.sum(dim=1) * negative.sum(dim=1)).double()
    return halves / (2 * pairs)  # 0 / 0 is NaN


def _ordered(scores: Tensor) -> Tensor:
    """int64 numbers of at most 61 bits in the order of the scores, equal where the scores are equal."""
    if scores.dtype in (torch.float32, torch.float16, torch.bfloat16):
        bits = (scores.float() + 0.0).contiguous().view(torch.int32)  # -0.0 becomes 0.0
        return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return scores.unique(return_inverse=True)[1]


def _sort_rows(keys: Tensor) -> Tensor:
    if keys.device.type == "cpu":  # numpy sorts integers several times faster than torch does
        return torch.from_numpy(np.sort(keys.numpy(), axis=1))
    return keys.sort(dim=1).values
