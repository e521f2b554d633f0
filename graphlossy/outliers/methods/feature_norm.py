"""The Euclidean norm of the features, a score without a model."""

from __future__ import annotations

from torch import Tensor

from graphlossy.outliers._base import Detector
from graphlossy.outliers._checks import Graph

__all__ = ["FeatureNorm"]


class FeatureNorm(Detector):
    """Scores a node by the norm of its features: score_i = ||x_i||_2, over the features that differ between nodes.

    Contextual outliers are injected by overwriting x_i with the farthest of k candidate rows, which is mostly a row of
    great norm (Liu et al., VGOD, ICDE 2023, section III), so this alone finds most of them: a row that every table of
    injected outliers should have.

    Args:
        **base: contamination, seed (:class:`~graphlossy.outliers.Detector`); the seed changes nothing.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> FeatureNorm().fit(Data(x=torch.tensor([[3.0, 4.0], [0.0, 1.0]]))).decision_score_
        tensor([5., 1.])
    """

    name, title, paper = "norm", "Norm", "no model: the norm of the features"
    seeded, memory = False, "O(n)"
    needs, inductive = ("x",), True

    def _score(self, graph: Graph) -> Tensor:
        return graph.varying_x.norm(dim=1)

    def _score_new(self, graph: Graph) -> Tensor:
        return self._score(graph)
