"""Neighbour sampling (GraphSAGE, Hamilton et al., NeurIPS 2017, section 3.1) on PyG's sampler interface."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.sampler import (
    BaseSampler,
    EdgeSamplerInput,
    HeteroSamplerOutput,
    NegativeSampling,
    NodeSamplerInput,
    SamplerOutput,
)
from torch_geometric.sampler.neighbor_sampler import edge_sample

from graphlossy.sampler._checks import check_fanouts, check_flag, check_weights, node_ids
from graphlossy.sampler._graph import Graph, as_graph
from graphlossy.sampler._hetero import HeteroGraph, hetero_fanouts, hetero_graph, sample_hetero_hops
from graphlossy.sampler._hops import Draw, sample_hops
from graphlossy.sampler._seeding import Seeded, metadata

__all__ = ["NeighborSampler", "degree_weights"]


def degree_weights(graph: Graph) -> Tensor:
    """float32 [E] 1 / d_u + 1 / d_v of every edge u -> v, d_u edges that leave u and d_v that arrive at v.

    Proportional to the bound on the effective resistance by which DSpar draws edges (Liu et al., TMLR 2023, eq. 2).
    """
    out_degree, in_degree = graph.out_degree(), graph.in_degree()
    weight = torch.empty(graph.num_edges, dtype=torch.float32)
    for sources, destinations, where in graph.chunks():
        weight[where] = (1.0 / out_degree[sources] + 1.0 / in_degree[destinations]).to(torch.float32)
    return weight


class NeighborSampler(Seeded, BaseSampler):
    """Draws, for every node of a batch, some of the edges that arrive at it; used as ``NodeLoader(node_sampler=...)``.

    Nodes, edges and counts come in PyG's order (directional: edges point from the drawn neighbour to the node that drew
    it; seeds first, then what each hop found), so ``trim_to_layer`` works. In law a batch equals that of PyG's
    ``NeighborLoader`` for uniform draws: every k-subset of a node's edges is equally likely. Draws by weight without
    replacement are taken with exact inclusion probabilities min(1, k' w_e / W'), which PyG's are not.

    With ``weighted=True`` every edge has a weight a_e / E[times e is drawn], a_e being the graph's own ``edge_weight``
    (1 without one): given the nodes, E[sum over drawn edges of weight * x_u] = sum over all edges of a_e * x_u. With
    ``mean=True`` it is divided by the node's degree, so that the sum is unbiased for the mean over all edges. Unbiased
    is each aggregation; behind a non-linear layer the whole network is not.

    Args:
        data: ``Data`` with ``edge_index`` or ``adj_t``, ``HeteroData`` with ``edge_index``, or a pair ``(colptr, row)``
            of CSC arrays, int32 or int64, that may be memory-mapped (they are never copied).
        num_neighbors: edges drawn for a node in each hop, at least 1, or -1 for all. For ``HeteroData`` also a
            dictionary with a list for each edge type.
        replace: draw with replacement.
        weight: ``"uniform"``; ``"degree"`` (1 / d_u + 1 / d_v); the name of an edge attribute; or a tensor [E] in the
            order of the graph's edges. Finite, at least 0; edges of weight 0 are never drawn, unless all are (-1).
        weighted: add unbiased weights; see `attach_weights` for how they arrive in a batch.
        mean: fold the division by the degree into the weights; needs ``weighted=True``.
        disjoint: a tree of its own for every seed, whose draws depend on the seed node alone, not on the batch.
        seed: an int makes a batch a function of (seed, epoch, input nodes); None draws a seed for every batch from
            torch's global generator.

    Raises:
        TypeError, ValueError: an argument or the graph cannot be used; the message names it.

    Example:
        >>> from torch_geometric.data import Data
        >>> from torch_geometric.loader import NodeLoader
        >>> edges = torch.tensor([[1, 2, 3, 4, 5], [0, 0, 0, 1, 1]])
        >>> data = Data(x=torch.arange(6.0).view(6, 1), edge_index=edges)
        >>> loader = NodeLoader(data, NeighborSampler(data, [2, -1], seed=0), input_nodes=torch.tensor([0]))
        >>> batch = next(iter(loader))
        >>> batch.batch_size, batch.n_id[0].item(), batch.num_sampled_nodes[:2]
        (1, 0, [1, 2])
    """

    def __init__(
        self,
        data: Any,
        num_neighbors: Any,
        *,
        replace: bool = False,
        weight: str | Tensor | dict[tuple[str, str, str], Tensor] = "uniform",
        weighted: bool = False,
        mean: bool = False,
        disjoint: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(seed)
        for name, flag in (("replace", replace), ("weighted", weighted), ("mean", mean), ("disjoint", disjoint)):
            check_flag(name, flag)
        if mean and not weighted:
            raise ValueError("mean=True divides the unbiased weights by the degree; set weighted=True too")
        self.disjoint = disjoint
        self.graph: Graph | HeteroGraph
        self._weights: dict[Any, Tensor] = {}  # by edge type; None for graphs of one
        if isinstance(data, HeteroData):
            self.graph = hetero_graph(data)
            self.num_neighbors: Any = hetero_fanouts(num_neighbors, list(self.graph.graphs))
            for kind, graph in self.graph.graphs.items():
                chosen = weight.get(kind, "uniform") if isinstance(weight, dict) else weight
                self._set_weight(kind, graph, data[kind], chosen, weighted)
        else:
            self.graph = as_graph(data)
            self.num_neighbors = check_fanouts(num_neighbors)
            self._set_weight(None, self.graph, data, weight, weighted)
        self._draw = Draw(replace, self._weights.get(None), weighted, mean)

    def _set_weight(self, kind: Any, graph: Graph, store: Any, weight: Any, weighted: bool) -> None:
        """Drawing weights of an edge type in the order of the graph's positions."""
        if weighted and graph.value is not None:
            graph.value = check_value(graph.value, graph.num_edges)
        if isinstance(weight, str):
            if weight == "uniform":
                return
            if weight == "degree" and kind is None:
                self._weights[kind] = degree_weights(graph)
                return
            if weight == "degree":
                raise ValueError('weight="degree" needs a graph with one node type; give a tensor for each edge type')
            if not hasattr(store, "keys") or weight not in store:
                raise ValueError(
                    f'weight must be "uniform", "degree", a tensor or an edge attribute of the graph, got {weight!r}'
                )
            name, weight = f"data.{weight}", store[weight]
        else:
            name = "weight"
        found = check_weights(name, weight, graph.num_edges)
        found = found if graph.perm is None else found[graph.perm]
        if weighted:
            never = found == 0
            if graph.value is not None:
                never &= graph.value.index_select(0, graph.edge_ids(torch.arange(graph.num_edges))) != 0
            if bool(never.any()):
                raise ValueError(
                    f"{name} is 0 for {int(never.sum())} edges, which are never drawn, so no weights can make sums "
                    "over all edges unbiased; give them a small weight or set weighted=False"
                )
        self._weights[kind] = found

    @property
    def edge_permutation(self) -> Any:
        """The user's numbers of the sampler's edges, or None where they are the same."""
        if isinstance(self.graph, HeteroGraph):
            return {kind: graph.perm for kind, graph in self.graph.graphs.items()}
        return self.graph.perm

    @property
    def num_nodes(self) -> Any:
        """Nodes of the graph, by type for ``HeteroData``."""
        return self.graph.num_nodes

    def sample(self, seeds: Any, seed: int) -> SamplerOutput | HeteroSamplerOutput:
        """The batch of these seed nodes (a tensor, or a tensor for each node type) for a given seed."""
        if isinstance(self.graph, HeteroGraph):
            counts = self.graph.num_nodes
            seeds = {kind: node_ids(f"input nodes of type {kind!r}", ids, counts[kind]) for kind, ids in seeds.items()}
            out = sample_hetero_hops(
                self.graph, seeds, self.num_neighbors, self._draw, self._weights, self.disjoint, seed
            )
            return HeteroSamplerOutput(
                out.node, out.row, out.col, out.edge, out.tree, out.num_nodes, out.num_edges, metadata=out.weight
            )
        ids = node_ids("input nodes", seeds, self.graph.num_nodes)
        one = sample_hops(self.graph, ids, self.num_neighbors, self._draw, self.disjoint, seed)
        return SamplerOutput(
            one.node, one.row, one.col, one.edge, one.tree, one.num_nodes, one.num_edges, metadata=one.weight
        )

    def sample_from_nodes(self, inputs: NodeSamplerInput, **kwargs: Any) -> SamplerOutput | HeteroSamplerOutput:
        """PyG's entry point for node loaders."""
        seeds = {inputs.input_type: inputs.node} if isinstance(self.graph, HeteroGraph) else inputs.node
        out = self.sample(seeds, self.batch_seed(inputs.node))
        out.metadata = metadata(inputs, {} if out.metadata is None else {"edge_weight": out.metadata})
        return out

    def sample_from_edges(
        self, inputs: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None, **kwargs: Any
    ) -> SamplerOutput | HeteroSamplerOutput:
        """PyG's entry point for link loaders: no unbiased weights; negatives are PyG's, from torch's generator."""
        if inputs.time is not None:
            raise ValueError("samplers of graphlossy take no edge_label_time; remove it")

        def sample(seeds: Any, seed_time: Any = None, **options: Any) -> SamplerOutput | HeteroSamplerOutput:
            parts = seeds.values() if isinstance(seeds, dict) else [seeds]
            out = self.sample(seeds, self.batch_seed(torch.cat(list(parts))))
            out.metadata = None
            return out

        return edge_sample(inputs, sample, self.num_nodes, self.disjoint, None, neg_sampling)


def check_value(value: object, edges: int) -> Tensor:
    """The graph's own edge weights: [E] finite real numbers, of any sign."""
    if not isinstance(value, Tensor):
        raise TypeError(f"edge_weight must be a torch.Tensor of {edges} weights, got {type(value).__name__}")
    value = value.detach().cpu()
    value = value.squeeze(1) if value.dim() == 2 and value.shape[1] == 1 else value
    if tuple(value.shape) != (edges,) or value.is_complex():
        raise ValueError(f"edge_weight must be {edges} real numbers, got {value.dtype} {tuple(value.shape)}")
    if not bool(value.isfinite().all()):
        raise ValueError("edge_weight must be finite; it has a NaN or an infinity")
    return value
