"""Injected outliers: as the benchmarks publish them, and in a way that leaves no trace in degrees and norms.

The published injections can be read off without a model: cliques raise the degree, and the most distant of many
candidates has a large norm (`graphlossy.outliers.leak_report` measures it). The other two keep the degree of every node
and the multiset of feature rows, so that only the relation of a node to its neighbours tells an outlier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from graphlossy.core.quantize import seed_or_draw
from graphlossy.outliers._checks import Graph, check_number, prepare
from graphlossy.outliers._labels import CONTEXTUAL, STRUCTURAL, read_labels
from graphlossy.outliers._rewire import groups_by_degree, join_cliques
from graphlossy.outliers._rows import exchange_rows, replace_rows, spread_draw

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = [
    "KINDS",
    "inject",
    "inject_contextual",
    "inject_contextual_norm_matched",
    "inject_structural",
    "inject_structural_degree_preserving",
]

KINDS = ("published", "leakfree")


def inject_structural(data: Data, m: int, n: int, p: float = 0.2, seed: int | None = None) -> Data:
    """Joins n groups of m random nodes into cliques and drops a share p of the new edges (Ding et al., SDM 2019).

    All m n nodes are different. Of the n m (m - 1) / 2 new edges, round(p n m (m - 1) / 2) are dropped, drawn from all
    together, as BOND does (Liu et al., NeurIPS 2022). New edges go in both directions, or in one where the
    graph is directed; those that are there already count once. Published: p = 0.2 and (m, n) = (10, 7) on inj_cora,
    (70, 5) on inj_amazon, (20, 112) on inj_flickr. **The degree alone finds these outliers.**

    Args:
        data: PyG ``Data`` with x [N, F] and edge_index [2, E]; not changed.
        m: nodes of a clique, at least 2.
        n: cliques.
        p: share of dropped edges, in [0, 1).
        seed: 0 and above; None draws one from torch's generator.

    Returns:
        New ``Data`` on the CPU with ``x``, the new ``edge_index`` and ``y`` [N] int64, in which the outliers have bit 1
        (2) set, besides the bits that a ``typed`` graph brings; ``typed``, ``name`` and ``note``.

    Raises:
        TypeError, ValueError: the graph cannot be used, or m n exceeds N.

    Example:
        >>> from torch_geometric.data import Data
        >>> graph = Data(x=torch.ones(9, 2), edge_index=torch.empty(2, 0, dtype=torch.long))
        >>> found = inject_structural(graph, m=3, n=2, p=0.0, seed=0)
        >>> found.num_edges, int((found.y == 2).sum()), graph.num_edges
        (12, 6, 0)
    """
    graph, seed = prepare(data).to("cpu"), _seed(seed)
    edges, members, note = _cliques(graph, m, n, p, seed)
    return _result(data, graph.x.clone(), edges, {STRUCTURAL: members}, note)


def inject_contextual(data: Data, n: int, k: int = 50, seed: int | None = None) -> Data:
    """Gives n random nodes the features of the most distant of k random nodes (Song et al., TKDE 2007).

    One after the other: for outlier i, k different candidates are drawn from all nodes, and x_i becomes x_j with
    j = argmax ||x_i - x_j||_2. A row that was replaced before can be copied on. **The norm alone finds these**, as the
    most distant row is a large one; looking for rows that occur twice finds nearly all (AUC .98 on inj_cora).

    Args:
        data: PyG ``Data`` with x [N, F] and edge_index [2, E]; not changed.
        n: outliers.
        k: candidates for each. Published: 50 on inj_amazon and about 10 on inj_cora, as the norms and distances of
            their rows tell.
        seed: 0 and above; None draws one from torch's generator.

    Returns:
        As :func:`inject_structural`; these outliers have bit 0 (1) set.

    Raises:
        TypeError, ValueError: the graph cannot be used, or n or k exceeds N.

    Example:
        >>> from torch_geometric.data import Data
        >>> graph = Data(x=torch.tensor([[1.0], [2.0], [3.0], [9.0]]), edge_index=torch.empty(2, 0, dtype=torch.long))
        >>> found = inject_contextual(graph, n=1, k=4, seed=0)
        >>> float(found.x[found.y == 1]) in (1.0, 9.0)
        True
    """
    graph, seed = prepare(data).to("cpu"), _seed(seed)
    x = graph.x.clone()
    members, note = _distant_rows(x, n, k, seed)
    return _result(data, x, graph.edge_index, {CONTEXTUAL: members}, note)


def inject_structural_degree_preserving(data: Data, m: int, n: int, seed: int | None = None) -> Data:
    """Joins m n random nodes into cliques by swapping edges, which keeps the degree of every node.

    For nodes u and v of a clique, edges u-a and v-b become u-v and a-b (Maslov and Sneppen, Science 2002); where that
    is impossible for all a and b, a third edge is swapped too. Outliers are drawn evenly from all degrees among the
    nodes that have an edge, and cut into cliques by degree: a node with d neighbours is in one of at most d + 1 nodes,
    so that low-degree nodes are outliers as often as others are, in small cliques (a pair, where d is 1).

    Args:
        data: PyG ``Data``, undirected; not changed. Self loops stay and are not counted.
        m: most nodes of a clique, at least 2.
        n: m n nodes are joined, or one fewer, where a node is left over that no clique has room for.
        seed: 0 and above; None draws one from torch's generator.

    Returns:
        As :func:`inject_structural`; ``note`` says how many pairs of a clique could not be joined, if any.

    Raises:
        TypeError, ValueError: the graph cannot be used, is directed, or has fewer than m n nodes with edges.

    Example:
        >>> from torch_geometric.utils import degree
        >>> from graphlossy.datasets.synthetic import random_graph
        >>> graph = random_graph(200, 600, 4, 2, seed=0)
        >>> found = inject_structural_degree_preserving(graph, m=4, n=3, seed=0)
        >>> bool((degree(found.edge_index[0]) == degree(graph.edge_index[0])).all()), int((found.y == 2).sum())
        (True, 12)
    """
    graph, seed = prepare(data).to("cpu"), _seed(seed)
    edges, members, note = _swapped_edges(graph, m, n, seed)
    return _result(data, graph.x.clone(), edges, {STRUCTURAL: members}, note)


def inject_contextual_norm_matched(data: Data, n: int, k: int = 50, seed: int | None = None) -> Data:
    """Exchanges the features of n / 2 pairs of nodes of nearly the same norm, each the most distant of k candidates.

    A random node i of each range of norms exchanges its row with the one, among the k nodes whose norms are nearest to
    its own in rank, that has the least cosine similarity to it; at equal norms that is the greatest distance, as
    ||x_i - x_j||^2 = 2 ||x||^2 (1 - cos). The rows are the same ones before and after, so that no statistic of single
    rows (norm, sum, zeros, copies) tells which were moved.

    Args:
        data: PyG ``Data`` with x [N, F] and edge_index [2, E]; not changed.
        n: outliers, an even number.
        k: candidates for each pair.
        seed: 0 and above; None draws one from torch's generator.

    Returns:
        As :func:`inject_contextual`.

    Raises:
        TypeError, ValueError: the graph cannot be used, n is odd or exceeds N, or so many pairs of different rows
            cannot be found.

    Example:
        >>> from torch_geometric.data import Data
        >>> graph = Data(x=torch.eye(6), edge_index=torch.empty(2, 0, dtype=torch.long))
        >>> found = inject_contextual_norm_matched(graph, n=2, k=3, seed=0)
        >>> int((found.x != graph.x).any(1).sum()), found.x.sum(0).tolist() == graph.x.sum(0).tolist()
        (2, True)
    """
    graph, seed = prepare(data).to("cpu"), _seed(seed)
    x = graph.x.clone()
    members, note = _exchanged_rows(x, n, k, seed)
    return _result(data, x, graph.edge_index, {CONTEXTUAL: members}, note)


def inject(
    data: Data,
    kind: str = "published",
    share: float = 0.05,
    seed: int | None = None,
    *,
    m: int | None = None,
    k: int = 50,
) -> Data:
    """Injects structural and contextual outliers, as many of each, with the parameters of the published sets.

    Args:
        data: PyG ``Data`` with x [N, F] and edge_index [2, E]; not changed.
        kind: ``"published"``: :func:`inject_structural` with p = 0.2 and :func:`inject_contextual`; ``"leakfree"``:
            :func:`inject_structural_degree_preserving` and :func:`inject_contextual_norm_matched`.
        share: of all nodes that become outliers, in (0, 0.5]; 5 % in the published sets. A few nodes are of both types.
        seed: 0 and above; None draws one from torch's generator.
        m: (most) nodes of a clique; None takes about twice the mean degree, as the published sets do, so that the
            cliques have as many nodes in all as there are to be outliers.
        k: candidates of a contextual outlier.

    Returns:
        New ``Data`` on the CPU with ``x``, ``edge_index``, ``y`` [N] int64 (1 contextual, 2 structural, 3 both),
        ``typed``, ``name`` and ``note``.

    Raises:
        TypeError, ValueError: an argument is out of range, or as the functions above.

    Example:
        >>> from graphlossy.datasets import load
        >>> found = inject(load("wordnet-verbs"), "leakfree", seed=0)
        >>> int((found.y & 1).sum()), int((found.y & 2).sum()) // 2, found.num_edges
        (344, 345, 31306)
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be {' or '.join(map(repr, KINDS))}, got {kind!r}")
    check_number("share", share, 0, 0.5, open_low=True)
    graph, seed = prepare(data).to("cpu"), _seed(seed)
    nodes = graph.num_nodes
    each = max(2, round(share / 2 * nodes))
    if m is None:
        n = max(1, round(each / max(3, round(2 * graph.num_edges / nodes))))
        m = round(each / n)
    else:
        check_number("m", m, 2, integer=True)
        n = max(1, round(each / m))
    x = graph.x.clone()
    if kind == "published":
        edges, structural, how = _cliques(graph, m, n, 0.2, seed)
        contextual, how_rows = _distant_rows(x, m * n, min(k, nodes), seed)
    else:
        edges, structural, how = _swapped_edges(graph, m, n, seed)
        contextual, how_rows = _exchanged_rows(x, max(2, m * n // 2 * 2), min(k, nodes), seed)
    return _result(data, x, edges, {STRUCTURAL: structural, CONTEXTUAL: contextual}, f"{how}; {how_rows}")


def _cliques(graph: Graph, m: int, n: int, p: float, seed: int) -> tuple[Tensor, np.ndarray, str]:
    """The edges with those of n cliques of m nodes added, the nodes, and what was done."""
    _check_groups(m, n, graph.num_nodes, "nodes")
    check_number("p", p, 0, 1)
    if p == 1:
        raise ValueError("p must be below 1, got 1: every new edge would be dropped, and nothing be injected")
    rng = _generator(seed, STRUCTURAL)
    members = rng.permutation(graph.num_nodes)[: m * n].reshape(n, m)
    one, other = np.triu_indices(m, 1)
    new = np.stack([members[:, one].ravel(), members[:, other].ravel()])
    new = new[:, rng.choice(new.shape[1], new.shape[1] - round(p * new.shape[1]), replace=False)]
    if not _is_directed(graph):
        new = np.concatenate([new, new[::-1]], axis=1)
    note = f"{m * n} structural outliers in {n} cliques of {m}, {p:.0%} of the new edges dropped, seed {seed}"
    return torch.cat([graph.edge_index, torch.from_numpy(new)], 1), members.ravel(), note


def _swapped_edges(graph: Graph, m: int, n: int, seed: int) -> tuple[Tensor, np.ndarray, str]:
    """The edges after the swaps that make cliques, the nodes in these, and what was done."""
    if _is_directed(graph):
        raise ValueError(
            "data must be undirected, each edge there in both directions: use torch_geometric.utils.to_undirected, or "
            "the published injection"
        )
    edges = graph.edge_index.numpy()
    loops = edges[0] == edges[1]
    plain = edges[:, ~loops]
    degree = np.bincount(plain[0], minlength=graph.num_nodes)
    candidates = np.flatnonzero(degree)
    _check_groups(m, n, len(candidates), "nodes that have an edge")
    rng = _generator(seed, STRUCTURAL)
    groups = groups_by_degree(spread_draw(candidates, degree[candidates], m * n, rng), degree, m, rng)
    swapped, failed = join_cliques(plain, graph.num_nodes, groups, rng)
    members = np.concatenate(groups)
    note = f"{len(members)} structural outliers in {len(groups)} cliques of at most {m} by swapped edges, seed {seed}"
    note += f" ({failed} pairs could not be joined)" if failed else ""
    return torch.from_numpy(np.concatenate([swapped, edges[:, loops]], axis=1)), members, note


def _distant_rows(x: Tensor, n: int, k: int, seed: int) -> tuple[np.ndarray, str]:
    """Replaces rows of ``x``; the nodes, and what was done."""
    _at_most("n", n, len(x))
    _at_most("k", k, len(x))
    rng = _generator(seed, CONTEXTUAL)
    members = rng.permutation(len(x))[:n]
    replace_rows(x.numpy(), members, k, rng)
    return members, f"{n} contextual outliers, the most distant of {k} candidates, seed {seed}"


def _exchanged_rows(x: Tensor, n: int, k: int, seed: int) -> tuple[np.ndarray, str]:
    """Exchanges rows of ``x``; the nodes, and what was done."""
    _at_most("n", n, len(x))
    _at_most("k", k, len(x))
    if n % 2:
        raise ValueError(f"n must be even, as two nodes exchange their features, got {n}: take {n - 1} or {n + 1}")
    members = exchange_rows(x.numpy(), n, k, _generator(seed, CONTEXTUAL))
    if len(members) < n:
        raise ValueError(
            f"n must be at most {len(members)}, got {n}: no more pairs of different rows have nearly the same norm; "
            "inject fewer outliers or take more candidates (k)"
        )
    return members, f"{n} contextual outliers, pairs of one norm that exchanged features, {k} candidates, seed {seed}"


def _seed(seed: int | None) -> int:
    return int(check_number("seed", seed_or_draw(seed), 0, integer=True))


def _check_groups(m: int, n: int, nodes: int, of: str) -> None:
    check_number("m", m, 2, integer=True)
    check_number("n", n, 1, integer=True)
    if m * n > nodes:
        raise ValueError(f"m * n must be at most {nodes:,}, the number of {of}, got {m} * {n}")


def _at_most(name: str, value: int, nodes: int) -> None:
    check_number(name, value, 1, integer=True)
    if value > nodes:
        raise ValueError(f"{name} must be at most {nodes:,}, the number of nodes, got {value:,}")


def _generator(seed: int, stream: int) -> np.random.Generator:
    """One for each type of outlier: a seed must not draw the same nodes for both."""
    return np.random.default_rng([seed, stream])


def _is_directed(graph: Graph) -> bool:
    return graph.undirected is not graph


def _result(data: Any, x: Tensor, edges: Tensor, members: dict[int, np.ndarray], note: str) -> Data:
    """The new graph, its labels those of the old one, where these are typed, and the new outliers'."""
    from torch_geometric.data import Data

    y = torch.zeros(len(x), dtype=torch.int64)
    if getattr(data, "typed", False) and getattr(data, "y", None) is not None:
        y = read_labels(data.y, len(x), "data.y").clone()
    for bit, nodes in members.items():
        y[torch.from_numpy(nodes)] |= bit
    graph = prepare(Data(x=x, edge_index=edges))
    made = Data(x=graph.x, edge_index=graph.edge_index, y=y)
    made.typed, made.name = True, str(getattr(data, "name", None) or "the graph")
    before = getattr(data, "note", None)
    made.note = f"{before}; {note}" if before else note
    return made
