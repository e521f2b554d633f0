"""The interface of all methods."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch

from graphlossy.core import format_bytes
from graphlossy.recsys._preserve import preserved
from graphlossy.recsys.methods._problem import Problem
from graphlossy.recsys.plan import EmbeddingPlan, TablePlan
from graphlossy.recsys.tables._budget import BudgetError

__all__ = ["Method", "Record"]


@dataclass
class Record:
    """What a search used.

    Attributes:
        batches: that were run.
        peak_bytes: of tables, gradients and scores together.
        settings: that the search found out.
    """

    batches: int = 0
    peak_bytes: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def note(self, nbytes: int) -> None:
        """``nbytes`` were in use at one time."""
        self.peak_bytes = max(self.peak_bytes, nbytes)


@dataclass(frozen=True)
class Method(ABC):
    """A way to make tables smaller. Its options are its fields.

    Attributes:
        name: in `METHODS`.
        stage: when it works: ``"before"`` training, ``"during"`` (the search trains), or ``"after"`` it, on a trained
            model.
        retrain: whether the model is to be trained with the new tables.
        keep_values: whether the new tables start from the rows of the old ones.
    """

    name: ClassVar[str]
    stage: ClassVar[str]
    retrain: ClassVar[bool] = True
    keep_values: ClassVar[bool] = False

    def search(self, problem: Problem) -> EmbeddingPlan:
        """What becomes of the tables; the model is left as it was.

        Raises:
            BudgetError: the method cannot get down to the budget; ``minimum`` says how far it can.
            TypeError, ValueError: there are no batches, or a loss or a gradient is not finite.
        """
        record, start = Record(), time.perf_counter()
        record.note(problem.dense_nbytes)
        with preserved(problem.model), torch.random.fork_rng(problem.device_indices()):
            torch.manual_seed(problem.seed)
            tables = self.plan_tables(problem, record)
        settings = asdict(self) | {"bits": problem.bits} | record.settings
        settings |= {"retrain": self.retrain, "keep_values": self.keep_values}
        plan = EmbeddingPlan(
            self.name, self.stage, tuple(tables), problem.budget, problem.seed, time.perf_counter() - start,
            record.peak_bytes, record.batches, settings,
        )  # fmt: skip
        if plan.nbytes > problem.budget:
            least = plan.nbytes
            raise BudgetError(
                f"budget is {problem.budget} bytes ({format_bytes(problem.budget)}); {self.name} needs at least "
                f"{least} bytes ({format_bytes(least)}): raise the budget or take another method",
                least,
            )
        return plan

    @abstractmethod
    def plan_tables(self, problem: Problem, record: Record) -> list[TablePlan]:
        """The plans of the tables, of which none may be larger than it has to be where the budget is not met."""

    def check_no_bits(self, problem: Problem) -> None:
        """Raises ValueError where low-bit rows are wanted of a method that has none."""
        if problem.bits:
            raise ValueError(f"{self.name} has no low-bit rows, got bits={problem.bits}; take a method with sizes")

    @staticmethod
    def place(problem: Problem, name: str) -> dict[str, Any]:
        """What a `TablePlan` says of the table itself."""
        table = problem.tables[name]
        return {
            "name": name,
            "num_embeddings": table.num_embeddings,
            "embedding_dim": table.embedding_dim,
            "aliases": problem.aliases.get(name, ()),
            "dtype": table.weight.dtype,
        }
