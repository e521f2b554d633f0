"""A node classification task as the trainer needs it: features, graph, labels, splits, loss and metric."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from graphlossy.train._adjacency import in_degree, model_graph
from graphlossy.train._checks import parse_sparsify
from graphlossy.train._config import TrainConfig
from graphlossy.train._errors import TrainError
from graphlossy.train._metrics import accuracy, roc_auc

__all__ = ["Split", "Task", "TrainGraph", "load_task", "make_task"]


class Split(NamedTuple):
    """Row numbers of the training, validation and test nodes."""

    train: Tensor
    valid: Tensor
    test: Tensor

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Pairs of name and rows."""
        return zip(self._fields, self, strict=True)


class TrainGraph(NamedTuple):
    """The graph to draw mini-batches from, on the CPU.

    Attributes:
        x: features ``[N, F]``.
        edge_index: ``[2, E]``.
        edge_weight: ``[E]``, or None where every edge counts as one.
        degree: edges into each node, float32 ``[N]``: of the full graph where weights stand for the edges left out.
        kept: what is made once for all seeds, such as the partition into clusters.
    """

    x: Tensor
    edge_index: Tensor
    edge_weight: Tensor | None
    degree: Tensor
    kept: dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """Node classification on one graph.

    Attributes:
        name: of the data set.
        x: float32 features ``[N, D]``.
        adj: what the model is given in evaluation: edge_index ``[2, E]`` or a sparse CSR ``adj_t`` ``[N, N]``.
        y: int64 classes ``[N]``, or 0/1 labels ``[N, tasks]`` (float32, NaN where unlabelled).
        splits: one or more splits; run number ``k`` uses split ``k`` modulo their number.
        metric: ``"accuracy"`` or ``"rocauc"``.
        outputs: scores per node.
        edges: number of stored edges.
        train_adj: what the model is given in full-batch training where that is not ``adj``.
        train_edges: number of stored edges of the graph to train on.
        source: the graph that mini-batches are drawn from; None where training is full-batch.
        synthetic: whether the data are generated.
        reference: the OGB data set that these data are, or stand in for; None for others.
        sparsify_seconds: time that thinning the graph took.
    """

    name: str
    x: Tensor
    adj: Tensor
    y: Tensor
    splits: tuple[Split, ...]
    metric: str
    outputs: int
    edges: int
    train_adj: Tensor | None = None
    train_edges: int | None = None
    source: TrainGraph | None = None
    synthetic: bool = False
    reference: str | None = None
    sparsify_seconds: float | None = None

    def split(self, number: int) -> Split:
        """The split of run ``number``."""
        return self.splits[number % len(self.splits)]

    @cached_property
    def _complete(self) -> bool:
        """Whether every label is known."""
        return self.y.dim() == 1 or not bool(self.y.isnan().any())

    def loss(self, out: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Cross entropy of some nodes; for several tasks a node, the binary one over the labels that are known.

        Args:
            out: scores ``[n, outputs]``.
            labels: rows of ``y``, ``[n]`` or ``[n, tasks]``.
            weight: ``[n]`` factors of the nodes; the result is then the weighted sum. None gives the mean.
        """
        if self.y.dim() == 1:
            if weight is None:
                return F.cross_entropy(out, labels)
            return F.cross_entropy(out, labels, reduction="none") @ weight
        if weight is None:
            if self._complete:
                return F.binary_cross_entropy_with_logits(out, labels)
            known = ~labels.isnan()
            return F.binary_cross_entropy_with_logits(out[known], labels[known])
        known = ~labels.isnan()
        losses = F.binary_cross_entropy_with_logits(out, labels.nan_to_num(), reduction="none")
        return ((losses * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)) @ weight

    def score(self, out: Tensor, rows: Tensor) -> float:
        """The task's metric over ``rows``, between 0 and 1, as OGB's Evaluator defines it."""
        if self.metric == "accuracy":
            return accuracy(out[rows], self.y[rows])
        if self.y.dim() == 1:
            return roc_auc(out[rows, 1] - out[rows, 0], self.y[rows])
        return roc_auc(out[rows], self.y[rows])

    def describe(self) -> dict[str, Any]:
        """Sizes, as plain values."""
        first = self.splits[0]
        return {
            "name": self.name,
            "synthetic": self.synthetic,
            "reference": self.reference,
            "nodes": self.x.shape[0],
            "features": self.x.shape[1],
            "edges": self.edges,
            "train_edges": self.edges if self.train_edges is None else self.train_edges,
            "outputs": self.outputs,
            "splits": len(self.splits),
            **{f"{name}_nodes": len(rows) for name, rows in first.items()},
        }

    def fingerprint(self) -> int:
        """A checksum of the data, so that a resumed run can tell whether they changed."""
        parts = [self.x, self.y, *(rows for split in self.splits for rows in split)]
        for adj in (self.adj, self.train_adj):
            if adj is not None:
                sparse = adj.layout != torch.strided
                parts += [adj.crow_indices(), adj.col_indices(), adj.values()] if sparse else [adj]
        if self.source is not None:
            parts += [part for part in self.source[1:4] if part is not None]
        value = 0
        for part in (part for part in parts if part.numel()):
            value = zlib.crc32(part.detach().cpu().contiguous().view(torch.uint8).numpy().data, value)
        return value


def load_task(config: TrainConfig, device: torch.device) -> Task:
    """Loads the data set of ``config`` and makes the task of it.

    Raises:
        DatasetError: the data cannot be loaded or are not fit for training (:func:`graphlossy.datasets.load`).
        TrainError: a split has no node of a kind, or labels of one kind only where ROC-AUC needs both.
    """
    from graphlossy.datasets import DatasetError, load

    given = {name: getattr(config, name) for name in ("root", "scale") if getattr(config, name) is not None}
    try:
        data = load(config.dataset, split=config.split, **given)
    except DatasetError:
        raise
    except ValueError as error:  # a scale that the data set cannot have
        raise TrainError(str(error)) from None
    return make_task(data, config, device)


def make_task(data: Any, config: TrainConfig, device: torch.device) -> Task:
    """The task of a graph: thinned for training if ``config`` says so, on ``device``.

    Where mini-batches are drawn and evaluation goes layer by layer, the whole graph stays on the CPU.

    Args:
        data: PyG ``Data`` as :func:`graphlossy.datasets.load` returns it.
        config: the settings.
        device: where to train.

    Raises:
        TrainError: a split has no node of a kind, labels of one kind only where ROC-AUC needs both, or the graph
            cannot be thinned as asked for.
    """
    nodes, edge_index = data.num_nodes, data.edge_index
    edges, seconds = edge_index.shape[1], None
    kept: Tensor = edge_index
    weight: Tensor | None = None
    degree: Tensor | None = None
    if config.sparsify is not None or config.sampler is not None:
        degree = in_degree(edge_index, nodes)
    if config.thinned_once:
        start = time.perf_counter()
        kept, weight = _thin(edge_index, nodes, config)
        seconds = time.perf_counter() - start
    home = torch.device("cpu") if config.sampler is not None and config.eval_batch is not None else device

    def graph(edges: Tensor, values: Tensor | None, kind: str) -> Tensor:
        full = None if values is None else degree  # without weights, what is left is a graph of its own
        return model_graph(config.model, edges, nodes, kind, values, full, config.normalized_outside).to(home)

    kind = config.adj if config.eval_batch is None else "csr"
    adj = graph(kept, weight, kind) if config.sparsify_eval else graph(edge_index, None, kind)
    other = config.thinned_once and not config.sparsify_eval
    train_adj = graph(kept, weight, config.adj) if config.sampler is None and (other or kind != config.adj) else None
    if degree is not None and config.thinned_once and weight is None:
        degree = in_degree(kept, nodes)  # mini-batches estimate sums over the thinned graph
    task = Task(
        name=data.name,
        x=data.x.to(home),
        adj=adj,
        y=data.y.to(home),
        splits=_splits(data, home),
        metric=data.metric,
        outputs=data.num_classes,
        edges=edges,
        train_adj=train_adj,
        train_edges=kept.shape[1],
        source=None if config.sampler is None or degree is None else TrainGraph(data.x, kept, weight, degree, {}),
        synthetic=bool(getattr(data, "synthetic", False)),
        reference=getattr(data, "reference", None),
        sparsify_seconds=seconds,
    )
    _check(task)
    return task


def _thin(edge_index: Tensor, nodes: int, config: TrainConfig) -> tuple[Tensor, Tensor | None]:
    from graphlossy.sparsify import sparsify

    method, ratio = parse_sparsify(str(config.sparsify))
    try:
        kept, weight = sparsify(
            edge_index, nodes, method=method, ratio=ratio, reweight=config.reweighted, seed=config.seed
        )
    except ValueError as error:
        raise TrainError(f"sparsify {config.sparsify}: {error}") from None
    return kept, weight


def _splits(data: Any, device: torch.device) -> tuple[Split, ...]:
    masks = [data.train_mask, data.val_mask, data.test_mask]
    columns = [mask if mask.dim() == 2 else mask.unsqueeze(1) for mask in masks]
    return tuple(
        Split(*(column[:, number].nonzero().squeeze(1).to(device) for column in columns))
        for number in range(columns[0].shape[1])
    )


def _check(task: Task) -> None:
    out = torch.zeros(task.x.shape[0], task.outputs, device=task.x.device)
    for number, split in enumerate(task.splits):
        for name, rows in split.items():
            if len(rows) == 0:
                raise TrainError(f"data set {task.name}, split {number}: there are no {name} nodes")
            try:
                task.score(out, rows)
            except ValueError as error:
                raise TrainError(f"data set {task.name}, split {number}, {name} nodes: {error}") from None
