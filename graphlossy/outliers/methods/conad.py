"""CONAD: DOMINANT's autoencoder that is also shown nodes it has made outlying itself."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from graphlossy.outliers._checks import Graph, check_number, coalesced
from graphlossy.outliers.methods.dominant import DOMINANT
from graphlossy.outliers.structure import root

__all__ = ["CONAD", "augment"]


class CONAD(DOMINANT):
    """Contrastive attributed network anomaly detection with data augmentation (Xu et al., PAKDD 2022).

    In each epoch a share ``r`` of the nodes is made outlying in one of four ways (:func:`augment`), and the encoder is
    to tell them by their embeddings h, against h' of the changed graph (equation 4):

        contrast_i = ||h_i - h'_i||_2 for the nodes left alone, max(0, margin - ||h_i - h'_i||_2) for the changed ones.

    The loss is eta mean(score) + (1 - eta) mean(contrast), with DOMINANT's score. PyGOD's contrast is the margin
    ranking loss of h against itself, a constant, so that it trains DOMINANT with the loss times eta; here the paper's
    is used. With ``eta=1`` both are DOMINANT.

    Args:
        eta: weight of the reconstruction against the contrast, in [0, 1].
        margin: least distance of the embeddings of a changed node.
        r: share of the nodes that are changed.
        m: edges given to a node of the high-degree kind.
        k: candidates among which the most deviating features are looked for.
        f: factor of the disproportionate features.
        **dominant: of :class:`DOMINANT`.

    Example:
        >>> from torch_geometric.data import Data
        >>> data = Data(x=torch.rand(30, 8), edge_index=torch.randint(30, (2, 90)))
        >>> CONAD(hid_dim=8, epoch=5, m=5, k=5, seed=0).fit(data).decision_score_.shape
        torch.Size([30])
    """

    name: ClassVar[str] = "conad"
    title: ClassVar[str] = "CONAD"
    paper: ClassVar[str] = (
        "Xu et al., Contrastive Attributed Network Anomaly Detection with Data Augmentation, PAKDD 2022"
    )
    memory: ClassVar[str] = "O(E + r N m + N (F + d))"

    def __init__(
        self,
        *,
        eta: float = 0.5,
        margin: float = 0.5,
        r: float = 0.2,
        m: int = 50,
        k: int = 50,
        f: float = 10.0,
        **dominant: Any,
    ) -> None:
        super().__init__(**dominant)
        self.eta = float(check_number("eta", eta, 0, 1))
        self.margin = float(check_number("margin", margin, 0))
        self.r = float(check_number("r", r, 0, 1))
        self.m = check_number("m", m, 1, integer=True)
        self.k = check_number("k", k, 1, integer=True)
        self.f = float(check_number("f", f, 0, open_low=True))

    def _loss(self, module: nn.Module, graph: Graph) -> tuple[Tensor, Tensor]:
        hidden, rebuilt, z = module(graph)
        score = self._errors(graph, rebuilt, z)
        if not module.training or self.eta == 1:
            return score, score.mean()
        changed, which = augment(graph, self.r, self.m, self.k, self.f)
        distance = root((hidden - module.encoder(changed.x, changed.gcn_adjacency)).square().sum(1))
        contrast = torch.where(which, (self.margin - distance).clamp(min=0), distance)
        return score, self.eta * score.mean() + (1 - self.eta) * contrast.mean()


def augment(graph: Graph, r: float, m: int, k: int, f: float) -> tuple[Graph, Tensor]:
    """A copy of the graph in which about r N nodes are outlying (Xu et al., PAKDD 2022, section 3.1).

    Each node is changed with probability r, in one of four ways of equal probability: m edges to nodes drawn at random
    (high degree); no edges (outlying); the features of that one of k nodes drawn at random that differ most (deviated);
    features times f, or divided by f (disproportionate). Edges are added and removed in both directions.

    Args:
        graph: left as it is.
        r, m, k, f: as in :class:`CONAD`.

    Returns:
        The changed graph, and which nodes were changed, [N] bool. Random by torch's generator.

    Example:
        >>> from graphlossy.outliers._checks import coalesced
        >>> graph = Graph(torch.rand(100, 4), coalesced(torch.randint(100, (2, 300)), 100), 100)
        >>> augment(graph, 0.0, 5, 5, 10.0)[1].any().item()
        False
    """
    n, device = graph.num_nodes, graph.device
    kind = (torch.rand(n, device=device) * (4 / r)).floor() if r else torch.full((n,), 4.0, device=device)
    hub = (kind == 0).nonzero().squeeze(1)
    ends = torch.randint(n, (hub.numel(), m), device=device)
    added = torch.stack([hub.repeat_interleave(m), ends.flatten()])
    added = added[:, added[0] != added[1]]
    alone = kind == 1
    edges = torch.cat([graph.edge_index, added, added.flip(0)], 1)
    edges = edges[:, ~(alone[edges[0]] | alone[edges[1]])]

    x = graph.x.clone()
    deviated = (kind == 2).nonzero().squeeze(1)
    candidates = graph.x[torch.randint(n, (k,), device=device)]
    x[deviated] = candidates[torch.cdist(graph.x[deviated], candidates).argmax(1)]
    scaled = kind == 3
    larger = torch.rand(n, device=device) < 0.5
    x[scaled & larger] *= f
    x[scaled & ~larger] /= f
    return Graph(x, coalesced(edges, n), n), kind < 4
