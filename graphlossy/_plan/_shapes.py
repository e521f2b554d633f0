"""The sizes of a node classification task, given as numbers, as a data set's name or as a PyG ``Data``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

__all__ = ["KNOWN_GRAPHS", "GraphShapes", "as_shapes", "known_graph"]

INDEX_BYTES = 8  # PyG keeps indices and classes as int64


@dataclass(frozen=True)
class GraphShapes:
    """Sizes of a graph and of the task on it.

    Args:
        num_nodes: N.
        num_edges: E, the number of columns of ``edge_index`` (an undirected edge counts twice).
        num_features: width of the node features.
        num_classes: classes, or tasks where ``multilabel``; None takes as many as the model has outputs.
        num_train_nodes: nodes whose loss is taken; None means all.
        num_edge_features: width of the edge features; 0 for none.
        multilabel: several 0/1 labels a node (binary cross entropy) instead of one class (cross entropy).

    Raises:
        TypeError: a size is not a whole number.
        ValueError: a size is out of range.

    Example:
        >>> GraphShapes(num_nodes=2708, num_edges=10556, num_features=1433, num_classes=7).num_train_nodes is None
        True
    """

    num_nodes: int
    num_edges: int
    num_features: int
    num_classes: int | None = None
    num_train_nodes: int | None = None
    num_edge_features: int = 0
    multilabel: bool = False

    def __post_init__(self) -> None:
        lowest = {"num_nodes": 1, "num_edges": 0, "num_features": 1, "num_classes": 1, "num_train_nodes": 1}
        for name, least in {**lowest, "num_edge_features": 0}.items():
            value = getattr(self, name)
            if value is None and name in ("num_classes", "num_train_nodes"):
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be a whole number, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.num_train_nodes is not None and self.num_train_nodes > self.num_nodes:
            raise ValueError(f"num_train_nodes is {self.num_train_nodes}, but there are only {self.num_nodes} nodes")

    def sizes(self) -> dict[str, int]:
        """The sizes that memory grows with."""
        sizes = {"nodes": self.num_nodes, "edges": self.num_edges}
        if self.num_train_nodes is not None and self.num_train_nodes < self.num_nodes:
            sizes["train_nodes"] = self.num_train_nodes
        return sizes

    def data_bytes(self, sizes: Mapping[str, int], adj: str, width: int) -> dict[str, int]:
        """Bytes of the features, the graph and the labels at these ``sizes``, of numbers of ``width`` bytes each."""
        nodes, edges = sizes["nodes"], sizes["edges"]
        if adj == "csr":  # row pointers, columns and values
            graph = (nodes + 1 + edges) * INDEX_BYTES + edges * width
        else:
            graph = 2 * edges * INDEX_BYTES
        one = (self.num_classes or 1) * width if self.multilabel else INDEX_BYTES
        return {
            "features": (nodes * self.num_features + edges * self.num_edge_features) * width,
            "graph": graph,
            "labels": nodes * one + sizes.get("train_nodes", 0) * INDEX_BYTES,
        }

    @classmethod
    def from_data(cls, data: Any) -> GraphShapes:
        """The sizes of a ``torch_geometric.data.Data`` (or of anything with ``x``, ``edge_index`` and ``y``)."""
        x, y, mask = data.x, getattr(data, "y", None), getattr(data, "train_mask", None)
        if not isinstance(x, Tensor) or x.dim() != 2:
            raise ValueError(f"data.x must be a tensor of shape [N, features], got {_describe(x)}")
        edge_attr = getattr(data, "edge_attr", None)
        classes, several = None, False
        if isinstance(y, Tensor) and y.numel():
            several = y.dim() == 2 and y.shape[1] > 1
            classes = int(y.shape[1]) if several else int(y.max()) + 1
        train = None
        if isinstance(mask, Tensor) and mask.any():
            train = int((mask if mask.dim() == 1 else mask[:, 0]).sum())
        width = int(edge_attr.shape[1]) if isinstance(edge_attr, Tensor) and edge_attr.dim() == 2 else 0
        return cls(int(x.shape[0]), _count_edges(data), int(x.shape[1]), classes, train or None, width, several)


# Open Graph Benchmark (Hu et al. 2020), as its loader gives the graphs: for ogbn-products and ogbn-proteins with the
# inverse edges, for the citation graphs without them. Then Planetoid (Yang et al. 2016) and Reddit (Hamilton et al.
# 2017) as PyG's classes give them.
KNOWN_GRAPHS = {
    "ogbn-arxiv": GraphShapes(169_343, 1_166_243, 128, 40, 90_941),
    "ogbn-products": GraphShapes(2_449_029, 123_718_280, 100, 47, 196_615),
    "ogbn-proteins": GraphShapes(132_534, 79_122_504, 8, 112, 86_619, 8, multilabel=True),
    "ogbn-papers100M": GraphShapes(111_059_956, 1_615_685_872, 128, 172, 1_207_179),
    "Cora": GraphShapes(2_708, 10_556, 1_433, 7, 140),
    "CiteSeer": GraphShapes(3_327, 9_104, 3_703, 6, 120),
    "PubMed": GraphShapes(19_717, 88_648, 500, 3, 60),
    "Reddit": GraphShapes(232_965, 114_615_892, 602, 41, 153_431),
}


def known_graph(name: str) -> GraphShapes | None:
    """The sizes of a data set of :data:`KNOWN_GRAPHS`, upper or lower case; None if it is none of them."""
    return {known.lower(): shapes for known, shapes in KNOWN_GRAPHS.items()}.get(name.lower())


def as_shapes(given: Any, **numbers: Any) -> GraphShapes:
    """``GraphShapes`` from whatever :func:`graphlossy.plan` was given; ``numbers`` that are not None override it."""
    chosen = {name: value for name, value in numbers.items() if value is not None}
    if given is None:
        missing = [name for name in ("num_nodes", "num_edges", "num_features") if name not in chosen]
        if missing:
            raise ValueError(
                f"plan needs sizes: {', '.join(missing)} missing; give them, or a Data, or one of "
                f"{', '.join(KNOWN_GRAPHS)}, or inputs= for a model without a graph"
            )
        return GraphShapes(**chosen)
    if isinstance(given, str):
        known = known_graph(given)
        if known is None:
            near = difflib.get_close_matches(given, KNOWN_GRAPHS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(KNOWN_GRAPHS)}."
            raise ValueError(f"shapes: no data set {given!r} of known size; {hint} Otherwise give num_nodes= and so on")
        given = known
    elif isinstance(given, Mapping):
        names = [field.name for field in fields(GraphShapes)]
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise ValueError(f"shapes has unknown sizes {', '.join(map(str, unknown))}; allowed are {', '.join(names)}")
        return as_shapes(None, **{**given, **chosen})
    elif not isinstance(given, GraphShapes):
        if not hasattr(given, "x") or not (hasattr(given, "edge_index") or hasattr(given, "adj_t")):
            raise TypeError(
                f"shapes must be a Data, a GraphShapes, a dict or a name such as 'ogbn-arxiv', got {_describe(given)}"
            )
        given = GraphShapes.from_data(given)
    own = {field.name: getattr(given, field.name) for field in fields(GraphShapes)}
    if "num_nodes" in chosen and "num_train_nodes" not in chosen and own["num_train_nodes"] is not None:
        # As large a share of the nodes is trained on as before.
        own["num_train_nodes"] = max(1, own["num_train_nodes"] * chosen["num_nodes"] // own["num_nodes"])
    return GraphShapes(**{**own, **chosen})


def _count_edges(data: Any) -> int:
    edge_index = getattr(data, "edge_index", None)
    if isinstance(edge_index, Tensor):
        return int(edge_index.shape[1])
    adj_t = getattr(data, "adj_t", None)
    if isinstance(adj_t, Tensor):
        return int(adj_t.values().shape[0])
    if adj_t is not None and hasattr(adj_t, "nnz"):
        return int(adj_t.nnz())
    raise ValueError(f"data has no edges: edge_index is {_describe(edge_index)}, adj_t is {_describe(adj_t)}")


def _describe(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
