"""OCGNN: a hypersphere around the embeddings of a graph network."""

from __future__ import annotations

from typing import Any

import numpy as np
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

    A graph convolutional network g without biases maps the nodes into a hypersphere of centre c and radius r:
    loss = r^2 + 1 / (beta N) sum_i max(0, ||g(i) - c||^2 - r^2), plus the weight decay. The centre is the mean of the
    embeddings before training; the radius, after every epoch, the (1 - beta) quantile of the distances from it. Biases
    would let the network put every node onto c (Ruff et al., Deep One-Class Classification, ICML 2018, section 3.3);
    for the same reason entries of c nearer to 0 than ``eps`` are moved to +-eps. score_i = ||g(i) - c||^2: the r^2 that
    the paper subtracts is the same for all nodes.

    Args:
        beta: share of the nodes that may lie outside, in (0, 1].
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

    def __init__(self, *, beta: float = 0.5, eps: float = 0.001, num_layers: int = 2, **options: Any) -> None:
        super().__init__(num_layers=num_layers, **options)
        self.beta = float(check_number("beta", beta, 0, 1, open_low=True))
        self.eps = float(check_number("eps", eps, 0))

    def _build(self, graph: Graph) -> nn.Module:
        width = self.hid_dim
        network = GCN(graph.num_features, width, width, self.num_layers, self.dropout, bias=False)
        return _Sphere(network, graph.num_features, width)

    def _batch_loss(self, module: Any, graph: Graph, count: int) -> tuple[Tensor, Tensor]:
        embedding = module.network(graph.x, graph.gcn_adjacency)[:count]
        distance = (embedding - module.center).square().sum(1)
        loss = module.radius**2 + (distance - module.radius**2).relu().mean() / self.beta
        return distance, loss

    def _step(self, module: Any, graph: Graph, optimizers: tuple[torch.optim.Optimizer, ...]) -> tuple[Tensor, float]:
        if not self.losses_:
            self._place(module, graph)
        distance, loss = super()._step(module, graph, optimizers)
        module.radius = self._radius(distance)
        return distance, loss

    @torch.no_grad()
    def _place(self, module: Any, graph: Graph) -> None:
        """The centre, and the radius of the first epoch."""
        embedding = module.network(graph.x, graph.gcn_adjacency)
        center = embedding.mean(0)
        near = (center.abs() < self.eps) & (center != 0)
        module.center = torch.where(near, center.sign() * self.eps, center)
        module.radius = self._radius((embedding - module.center).square().sum(1))

    def _radius(self, distance: Tensor) -> Tensor:
        # numpy's quantile has no limit of size, as torch's has
        return distance.new_tensor(np.quantile(distance.sqrt().cpu().numpy(), 1 - self.beta))

    @classmethod
    def search_space(cls, dataset: str) -> dict[str, tuple[Any, ...]]:
        """As BOND's, with the paper's weight decay: BOND's .01 leaves the embeddings no room (it has no OCGNN)."""
        return {**super().search_space(dataset), "weight_decay": (5e-4,)}
