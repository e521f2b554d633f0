"""Batches by number: which nodes or subgraph a batch has, and its features, labels and masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader.utils import index_select

from graphlossy.core._random import permutation
from graphlossy.sampler._graph import Graph
from graphlossy.sampler._induced import SubgraphSampler
from graphlossy.sampler._seeding import fold
from graphlossy.sampler.neighbor import NeighborSampler

__all__ = ["Batches", "Plan"]

_ORDER = 0x0DE  # tells the seeds of permutations from those of batches


@dataclass(frozen=True)
class Plan:
    """How an epoch is cut into batches.

    Attributes:
        items: int64, the split's nodes, or the numbers of clusters; empty for kinds that draw freely.
        batch_size: items of a global batch.
        num_batches: batches of one rank in an epoch.
        shuffle: whether the items are permuted anew every epoch.
        shared: whether every rank has a share of each batch (else: batches of its own).
        to_end: whether the last batch takes all items that are left, a full batch or not.
        seed, rank, world_size: as in `make_loader`.
    """

    items: Tensor
    batch_size: int
    num_batches: int
    shuffle: bool
    shared: bool
    to_end: bool
    seed: int
    rank: int
    world_size: int

    def order(self, epoch: int) -> Tensor:
        """The items in the order of an epoch."""
        if not self.shuffle:
            return self.items
        return self.items[permutation(fold(self.seed, _ORDER, epoch), self.items.shape[0])]


class Batches(torch.utils.data.Dataset):
    """``batches[epoch, number]``: a function of the seed, the epoch and the number alone."""

    def __init__(
        self, data: Data, sampler: NeighborSampler | SubgraphSampler, split: Tensor | None, plan: Plan
    ) -> None:
        self.sampler, self.plan = sampler, plan
        if not isinstance(sampler.graph, Graph):
            raise TypeError("batches are of graphs with one node type; use PyG's NodeLoader for HeteroData")
        self.graph = sampler.graph
        self.split = split  # None for kinds with seeds
        self._train = None if split is None else _mask(split, self.graph.num_nodes)
        self._node, self._edge, self._other = _attributes(data, self.graph)
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return self.plan.num_batches

    def __getitem__(self, key: tuple[int, int]) -> Data:
        epoch, number = key
        plan = self.plan
        at = number if plan.shared else number * plan.world_size + plan.rank
        seed = fold(plan.seed, epoch, at)
        items = self._items(epoch, at)
        if isinstance(self.sampler, NeighborSampler):
            out = self.sampler.sample(items[plan.rank :: plan.world_size], seed)
            weights = {} if out.metadata is None else {"edge_weight": out.metadata}
        else:
            out, weights = self.sampler.sample(items, seed)
        batch = self.gather(out.node, torch.stack([out.row, out.col]), out.edge)
        for name, value in weights.items():
            batch[name] = value
        if self.split is None or self._train is None:
            batch.batch_size = out.num_sampled_nodes[0]
            batch.global_batch_size = items.shape[0]
            batch.num_sampled_nodes, batch.num_sampled_edges = out.num_sampled_nodes, out.num_sampled_edges
            if out.batch is not None:
                batch.batch = out.batch
            return batch
        batch.train_mask = self._train[out.node]
        if "node_weight" in weights:  # from the mean over all nodes to the mean over the split's
            batch.node_weight = weights["node_weight"] * (self.graph.num_nodes / self.split.shape[0])
        return batch

    def _items(self, epoch: int, at: int) -> Tensor:
        plan = self.plan
        if plan.items.shape[0] == 0:
            return plan.items
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, plan.order(epoch))
        last = plan.to_end and at == plan.num_batches - 1
        return self._order[1][at * plan.batch_size : None if last else (at + 1) * plan.batch_size]

    def gather(self, node: Tensor, edge_index: Tensor, edge: Tensor | None) -> Data:
        """The attributes of these nodes and edges; arrays on disk are read where they are asked for only."""
        batch = Data(edge_index=edge_index, n_id=node, num_nodes=node.shape[0])
        for name, value in self._other.items():
            batch[name] = value
        for name, (value, dim) in self._node.items():
            batch[name] = index_select(value, node, dim)
        if edge is not None:
            batch.e_id = self.graph.edge_ids(edge)
            for name, (value, dim) in self._edge.items():
                batch[name] = index_select(value, batch.e_id, dim)
        return batch


def _mask(nodes: Tensor, num_nodes: int) -> Tensor:
    mask = torch.zeros(num_nodes, dtype=torch.bool)
    mask[nodes] = True
    return mask


def _attributes(data: Data, graph: Graph) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Attributes of nodes and of edges, with the dimension that is selected, and those of the whole graph."""
    node: dict[str, Any] = {}
    edge: dict[str, Any] = {}
    other: dict[str, Any] = {}
    store = data._store
    for name, value in store.items():
        if name in ("edge_index", "adj_t", "adj", "num_nodes") or value is None:
            continue
        array = isinstance(value, (Tensor, np.ndarray))
        dim = data.__cat_dim__(name, value, store) if array else 0
        size = value.shape[dim] if array and value.ndim > 0 and isinstance(dim, int) else None
        if size is not None and size == graph.num_edges and (size != graph.num_nodes or "edge" in name):
            edge[name] = (value, dim)
        elif size is not None and size == graph.num_nodes:
            node[name] = (value, dim)
        else:
            other[name] = value
    for name in ("x", "y"):
        if name in other:
            raise ValueError(
                f"data.{name} must have a row for each of {graph.num_nodes} nodes, got shape "
                f"{tuple(getattr(other[name], 'shape', ()))}"
            )
    return node, edge, other
