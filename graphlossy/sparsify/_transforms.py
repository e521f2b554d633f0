"""The sparsifiers as transforms of PyTorch Geometric, for graphs with nodes and edges of one kind or of several."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from graphlossy.core._random import random_bits
from graphlossy.core.quantize import seed_or_draw
from graphlossy.sparsify._choice import Choice, columns, graph_of
from graphlossy.sparsify._edges import EdgeList, fingerprint, match, read_edges
from graphlossy.sparsify._methods import METHODS

__all__ = ["DegreeSparsify", "KNeighborSparsify", "LocalDegreeSparsify", "RandomSparsify", "ResistanceSparsify"]

_NOT_OF_EDGES = ("edge_label", "edge_label_index", "edge_index")  # those of the links to predict


class _Sparsify(BaseTransform):
    """Chooses edges of ``data.edge_index`` and takes every attribute of the edges along.

    Args of every transform:
        ratio: share of edges kept, self-loops aside; or another of the method's arguments, by name.
        reweight: whether ``edge_weight`` is written; False keeps the one there is.
        undirected: None finds out whether every edge is there in both directions.
        seed: None takes a new one for every call. Each relation of a heterogeneous graph has draws of its own.
        weight_name: attribute of the edge weights, read and written.
    """

    method = ""

    def __init__(
        self,
        ratio: float | None = None,
        *,
        reweight: bool = True,
        undirected: bool | None = None,
        seed: int | None = None,
        weight_name: str = "edge_weight",
        **target: float | None,
    ) -> None:
        known = METHODS[self.method]
        given = {name: value for name, value in {"ratio": ratio, **target}.items() if value is not None}
        for name in given:
            if name not in known.targets:
                raise TypeError(f"{type(self).__name__} takes {' or '.join(known.targets)}, got {name}")
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ValueError(f"{type(self).__name__} takes exactly one of {', '.join(known.targets)}; got {found}")
        self.target, self.reweight, self.undirected, self.seed = given, reweight, undirected, seed
        self.weight_name = weight_name

    def forward(self, data: Data | HeteroData) -> Data | HeteroData:
        """The thinned graph; ``data`` itself stays as it is when the transform is called."""
        seed = seed_or_draw(self.seed)
        if not isinstance(data, HeteroData):
            self._one(data, data, _nodes(data), seed)
            return data
        done: set[Any] = set()
        seeds = random_bits(seed, len(data.edge_types), 0, 6).tolist()
        order = sorted(zip(data.edge_types, seeds, strict=True), key=lambda pair: pair[0][1].startswith("rev_"))
        for edge_type, own in order:  # a reverse relation after the one that it may follow
            if edge_type in done:
                continue
            source, relation, target = edge_type
            store = data[edge_type]
            sizes = (_nodes(data[source]), _nodes(data[target]))
            reverse = (target, f"rev_{relation}", source)
            other = data[reverse] if reverse in data.edge_types else None
            size = sizes[0] if source == target else sizes
            edges, choice = self._one(store, data, size, own)
            if other is not None and self._follows(other, edges, sizes):
                self._follow(other, edges, choice)
                done.add(reverse)
        return data

    def _one(self, store: Any, data: Any, size: Any, seed: int) -> tuple[EdgeList, Choice]:
        edges = read_edges(_edge_index(store), size, self._weight(store), self.undirected)
        choice = METHODS[self.method].choose(edges, seed, **self.target)
        self._write(store, edges, choice, graph_of(edges, choice, self.reweight))
        return edges, choice

    def _weight(self, store: Any) -> Tensor | None:
        return store[self.weight_name] if self.weight_name in store else None

    def _write(self, store: Any, edges: EdgeList, choice: Choice, graph: tuple[Tensor, Tensor | None]) -> None:
        names = self._attributes(store)
        if names:
            _select(store, names, columns(edges, choice))
        store.edge_index = graph[0]
        if graph[1] is not None:
            store[self.weight_name] = graph[1]

    def _attributes(self, store: Any) -> list[str]:
        left_out = (*_NOT_OF_EDGES, self.weight_name)
        return [name for name in store.keys() if name not in left_out and store.is_edge_attr(name)]  # noqa: SIM118

    def _follows(self, other: Any, edges: EdgeList, sizes: tuple[int, int]) -> bool:
        """Whether ``other`` holds the edges of ``edges`` the other way round."""
        index, weight = _edge_index(other), self._weight(other)
        if index.shape != edges.edge_index.shape or (weight is None) != (edges.weight is None):
            return False
        index = index.as_tensor() if hasattr(index, "as_tensor") else index
        return fingerprint(edges.edge_index, sizes[1], edges.weight) == fingerprint(index, sizes[1], weight, True)

    def _follow(self, other: Any, edges: EdgeList, choice: Choice) -> None:
        """Keeps in ``other`` the edges that were kept, the other way round, with the same weights."""
        kept, weight = graph_of(edges, choice, self.reweight)
        names = self._attributes(other)
        if names:
            u, v = edges.edge_index
            before = other.edge_index.as_tensor() if hasattr(other.edge_index, "as_tensor") else other.edge_index
            own = self._weight(other)
            weights = None if edges.weight is None or own is None else (edges.weight, own)
            place = match((u, v), (before[1], before[0]), edges.sizes[1], weights)
            _select(other, names, place[columns(edges, choice)])
        other.edge_index = kept.flip(0)
        if weight is not None:
            other[self.weight_name] = weight.clone()

    def __repr__(self) -> str:
        target = ", ".join(f"{name}={value}" for name, value in self.target.items())
        return f"{type(self).__name__}({target})"


def _nodes(store: Any) -> int:
    count = store.num_nodes
    if count is None:
        raise ValueError("the number of nodes is not known: set num_nodes, or node features x")
    return int(count)


def _edge_index(store: Any) -> Tensor:
    index = store["edge_index"] if "edge_index" in store else None
    if index is None:
        raise ValueError(
            "the graph has no edge_index; sparsify before transforms such as ToSparseTensor, which replace it by adj_t"
        )
    found: Tensor = index
    return found


def _select(store: Any, names: list[str], at: Tensor) -> None:
    """Takes the places ``at`` of every attribute of the edges."""
    parent = store._parent() if hasattr(store, "_parent") else store
    for name in names:
        value = store[name]
        dim = parent.__cat_dim__(name, value, store if parent is not store else None)
        if isinstance(value, np.ndarray):
            store[name] = np.take(value, at.numpy(force=True), axis=dim)
        elif isinstance(value, Tensor):
            store[name] = value.index_select(dim if isinstance(dim, int) else 0, at.to(value.device))
        else:  # a list
            store[name] = [value[i] for i in at.tolist()]


@functional_transform("degree_sparsify")
class DegreeSparsify(_Sparsify):
    """`degree_sparsify` (DSpar) as a transform: ``ratio``, ``epsilon`` or ``num_samples``.

    The weights are in ``data.edge_weight`` afterwards; of a heterogeneous graph every relation is thinned by itself,
    and a relation ``rev_<name>`` that holds the edges of ``<name>`` the other way round keeps the same edges.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> ring = torch.tensor([[0, 1, 2, 3, 1, 2, 3, 0], [1, 2, 3, 0, 0, 1, 2, 3]])
        >>> data = Data(edge_index=ring, edge_attr=torch.rand(8, 3), num_nodes=4)
        >>> thin = DegreeSparsify(ratio=0.5, seed=0)(data)
        >>> thin.edge_attr.shape[0] == thin.edge_weight.shape[0] == thin.num_edges < data.num_edges
        True
    """

    method = "degree"


@functional_transform("random_sparsify")
class RandomSparsify(_Sparsify):
    """`random_sparsify` as a transform: ``ratio``."""

    method = "random"


@functional_transform("k_neighbor_sparsify")
class KNeighborSparsify(_Sparsify):
    """`k_neighbor_sparsify` as a transform: ``ratio`` or ``k``."""

    method = "k-neighbor"


@functional_transform("local_degree_sparsify")
class LocalDegreeSparsify(_Sparsify):
    """`local_degree_sparsify` as a transform: ``ratio`` or ``alpha``."""

    method = "local-degree"


@functional_transform("resistance_sparsify")
class ResistanceSparsify(_Sparsify):
    """`resistance_sparsify` as a transform: ``ratio``, ``epsilon`` or ``num_samples``."""

    method = "resistance"
