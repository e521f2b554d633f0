"""Methods that give every token a size: they only say what the numbers of its row are worth."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from graphlossy.recsys.allocate import (
    BITS_WHEN,
    Allocation,
    ColumnScores,
    Storage,
    TokenScores,
    allocate_one_size,
    allocate_sizes,
    allowed_sizes,
)
from graphlossy.recsys.methods._base import Method, Record
from graphlossy.recsys.methods._problem import Problem
from graphlossy.recsys.plan import TablePlan

__all__ = ["OneSizeMethod", "SizeMethod"]


@dataclass(frozen=True)
class SizeMethod(Method):
    """A method whose tables are `MultiSizeEmbedding` ones.

    Attributes:
        rounding: ``"exact"``, ``"pow2"`` or ``"multiple_of:4"``.
        min_size: smallest size of a token; 0 allows no row at all.
        projection: ``"nested"`` or ``"per_size"``.
        shared_rows: hashed rows for the tokens of size 0 of every table of more than twice as many tokens.
        shared_size: width of these rows; 0 is the smallest other size.
        group_size: elements that share a scale and an offset, with low-bit rows.
        bits_when: low-bit rows are rounded ``"after"`` training or at every step of ``"training"``.
    """

    rounding: str = "pow2"
    min_size: int = 0
    projection: str = "nested"
    shared_rows: int = 0
    shared_size: int = 0
    group_size: int = 64
    bits_when: str = "after"

    def __post_init__(self) -> None:
        allowed_sizes(self.rounding, 1, 0)
        if isinstance(self.min_size, bool) or not isinstance(self.min_size, int) or self.min_size < 0:
            raise ValueError(f"min_size must be an int of at least 0, got {self.min_size!r}")
        if self.bits_when not in BITS_WHEN:
            raise ValueError(f"bits_when must be one of {BITS_WHEN}, got {self.bits_when!r}")
        Storage(2**15, projection=self.projection, shared_rows=self.shared_rows, shared_size=self.shared_size,
                group_size=self.group_size)  # fmt: skip

    @abstractmethod
    def scores(self, problem: Problem, record: Record) -> dict[str, TokenScores]:
        """What the numbers of every token's row are worth, by table."""

    def plan_tables(self, problem: Problem, record: Record) -> list[TablePlan]:
        storage = {name: self._storage(problem, name) for name in problem.tables}
        scores = self.scores(problem, record)
        found = self.allocate(problem, scores, storage)
        record.settings["price"] = found.price
        plans = []
        for name, sizes in found.sizes.items():
            s = storage[name]
            shared = s.shared_rows if bool((sizes == 0).any()) else 0
            plans.append(
                TablePlan(
                    **self.place(problem, name),
                    kind="multi_size",
                    sizes=sizes,
                    bits=s.bits,
                    group_size=s.group_size,
                    bits_when=s.bits_when,
                    projection=s.projection,
                    shared_rows=shared,
                    shared_size=s.shared_size if shared else 0,
                )  # fmt: skip
            )
        return plans

    def allocate(self, problem: Problem, scores: dict[str, Any], storage: dict[str, Storage]) -> Allocation:
        """Sizes under the problem's budget."""
        return allocate_sizes(
            scores, problem.budget, storage, rounding=self.rounding, min_size=self.min_size, seed=problem.seed
        )

    def _storage(self, problem: Problem, name: str) -> Storage:
        table = problem.tables[name]
        shared = self.shared_rows if table.num_embeddings > 2 * self.shared_rows else 0
        return Storage(
            table.embedding_dim, table.weight.element_size(), problem.bits, self.group_size, self.bits_when,
            self.projection, shared, min(self.shared_size, table.embedding_dim) if shared else 0,
        )  # fmt: skip


@dataclass(frozen=True)
class OneSizeMethod(SizeMethod):
    """A method that gives all tokens of a table one size.

    Attributes:
        fill: where tables of one size leave more than 3 % of the budget, tokens of one table, drawn by the seed, get
            its next size; so no method has fewer bytes than another for the rounding of its sizes.
    """

    rounding: str = "exact"
    fill: bool = True

    @abstractmethod
    def scores(self, problem: Problem, record: Record) -> dict[str, ColumnScores]:
        """What the numbers of a row are worth, by table."""

    def allocate(self, problem: Problem, scores: dict[str, Any], storage: dict[str, Storage]) -> Allocation:
        return allocate_one_size(
            scores, problem.budget, storage, rounding=self.rounding, min_size=self.min_size, fill=self.fill,
            seed=problem.seed,
        )  # fmt: skip
