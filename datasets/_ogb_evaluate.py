"""Scores as OGB's leaderboards compute them."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from torch import Tensor

from graphlossy.datasets._facts import FACTS
from graphlossy.datasets._ogb_download import import_ogb

__all__ = ["ogb_evaluate"]


def ogb_evaluate(name: str, y_true: Any, y_pred: Any) -> float:
    """The score of predictions by OGB's official ``Evaluator`` where ``ogb`` is installed, else the same computed here.

    Args:
        name: of an OGB data set, or of a stand-in, which is scored like its original.
        y_true: labels as a tensor or array: class numbers [N] or [N, 1]; or 0, 1 and NaN (not known) [N, T].
        y_pred: predicted class numbers of the same shape for accuracy; scores [N, T] for ROC-AUC.

    Returns:
        Accuracy, or the mean ROC-AUC of the tasks that have both labels, between 0 and 1.

    Raises:
        ValueError: the name is unknown, the shapes differ, or no task has both labels.

    Example:
        >>> from graphlossy.datasets import ogb_evaluate
        >>> ogb_evaluate("ogbn-arxiv", np.array([0, 3, 5, 5]), np.array([0, 3, 5, 1]))
        0.75
    """
    reference = FACTS[name].reference if name in FACTS else None
    if reference is None:
        known = ", ".join(entry.name for entry in FACTS.values() if entry.reference)
        raise ValueError(f"name must be a data set of an OGB leaderboard, {known}; got {name!r}")
    entry = FACTS[reference]
    true, predicted = _columns(y_true), _columns(y_pred)
    tasks = entry.classes if entry.metric == "rocauc" else 1
    if true.shape != predicted.shape or true.shape[1] != tasks:
        raise ValueError(
            f"y_true and y_pred must both be [nodes, {tasks}] for {name}, got {list(true.shape)}, "
            f"{list(predicted.shape)}"
        )
    if entry.metric == "rocauc" and not any(_both(column) for column in true.T):
        raise ValueError("y_true must have a task with both 0 and 1 in it; it has none")
    if importlib.util.find_spec("ogb") is not None:
        evaluator = import_ogb("ogb.nodeproppred.evaluate").Evaluator(reference)
        return float(next(iter(evaluator.eval({"y_true": true, "y_pred": predicted}).values())))
    return _own(entry.metric, true, predicted)


def _own(metric: str, true: np.ndarray, predicted: np.ndarray) -> float:
    if metric == "accuracy":
        known = true == true
        return float((true == predicted)[known].mean())
    return float(np.mean([_area(a, b) for a, b in zip(true.T, predicted.T, strict=True) if _both(a)]))


def _both(column: np.ndarray) -> bool:
    return bool((column == 1).any() and (column == 0).any())


def _area(true: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve of one task by ranks; equal scores share their mean rank."""
    known = true == true
    positive = true[known] == 1
    _, place, counts = np.unique(scores[known], return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2
    ones = int(positive.sum())
    return (rank[place][positive].sum() - ones * (ones + 1) / 2) / (ones * (len(positive) - ones))


def _columns(value: Any) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return array[:, None] if array.ndim == 1 else array
