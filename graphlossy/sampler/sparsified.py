"""The whole graph with freshly thinned edges as a batch (DSpar, Liu et al., TMLR 2023, drawn again every epoch)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.sampler import SamplerOutput

from graphlossy.sampler._checks import check_flag
from graphlossy.sampler._induced import SubgraphSampler
from graphlossy.sampler._pairs import is_symmetric
from graphlossy.sampler.neighbor import check_value

__all__ = ["DegreeSparsifySampler"]


class DegreeSparsifySampler(SubgraphSampler):
    """All nodes with a new draw of edges by degree in every batch; the input nodes of a loader only name the batch.

    The edges are those of :func:`graphlossy.sparsify.degree_sparsify`; their weights make the expected (weighted)
    adjacency the graph's own, so sums over neighbours are unbiased. Edge attributes do not follow (edge ids are not
    kept); ``edge_weight`` is the sampler's.

    Args:
        data: ``Data`` or a pair ``(colptr, row)``, as for `NeighborSampler`.
        ratio: expected share of the distinct edges that is kept; or one of
        epsilon: Q = 0.16 N ln N / epsilon**2 draws, or
        num_samples: Q draws.
        reweight: add the weights; False leaves the edges as they are (the paper's unweighted option: biased).
        undirected: None finds out once whether the graph is symmetric.
        seed: as for `NeighborSampler`.

    Raises:
        TypeError, ValueError: an argument or the graph cannot be used.

    Example:
        >>> from torch_geometric.data import Data
        >>> edges = torch.combinations(torch.arange(20)).t()
        >>> data = Data(edge_index=torch.cat([edges, edges.flip(0)], dim=1), num_nodes=20)
        >>> out, weights = DegreeSparsifySampler(data, ratio=0.5, seed=0).sample(torch.tensor([0]), seed=1)
        >>> out.node.shape[0], 0.3 < out.row.shape[0] / 380 < 0.7, weights["edge_weight"].shape == out.row.shape
        (20, True, True)
    """

    def __init__(
        self,
        data: Any,
        *,
        ratio: float | None = None,
        epsilon: float | None = None,
        num_samples: int | None = None,
        reweight: bool = True,
        undirected: bool | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(data, seed)
        self.reweight = check_flag("reweight", reweight)
        self._amount: dict[str, Any] = {"ratio": ratio, "epsilon": epsilon, "num_samples": num_samples}
        if sum(value is not None for value in self._amount.values()) != 1:
            raise ValueError(f"give exactly one of ratio, epsilon and num_samples, got {self._amount}")
        graph = self.graph
        if undirected is None and graph.value is None:
            undirected = is_symmetric(graph)  # with weights it also depends on them: found out anew each time
        self._undirected = undirected if undirected is None else check_flag("undirected", undirected)
        to = torch.arange(graph.num_nodes).repeat_interleave(graph.in_degree())
        self._edge_index = torch.stack([graph.indices.to(torch.int64), to])
        self._value: Tensor | None = None
        if graph.value is not None:
            value = check_value(graph.value, graph.num_edges)
            self._value = value if graph.perm is None else value[graph.perm]
        self.sample(torch.empty(0, dtype=torch.int64), 0)  # an amount out of range shows here, not in a worker

    def sample(self, inputs: Tensor, seed: int) -> tuple[SamplerOutput, dict[str, Tensor]]:
        """The thinned graph of a seed; ``inputs`` does not matter."""
        from graphlossy.sparsify import degree_sparsify

        (row, col), weight = degree_sparsify(
            self._edge_index,
            self.graph.num_nodes,
            **self._amount,
            reweight=self.reweight,
            edge_weight=self._value,
            undirected=self._undirected,
            seed=seed,
        )
        nodes = torch.arange(self.graph.num_nodes)
        return SamplerOutput(nodes, row, col, None), {} if weight is None else {"edge_weight": weight}
