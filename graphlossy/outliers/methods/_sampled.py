"""Detectors whose loss of a node reads its surroundings only: trained on the whole graph or on sampled batches."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.outliers._checks import Graph, check_number, coalesced
from graphlossy.outliers._deep import DeepDetector

__all__ = ["SampledDetector"]


class SampledDetector(DeepDetector):
    """A deep detector of ``num_layers`` graph convolutions, trained on all nodes at once or on batches of them.

    A batch holds ``batch_size`` nodes in random order and, layer by layer, ``num_neighbors`` of the edges that arrive
    at each (GraphSAGE, Hamilton et al., NeurIPS 2017, section 3.1). A node's score is that of its batch.

    Args:
        batch_size: nodes of a step, 0 for all of them at once.
        num_neighbors: neighbours drawn for a node in each layer, at least 1, or -1 for all; used with ``batch_size``.
        **options: those of :class:`~graphlossy.outliers._deep.DeepDetector`.
    """

    def __init__(self, *, batch_size: int = 0, num_neighbors: int = -1, **options: Any) -> None:
        super().__init__(**options)
        self.batch_size = check_number("batch_size", batch_size, 0, integer=True)
        self.num_neighbors = check_number("num_neighbors", num_neighbors, -1, integer=True)
        if num_neighbors == 0:
            raise ValueError("num_neighbors must be at least 1, or -1 for all neighbours, got 0")

    @abstractmethod
    def _batch_loss(self, module: nn.Module, graph: Graph, count: int) -> tuple[Tensor, Tensor]:
        """Scores [count] of the first nodes of a (sub)graph, and their mean loss."""

    def _loss(self, module: nn.Module, graph: Graph) -> tuple[Tensor, Tensor]:
        return self._batch_loss(module, graph, graph.num_nodes)

    def _step(
        self, module: nn.Module, graph: Graph, optimizers: tuple[torch.optim.Optimizer, ...]
    ) -> tuple[Tensor, float]:
        if not 0 < self.batch_size < graph.num_nodes:
            return super()._step(module, graph, optimizers)
        sampler = self._neighbors(graph)
        score, total = graph.x.new_empty(graph.num_nodes), 0.0
        for nodes in torch.randperm(graph.num_nodes).split(self.batch_size):
            out = sampler.sample(nodes, int(torch.randint(2**62, ())))
            ids = out.node.to(graph.device)
            edges = torch.stack([out.row, out.col]).to(graph.device, torch.int64)
            part = Graph(graph.x[ids], coalesced(edges, len(ids)), len(ids))
            with self._forward():
                found, loss = self._batch_loss(module, part, len(nodes))
            self._descend(loss, *optimizers)
            score[nodes.to(graph.device)] = found.detach()
            total += float(loss.detach()) * len(nodes)
        return score, total / graph.num_nodes

    def _score(self, graph: Graph) -> Tensor:
        self._sampler: Any = None  # made when the first batch is drawn
        score = super()._score(graph)
        self._sampler = None
        return score

    def _neighbors(self, graph: Graph) -> Any:
        if self._sampler is None:
            from torch_geometric.data import Data

            from graphlossy.sampler import NeighborSampler

            data = Data(edge_index=graph.edge_index.cpu(), num_nodes=graph.num_nodes)
            self._sampler = NeighborSampler(data, [self.num_neighbors] * self.num_layers)
        return self._sampler
