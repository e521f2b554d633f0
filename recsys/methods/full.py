"""Nothing: every token keeps its full width, as the row to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from graphlossy.recsys.methods._base import Method, Record
from graphlossy.recsys.methods._problem import Problem
from graphlossy.recsys.plan import TablePlan

__all__ = ["Full"]


@dataclass(frozen=True)
class Full(Method):
    """All tokens at the full width, in float; the budget has to hold them, and 4 bytes for each table.

    Example:
        >>> from graphlossy.recsys.methods import search
        >>> plan = search(torch.nn.Sequential(torch.nn.Embedding(10, 4)), (), None, "full", budget=164)
        >>> plan.nbytes, plan.ratio > 0.97
        (164, True)
    """

    name: ClassVar[str] = "full"
    stage: ClassVar[str] = "before"

    def plan_tables(self, problem: Problem, record: Record) -> list[TablePlan]:
        if problem.bits:
            raise ValueError(f"full has no low-bit rows, got bits={problem.bits}; take int8, int4 or int2")
        return [self.whole(problem, name) for name in problem.tables]

    @classmethod
    def whole(cls, problem: Problem, name: str) -> TablePlan:
        """A table whose rows all have the full width."""
        table = problem.tables[name]
        sizes = torch.full((table.num_embeddings,), table.embedding_dim, dtype=torch.int16)
        return TablePlan(**cls.place(problem, name), kind="multi_size", sizes=sizes)
