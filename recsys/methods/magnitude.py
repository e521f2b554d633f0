"""Magnitude pruning of trained tables, which rivals far more complex methods (Zhang et al., arXiv 2406.17335)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphlossy.core import saliency_scores
from graphlossy.recsys.methods._base import Method, Record
from graphlossy.recsys.methods._masks import check_mask_budget, plan_masks
from graphlossy.recsys.methods._problem import Problem
from graphlossy.recsys.plan import TablePlan

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude(Method):
    """The entries |w| of all trained tables above one threshold are kept, with their columns.

    Attributes:
        fine_tune: whether the kept entries are to be trained further.
        min_size: entries of each token that are kept before any others, as far as the budget goes: without one, a
            token that has nothing but its row looks like every other.

    Example:
        >>> import torch
        >>> from graphlossy.recsys.methods import search
        >>> model = torch.nn.Sequential(torch.nn.Embedding.from_pretrained(torch.eye(50, 8) * 3, freeze=False))
        >>> plan = search(model, (), None, "magnitude", budget=94)
        >>> plan.tables[0].mask.sum(0).tolist(), plan.nbytes
        ([1, 1, 1, 1, 1, 1, 1, 1], 94)
    """

    fine_tune: bool = False
    min_size: int = 0

    name: ClassVar[str] = "magnitude"
    stage: ClassVar[str] = "after"
    keep_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.min_size, bool) or not isinstance(self.min_size, int) or self.min_size < 0:
            raise ValueError(f"min_size must be an int of at least 0, got {self.min_size!r}")

    @property
    def retrain(self) -> bool:
        return self.fine_tune

    def plan_tables(self, problem: Problem, record: Record) -> list[TablePlan]:
        self.check_no_bits(problem)
        check_mask_budget(problem, self.name)
        scores = {name: saliency_scores(weight, kind="magnitude") for name, weight in problem.weights.items()}
        for score in scores.values():
            if self.min_size:
                first = score.topk(min(self.min_size, score.shape[1]), dim=1)
                score.scatter_(1, first.indices, first.values + 2 * float(score.max()))
        # Every score, a mask and a block of the selection's 64-bit keys.
        record.note(problem.dense_nbytes + sum(5 * s.numel() for s in scores.values()))
        return plan_masks(self, problem, scores)
