"""CoLA: does a node fit its surroundings better than those of another node?"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphlossy.outliers._checks import Graph, check_number
from graphlossy.outliers._deep import seeded
from graphlossy.outliers._layers import GCN
from graphlossy.outliers.methods._networks import needs_two_nodes
from graphlossy.outliers.methods._sampled import SampledDetector
from graphlossy.outliers.methods._walks import LocalGraphs, walk_contexts

__all__ = ["CoLA"]

_CONTEXTS = ("walk", "neighborhood")
_CHUNK = 1 << 14  # targets scored at a time


class _WalkContrast(nn.Module):
    """One graph convolution for surroundings and target (equations 4 and 6), and the bilinear discriminator (7)."""

    def __init__(self, num_features: int, width: int, dropout: float) -> None:
        super().__init__()
        self.num_features = num_features
        self.linear = nn.Linear(num_features, width, bias=False)
        nn.init.xavier_uniform_(self.linear.weight)
        self.bias = nn.Parameter(torch.zeros(width))
        self.slope, self.dropout = nn.Parameter(torch.tensor(0.25)), nn.Dropout(dropout)
        self.pairing = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, width)))
        self.offset = nn.Parameter(torch.zeros(()))

    def project(self, x: Tensor) -> Tensor:
        """x W [..., h] of the rows of x over the sum of their sizes, as in the paper's code; a row of zeros stays.

        Without it, features of any size put every logit where the sigmoid is 0 or 1, and all scores are the same.
        """
        projected: Tensor = self.linear(x)
        return projected / x.abs().sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)

    def act(self, x: Tensor) -> Tensor:
        """PReLU, of two ReLUs: their backward passes need a bit an element where PReLU's needs the whole input."""
        return x.relu() - self.slope * (-x).relu()

    def surroundings(self, projected: Tensor, local: LocalGraphs) -> Tensor:
        """Mean embedding [B, h] of the slots, from x W of each [B, c, h]; the target's own features are hidden."""
        hidden = torch.cat([torch.zeros_like(projected[:, :1]), projected[:, 1:]], 1)
        hidden = self.dropout(self.act(local.adjacency @ hidden + self.bias))
        weight = local.valid / local.valid.sum(1, keepdim=True)
        return (weight.unsqueeze(1) @ hidden).squeeze(1)

    def fit_to(self, projected: Tensor, surroundings: Tensor) -> Tensor:
        """The discriminator's logit [B] of targets, x W [B, h], and surroundings [B, h]."""
        target = self.dropout(self.act(projected + self.bias))
        return (target @ self.pairing * surroundings).sum(1) + self.offset


