"""The number of neighbours, a score without a model."""

from __future__ import annotations

from torch import Tensor

from graphlossy.outliers._base import Detector
from graphlossy.outliers._checks import Graph

__all__ = ["Degree"]


class Degree(Detector):
    """Scores a node by its number of distinct neighbours; directions and self loops are left out.

    score_i = |{j != i : (i, j) or (j, i) is an edge}|. Structural outliers are injected as cliques (Ding et al., SDM
    2019, section 5.1), whose nodes gain neighbours, so this alone finds most of them: a row that every table of
    injected outliers should have.

    Args:
        **base: contamination, seed (:class:`~graphlossy.outliers.Detector`); the seed changes nothing.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> Degree().fit(Data(num_nodes=3, edge_index=torch.tensor([[0, 0], [1, 2]]))).decision_score_
        tensor([2., 1., 1.])
    """

    name, title, paper = "degree", "Degree", "no model: the number of neighbours"
    seeded, memory = False, "O(m)"
    needs, inductive = ("edges",), True

    def _score(self, graph: Graph) -> Tensor:
        return graph.without_self_loops.undirected.degrees.float()

    def _score_new(self, graph: Graph) -> Tensor:
        return self._score(graph)
