"""What can be told about outliers without a model: how much of an injection shows in degrees, norms and copied rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from graphlossy.outliers._checks import prepare
from graphlossy.outliers._labels import labels, types
from graphlossy.outliers.methods.copies import FeatureCopies
from graphlossy.outliers.methods.degree import Degree
from graphlossy.outliers.methods.feature_norm import FeatureNorm
from graphlossy.outliers.methods.max_rank import MaxRank
from graphlossy.outliers.metrics import roc_auc

__all__ = ["leak_report", "model_free_scores"]


def model_free_scores(data: Any) -> dict[str, Tensor]:
    """Scores that need no model, [N] each, higher for what an injection makes.

    ===========  ================================================================================================
    ``degree``   neighbours of a node
    ``norm``     ||x_i||_2
    ``maxrank``  the greater of the ranks of these two, over N; equal values share their mean rank
    ``copies``   other nodes with the very same features: published contextual outliers are copies of other rows
    ===========  ================================================================================================

    Args:
        data: PyG ``Data`` with x [N, F] and edge_index [2, E].

    Raises:
        TypeError, ValueError: the graph cannot be used.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> data = Data(x=torch.tensor([[3.0], [4.0], [4.0]]), edge_index=torch.tensor([[0, 1], [1, 0]]))
        >>> {name: score.tolist() for name, score in model_free_scores(data).items() if name != "maxrank"}
        {'degree': [1.0, 1.0, 0.0], 'norm': [3.0, 4.0, 4.0], 'copies': [0.0, 1.0, 1.0]}
    """
    graph = prepare(data).to("cpu")
    return {kind.name: kind().fit(graph).decision_score_ for kind in (Degree, FeatureNorm, MaxRank, FeatureCopies)}


def leak_report(data: Any) -> dict[str, dict[str, float]]:
    """ROC-AUC of :func:`model_free_scores`, over all outliers and by type: 0.5 where nothing leaks.

    On the published sets ``maxrank`` scores .876 (inj_cora) and .924 (inj_amazon), above most methods of the benchmark;
    ``copies`` finds their contextual outliers with .981 and .993, ``degree`` the structural ones with .970 and .934.
    The outliers of a type are set against all other nodes, as BOND does.

    Args:
        data: PyG ``Data`` with labels, as :func:`graphlossy.outliers.load` makes it.

    Returns:
        ``{"all": {"degree": auc, "norm": auc, ...}, "contextual": ..., "structural": ...}``; the types that occur and
        are known.

    Raises:
        TypeError, ValueError: the graph cannot be used, or has no labels of outliers.

    Example:
        >>> from graphlossy.outliers.data import load
        >>> for name in "inj_wordnet", "inj_wordnet_leakfree":
        ...     print(name, {row: round(auc, 1) for row, auc in leak_report(load(name))["all"].items()})
        inj_wordnet {'degree': 0.7, 'norm': 0.8, 'maxrank': 0.9, 'copies': 0.7}
        inj_wordnet_leakfree {'degree': 0.5, 'norm': 0.5, 'maxrank': 0.5, 'copies': 0.5}
    """
    kinds = {"all": labels(data), **types(data)}
    scores = model_free_scores(data)
    return {kind: {name: roc_auc(score, mask) for name, score in scores.items()} for kind, mask in kinds.items()}
