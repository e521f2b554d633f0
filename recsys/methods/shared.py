"""Methods whose tokens share what is stored: hashing, quotient and remainder, tensor trains, ROBE, deep hashing.

Each fits tables of one kind to a share of the budget for each table.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from graphlossy.core import format_bytes
from graphlossy.recsys.methods._base import Method, Record
from graphlossy.recsys.methods._problem import Problem
from graphlossy.recsys.methods.full import Full
from graphlossy.recsys.plan import TablePlan
from graphlossy.recsys.tables._budget import BudgetError

__all__ = ["DHE", "QR", "ROBE", "TT", "Hash", "SharedMethod"]


@dataclass(frozen=True)
class SharedMethod(Method):
    """Tables of one kind, as large as their share of the budget.

    Small tables are kept whole, smallest first, as long as together they take at most ``whole`` of the budget: there
    is little to save in them, and published results compress the large tables alone. The others get the rest in
    proportion to their bytes. Where the smallest table of this kind is larger than the table itself, that is kept whole
    too.

    Attributes:
        whole: share of the budget for tables that are kept whole.
    """

    whole: float = 0.25

    stage: ClassVar[str] = "before"

    def __post_init__(self) -> None:
        if not 0 <= self.whole <= 1:
            raise ValueError(f"whole must be a share of the budget from 0 to 1, got {self.whole!r}")

    def plan_tables(self, problem: Problem, record: Record) -> list[TablePlan]:
        self.check_no_bits(problem)
        candidates = [_Candidate(self, problem, name, at) for at, name in enumerate(problem.tables)]
        minimum = sum(c.minimum for c in candidates)
        if minimum > problem.budget:
            raise BudgetError(
                f"budget is {problem.budget} bytes ({format_bytes(problem.budget)}); the smallest {self.name} tables "
                f"have {minimum} bytes ({format_bytes(minimum)}): raise the budget or take another method",
                minimum,
            )
        plans: dict[str, TablePlan] = {}
        left, owed, whole = problem.budget, minimum, int(self.whole * problem.budget)
        order = sorted(candidates, key=lambda c: (c.plain.nbytes, c.name))
        for c in order:
            nbytes = c.plain.nbytes
            fits = nbytes <= left - (owed - c.minimum)
            if fits and (nbytes <= whole or nbytes <= c.smallest):
                plans[c.name] = c.plain
                left, owed, whole = left - nbytes, owed - c.minimum, whole - min(nbytes, whole)
        rest = [c for c in order if c.name not in plans]
        dense = sum(c.plain.nbytes for c in rest)
        for c in rest:
            owed -= c.minimum
            share = left * c.plain.nbytes // max(dense, 1)
            plans[c.name] = c.fit(max(c.minimum, min(share, left - owed)))
            left, dense = left - plans[c.name].nbytes, dense - c.plain.nbytes
        return [plans[name] for name in problem.tables]

    def options(self) -> dict[str, Any]:
        """Arguments of the tables that the user chose."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "whole"}
        return {name: value for name, value in own.items() if value is not None}


class _Candidate:
    """A table, whole or as one of the kind."""

    def __init__(self, method: SharedMethod, problem: Problem, name: str, at: int) -> None:
        from graphlossy.recsys.tables import KINDS

        self.name, self._kind, self._options = name, KINDS[method.name], method.options()
        self._place = method.place(problem, name) | {"kind": method.name}
        self.plain = Full.whole(problem, name)
        if "seed" in inspect.signature(self._kind).parameters:
            self._seed = {"seed": problem.seed + at}  # tables that share a hash would have the same collisions
        else:
            self._seed = {}
        try:
            self._options_for(0)
            self.smallest = 0
        except BudgetError as error:
            self.smallest = error.minimum
        self.minimum = min(self.smallest, self.plain.nbytes)

    def _options_for(self, nbytes: int) -> dict[str, Any]:
        shape = self._place["num_embeddings"], self._place["embedding_dim"]
        return self._kind.options_for_budget(*shape, nbytes, dtype=self._place["dtype"], **self._options)

    def fit(self, nbytes: int) -> TablePlan:
        """The largest table within ``nbytes``, whole if nothing smaller is less."""
        if nbytes < self.smallest or nbytes >= self.plain.nbytes:
            return self.plain
        return TablePlan(**self._place, options={**self._options_for(nbytes), **self._seed})


@dataclass(frozen=True)
class Hash(SharedMethod):
    """The hashing trick; see `graphlossy.recsys.tables.HashEmbedding`.

    Attributes:
        num_hashes: rows that are added for a token.
        whole: see `SharedMethod`.

    Example:
        >>> import torch
        >>> from graphlossy.recsys.methods import search
        >>> model = torch.nn.ModuleDict({"user": torch.nn.Embedding(5000, 16), "country": torch.nn.Embedding(80, 16)})
        >>> plan = search(model, (), None, "hash", budget="40kB")
        >>> {table.name: table.kind for table in plan.tables}, 39000 < plan.nbytes <= 40000
        ({'user': 'hash', 'country': 'multi_size'}, True)
    """

    num_hashes: int = 1

    name: ClassVar[str] = "hash"


@dataclass(frozen=True)
class QR(SharedMethod):
    """Quotient and remainder; see `graphlossy.recsys.tables.QREmbedding`.

    Attributes:
        whole: see `SharedMethod`.
    """

    name: ClassVar[str] = "qr"


@dataclass(frozen=True)
class TT(SharedMethod):
    """Tensor trains (TT-Rec); see `graphlossy.recsys.tables.TTEmbedding`.

    Attributes:
        whole: see `SharedMethod`.
    """

    name: ClassVar[str] = "tt"


@dataclass(frozen=True)
class ROBE(SharedMethod):
    """Blocks of one shared array; see `graphlossy.recsys.tables.ROBEEmbedding`.

    Attributes:
        whole: see `SharedMethod`.
    """

    name: ClassVar[str] = "robe"


@dataclass(frozen=True)
class DHE(SharedMethod):
    """A network of hashes (deep hash embedding); see `graphlossy.recsys.tables.DHEmbedding`.

    Attributes:
        whole: see `SharedMethod`.
    """

    name: ClassVar[str] = "dhe"
