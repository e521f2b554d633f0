"""A node classification task as the trainer needs it: features, graph, labels, splits, loss and metric."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from graphlossy.train._config import TrainConfig
from graphlossy.train._errors import TrainError
from graphlossy.train._metrics import accuracy, roc_auc

__all__ = ["Split", "Task", "load_task"]


class Split(NamedTuple):
    """Row numbers of the training, validation and test nodes."""

    train: Tensor
    valid: Tensor
    test: Tensor

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Pairs of name and rows."""
        return zip(self._fields, self, strict=True)


@dataclass(frozen=True)
class Task:
    """Node classification on one graph.

    Attributes:
        name: of the data set.
        x: float32 features ``[N, D]``.
        adj: what the model is given: edge_index ``[2, E]`` or a sparse CSR ``adj_t`` ``[N, N]``.
        y: int64 classes ``[N]``, or 0/1 labels ``[N, tasks]`` (float32, NaN where unlabelled).
        splits: one or more splits; run number ``k`` uses split ``k`` modulo their number.
        metric: ``"accuracy"`` or ``"rocauc"``.
        outputs: scores per node.
        edges: number of stored edges.
    """

    name: str
    x: Tensor
    adj: Tensor
    y: Tensor
    splits: tuple[Split, ...]
    metric: str
    outputs: int
    edges: int

    def split(self, number: int) -> Split:
        """The split of run ``number``."""
        return self.splits[number % len(self.splits)]

    def loss(self, out: Tensor, rows: Tensor) -> Tensor:
        """Cross entropy over ``rows``; for several tasks a node, the binary one over the labels that are known."""
        if self.y.dim() == 1:
            return F.cross_entropy(out[rows], self.y[rows])
        labels = self.y[rows]
        known = ~labels.isnan()
        return F.binary_cross_entropy_with_logits(out[rows][known], labels[known])

    def score(self, out: Tensor, rows: Tensor) -> float:
        """The task's metric over ``rows``, between 0 and 1."""
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
            "nodes": self.x.shape[0],
            "features": self.x.shape[1],
            "edges": self.edges,
            "outputs": self.outputs,
            "splits": len(self.splits),
            **{f"{name}_nodes": len(rows) for name, rows in first.items()},
        }

    def fingerprint(self) -> int:
        """A checksum of the data, so that a resumed run can tell whether they changed."""
        parts = [self.x, self.y, *(rows for split in self.splits for rows in split)]
        parts += [self.adj] if self.adj.layout == torch.strided else [self.adj.crow_indices(), self.adj.col_indices()]
        value = 0
        for part in (part for part in parts if part.numel()):
            value = zlib.crc32(part.detach().cpu().contiguous().view(torch.uint8).numpy().data, value)
        return value


def load_task(config: TrainConfig, device: torch.device) -> Task:
    """Loads the data set of ``config`` and moves it to ``device``.

    Raises:
        DatasetError: the data cannot be loaded or are not fit for training (:func:`graphlossy.datasets.load`).
        TrainError: a split has no node of a kind, or labels of one kind only where ROC-AUC needs both.
    """
    from graphlossy.datasets import load

    data = load(config.dataset, split=config.split)
    task = Task(
        name=data.name,
        x=data.x.to(device),
        adj=_adjacency(data.edge_index, data.num_nodes, config.adj).to(device),
        y=data.y.to(device),
        splits=_splits(data, device),
        metric=data.metric,
        outputs=data.num_classes,
        edges=data.edge_index.shape[1],
    )
    _check(task)
    return task


def _adjacency(edge_index: Tensor, nodes: int, kind: str) -> Tensor:
    if kind == "edge_index":
        return edge_index
    from torch_geometric.utils import to_torch_csr_tensor

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
        # Rows of adj_t are the nodes that receive, so the edges are turned round.
        return to_torch_csr_tensor(edge_index.flip(0), size=(nodes, nodes))


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
