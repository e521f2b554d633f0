"""Graphs and statistics that the tests of samplers share."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Data


def random_data(nodes: int = 60, edges: int = 400, seed: int = 0, directed: bool = True, weight: bool = False) -> Data:
    """Features that say which node they are of, labels, a training mask; parallel edges, self-loops, isolated nodes."""
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(nodes - 3, (2, edges), generator=generator)
    if not directed:
        edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    data = Data(
        x=torch.arange(nodes, dtype=torch.float32).view(-1, 1) + torch.tensor([0.0, 0.5]),
        y=torch.arange(nodes) % 5,
        edge_index=edge_index,
        edge_attr=torch.arange(edge_index.shape[1], dtype=torch.float32).view(-1, 1),
        train_mask=torch.rand(nodes, generator=generator) < 0.5,
        num_nodes=nodes,
    )
    if weight:
        data.edge_weight = torch.rand(edge_index.shape[1], generator=generator) + 0.1
    return data


@pytest.fixture(name="random_data")
def _random_data():
    return random_data


class Means:
    """Running means of vectors, and how many standard errors they are from what they should be."""

    def __init__(self, size: int) -> None:
        self.count, self.sum, self.square = (torch.zeros(size, dtype=torch.float64) for _ in range(3))

    def add(self, where: torch.Tensor, values: torch.Tensor) -> None:
        values = values.to(torch.float64)
        self.count.index_add_(0, where, torch.ones_like(values))
        self.sum.index_add_(0, where, values)
        self.square.index_add_(0, where, values**2)

    def off(self, truth: torch.Tensor, least: int = 50) -> float:
        """The largest distance from the truth in standard errors, over entries with at least ``least`` values."""
        mean = self.sum / self.count
        error = ((self.square / self.count - mean**2).clamp(min=0) / self.count).sqrt()
        enough = self.count >= least
        assert bool(enough.any())
        # A mean without any spread must be right but for rounding.
        distance = (mean - truth).abs() / (error + 1e-6 * truth.abs() + 1e-9)
        return float(distance[enough].max())


@pytest.fixture
def means() -> type[Means]:
    return Means


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Tiny graphs."""
