"""The loss of a step that all processes take together, and its part in the loss of the epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.train._batches import Batch
from graphlossy.train._ddp_collectives import reduce_mean, reduce_sum
from graphlossy.train._ddp_group import Rank
from graphlossy.train._ddp_model import share_of_loss
from graphlossy.train._task import Task

__all__ = ["SharedLoss", "loss_terms"]


def loss_terms(labels: Tensor) -> int:
    """How many numbers ``task.loss`` takes the mean of: nodes, or labels that are known.

    Args:
        labels: classes ``[n]``, or 0/1 labels ``[n, tasks]``, NaN where unknown.
    """
    return len(labels) if labels.dim() == 1 else int((~labels.isnan()).sum())


class SharedLoss:
    """The loss over the nodes that all processes have in a step, as a mean over the processes.

    A mean over nodes becomes this process's share of it (:func:`~graphlossy.train.distributed.share_of_loss`).
    GraphSAINT's weighted sums are estimates of their own, one of each process, and are averaged as they are.

    Args:
        task: the data.
        rank: this process.
    """

    def __init__(self, task: Task, rank: Rank) -> None:
        self._task, self._rank = task, rank
        self._terms = self._total = 0  # of the loss of this step: here, and in all processes
        self._whole: dict[int, tuple[int, int, int]] = {}  # of batches that are the same in every epoch
        self._nodes = 0

    def begin(self, batch: Batch, again: bool) -> float:
        """The weight of the step that begins in the loss of the epoch; 0 if no process has a node to learn from.

        All processes must call it together.

        Args:
            batch: what this process has of the step.
            again: whether every epoch has this one batch, which is then counted once.
        """
        if id(batch) not in self._whole:
            terms = loss_terms(batch.y[batch.rows])
            found = reduce_sum(torch.tensor([len(batch.rows), terms]))
            counted = (terms, int(found[0]), int(found[1]))
            self._whole = {id(batch): counted} if again else {}
        else:
            counted = self._whole[id(batch)]
        self._terms, nodes, self._total = counted
        if self._total == 0:
            return 0.0
        if batch.weight is not None:
            return batch.share
        self._nodes += nodes
        return float(nodes)

    def __call__(self, out: Tensor, batch: Batch) -> Tensor:
        """What to call ``backward`` on; its mean over the processes is the loss of the step.

        Args:
            out: scores of the batch's nodes ``[n, outputs]``.
            batch: the one that :meth:`begin` got.
        """
        if batch.weight is not None and self._terms:
            return self._task.loss(out[batch.rows], batch.y[batch.rows], batch.weight)
        rows, labels = out[batch.rows], batch.y[batch.rows]
        return share_of_loss(self._task.loss, rows, labels, self._total, self._rank.world_size, self._terms)

    def end(self, loss: float) -> float:
        """The loss of the epoch from this process's sum over the steps, weighted as :meth:`begin` said."""
        nodes, self._nodes = self._nodes, 0
        return reduce_mean(loss) / (nodes or 1)
