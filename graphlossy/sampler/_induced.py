"""The subgraph that a set of nodes induces, and what samplers of subgraphs share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.sampler import BaseSampler, EdgeSamplerInput, NegativeSampling, NodeSamplerInput, SamplerOutput

from graphlossy.core import relabel, sample_neighbors
from graphlossy.sampler._graph import Graph, as_graph
from graphlossy.sampler._seeding import Seeded, metadata

__all__ = ["Subgraph", "SubgraphSampler", "induced"]

Subgraph = tuple[Tensor, Tensor, Tensor]


def induced(graph: Graph, nodes: Tensor) -> Subgraph:
    """(row, col, edge) of all edges between different, given nodes: local ends, and positions in the graph."""
    position, counts, _ = sample_neighbors(graph.indptr, nodes, -1, seed=0)
    _, row = relabel(nodes, graph.sources(position), graph.num_nodes)
    inside = row < nodes.shape[0]
    col = torch.arange(nodes.shape[0]).repeat_interleave(counts)
    return row[inside], col[inside], position[inside]


class SubgraphSampler(Seeded, BaseSampler):
    """A sampler whose batch is a subgraph; input nodes of a loader only name the batch, unless it says otherwise."""

    def __init__(self, data: Any, seed: int | None) -> None:
        super().__init__(seed)
        if isinstance(data, HeteroData):
            raise TypeError(f"{type(self).__name__} takes graphs with one node type, got HeteroData")
        self.graph = as_graph(data)

    @property
    def edge_permutation(self) -> Tensor | None:
        """The user's numbers of the sampler's edges, or None where they are the same."""
        return self.graph.perm

    @abstractmethod
    def sample(self, inputs: Tensor, seed: int) -> tuple[SamplerOutput, dict[str, Tensor]]:
        """The subgraph for these input nodes and this seed, and its weights."""

    def sample_from_nodes(self, inputs: NodeSamplerInput, **kwargs: Any) -> SamplerOutput:
        """PyG's entry point for node loaders."""
        out, weights = self.sample(inputs.node, self.batch_seed(inputs.node))
        out.metadata = metadata(inputs, weights)
        return out

    def sample_from_edges(
        self, inputs: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None, **kwargs: Any
    ) -> SamplerOutput:
        """Not for link loaders: a subgraph has no seed edges."""
        raise TypeError(f"{type(self).__name__} samples subgraphs, not links; use NeighborSampler with a link loader")
