"""Clusters of a METIS partition as batches (Cluster-GCN, Chiang et al., KDD 2019)."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.sampler import SamplerOutput

from graphlossy.core._files import written
from graphlossy.core._neighbors import mix64
from graphlossy.sampler._checks import check_count
from graphlossy.sampler._graph import Graph
from graphlossy.sampler._induced import SubgraphSampler, induced

__all__ = ["ClusterSampler", "metis_partition"]

_FORMAT = 1


def metis_partition(graph: Graph, num_parts: int) -> Tensor:
    """int64 [N] parts 0 to num_parts - 1 by METIS (Karypis and Kumar 1998), edges in either direction counting alike.

    With as many parts as nodes, or more, every node is a part of its own.

    Raises:
        ModuleNotFoundError: pymetis is not installed.
    """
    if num_parts == 1 or graph.num_nodes == 0:
        return torch.zeros(graph.num_nodes, dtype=torch.int64)
    if num_parts >= graph.num_nodes:  # METIS would complain on stdout
        return torch.arange(graph.num_nodes)
    try:
        import pymetis
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'a METIS partition needs pymetis; pip install "graphlossy[cluster]", or give a partition', name="pymetis"
        ) from None
    from torch_geometric.utils import to_undirected

    to = torch.arange(graph.num_nodes).repeat_interleave(graph.in_degree())
    edges = torch.stack([graph.indices.to(torch.int64), to])
    edges = to_undirected(edges[:, edges[0] != edges[1]], num_nodes=graph.num_nodes)
    degree = torch.bincount(edges[0], minlength=graph.num_nodes)
    pointers, ends = torch.nn.functional.pad(degree.cumsum(0), (1, 0)).numpy(), edges[1].numpy()
    if hasattr(pymetis, "CSRAdjacency"):  # since 2025.2, which warns of the older form
        _, parts = pymetis.part_graph(num_parts, pymetis.CSRAdjacency(pointers, ends))
    else:
        _, parts = pymetis.part_graph(num_parts, xadj=pointers, adjncy=ends)
    return torch.as_tensor(np.asarray(parts), dtype=torch.int64)


class ClusterSampler(SubgraphSampler):
    """A batch is some clusters with all edges among their nodes; the input nodes of a loader are numbers of clusters.

    ``NodeLoader(data, node_sampler=sampler, input_nodes=sampler.clusters, batch_size=20, shuffle=True)`` gives batches
    of 20 clusters. Parts may be empty (many parts, few nodes); ``sampler.clusters`` names those that are not, and an
    empty one adds no nodes. Nothing is claimed to be unbiased: edges between batches are left out.

    Args:
        data: ``Data`` or a pair ``(colptr, row)``, as for `NeighborSampler`.
        num_parts: clusters that METIS makes; needs pymetis (``pip install "graphlossy[cluster]"``).
        partition: int [N] the cluster of every node, instead of ``num_parts``.
        cache: file for the partition: read if it fits the graph and ``num_parts``, else written (as a whole or not at
            all); that it can be written is found out before METIS runs.
        seed: not used; for the sake of one interface.

    Raises:
        TypeError, ValueError: an argument or the graph cannot be used.
        ModuleNotFoundError: a partition must be made and pymetis is missing.

    Example:
        >>> from torch_geometric.data import Data
        >>> ring = torch.arange(6)
        >>> data = Data(edge_index=torch.stack([ring, (ring + 1) % 6]), num_nodes=6)
        >>> sampler = ClusterSampler(data, partition=torch.tensor([0, 0, 0, 2, 2, 2]))
        >>> sampler.clusters.tolist(), sampler.sample(torch.tensor([2]), seed=0)[0].node.tolist()
        ([0, 2], [3, 4, 5])
    """

    def __init__(
        self,
        data: Any,
        num_parts: int | None = None,
        *,
        partition: Tensor | None = None,
        cache: str | Path | None = None,
        seed: int | None = 0,
    ) -> None:
        super().__init__(data, seed)
        if (num_parts is None) == (partition is None):
            raise ValueError("give either num_parts or partition, the cluster of every node")
        if partition is None:
            parts = self._partition(check_count("num_parts", num_parts), None if cache is None else Path(cache))
        else:
            parts = _check_partition(partition, self.graph.num_nodes)
        self.num_parts = max(int(parts.max()) + 1 if parts.numel() else 0, num_parts or 0)
        order = parts.sort(stable=True)
        self._nodes, self._sorted = order.indices, order.values
        self.partition = parts

    @property
    def clusters(self) -> Tensor:
        """int64 numbers of the clusters that have nodes."""
        return self._sorted.unique_consecutive()

    def _partition(self, num_parts: int, cache: Path | None) -> Tensor:
        if cache is None:
            return metis_partition(self.graph, num_parts)
        if cache.exists() and not cache.is_file():  # reading a pipe would wait, writing would replace a device
            raise ValueError(f"cache must be the path of a file, but {cache} is there and is none")
        key = np.array([_FORMAT, num_parts, self.graph.num_nodes, self.graph.num_edges, _fingerprint(self.graph)])
        found = _read(cache, key)
        if found is None:
            _check_writable(cache)
            found = metis_partition(self.graph, num_parts)
            _write(cache, key, found)
        return found

    def sample(self, inputs: Tensor, seed: int) -> tuple[SamplerOutput, dict[str, Tensor]]:
        """The subgraph of these clusters: their nodes, cluster after cluster, each rising."""
        if inputs.numel() and (int(inputs.min()) < 0 or int(inputs.max()) >= self.num_parts):
            raise ValueError(
                f"input nodes must be numbers of clusters, 0 to {self.num_parts - 1} (sampler.clusters), "
                f"got {inputs.min().item()} to {inputs.max().item()}"
            )
        chosen = torch.tensor(list(dict.fromkeys(inputs.tolist())), dtype=torch.int64)
        first, end = (torch.searchsorted(self._sorted, chosen, right=right).tolist() for right in (False, True))
        parts = [self._nodes[a:b] for a, b in zip(first, end, strict=True)]
        nodes = torch.cat(parts) if parts else self._nodes[:0]
        return SamplerOutput(nodes, *induced(self.graph, nodes)), {}


def _check_partition(partition: object, num_nodes: int) -> Tensor:
    if not isinstance(partition, Tensor) or partition.is_floating_point() or partition.dtype == torch.bool:
        kind = partition.dtype if isinstance(partition, Tensor) else type(partition).__name__
        raise TypeError(f"partition must be a tensor of ints, got {kind}")
    if tuple(partition.shape) != (num_nodes,):
        raise ValueError(
            f"partition must have a cluster for each of {num_nodes} nodes, got shape {tuple(partition.shape)}"
        )
    if partition.numel() and int(partition.min()) < 0:
        raise ValueError(f"partition must hold cluster numbers from 0, got {int(partition.min())}")
    return partition.detach().cpu().to(torch.int64)


def _fingerprint(graph: Graph) -> int:
    """A hash of the edges, so that a cached partition of another graph is not taken."""
    return sum(int(mix64(row * graph.num_nodes + col).sum()) for row, col, _ in graph.chunks()) % 2**63


def _read(file: Path, key: np.ndarray) -> Tensor | None:
    """The partition in a file that was made for this graph, else None."""
    try:
        with open(file, "rb") as source, np.load(source, allow_pickle=False) as held:
            if np.array_equal(held["key"], key) and held["partition"].shape == (key[2],):
                return torch.from_numpy(held["partition"]).to(torch.int64)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return None


def _check_writable(file: Path) -> None:
    """Raises unless a file of that name can be made or replaced."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise ValueError(f"cache {file} cannot be written ({error.strerror or error}); give another path") from None


def _write(file: Path, key: np.ndarray, partition: Tensor) -> None:
    with written(file) as path, open(path, "wb") as out:
        np.savez(out, key=key, partition=partition.to(torch.int32).numpy())