class _NeighborhoodContrast(nn.Module):
    """A stack of graph convolutions on the graph, and a bilinear discriminator against the raw features."""

    def __init__(self, num_features: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.num_features = num_features
        self.network = GCN(num_features, width, width, layers, dropout)
        bound = num_features**-0.5
        self.pairing = nn.Parameter(torch.empty(num_features, width).uniform_(-bound, bound))
        self.offset = nn.Parameter(torch.empty(()).uniform_(-bound, bound))

    def forward(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Logits [N] of the nodes with their own embeddings, and of other nodes with them."""
        embedding, projected = self.network(graph.x, graph.gcn_adjacency), graph.x @ self.pairing
        other = projected[torch.randperm(graph.num_nodes, device=graph.device)]
        return (projected * embedding).sum(1) + self.offset, (other * embedding).sum(1) + self.offset


class CoLA(SampledDetector):
    """Contrastive self-supervised anomaly detection (Liu et al., IEEE TNNLS 33(6), 2022).

    A discriminator learns to tell a node beside its own surroundings (logit p) from a node beside those of another one
    (logit q), by binary cross entropy (equation 8). score_i is the mean of sigmoid(q) - sigmoid(p) over ``rounds``
    draws (equation 11): high where a node does not fit its surroundings.

    With ``context="walk"``, the paper's, the surroundings are ``subgraph_size`` nodes of a random walk with restart,
    the target among them without its features, through one graph convolution; the features of a node are divided by
    the sum of their sizes. ``context="neighborhood"`` is PyGOD's version: ``num_layers`` graph convolutions on the
    graph itself, a bilinear form of the raw features with them, and q - p of the last epoch as the score; the target's
    features are in its own surroundings there.

    Args:
        context: ``"walk"`` or ``"neighborhood"``.
        subgraph_size: c, slots of a walk's subgraph, the target included, at least 2.
        restart: probability of a walk's return to its target, in [0, 1).
        rounds: draws that are averaged for the scores.
        batch_size: nodes of a step, 0 for all of them at once, at least 2 of walks. None: 300, the paper's, for
            ``context="walk"``, else 0.
        num_neighbors: neighbours drawn for a node in each layer, -1 for all; ``context="neighborhood"`` in batches.
        lr: step size of Adam.
        epoch: passes over the nodes.
        **options: those of :class:`~graphlossy.outliers._deep.DeepDetector`; ``num_layers`` is read by
            ``context="neighborhood"``.

    Raises:
        ValueError: an argument is out of range, or the graph has a single node.

    Example:
        >>> from torch_geometric.data import Data
        >>> data = Data(x=torch.eye(6), edge_index=torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]))
        >>> CoLA(epoch=2, rounds=4, seed=0).fit(data).decision_score_.shape
        torch.Size([6])
    """

    name, title = "cola", "CoLA"
    paper = "Liu et al., Anomaly Detection on Attributed Networks via Contrastive Self-Supervised Learning, TNNLS 2022"
    memory = "O(m + n d)"
    inductive = True

    model_: Any

    def __init__(
        self,
        *,
        context: str = "walk",
        subgraph_size: int = 4,
        restart: float = 0.5,
        rounds: int = 64,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        if context not in _CONTEXTS:
            raise ValueError(f"context must be one of {', '.join(map(repr, _CONTEXTS))}, got {context!r}")
        if batch_size is None:
            batch_size = 300 if context == "walk" else 0
        super().__init__(batch_size=batch_size, **options)
        if context == "walk" and batch_size == 1:
            raise ValueError("batch_size must be at least 2, or 0 for all: a node is compared with another of its step")
        self.context = context
        self.subgraph_size = check_number("subgraph_size", subgraph_size, 2, integer=True)
        self.restart = float(check_number("restart", restart, 0, 1))
        if self.restart == 1:
            raise ValueError("restart must be below 1, got 1: the walks would never leave their targets")
        self.rounds = check_number("rounds", rounds, 1, integer=True)

    @classmethod
    def search_space(cls, dataset: str) -> dict[str, tuple[Any, ...]]:
        """The paper's range of step sizes: BOND's weight decay, made for other losses, makes all scores equal."""
        drawn = {"lr": (0.001, 0.004, 0.01), "weight_decay": (0.0,), "dropout": (0.0,), "epoch": (100,)}
        return {**super().search_space(dataset), **drawn}

    def _build(self, graph: Graph) -> nn.Module:
        needs_two_nodes(graph, self.title)
        if self.context == "walk":
            return _WalkContrast(graph.num_features, self.hid_dim, self.dropout)
        return _NeighborhoodContrast(graph.num_features, self.hid_dim, self.num_layers, self.dropout)

    def _batch_loss(self, module: Any, graph: Graph, count: int) -> tuple[Tensor, Tensor]:
        own, other = (logit[:count] for logit in module(graph))
        return other - own, _cross_entropy(own, other)

    def _step(self, module: Any, graph: Graph, optimizers: tuple[torch.optim.Optimizer, ...]) -> tuple[Tensor, float]:
        if self.context == "neighborhood":
            return super()._step(module, graph, optimizers)
        surroundings, total = graph.without_self_loops.undirected, 0.0
        order = torch.randperm(graph.num_nodes, device=graph.device)
        parts = order.split(self.batch_size or graph.num_nodes)
        if len(parts) > 1 and len(parts[-1]) == 1:  # a node alone has no other's surroundings
            parts = (*parts[:-2], torch.cat(parts[-2:]))
        for targets in parts:
            local = walk_contexts(surroundings, targets, self.subgraph_size, self.restart)
            with self._forward():
                projected = module.project(graph.x[local.nodes])
                context = module.surroundings(projected, local)
                own = module.fit_to(projected[:, 0], context)
                other = module.fit_to(projected[:, 0], context.roll(1, 0))
                loss = _cross_entropy(own, other)
            self._descend(loss, *optimizers)
            total += float(loss.detach()) * len(targets)
        return graph.x.new_zeros(graph.num_nodes), total / graph.num_nodes

    def _score(self, graph: Graph) -> Tensor:
        score = super()._score(graph)
        return score if self.context == "neighborhood" else self._score_new(graph)

    def _score_new(self, graph: Graph) -> Tensor:
        if self.context == "neighborhood" or graph.num_features != self.model_.num_features:
            return super()._score_new(graph)
        graph, model = graph.to(self.device), self.model_
        surroundings = graph.without_self_loops.undirected
        score = graph.x.new_zeros(graph.num_nodes)
        with torch.no_grad(), seeded(self.seed_ ^ 1, self.device):
            projected = model.project(graph.x)
            for _ in range(self.rounds):
                order = torch.randperm(graph.num_nodes, device=graph.device)
                context = torch.cat([self._contexts(surroundings, projected, part) for part in order.split(_CHUNK)])
                own = model.fit_to(projected[order], context)
                other = model.fit_to(projected[order], context.roll(1, 0))
                score[order] += other.sigmoid() - own.sigmoid()
        return score / self.rounds

    def _contexts(self, graph: Graph, projected: Tensor, targets: Tensor) -> Tensor:
        local = walk_contexts(graph, targets, self.subgraph_size, self.restart)
        return self.model_.surroundings(projected[local.nodes], local)


def _cross_entropy(own: Tensor, other: Tensor) -> Tensor:
    """-log sigmoid(p) - log(1 - sigmoid(q)), mean over the nodes and the two kinds of pairs."""
    return (F.softplus(-own) + F.softplus(other)).mean() / 2
