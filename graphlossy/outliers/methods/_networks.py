"""Perceptrons with batch norm, which several methods share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from graphlossy.outliers._checks import Graph

__all__ = ["mlp_layers", "needs_two_nodes"]


def mlp_layers(channels: Sequence[int], dropout: float, act: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    """Linear layers of these widths, with batch norm, activation and dropout between them; the last one is plain.

    Example:
        >>> [type(layer).__name__ for layer in mlp_layers([8, 4, 8], 0.1)]
        ['Linear', 'BatchNorm1d', 'ReLU', 'Dropout', 'Linear']
    """
    layers: list[nn.Module] = []
    for inside, outside in zip(channels, channels[1:], strict=False):
        if layers:
            layers += [nn.BatchNorm1d(inside), act(), nn.Dropout(dropout)]
        layers.append(nn.Linear(inside, outside))
    return layers


def needs_two_nodes(graph: Graph, title: str) -> None:
    """Batch norm and contrasts compare nodes with one another.

    Raises:
        ValueError: the graph has a single node.
    """
    if graph.num_nodes < 2:
        raise ValueError(f"{title} compares nodes with one another: the graph must have at least 2, it has 1")
