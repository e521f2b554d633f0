"""SCAN: clusters by shared neighbours, and what belongs to none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphlossy.outliers._base import Detector
from graphlossy.outliers._checks import Graph, check_number

__all__ = ["SCAN", "common_neighbors"]

_CHUNK = 1 << 22  # pairs looked up at a time
_CLASSES = ("members", "non-members")


def common_neighbors(graph: Graph) -> Tensor:
    """How many nodes both ends of each edge are linked to, int64 [E].

    Every neighbour of the end that has fewer is looked up among the other's: sum over edges of min(deg_u, deg_v) steps,
    at most O(m sqrt(m)) (Chiba and Nishizeki, SIAM J. Comput. 14(1), 1985), in memory for a chunk of them.

    Args:
        graph: undirected, without self loops.

    Example:
        >>> triangle = Graph(torch.empty(3, 0), torch.tensor([[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]]), 3)
        >>> common_neighbors(triangle)
        tensor([1, 1, 1, 1, 1, 1])
    """
    (crow, col), (source, target), n = graph.csr, graph.edge_index, graph.num_nodes
    degree, keys = graph.degrees, source * n + target
    out = torch.zeros_like(source)
    half = (source < target).nonzero().flatten()  # the other direction has the same count
    swap = degree[source[half]] > degree[target[half]]
    few = torch.where(swap, target[half], source[half])
    many = torch.where(swap, source[half], target[half])
    ends = degree[few].cumsum(0)
    start = 0
    while start < len(half):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(ends, done + _CHUNK, right=True)))
        low, high = few[start:stop], many[start:stop]
        count = degree[low]
        pair = torch.repeat_interleave(torch.arange(len(low)), count)
        within = torch.arange(len(pair)) - (count.cumsum(0) - count)[pair]
        wanted = high[pair] * n + col[crow[low][pair] + within]
        found = keys[torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)] == wanted
        out[half[start:stop]] = torch.zeros_like(low).index_add_(0, pair, found.long())
        start = stop
    back = torch.searchsorted(keys, target[half] * n + source[half])
    out[back] = out[half]
    return out


class SCAN(Detector):
    """Structural clustering of networks (Xu et al., KDD 2007); features are not read.

    With Gamma(v) the neighbours of v and v itself, the similarity of two linked nodes is
    sigma(v, w) = |Gamma(v) n Gamma(w)| / sqrt(|Gamma(v)| |Gamma(w)|) (definition 2). A node is a core if at least
    ``mu`` nodes of Gamma(v), itself included, have sigma >= ``eps`` (definition 4). Cores linked by such pairs form
    clusters, which their other eps-neighbours join (definition 9). Of the nodes outside all clusters those that touch
    two or more are hubs, the others outliers (definitions 10 and 11). Directions and self loops are left out.

    The score is 1 for the chosen class and 0 for the other. Injected structural outliers are cliques, that is
    clusters: by default their members score 1, as in PyGOD and the BOND benchmark, the opposite of the paper's
    outliers, which ``outliers="non-members"`` gives.

    Args:
        eps: least similarity, in (0, 1].
        mu: least size of a core's neighbourhood, at least 1.
        outliers: ``"members"`` of clusters or ``"non-members"``.
        **base: contamination, seed (:class:`~graphlossy.outliers.Detector`); the seed changes nothing.

    Attributes:
        cluster_: int64 [N], the cluster of each node from 0, -1 outside. A node that is no core and could join several
            joins that of its core neighbour of greatest number.
        hub_: bool [N], nodes outside that touch two clusters or more.
        outlier_: bool [N], the other nodes outside.

    Raises:
        ImportError: scipy is missing.

    Example:
        >>> from torch_geometric.data import Data
        >>> edges = torch.tensor([[0, 0, 1, 2, 3], [1, 2, 2, 3, 4]])  # a triangle with a tail
        >>> scan = SCAN(eps=0.7, mu=3).fit(Data(num_nodes=5, edge_index=edges))
        >>> scan.decision_score_.tolist(), scan.outlier_.tolist()
        ([1.0, 1.0, 1.0, 0.0, 0.0], [False, False, False, True, True])
    """

    name, title, paper = "scan", "SCAN", "Xu et al., SCAN: A Structural Clustering Algorithm for Networks, KDD 2007"
    seeded, memory = False, "O(m)"
    needs = ("edges",)

    cluster_: Tensor
    hub_: Tensor
    outlier_: Tensor

    def __init__(self, *, eps: float = 0.5, mu: int = 2, outliers: str = "members", **base: Any) -> None:
        super().__init__(**base)
        self.eps = float(check_number("eps", eps, 0, 1, open_low=True))
        self.mu = check_number("mu", mu, 1, integer=True)
        if outliers not in _CLASSES:
            raise ValueError(f"outliers must be one of {', '.join(map(repr, _CLASSES))}, got {outliers!r}")
        self.outliers = outliers

    def _score(self, graph: Graph) -> Tensor:
        graph = graph.to("cpu").without_self_loops.undirected
        self.cluster_ = self._clusters(graph)
        outside = self.cluster_ < 0
        self.hub_ = outside & _touches_two(graph, self.cluster_)
        self.outlier_ = outside & ~self.hub_
        return (outside if self.outliers == "non-members" else ~outside).float()

    def _clusters(self, graph: Graph) -> Tensor:
        try:
            from scipy.sparse import coo_array
            from scipy.sparse.csgraph import connected_components
        except ImportError as error:
            raise ImportError("SCAN needs scipy: pip install graphlossy[outliers]") from error
        (source, target), n = graph.edge_index, graph.num_nodes
        size = (graph.degrees + 1).double()  # |Gamma(v)|
        # The squares are whole numbers: sigma = eps is decided without the rounding of a square root.
        shared = (common_neighbors(graph) + 2).double()
        near = shared.square() >= self.eps**2 * (size[source] * size[target]) * (1 - 1e-12)
        source, target = source[near], target[near]
        core = torch.bincount(source, minlength=n) + 1 >= self.mu
        cluster = torch.full((n,), -1)
        linked = core[source] & core[target]
        pairs = source[linked].numpy(), target[linked].numpy()
        _, part = connected_components(coo_array((torch.ones(len(pairs[0])).numpy(), pairs), (n, n)), directed=False)
        parts = torch.from_numpy(part).long()
        _, cluster[core] = torch.unique(parts[core], return_inverse=True)
        border = core[source] & ~core[target]
        cluster.scatter_reduce_(0, target[border], cluster[source[border]], "amax")
        return cluster

    @classmethod
    def search_space(cls, dataset: str) -> dict[str, tuple[Any, ...]]:
        """BOND's draws."""
        return {"eps": (0.3, 0.5, 0.8), "mu": (2, 5, 10)}


def _touches_two(graph: Graph, cluster: Tensor) -> Tensor:
    """Whether the neighbours of a node belong to two clusters or more, bool [N]."""
    source, target = graph.edge_index
    inside = cluster[target] >= 0
    source, found = source[inside], cluster[target[inside]]
    least = torch.full_like(cluster, graph.num_nodes).scatter_reduce_(0, source, found, "amin")
    most = torch.full_like(cluster, -1).scatter_reduce_(0, source, found, "amax")
    return least < most
