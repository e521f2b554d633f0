"""Small random inputs of the same kind as the real ones, on which a plan runs the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphlossy._plan._shapes import GraphShapes
from graphlossy._plan._sizes import Design, graph_design, graph_pilot

__all__ = ["BatchProbe", "Forward", "GraphInputs", "GraphProbe", "batch_loss", "graph_loss"]

Forward = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class GraphProbe:
    """A small random graph; what ``forward=`` of :func:`graphlossy.plan` is given for a graph model.

    Attributes:
        x: features [N, num_features].
        edge_index: [2, E] int64.
        adj: what the model is given as graph: ``edge_index``, or a sparse CSR ``adj_t`` [N, N].
        y: random classes [N] int64 (all 0 if ``num_classes`` is None), or labels [N, num_classes] where several.
        num_classes: as given to the plan.
        train_rows: row numbers of the training nodes [T]; None if the loss is taken over all nodes.
        edge_attr: features of the edges [E, num_edge_features]; None without.
    """

    x: Tensor
    edge_index: Tensor
    adj: Tensor
    y: Tensor
    num_classes: int | None
    train_rows: Tensor | None
    edge_attr: Tensor | None

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.x.shape[0]


@dataclass(frozen=True)
class BatchProbe:
    """A small batch; what ``forward=`` of :func:`graphlossy.plan` is given for a model without a graph.

    Attributes:
        args: positional arguments of the model.
        kwargs: keyword arguments of the model.
        y: a class for each example, [B] int64, all 0.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    y: Tensor


def graph_loss(model: nn.Module, probe: GraphProbe) -> Tensor:
    """Cross entropy (several labels: binary) of ``model(x, adj)`` over the training nodes."""
    out = model(probe.x, probe.adj)
    if not isinstance(out, Tensor) or out.dim() != 2 or out.shape[0] != probe.num_nodes:
        raise ValueError(f"model(x, adj) should return scores [{probe.num_nodes}, classes], got {_describe(out)}")
    y, classes = probe.y, probe.num_classes
    if classes is not None and (classes > out.shape[1] or (y.dim() == 2 and classes != out.shape[1])):
        raise ValueError(f"the model has {out.shape[1]} outputs, but num_classes is {classes}")
    if probe.train_rows is not None:
        out, y = out[probe.train_rows], y[probe.train_rows]
    if y.dim() == 2:
        return F.binary_cross_entropy_with_logits(out, y.to(out.dtype))
    return F.cross_entropy(out, y)


class GraphInputs:
    """Random graphs of any size with the widths of ``shapes``.

    Args:
        shapes: of the real graph.
        adj: ``"edge_index"`` or ``"csr"``.
        dtype: of the features.
        device: where the model is.
        seed: of the graphs.
    """

    loss = staticmethod(graph_loss)  # where none is given

    def __init__(self, shapes: GraphShapes, adj: str, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self._shapes, self._adj, self._dtype, self._device, self._seed = shapes, adj, dtype, device, seed
        self.sizes = shapes.sizes()

    def pilot(self) -> dict[str, int]:
        """A few nodes."""
        return graph_pilot(self.sizes)

    def design(self, target: Mapping[str, int], pilot_bytes: int) -> Design:
        """Which graphs to probe, if :meth:`pilot` needs ``pilot_bytes``."""
        features = self._shapes.num_features * self._dtype.itemsize
        return graph_design(target, pilot_bytes / self.pilot()["nodes"] + features)

    def data_bytes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Bytes of the features, the graph and the labels."""
        return self._shapes.data_bytes(sizes, self._adj, self._dtype.itemsize)

    def make(self, sizes: Mapping[str, int]) -> GraphProbe:
        """A random graph without loops or repeated edges, if there are pairs enough."""
        shapes, dtype, device = self._shapes, self._dtype, self._device
        generator = torch.Generator().manual_seed(self._seed)
        nodes, edges = sizes["nodes"], sizes["edges"]
        number = torch.arange(edges)
        shift = 1 + torch.div(number, nodes, rounding_mode="floor") % max(1, nodes - 1)
        name = torch.randperm(nodes, generator=generator)
        src = name[number % nodes]
        dst = name[(number + shift) % nodes]
        edge_index = torch.stack([src, dst])[:, (src * nodes + dst).argsort()]
        if shapes.multilabel:
            y = torch.randint(2, (nodes, shapes.num_classes or 1), generator=generator).to(dtype)
        else:
            y = torch.randint(shapes.num_classes or 1, (nodes,), generator=generator)
        rows = torch.randperm(nodes, generator=generator)[: sizes["train_nodes"]] if "train_nodes" in sizes else None
        attr = torch.randn(edges, shapes.num_edge_features, generator=generator) if shapes.num_edge_features else None
        return GraphProbe(
            x=torch.randn(nodes, shapes.num_features, generator=generator).to(device, dtype),
            edge_index=edge_index.to(device),
            adj=(_csr(edge_index, nodes, dtype) if self._adj == "csr" else edge_index).to(device),
            y=y.to(device),
            num_classes=shapes.num_classes,
            train_rows=None if rows is None else rows.to(device),
            edge_attr=None if attr is None else attr.to(device, dtype),
        )


def _csr(edge_index: Tensor, nodes: int, dtype: torch.dtype) -> Tensor:
    """``adj_t``: row i holds the nodes with an edge to node i."""
    order = (edge_index[1] * nodes + edge_index[0]).argsort()
    crow = torch.zeros(nodes + 1, dtype=torch.int64)
    crow[1:] = torch.bincount(edge_index[1], minlength=nodes).cumsum(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        values = torch.ones(edge_index.shape[1], dtype=dtype)
        return torch.sparse_csr_tensor(crow, edge_index[0][order], values, (nodes, nodes), check_invariants=False)


def batch_loss(model: nn.Module, probe: BatchProbe) -> Tensor:
    """Cross entropy of a model that returns scores [B, classes]; else its own ``loss``, or the mean square."""
    out = model(*probe.args, **probe.kwargs)
    loss = getattr(out, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    if not isinstance(out, Tensor):
        values = out.values() if isinstance(out, Mapping) else out if isinstance(out, (list, tuple)) else ()
        out = next((value for value in values if isinstance(value, Tensor) and value.requires_grad), out)
    if not isinstance(out, Tensor):
        raise ValueError(f"the model should return a tensor or something with a loss, got {_describe(out)}")
    if out.dim() == 2 and out.shape[0] == probe.y.shape[0] and out.shape[1] > 1:
        return F.cross_entropy(out, probe.y)
    return out.float().square().mean()


def _describe(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
