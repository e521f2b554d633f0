"""Sizes by popularity: a power of how often a token occurs, the baseline that PME has to beat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from graphlossy.recsys.allocate import PowerScores, TokenScores
from graphlossy.recsys.methods._base import Record
from graphlossy.recsys.methods._problem import Problem
from graphlossy.recsys.methods._sizes import SizeMethod

__all__ = ["Frequency"]


@dataclass(frozen=True)
class Frequency(SizeMethod):
    """The size of a token is proportional to count ** alpha: popularity scaling, per token.

    A token that does not occur in the batches gets the smallest size.

    Attributes:
        alpha: power of the count.
        rounding, min_size, projection, shared_rows, shared_size, group_size, bits_when: see `SizeMethod`.

    Example:
        >>> import torch
        >>> from graphlossy.recsys.methods import search
        >>> model = torch.nn.Sequential(torch.nn.Embedding(200, 8))
        >>> batches = [torch.tensor([0] * 64 + [1] * 16), torch.arange(200)]
        >>> plan = search(model, batches, lambda m, ids: m(ids).mean(), "frequency", budget="1.1kB")
        >>> plan.tables[0].sizes[[0, 1, 2]].tolist()
        [8, 8, 1]
    """

    alpha: float = 0.5

    name: ClassVar[str] = "frequency"
    stage: ClassVar[str] = "before"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha must be at least 0, got {self.alpha!r}")

    def scores(self, problem: Problem, record: Record) -> dict[str, TokenScores]:
        before, counts = problem.counted, problem.counts
        record.batches = problem.counted - before
        record.note(problem.dense_nbytes + sum(8 * c.numel() for c in counts.values()))
        found: dict[str, TokenScores] = {}
        for name, table in problem.tables.items():
            count = counts[name].double()
            weights = count.pow(self.alpha).masked_fill(count <= 0, 0.0)
            found[name] = PowerScores(weights, table.embedding_dim)
        return found
