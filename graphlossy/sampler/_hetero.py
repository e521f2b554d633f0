"""Hop by hop over the node and edge types of a heterogeneous graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from graphlossy.core import relabel, sample_neighbors
from graphlossy.sampler._checks import check_fanouts
from graphlossy.sampler._graph import Graph, edge_graph
from graphlossy.sampler._hops import Draw
from graphlossy.sampler._seeding import fold

__all__ = ["HeteroGraph", "HeteroHops", "hetero_fanouts", "hetero_graph", "sample_hetero_hops"]

EdgeType = tuple[str, str, str]


@dataclass(frozen=True)
class HeteroGraph:
    """A :class:`Graph` for each edge type, whose nodes are those at which its edges arrive."""

    num_nodes: dict[str, int]
    graphs: dict[EdgeType, Graph]


def hetero_graph(data: HeteroData) -> HeteroGraph:
    """The graphs of all edge types of ``data``."""
    num_nodes = {kind: data[kind].num_nodes for kind in data.node_types}
    unknown = [kind for kind, count in num_nodes.items() if count is None]
    if unknown:
        raise ValueError(f"the number of nodes of type {unknown[0]!r} is unknown; set data[{unknown[0]!r}].num_nodes")
    graphs = {}
    for kind in data.edge_types:
        store = data[kind]
        if "edge_index" not in store:
            raise ValueError(f"edge type {kind} has no edge_index; convert adj_t to edge_index for mixed graphs")
        value = store["edge_weight"] if "edge_weight" in store else None
        graphs[kind] = edge_graph(store["edge_index"], num_nodes[kind[2]], num_nodes[kind[0]], value)
    return HeteroGraph(num_nodes, graphs)


def hetero_fanouts(num_neighbors: object, edge_types: Sequence[EdgeType]) -> dict[EdgeType, list[int]]:
    """Fan-outs of every edge type from one list, or from a dictionary with a list for each edge type."""
    if not isinstance(num_neighbors, dict):
        fanouts = check_fanouts(num_neighbors)
        return {kind: fanouts for kind in edge_types}
    unknown = [kind for kind in num_neighbors if kind not in edge_types]
    missing = [kind for kind in edge_types if kind not in num_neighbors]
    if unknown or missing:
        what = f"{unknown[0]} is none" if unknown else f"{missing[0]} is missing"
        raise ValueError(f"num_neighbors must have a list for each of the edge types {list(edge_types)}; {what}")
    found = {kind: check_fanouts(num_neighbors[kind]) for kind in edge_types}
    if len({len(fanouts) for fanouts in found.values()}) > 1:
        raise ValueError(f"num_neighbors must name the same number of hops for every edge type, got {num_neighbors}")
    return found


@dataclass
class HeteroHops:
    """Like :class:`graphlossy.sampler._hops.Hops`, by type."""

    node: dict[str, Tensor]
    row: dict[EdgeType, Tensor]
    col: dict[EdgeType, Tensor]
    edge: dict[EdgeType, Tensor]
    weight: dict[EdgeType, Tensor] | None
    tree: dict[str, Tensor] | None
    num_nodes: dict[str, list[int]] = field(default_factory=dict)
    num_edges: dict[EdgeType, list[int]] = field(default_factory=dict)


def sample_hetero_hops(
    graph: HeteroGraph,
    seeds: dict[str, Tensor],
    fanouts: dict[EdgeType, list[int]],
    draw: Draw,
    weights: dict[EdgeType, Tensor],
    disjoint: bool,
    seed: int,
) -> HeteroHops:
    """Every hop goes through the edge types in turn; a node is expanded once, by every edge type that arrives at it."""
    none = torch.empty(0, dtype=torch.int64)
    known: dict[str, Tensor] = {}  # ids, or tree * N + id, in order of appearance
    roots: list[Tensor] = []
    for kind in graph.num_nodes:
        ids = seeds.get(kind, none).to(torch.int64)
        trees = torch.arange(ids.shape[0]) + sum(r.shape[0] for r in roots)
        known[kind] = trees * graph.num_nodes[kind] + ids if disjoint else ids
        roots.append(ids)
    root = torch.cat(roots)
    first = dict.fromkeys(graph.num_nodes, 0)
    num_nodes = {kind: [ids.shape[0]] for kind, ids in known.items()}
    parts: dict[EdgeType, list[dict[str, Any]]] = {kind: [] for kind in graph.graphs}
    for hop in range(max((len(f) for f in fanouts.values()), default=0)):
        end = {kind: ids.shape[0] for kind, ids in known.items()}
        for number, (relation, part) in enumerate(graph.graphs.items()):
            src, _, dst = relation
            keys = known[dst][first[dst] : end[dst]]
            owner = keys // max(1, graph.num_nodes[dst]) if disjoint else None
            frontier = keys % max(1, graph.num_nodes[dst]) if disjoint else keys
            position, counts, expected = sample_neighbors(
                part.indptr,
                frontier,
                fanouts[relation][hop],
                replace=draw.replace,
                weight=weights.get(relation),
                stream=None if owner is None else root[owner],
                seed=fold(seed, hop, number),
            )
            found = part.sources(position)
            if owner is not None:
                found += (owner * graph.num_nodes[src]).repeat_interleave(counts)
            fresh, local = relabel(known[src], found, 0 if disjoint else graph.num_nodes[src])
            col = torch.arange(first[dst], end[dst]).repeat_interleave(counts)
            made: dict[str, Any] = {"row": local, "col": col, "edge": position}
            if draw.weighted:
                one = Draw(draw.replace, weights.get(relation), True, draw.mean)
                made["weight"] = one.edge_weight(part, frontier, position, counts, expected)
            parts[relation].append(made)
            known[src] = torch.cat([known[src], fresh])
        for kind in known:
            num_nodes[kind].append(known[kind].shape[0] - end[kind])
            first[kind] = end[kind]

    def joined(name: str) -> dict[EdgeType, Tensor]:
        return {kind: torch.cat([p[name] for p in found] or [none]) for kind, found in parts.items()}

    size = graph.num_nodes
    return HeteroHops(
        {kind: keys % max(1, size[kind]) for kind, keys in known.items()} if disjoint else known,
        joined("row"),
        joined("col"),
        joined("edge"),
        joined("weight") if draw.weighted else None,
        {kind: keys // max(1, size[kind]) for kind, keys in known.items()} if disjoint else None,
        num_nodes,
        {kind: [p["edge"].shape[0] for p in found] for kind, found in parts.items()},
    )
