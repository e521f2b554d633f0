"""The greater of a node's ranks by degree and by feature norm, a score without a model."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.outliers._base import Detector
from graphlossy.outliers._checks import Graph
from graphlossy.outliers.methods.degree import Degree
from graphlossy.outliers.methods.feature_norm import FeatureNorm

__all__ = ["MaxRank", "average_rank"]


def average_rank(score: Tensor) -> Tensor:
    """Ranks from 1 (least) to N in float64, equal scores sharing the mean of their ranks.

    Example:
        >>> average_rank(torch.tensor([5.0, 1.0, 5.0]))
        tensor([2.5000, 1.0000, 2.5000], dtype=torch.float64)
    """
    _, group, count = torch.unique(score, return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count.double() - 1) / 2)[group]


class MaxRank(Detector):
    """Scores a node by max(rank(degree), rank(||x||_2)) / N: what the injection of outliers gives away without a model.

    A node with many neighbours or with features of great norm ranks high. On inj_cora and inj_amazon this reaches a
    greater AUC than most published methods.

    Args:
        **base: contamination, seed (:class:`~graphlossy.outliers.Detector`); the seed changes nothing.

    Example:
        >>> from torch_geometric.data import Data
        >>> data = Data(x=torch.tensor([[1.0], [2.0], [3.0]]), edge_index=torch.tensor([[0, 0], [1, 2]]))
        >>> MaxRank().fit(data).decision_score_
        tensor([1.0000, 0.6667, 1.0000])
    """

    name, title, paper = "maxrank", "MaxRank", "no model: the greater of the ranks by degree and by norm"
    seeded, memory = False, "O(m)"

    def _score(self, graph: Graph) -> Tensor:
        degree, norm = Degree()._score(graph), FeatureNorm()._score(graph)
        return torch.maximum(average_rank(degree), average_rank(norm)) / graph.num_nodes
