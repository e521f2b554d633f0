"""Rounding of trained tables to 8, 4 or 2 bits, all rows at their full width."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from graphlossy.core._schemas import check_group_size
from graphlossy.recsys.methods._base import Method, Record
from graphlossy.recsys.methods._problem import Problem
from graphlossy.recsys.methods.full import Full
from graphlossy.recsys.plan import TablePlan

__all__ = ["Int2", "Int4", "Int8", "PostTraining"]


@dataclass(frozen=True)
class PostTraining(Method):
    """Low-bit copies of the rows; the budget decides nothing, it has to hold them.

    Attributes:
        group_size: elements, of neighbouring rows too, that share a scale and an offset (4 bytes).
    """

    group_size: int = 64

    stage: ClassVar[str] = "after"
    retrain: ClassVar[bool] = False
    keep_values: ClassVar[bool] = True
    bits: ClassVar[int]

    def __post_init__(self) -> None:
        check_group_size(self.group_size)

    def plan_tables(self, problem: Problem, record: Record) -> list[TablePlan]:
        if problem.bits not in (0, self.bits):
            raise ValueError(f"{self.name} has rows of {self.bits} bits, got bits={problem.bits}; leave it out")
        record.settings["bits"] = self.bits
        return [
            replace(Full.whole(problem, name), bits=self.bits, group_size=self.group_size) for name in problem.tables
        ]


@dataclass(frozen=True)
class Int8(PostTraining):
    """Rows of 8 bits, rounded after training.

    Example:
        >>> import torch
        >>> from graphlossy.recsys.methods import search
        >>> plan = search(torch.nn.Sequential(torch.nn.Embedding(1000, 16)), (), None, "int8", budget="18kB")
        >>> plan.nbytes, round(plan.ratio, 2)
        (17044, 3.75)
    """

    name: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8


@dataclass(frozen=True)
class Int4(PostTraining):
    """Rows of 4 bits, rounded after training; see `Int8`."""

    name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4


@dataclass(frozen=True)
class Int2(PostTraining):
    """Rows of 2 bits, rounded after training; see `Int8`."""

    name: ClassVar[str] = "int2"
    bits: ClassVar[int] = 2
