"""Scores drawn at random: what chance reaches."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.outliers._base import Detector
from graphlossy.outliers._checks import Graph

__all__ = ["RandomScore"]


class RandomScore(Detector):
    """Scores a node by a uniform draw from [0, 1): the row that shows what chance reaches.

    Args:
        **base: contamination, seed (:class:`~graphlossy.outliers.Detector`).

    Example:
        >>> from torch_geometric.data import Data
        >>> a, b = (RandomScore(seed=1).fit(Data(num_nodes=5)).decision_score_ for _ in range(2))
        >>> torch.equal(a, b)
        True
    """

    name, title, paper = "random", "Random", "no model: uniform draws"
    seeded, memory = True, "O(n)"
    needs = ()

    def _score(self, graph: Graph) -> Tensor:
        return torch.rand(graph.num_nodes, generator=torch.Generator().manual_seed(self.seed_))
