"""Edge swaps of an undirected graph that keep the degree of every node."""

from __future__ import annotations

from itertools import combinations

import numpy as np

__all__ = ["Rewiring", "groups_by_degree", "join_cliques"]

_TRIES = 64  # pairs of edges looked at before a join is given up


def groups_by_degree(
    members: np.ndarray, degree: np.ndarray, largest: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Cuts nodes into groups that can be cliques: each as large as the least degree in it allows, d + 1 nodes.

    Nodes are sorted by degree (in random order where it is the same), so that the nodes of a group are alike. A single
    node that is left over is in no group.

    Args:
        members: [K] different nodes, each with a degree of at least 1.
        degree: [N] of all nodes, self loops not counted.
        largest: most nodes of a group.
        rng: of the order.

    Example:
        >>> degree = np.array([1, 1, 2, 3, 3])
        >>> [sorted(group.tolist()) for group in groups_by_degree(np.arange(5), degree, 10, np.random.default_rng(0))]
        [[0, 1], [2, 3, 4]]
    """
    members = members[np.lexsort((rng.random(len(members)), degree[members]))]
    groups, first = [], 0
    while len(members) - first >= 2:
        size = min(largest, int(degree[members[first]]) + 1, len(members) - first)
        if len(members) - first - size == 1 and size > 2:
            size -= 1  # or the last node would be alone
        groups.append(members[first : first + size])
        first += size
    return groups


def join_cliques(
    edges: np.ndarray, nodes: int, groups: list[np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Makes a clique of each group, every degree kept.

    Args:
        edges: [2, E] as :class:`Rewiring` takes them.
        nodes: N.
        groups: of different nodes.
        rng: of all choices.

    Returns:
        The new edges [2, E], in no order, and how many pairs could not be joined.
    """
    group = np.full(nodes, -1, np.int64)
    for number, members in enumerate(groups):
        group[members] = number
    rewiring, failed = Rewiring(edges, nodes, group, rng), 0
    for members in groups:
        for u, v in combinations(members.tolist(), 2):
            failed += not rewiring.join(u, v)
    return rewiring.edges(), failed


class Rewiring:
    """An undirected graph whose edges are swapped in pairs: u-a and v-b become u-v and a-b.

    Neighbours of the nodes that a swap touches are kept as sets, all others as they were, so that time and memory are
    those of the swaps and of one pass over the edges.

    Args:
        edges: [2, E] int64, each edge in both directions, sorted by source, no duplicates and no self loops.
        nodes: N.
        group: [N] int64, the group of each node, -1 for none; an edge inside a group is never taken away.
        rng: of all choices.
    """

    def __init__(self, edges: np.ndarray, nodes: int, group: np.ndarray, rng: np.random.Generator) -> None:
        self._edges, self._group, self._rng = edges, group, rng
        self._start = np.searchsorted(edges[0], np.arange(nodes + 1))
        self._touched: dict[int, set[int]] = {}

    def neighbours(self, node: int) -> set[int]:
        """The present neighbours of a node."""
        found = self._touched.get(node)
        if found is None:
            found = set(self._edges[1, self._start[node] : self._start[node + 1]].tolist())
            self._touched[node] = found
        return found

    def join(self, u: int, v: int) -> bool:
        """Makes u and v neighbours, every degree kept; False where no swap was found, and nothing has changed.

        Where no edges u-a and v-b allow u-v and a-b (which must be new), a third edge c-d is taken too, and u-v, a-c
        and b-d are made of the three.
        """
        if v in self.neighbours(u):
            return True
        ends_u, ends_v = self._free(u), self._free(v)
        if not len(ends_u) or not len(ends_v):
            return False
        for a, b in zip(self._some(ends_u), self._some(ends_v), strict=True):
            if a != b and b not in self.neighbours(a):
                self._change([(u, a), (v, b)], [(u, v), (a, b)])
                return True
        for a, b, (c, d) in zip(self._some(ends_u), self._some(ends_v), self._others(), strict=True):
            taken = d in self.neighbours(c) and not self._inside(c, d) and not {c, d} & {u, v}
            if taken and a != c and b != d and c not in self.neighbours(a) and d not in self.neighbours(b):
                self._change([(u, a), (v, b), (c, d)], [(u, v), (a, c), (b, d)])
                return True
        return False

    def edges(self) -> np.ndarray:
        """The present ``edge_index`` [2, E], in no order."""
        kept = np.ones(len(self._start) - 1, np.bool_)
        kept[list(self._touched)] = False
        source = [np.full(len(ends), node, np.int64) for node, ends in self._touched.items()]
        target = [np.array(sorted(ends), np.int64) for ends in self._touched.values()]
        changed = np.stack([np.concatenate([np.empty(0, np.int64), *ends]) for ends in (source, target)])
        return np.concatenate([self._edges[:, kept[self._edges[0]]], changed], axis=1)

    def _inside(self, u: int, v: int) -> bool:
        return bool(self._group[u] == self._group[v] >= 0)

    def _free(self, node: int) -> np.ndarray:
        """The neighbours whose edge may be taken away, in rising order: what is drawn must not depend on a set's."""
        ends = np.array(sorted(self.neighbours(node)), np.int64)
        return ends[self._group[ends] != self._group[node]]

    def _some(self, ends: np.ndarray) -> list[int]:
        return self._rng.choice(ends, _TRIES).tolist()

    def _others(self) -> list[list[int]]:
        return self._edges[:, self._rng.integers(self._edges.shape[1], size=_TRIES)].T.tolist()

    def _change(self, removed: list[tuple[int, int]], added: list[tuple[int, int]]) -> None:
        for one, other in removed:
            self.neighbours(one).remove(other)
            self.neighbours(other).remove(one)
        for one, other in added:
            self.neighbours(one).add(other)
            self.neighbours(other).add(one)
