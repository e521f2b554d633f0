"""GraphSAINT's samplers (Zeng et al., ICLR 2020) with the normalisation of their section 3.2.

A batch is the subgraph that a random set of nodes S induces. Its edge u -> v has the weight a_uv / alpha_uv with
alpha_uv = P(u and v in S) / P(v in S), a_uv being the graph's own ``edge_weight``, so that for a node v in S the sum of
weight * x_u is unbiased for the sum over all its edges (equation 2); its node v has the weight
1 / (N P(v in S)), so that the sum of weight * loss_v is unbiased for the mean loss (equation 3). Both are exact for the
node and the edge sampler, whose draws are independent, and estimated from earlier subgraphs for the walks.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch_geometric.sampler import SamplerOutput

from graphlossy.core import sample_neighbors
from graphlossy.sampler._checks import check_count
from graphlossy.sampler._graph import Graph
from graphlossy.sampler._induced import SubgraphSampler, induced
from graphlossy.sampler._pairs import joint_mass, present, reverse_edges
from graphlossy.sampler._seeding import below, fold
from graphlossy.sampler.neighbor import check_value

__all__ = ["SaintEdgeSampler", "SaintNodeSampler", "SaintWalkSampler"]

_PRESAMPLE = 1  # tells the seeds of subgraphs drawn beforehand from those of batches


class _SaintSampler(SubgraphSampler):
    """Nodes from a subclass; the induced subgraph and the weights from here."""

    def __init__(self, data: Any, seed: int | None) -> None:
        super().__init__(data, seed)
        if self.graph.num_edges == 0:
            raise ValueError(f"{type(self).__name__} needs a graph with edges, got none")
        if self.graph.value is not None:
            self.graph.value = check_value(self.graph.value, self.graph.num_edges)

    @abstractmethod
    def draw_nodes(self, seed: int) -> Tensor:
        """int64 node ids of a subgraph, rising."""

    @abstractmethod
    def probabilities(self, nodes: Tensor, row: Tensor, col: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
        """float64 P(v in S) of these nodes and P(u and v in S) of these edges."""

    def sample(self, inputs: Tensor, seed: int) -> tuple[SamplerOutput, dict[str, Tensor]]:
        """The subgraph of a seed; ``inputs`` does not matter."""
        nodes = self.draw_nodes(seed)
        row, col, edge = induced(self.graph, nodes)
        of_node, of_edge = self.probabilities(nodes, row, col, edge)
        weight = of_node[col] / of_edge
        if self.graph.value is not None:
            weight *= self.graph.value.index_select(0, self.graph.edge_ids(edge)).to(torch.float64)
        weights = {
            "edge_weight": weight.to(torch.float32),
            "node_weight": (1.0 / (self.graph.num_nodes * of_node)).to(torch.float32),
        }
        return SamplerOutput(nodes, row, col, edge), weights


class SaintNodeSampler(_SaintSampler):
    """``num_draws`` independent draws of a node, with probability proportional to its out-degree (as PyG's).

    The node is where a uniformly drawn edge starts. With m draws of probability q_v: P(v in S) = 1 - (1 - q_v)^m and
    P(u, v in S) = 1 - (1 - q_u)^m - (1 - q_v)^m + (1 - q_u - q_v)^m, both exact.

    Args:
        data: ``Data`` or a pair ``(colptr, row)``, as for `NeighborSampler`; directed graphs too.
        num_draws: m; a node may be drawn more than once, so subgraphs have at most m nodes.
        seed: as for `NeighborSampler`.

    Raises:
        TypeError, ValueError: an argument or the graph cannot be used.

    Example:
        >>> from torch_geometric.data import Data
        >>> ring = torch.arange(8)
        >>> data = Data(edge_index=torch.stack([ring, (ring + 1) % 8]), num_nodes=8)
        >>> out, weights = SaintNodeSampler(data, 5, seed=0).sample(torch.tensor([0]), seed=3)
        >>> bool(out.node.diff().min() > 0), weights["node_weight"].shape == out.node.shape
        (True, True)
    """

    def __init__(self, data: Any, num_draws: int, *, seed: int | None = None) -> None:
        super().__init__(data, seed)
        self.num_draws = check_count("num_draws", num_draws)
        self._mass = self.graph.out_degree().to(torch.float64) / self.graph.num_edges

    def draw_nodes(self, seed: int) -> Tensor:
        return self.graph.sources(below(seed, self.num_draws, self.graph.num_edges)).unique()

    def probabilities(self, nodes: Tensor, row: Tensor, col: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
        mass = self._mass[nodes]
        one = present(mass, self.num_draws)
        either = present(mass[row] + mass[col], self.num_draws)
        return one, torch.where(row == col, one[col], one[row] + one[col] - either)


class SaintEdgeSampler(_SaintSampler):
    """``num_draws`` independent draws of an edge with probability proportional to 1 / d_u + 1 / d_v (Zeng et al., 3.3).

    d_u counts the edges that leave u, d_v those that arrive at v. Both ends of every drawn edge are taken. (PyG 2.8's
    sampler draws in proportion to the degrees themselves, against the paper, and E random numbers a batch; here a batch
    takes time linear in its draws.) With Q_v the probability that a draw touches v and Q_uv that it joins u and v,
    P(v in S) = 1 - (1 - Q_v)^m and P(u, v in S) = 1 - (1 - Q_u)^m - (1 - Q_v)^m + (1 - Q_u - Q_v + Q_uv)^m, both exact.

    Args:
        data: ``Data`` or a pair ``(colptr, row)``, as for `NeighborSampler`. For a graph that is not symmetric the
            reversed edges are kept too.
        num_draws: m; subgraphs have at most 2 m nodes.
        seed: as for `NeighborSampler`.

    Raises:
        TypeError, ValueError: an argument or the graph cannot be used.

    Example:
        >>> from torch_geometric.data import Data
        >>> ring = torch.arange(8)
        >>> data = Data(edge_index=torch.stack([ring, (ring + 1) % 8]), num_nodes=8)
        >>> out, _ = SaintEdgeSampler(data, 1, seed=0).sample(torch.tensor([0]), seed=3)
        >>> out.node.shape[0], out.edge.shape[0]
        (2, 1)
    """

    def __init__(self, data: Any, num_draws: int, *, seed: int | None = None) -> None:
        super().__init__(data, seed)
        self.num_draws = check_count("num_draws", num_draws)
        graph = self.graph
        arriving, leaving = graph.in_degree(), graph.out_degree()
        # 1 / d_u + 1 / d_v adds up to the number of nodes with edges, counted on both sides: draw a side and a node of
        # it uniformly, then one of its edges uniformly.
        self._into, self._out = arriving.nonzero().squeeze(1), leaving.nonzero().squeeze(1)
        self._in_mass, self._out_mass = (1.0 / d.to(torch.float64) for d in (arriving, leaving))
        self._total = self._into.shape[0] + self._out.shape[0]
        self._reverse: Graph | None = reverse_edges(graph)
        mass = torch.zeros(graph.num_nodes, dtype=torch.float64)
        for row, col, _ in graph.chunks():
            of_edge = self._edge_mass(row, col)
            mass.index_add_(0, row, of_edge)
            mass.index_add_(0, col, torch.where(row == col, 0.0, of_edge))
        self._mass = mass.clamp(max=1.0)

    def _edge_mass(self, row: Tensor, col: Tensor) -> Tensor:
        return (self._out_mass[row] + self._in_mass[col]) / self._total

    def draw_nodes(self, seed: int) -> Tensor:
        drawn = below(fold(seed, 0), self.num_draws, self._total)
        arriving = self._into.shape[0]
        ends = []
        for graph, nodes, number in (
            (self.graph, self._into[drawn[drawn < arriving]], 1),
            (self._reverse or self.graph, self._out[drawn[drawn >= arriving] - arriving], 2),
        ):
            stream = torch.arange(nodes.shape[0])
            at, _, _ = sample_neighbors(graph.indptr, nodes, 1, replace=True, stream=stream, seed=fold(seed, number))
            ends += [nodes, graph.sources(at)]
        return torch.cat(ends).unique()

    def probabilities(self, nodes: Tensor, row: Tensor, col: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
        mass = self._mass[nodes]
        one = present(mass, self.num_draws)
        # All edges between two nodes of the subgraph are in it.
        joint = joint_mass(row, col, self._edge_mass(nodes[row], nodes[col]), nodes.shape[0])
        either = present((mass[row] + mass[col] - joint).clamp(max=1.0), self.num_draws)
        return one, torch.where(row == col, one[col], one[row] + one[col] - either)


class SaintWalkSampler(_SaintSampler):
    """Walks of ``walk_length`` steps from ``num_roots`` uniformly drawn nodes (Zeng et al., 3.3, "RW").

    A step goes to a uniformly drawn node from which an edge arrives, so that a node on the walk has the neighbour it
    receives from beside it (against the direction of edges; of no account for undirected graphs); a walk stays at a
    node without such edges. The probabilities are estimated from subgraphs drawn beforehand, with seeds of their own,
    until every node was in ``coverage`` of them on average, so the weights are approximately unbiased (the paper's way;
    a node or an edge that was never seen counts as seen once).

    Args:
        data: ``Data`` or a pair ``(colptr, row)``, as for `NeighborSampler`.
        num_roots: walks; subgraphs have at most num_roots * (walk_length + 1) nodes.
        walk_length: steps of a walk.
        coverage: subgraphs drawn beforehand that hold a node, on average; keeps 4 bytes for every edge.
        seed: as for `NeighborSampler`; also of the subgraphs drawn beforehand (0 for None).

    Raises:
        TypeError, ValueError: an argument or the graph cannot be used.

    Example:
        >>> from torch_geometric.data import Data
        >>> ring = torch.arange(8)
        >>> data = Data(edge_index=torch.stack([ring, (ring + 1) % 8]), num_nodes=8)
        >>> out, _ = SaintWalkSampler(data, 1, walk_length=3, seed=0).sample(torch.tensor([0]), seed=3)
        >>> out.node.shape[0], out.edge.shape[0]
        (4, 3)
    """

    def __init__(
        self, data: Any, num_roots: int, walk_length: int = 2, *, coverage: int = 20, seed: int | None = None
    ) -> None:
        super().__init__(data, seed)
        self.num_roots = check_count("num_roots", num_roots)
        self.walk_length = check_count("walk_length", walk_length)
        self._count(check_count("coverage", coverage))

    def _count(self, coverage: int) -> None:
        nodes = torch.zeros(self.graph.num_nodes, dtype=torch.int32)
        edges = torch.zeros(self.graph.num_edges, dtype=torch.int32)
        drawn = seen = 0
        while seen < coverage * self.graph.num_nodes:
            inside = self.draw_nodes(fold(self.seed or 0, _PRESAMPLE, drawn))
            nodes[inside] += 1
            edges[induced(self.graph, inside)[2]] += 1
            drawn, seen = drawn + 1, seen + inside.shape[0]
        self._nodes, self._edges, self._drawn = nodes, edges, drawn

    def draw_nodes(self, seed: int) -> Tensor:
        at = below(fold(seed, 0), self.num_roots, self.graph.num_nodes)
        walk = torch.arange(self.num_roots)
        visited = [at]
        for step in range(1, self.walk_length + 1):
            position, counts, _ = sample_neighbors(
                self.graph.indptr, at, 1, replace=True, stream=walk, seed=fold(seed, step)
            )
            at = at.clone()
            at[counts > 0] = self.graph.sources(position)
            visited.append(at)
        return torch.cat(visited).unique()

    def probabilities(self, nodes: Tensor, row: Tensor, col: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
        of_edge = self._edges[edge].clamp(min=1).to(torch.float64)
        of_node = self._nodes[nodes].clamp(min=1).to(torch.float64)
        return of_node / self._drawn, torch.minimum(of_edge, of_node[col]) / self._drawn
