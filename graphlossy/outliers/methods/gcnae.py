"""GCNAE: a graph convolutional autoencoder of the features alone."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from graphlossy.outliers._checks import Graph
from graphlossy.outliers._deep import DeepDetector
from graphlossy.outliers._layers import GCN, split_layers

__all__ = ["GCNAE"]


class _Network(nn.Module):
    def __init__(self, num_features: int, hid_dim: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        encoding, decoding = split_layers(num_layers)
        self.num_features = num_features
        self.encoder = GCN(num_features, hid_dim, hid_dim, encoding, dropout)
        self.decoder = GCN(hid_dim, hid_dim, num_features, decoding, dropout)

    def forward(self, graph: Graph) -> Tensor:
        return self.decoder(self.encoder(graph.x, graph.gcn_adjacency), graph.gcn_adjacency)


class GCNAE(DeepDetector):
    """The graph autoencoder of Kipf and Welling (2016) as BOND uses it: it rebuilds features, not edges.

    The score of node i is the mean over the features of (x_i - x'_i)^2 (Liu et al., BOND, NeurIPS 2022, section 3.2),
    and the loss the mean of the scores. PyGOD calls it GAE.

    Args:
        **deep: of :class:`~graphlossy.outliers.DeepDetector`; num_layers at least 2.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> data = Data(x=torch.rand(30, 8), edge_index=torch.randint(30, (2, 90)))
        >>> GCNAE(hid_dim=8, epoch=5, seed=0).fit(data).decision_score_.shape
        torch.Size([30])
    """

    name: ClassVar[str] = "gcnae"
    title: ClassVar[str] = "GCNAE"
    paper: ClassVar[str] = "Kipf and Welling, Variational Graph Auto-Encoders, NeurIPS workshop 2016"
    memory: ClassVar[str] = "O(E + N (F + d))"
    inductive: ClassVar[bool] = True

    def __init__(self, **deep: Any) -> None:
        super().__init__(**deep)
        split_layers(self.num_layers)

    def _build(self, graph: Graph) -> nn.Module:
        return _Network(graph.num_features, self.hid_dim, self.num_layers, self.dropout)

    def _loss(self, module: nn.Module, graph: Graph) -> tuple[Tensor, Tensor]:
        score = (graph.x - module(graph)).square().mean(1)
        return score, score.mean()
