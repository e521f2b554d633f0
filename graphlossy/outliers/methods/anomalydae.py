"""AnomalyDAE: one autoencoder for the edges, one for the features, and the product of their embeddings."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from graphlossy.outliers._checks import Graph, check_number
from graphlossy.outliers._deep import DeepDetector
from graphlossy.outliers.structure import (
    attribute_error,
    check_structure,
    dense_structure_error,
    sampled_structure_error,
    weight_pair,
)

__all__ = ["AnomalyDAE"]


class _Network(nn.Module):
    def __init__(self, graph: Graph, emb_dim: int, hid_dim: int, dropout: float, bits: int | None) -> None:
        super().__init__()
        from graphlossy.nn import GATConv  # loads PyG

        self.structure = nn.Linear(graph.num_features, emb_dim)
        self.attention = GATConv(emb_dim, hid_dim, bits=bits)  # packs what it keeps itself
        self.attribute_1 = nn.Linear(graph.num_nodes, emb_dim)
        self.attribute_2 = nn.Linear(emb_dim, hid_dim)
        self.dropout = dropout

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def forward(self, graph: Graph, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings Z of the nodes [N, d], and the rebuilt features [N, F]; ``columns`` is X^T."""
        z = self.attention(self._drop(F.relu(self.structure(graph.x))), graph.edge_index)
        features = self._drop(F.relu(self.attribute_1(columns)))
        return z, z @ self._drop(self.attribute_2(features)).t()


class AnomalyDAE(DeepDetector):
    """Dual autoencoder for anomaly detection on attributed networks (Fan, Zhang and Li, ICASSP 2020).

    A graph attention layer makes the node embeddings Z, two dense layers over the columns of X the feature embeddings
    V; A is rebuilt as sigmoid(Z Z^T) (equation 6) and X as Z V^T (equation 9). The score of node i (equation 11), and
    its part of the loss, is

        (1 - alpha) ||(x_i - x'_i) . sqrt(h_i)||_2 + alpha ||(a_i - s_i) . sqrt(t_i)||_2,

    with h = eta / (1 + eta) on positive features, 1 / (1 + eta) elsewhere, and t likewise from theta on edges: the
    paper's weights, scaled to sum 1 and, as in PyGOD, on the squares.

    The dense layer over the columns of X has one weight for each node, so the detector is transductive.

    Args:
        emb_dim: width of the first layers.
        alpha: of the structure against the features, in [0, 1].
        theta: weight of an edge against that of no edge, at least 0.
        eta: weight of a positive feature against that of a zero, at least 0.
        structure: ``"sampled"`` (all edges, and unbiased for the other entries) or ``"dense"``, O(N^2); the sigmoid has
            no exact form.
        samples: columns drawn in each epoch, for ``"sampled"``; 16,384 at least in the last, whose errors are the
            scores. From N on it is the dense form.
        **deep: of :class:`~graphlossy.outliers.DeepDetector`; hid_dim is d; num_layers is not used.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> data = Data(x=torch.rand(30, 8), edge_index=torch.randint(30, (2, 90)))
        >>> AnomalyDAE(hid_dim=8, epoch=5, theta=10, seed=0).fit(data).decision_score_.shape
        torch.Size([30])
    """

    name: ClassVar[str] = "anomalydae"
    title: ClassVar[str] = "AnomalyDAE"
    paper: ClassVar[str] = "Fan et al., AnomalyDAE: Dual Autoencoder for Anomaly Detection, ICASSP 2020"
    memory: ClassVar[str] = "O(E + N (F + d)) sampled, O(N N) dense"

    def __init__(
        self,
        *,
        emb_dim: int = 64,
        alpha: float = 0.5,
        theta: float = 1.0,
        eta: float = 1.0,
        structure: str = "sampled",
        samples: int = 256,
        **deep: Any,
    ) -> None:
        super().__init__(**deep)
        self.emb_dim = check_number("emb_dim", emb_dim, 1, integer=True)
        self.alpha = float(check_number("alpha", alpha, 0, 1))
        self.theta = float(check_number("theta", theta, 0))
        self.eta = float(check_number("eta", eta, 0))
        self.structure = check_structure(structure, ("sampled", "dense"), self.title)
        self.samples = check_number("samples", samples, 1, integer=True)

    def _build(self, graph: Graph) -> nn.Module:
        self._columns = graph.x.t().contiguous()
        return _Network(graph, self.emb_dim, self.hid_dim, self.dropout, self.bits)

    def _loss(self, module: nn.Module, graph: Graph) -> tuple[Tensor, Tensor]:
        z, rebuilt = module(graph, self._columns)
        weights = weight_pair(self.theta / (1 + self.theta))
        if self.structure == "dense":
            edges = dense_structure_error(z, graph, weights=weights, decoder="sigmoid", rooted=True)
        else:
            drawn = self._columns_drawn(self.samples)
            edges = sampled_structure_error(z, graph, samples=drawn, weights=weights, rooted=True)
        features = attribute_error(graph.x, rebuilt, weight_pair(self.eta / (1 + self.eta)))
        score = (1 - self.alpha) * features + self.alpha * edges
        return score, score.mean()

    @classmethod
    def fixed(cls, dataset: str) -> dict[str, Any]:
        """Our 100 epochs for every engine: PyGOD's own default is 5, which trains next to nothing."""
        return {"epoch": 100}

    @classmethod
    def search_space(cls, dataset: str) -> dict[str, tuple[Any, ...]]:
        drawn = {"alpha": (0.8, 0.5, 0.2), "theta": (10.0, 40.0, 90.0), "eta": (3.0, 5.0, 8.0)}
        return {**super().search_space(dataset), **drawn}
