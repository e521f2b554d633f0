"""GUIDE: rebuilds features, and counts of small patterns in place of rows of the adjacency matrix."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphlossy.autograd import CSRGraph, gat_attention
from graphlossy.outliers._checks import Graph, check_number, coalesced
from graphlossy.outliers._deep import DeepDetector
from graphlossy.outliers._layers import GCN, split_layers
from graphlossy.outliers.motifs import MOTIFS, motif_degrees
from graphlossy.outliers.structure import attribute_error

__all__ = ["GUIDE"]


def _looped(graph: Graph, device: str) -> CSRGraph:
    """The edges of a graph and one from each node to itself, from neighbours to the nodes that attend to them."""
    nodes = torch.arange(graph.num_nodes, device=graph.device)
    edges = coalesced(torch.cat([graph.edge_index.flip(0), torch.stack([nodes, nodes])], 1), graph.num_nodes)
    return CSRGraph(edges.flip(0).to(device), None, graph.num_nodes, graph.num_nodes)


class _AttentionLayer(nn.Module):
    """W1 s_i + sum_j a_ij W2 s_j over the neighbours j of i and i itself, a_ij = softmax_j of v . W2 (s_i - s_j).

    The graph node attention of GUIDE which attends to differences. v . W2 s_i is the same for all j, so the softmax
    does not depend on it: this is graph attention with the scores -v . W2 s_j, of which nothing is kept for an edge.
    """

    def __init__(self, in_channels: int, out_channels: int, bits: int | None) -> None:
        super().__init__()
        self.own = nn.Linear(in_channels, out_channels)
        self.other = nn.Linear(in_channels, out_channels)
        self.attention = nn.Parameter(torch.randn(out_channels))
        self.bits = bits

    def forward(self, s: Tensor, looped: CSRGraph) -> Tensor:
        scores = -self.attention.view(1, 1, -1)
        found = gat_attention(looped, self.other(s).unsqueeze(1), scores, None, negative_slope=1.0, bits=self.bits)
        return self.own(s) + found.squeeze(1)


class _Attention(nn.Module):
    """Layers of it, each followed by dropout and ReLU."""

    def __init__(self, widths: list[int], dropout: float, bits: int | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_AttentionLayer(a, b, bits) for a, b in zip(widths, widths[1:], strict=False))
        self.dropout = dropout

    def forward(self, s: Tensor, looped: CSRGraph) -> Tensor:
        for layer in self.layers:
            s = F.relu(F.dropout(layer(s, looped), self.dropout, self.training))
        return s


class _Network(nn.Module):
    def __init__(
        self, num_features: int, hid_dim: int, hid_s: int, num_layers: int, dropout: float, bits: int | None
    ) -> None:
        super().__init__()
        encoding, decoding = split_layers(num_layers)
        self.num_features = num_features
        self.attribute_encoder = GCN(num_features, hid_dim, hid_dim, encoding, dropout)
        self.attribute_decoder = GCN(hid_dim, hid_dim, num_features, decoding, dropout)
        motifs = len(MOTIFS)
        self.structure_encoder = _Attention([motifs, *[hid_s] * encoding], dropout, bits)
        self.structure_decoder = _Attention([*[hid_s] * decoding, motifs], dropout, bits)

    def forward(self, graph: Graph, motifs: Tensor, looped: CSRGraph) -> tuple[Tensor, Tensor]:
        rebuilt = self.attribute_decoder(self.attribute_encoder(graph.x, graph.gcn_adjacency), graph.gcn_adjacency)
        return rebuilt, self.structure_decoder(self.structure_encoder(motifs, looped), looped)


class GUIDE(DeepDetector):
    """Higher-order structure based anomaly detection on attributed networks (Yuan et al., IEEE BigData 2021).

    One autoencoder for the features, of graph convolutions, and one for the motif degrees m_i of a node (triangles,
    open triangles, four-cliques, diamonds, four-cycles and edges; :func:`graphlossy.outliers.motifs.motif_degrees`), of
    graph node attention. The score of node i, and its part of the loss, is

        alpha ||x_i - x'_i||_2 + (1 - alpha) ||m_i - m'_i||_2.

    The counts go in as they are, as in the paper; on graphs with hubs they outweigh the features by far.

    Args:
        hid_s: width of the hidden layers of the motif autoencoder.
        alpha: of the features against the motifs, in [0, 1].
        **deep: of :class:`~graphlossy.outliers.DeepDetector`; hid_dim is of the feature autoencoder, num_layers at
            least 2.

    Example:
        >>> from torch_geometric.data import Data
        >>> data = Data(x=torch.rand(30, 8), edge_index=torch.randint(30, (2, 90)))
        >>> GUIDE(hid_dim=8, epoch=5, seed=0).fit(data).decision_score_.shape
        torch.Size([30])
    """

    name: ClassVar[str] = "guide"
    title: ClassVar[str] = "GUIDE"
    paper: ClassVar[str] = (
        "Yuan et al., Higher-order Structure Based Anomaly Detection on Attributed Networks, IEEE BigData 2021"
    )
    memory: ClassVar[str] = "O(E + N (F + d)); motifs counted in O(E sqrt(E)) time, four-cliques in O(E E)"
    inductive: ClassVar[bool] = True

    def __init__(self, *, hid_s: int = 4, alpha: float = 0.5, **deep: Any) -> None:
        super().__init__(**deep)
        split_layers(self.num_layers)
        self.hid_s = check_number("hid_s", hid_s, 1, integer=True)
        self.alpha = float(check_number("alpha", alpha, 0, 1))

    def _score(self, graph: Graph) -> Tensor:
        self._count_motifs(graph)
        return super()._score(graph)

    def _score_new(self, graph: Graph) -> Tensor:
        kept = self._motifs, self._looped
        self._count_motifs(graph)
        try:
            return super()._score_new(graph)
        finally:
            self._motifs, self._looped = kept

    def _count_motifs(self, graph: Graph) -> None:
        self._motifs = motif_degrees(graph).float().to(self.device)
        self._looped = _looped(graph, self.device)

    def _build(self, graph: Graph) -> nn.Module:
        return _Network(graph.num_features, self.hid_dim, self.hid_s, self.num_layers, self.dropout, self.bits)

    def _loss(self, module: nn.Module, graph: Graph) -> tuple[Tensor, Tensor]:
        rebuilt, motifs = module(graph, self._motifs, self._looped)
        score = self.alpha * attribute_error(graph.x, rebuilt) + (1 - self.alpha) * attribute_error(
            self._motifs, motifs
        )
        return score, score.mean()

    @classmethod
    def search_space(cls, dataset: str) -> dict[str, tuple[Any, ...]]:
        return {**super().search_space(dataset), "hid_s": (4, 5, 6), "alpha": (0.8, 0.5, 0.2)}
