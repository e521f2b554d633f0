"""One size for all tokens and a projection: what every other choice of sizes is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphlossy.recsys.allocate import ColumnScores
from graphlossy.recsys.methods._base import Record
from graphlossy.recsys.methods._problem import Problem
from graphlossy.recsys.methods._sizes import OneSizeMethod

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform(OneSizeMethod):
    """Equal sizes: the largest that the budget pays for.

    What is left of the budget widens whole tables by one, then tokens of one table (``fill``). A small table keeps its
    full width where a projection would cost more than it saves.

    Attributes:
        rounding, min_size, fill, projection, group_size, bits_when: see `SizeMethod` and `OneSizeMethod`.

    Example:
        >>> import torch
        >>> from graphlossy.recsys.methods import search
        >>> plan = search(torch.nn.Sequential(torch.nn.Embedding(1000, 16)), (), None, "uniform", budget="16.5kB")
        >>> plan.tables[0].sizes.unique().tolist(), plan.nbytes
        ([4], 16260)
    """

    rounding: str = "exact"
    min_size: int = 1

    name: ClassVar[str] = "uniform"
    stage: ClassVar[str] = "before"

    def scores(self, problem: Problem, record: Record) -> dict[str, ColumnScores]:
        return {
            name: ColumnScores.proportional(1.0, table.num_embeddings, table.embedding_dim)
            for name, table in problem.tables.items()
        }
