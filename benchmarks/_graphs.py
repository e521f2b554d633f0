"""Graphs with the size and degree law of real ones, made from a seed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Problem", "csr", "make_problem", "normalized_csr", "power_law_edges"]

TRAIN_SHARE = 0.54  # of ogbn-arxiv: 90,941 of 169,343 nodes


@dataclass(frozen=True)
class Problem:
    """Node classification: features [N, D], edge_index [2, E], labels [N], training rows."""

    x: Tensor
    edge_index: Tensor
    y: Tensor
    train: Tensor

    def to(self, device: torch.device) -> Problem:
        return Problem(*(t.to(device) for t in (self.x, self.edge_index, self.y, self.train)))


def power_law_edges(nodes: int, edges: int, seed: int, exponent: float = 2.5) -> Tensor:
    """A symmetric edge_index with exactly ``edges`` different columns, no self-loops, degrees ~ k**-exponent.

    Chung and Lu's model (2002): the ends of an edge are drawn with probability proportional to w_i, here
    (i + 10)**(-1 / (exponent - 1)); node numbers are shuffled, so that neighbours do not lie together in memory.
    """
    if edges % 2 or edges > nodes * (nodes - 1) // 2:
        raise ValueError(f"edges must be even and at most half of all pairs of {nodes} nodes, got {edges}")
    rng = np.random.default_rng(seed)
    weight = np.cumsum((np.arange(nodes) + 10.0) ** (-1 / (exponent - 1)))
    names = rng.permutation(nodes)
    found = np.empty(0, dtype=np.int64)
    while found.size < edges // 2:
        ends = np.searchsorted(weight, rng.random((2, edges // 2)) * weight[-1]).clip(max=nodes - 1)
        low, high = np.minimum(*ends), np.maximum(*ends)
        fresh = (low * nodes + high)[low != high]
        found = np.unique(np.concatenate([found, fresh]))
    pairs = rng.permutation(found)[: edges // 2]
    ends = names[np.stack([pairs // nodes, pairs % nodes])]
    both = np.concatenate([ends, ends[::-1]], axis=1)
    return torch.from_numpy(np.ascontiguousarray(both[:, rng.permutation(edges)]))


def make_problem(nodes: int, edges: int, features: int, classes: int, seed: int) -> Problem:
    """A power-law graph with normal features, random labels and a random training set."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(nodes, features, generator=generator)
    y = torch.randint(classes, (nodes,), generator=generator)
    train = torch.randperm(nodes, generator=generator)[: int(TRAIN_SHARE * nodes)].sort().values
    return Problem(x, power_law_edges(nodes, edges, seed), y, train)


def csr(edge_index: Tensor, nodes: int) -> Tensor:
    """adj_t: sparse CSR [N, N], a row for each node that receives."""
    from torch_geometric.utils import to_torch_csr_tensor

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")
        return to_torch_csr_tensor(edge_index.flip(0), size=(nodes, nodes))


def normalized_csr(edge_index: Tensor, nodes: int) -> Tensor:
    """adj_t with GCN's self-loops and symmetric normalisation, computed once as the fastest PyG scripts do."""
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")
        return gcn_norm(csr(edge_index, nodes), None, nodes)[0]
