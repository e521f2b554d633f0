"""How many other nodes have the very same features, a score without a model."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.outliers._base import Detector
from graphlossy.outliers._checks import Graph
from graphlossy.outliers._rows import other_copies

__all__ = ["FeatureCopies"]


class FeatureCopies(Detector):
    """Scores a node by the number of other nodes whose features are exactly its own.

    The published injection of contextual outliers overwrites x_i with another node's row, so that an outlier is a copy;
    where features are continuous or long, hardly any other node is. On inj_cora and inj_amazon this finds contextual
    outliers with an AUC of .98 and .99, better than their norm does.

    Args:
        **base: contamination, seed (:class:`~graphlossy.outliers.Detector`); the seed changes nothing.

    Example:
        >>> from torch_geometric.data import Data
        >>> FeatureCopies().fit(Data(x=torch.tensor([[3.0, 4.0], [0.0, 1.0], [3.0, 4.0]]))).decision_score_
        tensor([1., 0., 1.])
    """

    name, title, paper = "copies", "Copies", "no model: other nodes with the same features"
    seeded, memory = False, "O(n)"
    needs, inductive = ("x",), True

    def _score(self, graph: Graph) -> Tensor:
        return torch.from_numpy(other_copies(graph.x.cpu().numpy())).float()

    def _score_new(self, graph: Graph) -> Tensor:
        return self._score(graph)
