"""Tables that are trained in low bits from the first step on (Xu et al., "ALPT", CIKM 2021; Zhang et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from graphlossy.recsys.methods._base import Method, Record
from graphlossy.recsys.methods._problem import Problem
from graphlossy.recsys.methods.full import Full
from graphlossy.recsys.plan import TablePlan
from graphlossy.recsys.rows import ROW_BITS

__all__ = ["LowPrecision"]


@dataclass(frozen=True)
class LowPrecision(Method):
    """Rows of full width in 8 or 4 bits, a scale for each; every step rounds them stochastically.

    Memory is low in training too. The step of two codes follows the range of a row; it is not learned, as ALPT's is.

    Attributes:
        bits: of an element, unless the problem says how many.

    Example:
        >>> import torch
        >>> from graphlossy.recsys.methods import search
        >>> plan = search(torch.nn.Sequential(torch.nn.Embedding(1000, 16)), (), None, "low_precision", budget="21kB")
        >>> plan.nbytes, plan.tables[0].bits, plan.tables[0].bits_when
        (20044, 8, 'training')
    """

    bits: int = 8

    name: ClassVar[str] = "low_precision"
    stage: ClassVar[str] = "before"

    def __post_init__(self) -> None:
        if self.bits not in ROW_BITS:
            raise ValueError(f"bits must be one of {ROW_BITS}, got {self.bits!r}")

    def plan_tables(self, problem: Problem, record: Record) -> list[TablePlan]:
        bits = problem.bits or self.bits
        record.settings["bits"] = bits
        return [replace(Full.whole(problem, name), bits=bits, bits_when="training") for name in problem.tables]
