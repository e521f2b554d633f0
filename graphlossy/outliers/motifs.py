"""How many small connected patterns each node is in: counts of induced subgraphs on three and four nodes.

GUIDE (Yuan et al., IEEE BigData 2021, section 3.2) describes a node's higher-order structure by them. Enumerating all
connected quadruples, as the libraries do, takes minutes for 1,000 nodes. Only triangles and four-cliques are listed
here, along edges that point from lower to higher degree, so that no node has more than sqrt(2 E) of them to look at
(Chiba and Nishizeki, SIAM Journal on Computing 1985); two-paths are counted between such nodes too, and the rest is
arithmetic:

- induced open triangles = pairs of neighbours and paths that start here, less the closed ones;
- diamonds = pairs of triangles on one edge, less those in four-cliques (six in each);
- induced four-cycles = closed walks of four distinct nodes, less one in each diamond and three in each four-clique.

All counts are exact, int64, in blocks of bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from graphlossy.outliers._checks import Graph, coalesced

__all__ = ["MOTIFS", "motif_degrees"]

MOTIFS = ("triangle", "open triangle", "4-clique", "diamond", "4-cycle", "degree")
_BLOCK = 1 << 22  # candidates that are looked at at a time: 32 MiB of int64 each


def motif_degrees(graph: Graph) -> Tensor:
    """The number of induced subgraphs of each kind that hold each node; directions and self loops are ignored.

    Args:
        graph: N nodes, isolated ones included.

    Returns:
        [N, 6] int64, columns as :data:`MOTIFS`.

    Example:
        >>> square = Graph(torch.eye(5), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]), 5)
        >>> motif_degrees(square)[[0, 4]]  # a corner; an isolated node
        tensor([[0, 3, 0, 0, 1, 2],
                [0, 0, 0, 0, 0, 0]])
    """
    ranked = _Ranked(graph)
    degree = ranked.degree
    triangles, edge_triangles, cliques = ranked.zeros(), torch.zeros_like(ranked.key), ranked.zeros()
    for corners, sides in ranked.triangles():
        triangles += _count(corners, ranked.n)
        edge_triangles += _count(sides, ranked.key.numel())
        for four in ranked.cliques(corners):
            cliques += _count(four, ranked.n)
    # Triangles that share the side opposite to a corner with another one, and pairs of triangles on an edge.
    across = ranked.zeros()
    for corners, sides in ranked.triangles():
        across.index_add_(0, corners.flatten(), edge_triangles[sides.flip(0)].flatten() - 1)
    pairs = edge_triangles * (edge_triangles - 1) // 2
    diamonds = across - 3 * cliques
    diamonds.index_add_(0, ranked.low, pairs).index_add_(0, ranked.high, pairs)
    diamonds -= 3 * cliques
    cycles = ranked.closed_walks() - diamonds - 3 * cliques
    ends = ranked.zeros().index_add_(0, ranked.low, degree[ranked.high] - 1)
    ends.index_add_(0, ranked.high, degree[ranked.low] - 1)
    opened = degree * (degree - 1) // 2 - triangles + ends - 2 * triangles
    return torch.stack([triangles, opened, cliques, diamonds, cycles, degree], 1)[ranked.rank]


def _count(nodes: Tensor, size: int) -> Tensor:
    return torch.bincount(nodes.flatten(), minlength=size)


def _spread(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """For items that have ``lengths`` candidates: the item of each candidate, and its number among the item's."""
    item = torch.repeat_interleave(torch.arange(lengths.numel(), device=lengths.device), lengths)
    first = lengths.cumsum(0) - lengths
    return item, torch.arange(item.numel(), device=lengths.device) - first[item]


def _blocks(lengths: Tensor) -> Iterator[slice]:
    """Runs of items with at most ``_BLOCK`` candidates in all, or with one item."""
    total = lengths.cumsum(0)
    start = 0
    while start < lengths.numel():
        done = int(total[start - 1]) if start else 0
        end = max(start + 1, int(torch.searchsorted(total, done + _BLOCK, right=True)))
        yield slice(start, end)
        start = end


