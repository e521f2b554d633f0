"""Mixed-dimension embeddings: one size for each table, by how many tokens it has (Ginart et al., ISIT 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from graphlossy.recsys.allocate import ColumnScores
from graphlossy.recsys.methods._base import Record
from graphlossy.recsys.methods._problem import Problem
from graphlossy.recsys.methods._sizes import OneSizeMethod

__all__ = ["MDE"]


@dataclass(frozen=True)
class MDE(OneSizeMethod):
    """The size of all tokens of table f is proportional to (1 / n_f) ** alpha, n_f being how many it has.

    The factor is fitted to the budget. A small table keeps its full width where a projection would cost more.

    Attributes:
        alpha: power; the paper's temperature, 0.3 there.
        rounding, min_size, fill, projection, group_size, bits_when: see `SizeMethod` and `OneSizeMethod`.

    Example:
        >>> import torch
        >>> from graphlossy.recsys.methods import search
        >>> model = torch.nn.ModuleDict({"user": torch.nn.Embedding(5000, 16), "country": torch.nn.Embedding(80, 16)})
        >>> plan = search(model, (), None, "mde", budget="44kB")
        >>> {table.name: int(table.sizes[0]) for table in plan.tables}
        {'user': 2, 'country': 10}
    """

    rounding: str = "exact"
    min_size: int = 1
    alpha: float = 0.3

    name: ClassVar[str] = "mde"
    stage: ClassVar[str] = "before"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha must be at least 0, got {self.alpha!r}")

    def scores(self, problem: Problem, record: Record) -> dict[str, ColumnScores]:
        found: dict[str, ColumnScores] = {}
        for name, table in problem.tables.items():
            weight = max(table.num_embeddings, 1) ** -self.alpha
            found[name] = ColumnScores.proportional(weight, table.num_embeddings, table.embedding_dim)
        return found
