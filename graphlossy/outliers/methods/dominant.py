"""DOMINANT: a graph autoencoder that rebuilds features and edges; outliers are rebuilt badly."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from graphlossy.outliers._checks import Graph, check_number
from graphlossy.outliers._deep import DeepDetector
from graphlossy.outliers._layers import GraphAutoencoder, split_layers
from graphlossy.outliers.structure import (
    STRUCTURES,
    attribute_error,
    check_structure,
    dense_structure_error,
    sampled_structure_error,
    structure_error,
)

__all__ = ["DOMINANT", "product_error"]


class DOMINANT(DeepDetector):
    """Deep anomaly detection on attributed networks (Ding, Li, Bhanushali and Liu, SDM 2019).

    A graph convolutional encoder, and two decoders. The score of node i (equation 10 of the paper, written by rows),

        weight ||x_i - x'_i||_2 + (1 - weight) ||a_i - Z z_i||_2,

    is also its part of the loss. ||a_i - Z z_i|| is computed without the N x N matrix, see
    :mod:`graphlossy.outliers.structure`.

    Args:
        weight: of the features against the structure, in [0, 1].
        structure: ``"exact"`` (linear in the graph), ``"dense"`` (the definition, O(N^2)) or ``"sampled"``.
        samples: columns drawn in each epoch, for ``"sampled"``; 16,384 at least in the last, whose errors are the
            scores.
        **deep: of :class:`~graphlossy.outliers.DeepDetector`; num_layers at least 2.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> data = Data(x=torch.rand(30, 8), edge_index=torch.randint(30, (2, 90)))
        >>> detector = DOMINANT(hid_dim=8, epoch=5, seed=0).fit(data)
        >>> detector.decision_score_.shape, int(detector.label_.sum())
        (torch.Size([30]), 3)
    """

    name: ClassVar[str] = "dominant"
    title: ClassVar[str] = "DOMINANT"
    paper: ClassVar[str] = "Ding et al., Deep Anomaly Detection on Attributed Networks, SDM 2019"
    memory: ClassVar[str] = "O(E + N (F + d))"
    inductive: ClassVar[bool] = True

    def __init__(self, *, weight: float = 0.5, structure: str = "exact", samples: int = 256, **deep: Any) -> None:
        super().__init__(**deep)
        split_layers(self.num_layers)
        self.weight = float(check_number("weight", weight, 0, 1))
        self.structure = check_structure(structure, STRUCTURES, self.title)
        self.samples = check_number("samples", samples, 1, integer=True)

    def _build(self, graph: Graph) -> nn.Module:
        return GraphAutoencoder(graph.num_features, self.hid_dim, self.num_layers, self.dropout)

    def _loss(self, module: nn.Module, graph: Graph) -> tuple[Tensor, Tensor]:
        _, rebuilt, z = module(graph)
        score = self._errors(graph, rebuilt, z)
        return score, score.mean()

    def _errors(self, graph: Graph, rebuilt: Tensor, z: Tensor) -> Tensor:
        attributes = attribute_error(graph.x, rebuilt)
        edges = product_error(z, graph, self.structure, self._columns_drawn(self.samples))
        return self.weight * attributes + (1 - self.weight) * edges

    @classmethod
    def search_space(cls, dataset: str) -> dict[str, tuple[Any, ...]]:
        return {**super().search_space(dataset), "weight": (0.8, 0.5, 0.2)}


def product_error(z: Tensor, graph: Graph, structure: str, samples: int) -> Tensor:
    """||a_i - Z z_i||_2 of each node by the form that ``structure`` names, [N]."""
    if structure == "exact":
        return structure_error(z, graph, rooted=True)
    if structure == "dense":
        return dense_structure_error(z, graph, rooted=True)
    return sampled_structure_error(z, graph, samples=samples, decoder="product", rooted=True)