class _Ranked:
    """The undirected graph with its nodes numbered by degree, and each edge once, from the lower to the higher number.

    Attributes:
        rank: [N], the new number of each node.
        low, high: [M], the ends of each edge, sorted by (low, high).
        key: [M], low N + high.
    """

    def __init__(self, graph: Graph) -> None:
        plain = graph.without_self_loops.undirected
        self.n = n = graph.num_nodes
        order = plain.degrees.argsort(stable=True)
        self.rank = torch.empty_like(order)
        self.rank[order] = torch.arange(n, device=order.device)
        self.degree = plain.degrees[order]
        self.both = coalesced(self.rank[plain.edge_index], n)  # sorted by node, then neighbour
        self.low, self.high = self.both[:, self.both[0] < self.both[1]]
        self.key = self.low * n + self.high
        self.start = torch.searchsorted(self.low, torch.arange(n + 1, device=order.device))

    def zeros(self) -> Tensor:
        return torch.zeros(self.n, dtype=torch.int64, device=self.key.device)

    def _find(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The number of each edge (low, high), and whether there is such an edge."""
        key = low * self.n + high
        at = torch.searchsorted(self.key, key).clamp_(max=max(0, self.key.numel() - 1))
        return at, self.key[at] == key

    def triangles(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of triangles a < b < c: corners [3, T], and the edges ab, ac, bc, [3, T]."""
        higher = self.start.diff()[self.high]
        for block in _blocks(higher):
            edge, number = _spread(higher[block])
            edge = edge + block.start
            second = self.start[self.high[edge]] + number  # b -> c
            third, closed = self._find(self.low[edge], self.high[second])
            edge, second, third = edge[closed], second[closed], third[closed]
            yield (
                torch.stack([self.low[edge], self.high[edge], self.high[second]]),
                torch.stack([edge, third, second]),
            )

    def cliques(self, corners: Tensor) -> Iterator[Tensor]:
        """Blocks of the four-cliques [4, Q] whose three lower nodes are these triangles'."""
        higher = self.start.diff()[corners[2]]
        for block in _blocks(higher):
            item, number = _spread(higher[block])
            a, b, c = corners[:, item + block.start]
            d = self.high[self.start[c] + number]
            found = self._find(a, d)[1]
            a, b, c, d = a[found], b[found], c[found], d[found]
            found = self._find(b, d)[1]
            yield torch.stack([a, b, c, d])[:, found]

    def closed_walks(self) -> Tensor:
        """Four-cycles through each node, chords allowed, [N].

        Each is found at its highest node u: u - x - w with x < u and w < u. Two such paths between u and w make one.
        """
        count = self.zeros()
        node, neighbour = self.both
        first = torch.searchsorted(node, torch.arange(self.n, device=node.device))
        below = torch.arange(node.numel(), device=node.device) - first[node]  # neighbours of x that come before u
        keep = neighbour > node
        x, u, below = node[keep], neighbour[keep], below[keep]
        order = u.argsort(stable=True)  # all paths of one u in one block
        x, u, below = x[order], u[order], below[order]
        per_node = self.zeros().index_add_(0, u, below)
        of = torch.searchsorted(u, torch.arange(self.n + 1, device=u.device))
        for block in _blocks(per_node):
            edges = slice(int(of[block.start]), int(of[block.stop]))
            item, number = _spread(below[edges])
            item = item + edges.start
            middle, top, w = x[item], u[item], neighbour[first[x[item]] + number]
            pair, which, paths = torch.unique(top * self.n + w, return_inverse=True, return_counts=True)
            made = paths * (paths - 1) // 2
            count.index_add_(0, pair // self.n, made).index_add_(0, pair % self.n, made)
            count.index_add_(0, middle, paths[which] - 1)
        return count
