"""OCGNN: a hypersphere around the embeddings of a graph network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.outliers._checks import Graph, check_number
from graphlossy.outliers._layers import GCN
from graphlossy.outliers.methods._sampled import SampledDetector

__all__ = ["OCGNN"]


class _Sphere(nn.Module):
    """A graph network with the centre c and the radius r of its hypersphere, which are not trained by gradients."""

    def __init__(self, network: nn.Module, num_features: int, width: int) -> None:
        super().__init__()
        self.network, self.num_features = network, num_features
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("radius", torch.zeros(()))


class OCGNN(SampledDetector):
    """One-class graph neural network (Wang et al., Neural Computing and Applications 33, 2021, equation 5).

    A graph convolutional network g maps the nodes into a hypersphere of centre c and radius r:
    loss = r^2 + 1 / (beta N) sum_i max(0, ||g(i) - c||^2 - r^2), plus the weight decay. score_i = ||g(i) - c||^2 - r^2.
    The centre is the mean of the embeddings and the radius the (1 - beta) quantile of their distances from the last
    centre; both are set in the first ``warmup`` epochs and stay, which keeps the network from shrinking everything
    onto a moving centre. Entries of c nearer to 0 than ``eps`` are moved to +-eps.

    Args:
        beta: share of the nodes that may lie outside, in (0, 1].
        warmup: epochs in which c and r are set, at least 1.
        eps: least size of the entries of c.
        batch_size: nodes of a step, 0 for all of them at once.
        num_neighbors: neighbours drawn for a node in each layer, -1 for all; used with ``batch_size``.
        num_layers: graph convolutions.
        **options: those of :class:`~graphlossy.outliers._deep.DeepDetector`.

    Example:
        >>> from torch_geometric.data import Data
        >>> x = torch.cat([torch.ones(30, 4), torch.tensor([[9.0, -9.0, 9.0, -9.0]])])
        >>> data = Data(x=x, edge_index=torch.tensor([[0, 1, 2], [1, 2, 3]]))
        >>> int(OCGNN(epoch=5, seed=0).fit(data).decision_score_.argmax())
        30
    """

    name, title = "ocgnn", "OCGNN"
    paper = "Wang et al., One-Class Graph Neural Networks for Anomaly Detection in Attributed Networks, NCAA 2021"
    memory = "O(m + n d)"
    inductive = True

    def __init__(
        self, *, beta: float = 0.5, warmup: int = 2, eps: float = 0.001, num_layers: int = 2, **options: Any
    ) -> None:
        super().__init__(num_layers=num_layers, **options)
        self.beta = float(check_number("beta", beta, 0, 1, open_low=True))
        self.warmup = check_number("warmup", warmup, 1, integer=True)
        self.eps = float(check_number("eps", eps, 0))

    def _build(self, graph: Graph) -> nn.Module:
        width = self.hid_dim
        network = GCN(graph.num_features, width, width, self.num_layers, self.dropout)
        return _Sphere(network, graph.num_features, width)

    def _batch_loss(self, module: Any, graph: Graph, count: int) -> tuple[Tensor, Tensor]:
        embedding = module.network(graph.x, graph.gcn_adjacency)[:count]
        distance = (embedding - module.center).square().sum(1)
        score = distance - module.radius**2
        loss = module.radius**2 + score.relu().mean() / self.beta
        if module.training and len(self.losses_) < self.warmup:
            self._seen.append((embedding.detach(), distance.detach()))
        return score, loss

    def _step(self, module: Any, graph: Graph, optimizers: tuple[torch.optim.Optimizer, ...]) -> tuple[Tensor, float]:
        self._seen: list[tuple[Tensor, Tensor]] = []  # of each batch: all batches of an epoch share one sphere
        out = super()._step(module, graph, optimizers)
        if self._seen:
            self._move(module, *(torch.cat(parts) for parts in zip(*self._seen, strict=True)))
            self._seen = []
        return out

    def _move(self, module: Any, embedding: Tensor, distance: Tensor) -> None:
        center = embedding.mean(0)
        near = (center.abs() < self.eps) & (center != 0)
        module.center = torch.where(near, center.sign() * self.eps, center)
        module.radius = torch.quantile(distance.sqrt(), 1 - self.beta)
