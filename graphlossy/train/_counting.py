"""How many bytes a step keeps for its backward pass, counted the same way under every scheme."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from graphlossy._compress import Ledger, compress, load_switch_state, restore, switch_state
from graphlossy.core.budget import format_bytes, parse_bytes
from graphlossy.train._batches import Batch
from graphlossy.train._config import Scheme
from graphlossy.train._errors import TrainError
from graphlossy.train._evaluation import forward
from graphlossy.train._task import Task

__all__ = ["Compression", "batch_loss", "count_loss", "count_plain", "ledger_records", "sum_saved"]

Record = dict[str, Any]


def sum_saved(records: list[Record]) -> int:
    """Bytes of all records."""
    return sum(record["saved_bytes"] for record in records)


def ledger_records(ledger: Ledger) -> list[Record]:
    """The ledger's records as plain values."""
    return [asdict(record) for record in ledger.records]


def batch_loss(task: Task, out: Tensor, batch: Batch) -> Tensor:
    """The loss over the rows of a batch, from the scores of all its nodes."""
    return task.loss(out[batch.rows], batch.y[batch.rows], batch.weight)


def count_loss(task: Task, batch: Batch) -> list[Record]:
    """What the loss saves, exact under every scheme."""
    out = torch.zeros(batch.x.shape[0], task.outputs, device=batch.x.device, requires_grad=True)
    with compress(bits=None, seed=0) as ledger:  # a seed leaves torch's generator alone
        loss = batch_loss(task, out * 1.0, batch)
    del loss
    return [{**record, "module": "loss"} for record in ledger_records(ledger)]


def count_plain(model: nn.Module, batch: Batch, amp: bool) -> list[Record]:
    """What plain autograd saves of the model, counted on a copy so that training itself runs without hooks."""
    probe = copy.deepcopy(model).train()
    ledger = compress(probe, bits=None)
    try:
        with torch.random.fork_rng(devices=[batch.x.device] if batch.x.is_cuda else []):
            for _ in range(2):  # in the first pass layers build what they keep from step to step
                out = forward(probe, batch.x, batch.adj, amp)
                del out
        return ledger_records(ledger)
    finally:
        restore(probe)


class Compression:
    """A scheme's compression of one model, with a budget that holds for every batch, its loss included.

    Args:
        scheme: what is kept for the backward pass.
        model: to switch on.

    Attributes:
        ledger: of the model's last training forward.
    """

    def __init__(self, scheme: Scheme, model: nn.Module) -> None:
        self._scheme, self._model = scheme, model
        self._room: int | None = None
        if scheme.budget is None:
            self.ledger = compress(model, bits=scheme.bits)
        else:
            self.ledger = compress(model, budget=scheme.budget)

    def fit(self, loss_bytes: int) -> None:
        """Gives the model what the budget leaves beside a loss of ``loss_bytes``; the widths chosen so far stay."""
        if self._scheme.budget is None:
            return
        room = max(parse_bytes(self._scheme.budget) - loss_bytes, 1)
        if room != self._room:
            state = switch_state(self._model)
            self.ledger = compress(self._model, budget=room)
            load_switch_state(self._model, state)
            self._room = room

    def over_budget(self, loss_bytes: int) -> TrainError:
        """The error to raise after a forward pass that could not meet the budget."""
        need = self.ledger.saved_bytes + loss_bytes
        return TrainError(
            f"--budget {self._scheme.budget} cannot be met: a step saves {need} bytes ({format_bytes(need)}) with "
            "every tensor at its lowest width (1 bit; masks, exact tensors and the loss included); give at least "
            f"{need}B, or a smaller model"
        )

    def rehearse(self, task: Task, batch: Batch, amp: bool) -> None:
        """Runs one forward pass on a copy of the model, so that a budget that cannot be met shows before training.

        Raises:
            TrainError: the scheme's byte budget cannot be met.
        """
        loss_bytes = sum_saved(count_loss(task, batch))
        probe = restore(copy.deepcopy(self._model)).train()
        copied = Compression(self._scheme, probe)
        copied.fit(loss_bytes)
        try:
            forward(probe, batch.x, batch.adj, amp)
        except ValueError:
            raise copied.over_budget(loss_bytes) from None
