"""PEP: learned thresholds prune the tables while they train (Liu et al., ICLR 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from graphlossy.recsys.methods._base import Method, Record
from graphlossy.recsys.methods._batches import check_gradients, each_batch, loss_of
from graphlossy.recsys.methods._masks import check_mask_budget, plan_masks
from graphlossy.recsys.methods._problem import Problem
from graphlossy.recsys.plan import TablePlan
from graphlossy.recsys.tables.pruned import PrunedEmbedding

__all__ = ["PEP"]

GRANULARITIES = ("table", "dimension", "token", "entry")
_FIRST = 0.1  # first threshold, as a share of the standard deviation of a table's entries


@dataclass(frozen=True)
class PEP(Method):
    """Trains sign(v) relu(|v| - g(s)) with learned s until what is left fits; then the mask is trained from the start.

    g(s) = c sigmoid(s) (the paper has c = 1, for entries below 1; c is the largest entry where that is more). Weight
    decay on s raises the thresholds of entries that the loss does not hold down. Which entries are kept is decided by
    |v| - g(s), the best that the budget holds, so that it is used up. The search leaves the model with the values it
    had, and those of the kept entries are where training starts again (the paper's lottery ticket).

    Attributes:
        granularity: of thresholds: one for each ``"table"``, ``"dimension"``, ``"token"`` or ``"entry"``.
        lr: of Adam, for the model.
        threshold_lr: of Adam, for s.
        weight_decay: on s; it doubles with every epoch of the second half, if that comes.
        max_epochs: after which the best entries are taken, met or not (``settings["reached"]`` says).
        check_every: steps between two counts of what is left.

    Example:
        >>> from graphlossy.recsys.methods import search
        >>> model = nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 1))
        >>> batches = [torch.arange(10), torch.arange(10)]
        >>> plan = search(model, batches, lambda m, ids: (m(ids) - 3).square().mean(), "pep", budget=600)
        >>> 580 < plan.nbytes <= 600, plan.keep_values, plan.retrain
        (True, True, True)
    """

    granularity: str = "entry"
    lr: float = 1e-3
    threshold_lr: float = 0.02
    weight_decay: float = 1e-6
    max_epochs: int = 30
    check_every: int = 10

    name: ClassVar[str] = "pep"
    stage: ClassVar[str] = "during"
    keep_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise ValueError(f"granularity must be one of {GRANULARITIES}, got {self.granularity!r}")
        for name in ("lr", "threshold_lr", "weight_decay"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        for name in ("max_epochs", "check_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")

    def plan_tables(self, problem: Problem, record: Record) -> list[TablePlan]:
        self.check_no_bits(problem)
        check_mask_budget(problem, self.name)
        weights = problem.weights
        thresholds = {name: SoftThreshold.of(weight, self.granularity) for name, weight in weights.items()}
        # The model's copy; for each table its gradient, two moments, and what the threshold leaves with its gradient;
        # for the thresholds a gradient and two moments.
        count = sum(4 * p.numel() * p.element_size() for t in thresholds.values() for p in t.parameters())
        record.note(7 * problem.dense_nbytes + count)
        kept = [(tensor, tensor.detach().clone()) for tensor in (*problem.model.parameters(), *problem.model.buffers())]
        try:
            with thresholded(problem, thresholds):
                record.settings["reached"] = self._train(problem, record, weights, thresholds)
            scores = {name: thresholds[name].margin(weight) for name, weight in weights.items()}
        finally:
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)
        return plan_masks(self, problem, scores)

    def _train(
        self, problem: Problem, record: Record, weights: dict[str, Tensor], thresholds: dict[str, SoftThreshold]
    ) -> bool:
        """Whether the entries that are left fit the budget."""
        problem.model.train()
        logits = [t.logits for t in thresholds.values()]
        own = {id(p) for p in logits}
        params = [p for p in problem.model.parameters() if p.requires_grad and id(p) not in own]
        groups = [{"params": params, "lr": self.lr}]
        groups.append({"params": logits, "lr": self.threshold_lr, "weight_decay": self.weight_decay})
        optimizer = torch.optim.Adam(groups)
        for epoch in range(self.max_epochs):
            if 2 * epoch > self.max_epochs:
                optimizer.param_groups[1]["weight_decay"] *= 2
            for number, batch in each_batch(problem, f"thresholds, epoch {epoch + 1}"):
                optimizer.zero_grad(set_to_none=True)
                with torch.enable_grad():
                    loss_of(problem, batch, number).backward()
                check_gradients(weights, number)
                optimizer.step()
                record.batches += 1
                if record.batches % self.check_every == 0 and self._nbytes(weights, thresholds) <= problem.budget:
                    return True
        return self._nbytes(weights, thresholds) <= problem.budget

    @staticmethod
    def _nbytes(weights: dict[str, Tensor], thresholds: dict[str, SoftThreshold]) -> int:
        total = 0
        for name, weight in weights.items():
            kept = int((thresholds[name].margin(weight) > 0).sum())
            total += PrunedEmbedding.bytes_of(*weight.shape, weight.dtype, kept=kept)
        return total


class SoftThreshold(nn.Module):
    """sign(v) relu(|v| - scale sigmoid(logits)).

    Attributes:
        logits: the parameter s, of a shape that goes with [V, d].
        scale: of thresholds.
    """

    def __init__(self, logits: Tensor, scale: float) -> None:
        super().__init__()
        self.logits, self.scale = nn.Parameter(logits), scale

    @classmethod
    def of(cls, weight: Tensor, granularity: str) -> SoftThreshold:
        """Thresholds a tenth as large as the weights of a table are."""
        tokens, dim = weight.shape
        shape = {"table": (1, 1), "dimension": (1, dim), "token": (tokens, 1), "entry": (tokens, dim)}[granularity]
        values = weight.detach().float()
        scale = max(1.0, float(values.abs().max())) if values.numel() else 1.0
        first = _FIRST * float(values.std(unbiased=False)) / scale if values.numel() else 0.0
        first = min(max(first, 1e-6), 0.5)
        logits = torch.full(shape, math.log(first / (1 - first)), dtype=weight.dtype, device=weight.device)
        return cls(logits, scale)

    def forward(self, weight: Tensor) -> Tensor:
        return weight.sign() * torch.relu(weight.abs() - self.scale * self.logits.sigmoid())

    @torch.no_grad()
    def margin(self, weight: Tensor) -> Tensor:
        """float32 [V, d]: how far each entry is above its threshold."""
        return (weight.detach().abs() - self.scale * self.logits.sigmoid()).float()


@contextmanager
def thresholded(problem: Problem, thresholds: dict[str, SoftThreshold]) -> Iterator[None]:
    """The tables look tokens up in what their thresholds leave; their norms are not bounded. Gradients are dense."""
    modules = [(m, thresholds[name]) for name in problem.tables for m in problem.modules_of(name)]
    tables = [m for m in problem.model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    settings = [(m, m.sparse, m.max_norm) for m in tables]
    done = []
    try:
        for table in tables:  # also those that are left alone: one Adam steps all
            table.sparse = False
        for module, threshold in modules:
            module.max_norm = None
            parametrize.register_parametrization(module, "weight", threshold)
            done.append(module)
        yield
    finally:
        for module in done:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        for module, sparse, max_norm in settings:
            module.sparse, module.max_norm = sparse, max_norm
