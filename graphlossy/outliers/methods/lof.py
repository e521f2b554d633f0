"""Local outlier factor on the features, scikit-learn's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphlossy.outliers._base import Detector
from graphlossy.outliers._checks import Graph, check_number

__all__ = ["LOF"]


class LOF(Detector):
    """Local outlier factor (Breunig et al., SIGMOD 2000, definition 7) of the features; edges are not read.

    score_i = mean over the k nearest neighbours o of i of lrd(o) / lrd(i), the local reachability density of i's
    neighbours against its own: about 1 inside a cluster, greater outside. The work is done by
    ``sklearn.neighbors.LocalOutlierFactor``, which this class wraps.

    By default the nodes are scored as if they were new ones, so that a node is its own first neighbour: the published
    figures of the BOND benchmark were made so, and are deterministic (AUC .365 on books, .699 on inj_cora).

    Args:
        n_neighbors: k, at least 1; at most N - 1 are taken.
        exclude_self: True scores a node among the others only, as in the definition.
        **base: contamination, seed (:class:`~graphlossy.outliers.Detector`); the seed changes nothing.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: the graph has a single node.

    Example:
        >>> from torch_geometric.data import Data
        >>> x = torch.tensor([[0.0], [0.1], [0.2], [9.0]])
        >>> LOF(n_neighbors=2, contamination=0.25).fit(Data(x=x)).label_
        tensor([0, 0, 0, 1])
    """

    name, title, paper = "lof", "LOF", "Breunig et al., LOF: Identifying Density-Based Local Outliers, SIGMOD 2000"
    seeded, memory = False, "O(n d + n k)"
    needs, inductive = ("x",), True

    def __init__(self, *, n_neighbors: int = 20, exclude_self: bool = False, **base: Any) -> None:
        super().__init__(**base)
        self.n_neighbors = check_number("n_neighbors", n_neighbors, 1, integer=True)
        if not isinstance(exclude_self, bool):
            raise TypeError(f"exclude_self must be True or False, got {exclude_self!r}")
        self.exclude_self = exclude_self

    def _score(self, graph: Graph) -> Tensor:
        if graph.num_nodes < 2:
            raise ValueError("LOF compares a node with its neighbours: the graph must have at least 2 nodes, it has 1")
        try:
            from sklearn.neighbors import LocalOutlierFactor
        except ImportError as error:
            raise ImportError("LOF needs scikit-learn: pip install graphlossy[outliers]") from error
        x = graph.x.cpu().numpy()
        k = min(self.n_neighbors, graph.num_nodes - 1)
        self.model_ = LocalOutlierFactor(n_neighbors=k, novelty=True).fit(x)
        # scikit-learn's signs: the greater, the more normal.
        score = self.model_.negative_outlier_factor_ if self.exclude_self else self.model_.score_samples(x)
        return -torch.from_numpy(score)

    def _score_new(self, graph: Graph) -> Tensor:
        if graph.num_features != self.model_.n_features_in_:
            raise ValueError(
                f"LOF was fitted to {self.model_.n_features_in_} features a node, this graph has "
                f"{graph.num_features}: they must agree"
            )
        return -torch.from_numpy(self.model_.score_samples(graph.x.cpu().numpy()))
