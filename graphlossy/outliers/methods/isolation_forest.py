"""Isolation forest on the features, scikit-learn's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphlossy.outliers._base import Detector
from graphlossy.outliers._checks import Graph, check_number

__all__ = ["IsolationForest"]


class IsolationForest(Detector):
    """Isolation forest (Liu, Ting and Zhou, ICDM 2008, equation 2) on the features; edges are not read.

    score_i = 2^(-E[h(x_i)] / c(psi)) in (0, 1], h the depth at which random cuts have isolated x_i and c(psi) the mean
    depth among psi samples: the fewer cuts, the greater the score. The work is done by
    ``sklearn.ensemble.IsolationForest``, which this class wraps.

    The published figures of the BOND benchmark have the opposite sign, high for normal nodes: set 1 - AUC beside them.

    Args:
        n_estimators: trees, at least 1.
        max_samples: psi, nodes drawn for a tree, at least 2; at most N are taken.
        **base: contamination, seed (:class:`~graphlossy.outliers.Detector`).

    Raises:
        ImportError: scikit-learn is missing.

    Example:
        >>> from torch_geometric.data import Data
        >>> x = torch.cat([torch.linspace(0, 1, 19), torch.tensor([9.0])]).unsqueeze(1)
        >>> int(IsolationForest(seed=0).fit(Data(x=x)).decision_score_.argmax())
        19
    """

    name, title, paper = "if", "IF", "Liu, Ting and Zhou, Isolation Forest, ICDM 2008"
    seeded, memory = True, "O(n d)"
    needs, inductive = ("x",), True

    def __init__(self, *, n_estimators: int = 100, max_samples: int = 256, **base: Any) -> None:
        super().__init__(**base)
        self.n_estimators = check_number("n_estimators", n_estimators, 1, integer=True)
        self.max_samples = check_number("max_samples", max_samples, 2, integer=True)

    def _score(self, graph: Graph) -> Tensor:
        try:
            from sklearn.ensemble import IsolationForest as Forest
        except ImportError as error:
            raise ImportError("IF needs scikit-learn: pip install graphlossy[outliers]") from error
        samples = min(self.max_samples, graph.num_nodes)
        forest = Forest(n_estimators=self.n_estimators, max_samples=samples, random_state=self.seed_ % 2**32)
        self.model_ = forest.fit(graph.x.cpu().numpy())
        return self._score_new(graph)

    def _score_new(self, graph: Graph) -> Tensor:
        if graph.num_features != self.model_.n_features_in_:
            raise ValueError(
                f"IF was fitted to {self.model_.n_features_in_} features a node, this graph has "
                f"{graph.num_features}: they must agree"
            )
        # scikit-learn's score_samples is minus the paper's score.
        return -torch.from_numpy(self.model_.score_samples(graph.x.cpu().numpy()))
