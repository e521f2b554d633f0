"""PME: sizes from pruning the embedding at initialisation (Liu et al., Frontiers in Big Data 6, 2023).

The paper's code is not public. This is a reconstruction from its abstract and from the practice of pruning at
initialisation (SNIP, Lee et al., ICLR 2019): score every entry by |w dL/dw| before training, keep the best under one
threshold for all tables, and give each token as wide a row as it has entries left. Where they were does not matter: the
small tables are trained from scratch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphlossy.core import SaliencyAccumulator
from graphlossy.recsys.allocate import EntryScores, TokenScores
from graphlossy.recsys.methods._base import Record
from graphlossy.recsys.methods._batches import backward_passes, check_used, gradient_bytes, table_gradients
from graphlossy.recsys.methods._problem import Problem
from graphlossy.recsys.methods._sizes import SizeMethod

__all__ = ["PME"]


@dataclass(frozen=True)
class PME(SizeMethod):
    """Sizes by the saliency of a table's entries at initialisation.

    Attributes:
        accumulate: over batches b: ``"sum_of_abs"`` adds |w g_b|, ``"abs_of_sum"`` is |w sum_b g_b|, SNIP's score of
            all data as one batch.
        max_batches: that are run; None is all. A token that they lack has saliency 0.
        rounding, min_size, projection, shared_rows, shared_size, group_size, bits_when: see `SizeMethod`.

    Example:
        >>> import torch
        >>> from graphlossy.recsys.methods import search
        >>> model = torch.nn.Sequential(torch.nn.Embedding(200, 8), torch.nn.Linear(8, 1))
        >>> batches = [torch.arange(20), torch.arange(20), torch.arange(40)]
        >>> plan = search(model, batches, lambda m, ids: m(ids).square().mean(), "pme", budget=900)
        >>> bool(plan.tables[0].sizes[:20].sum() > plan.tables[0].sizes[20:].sum()), plan.nbytes <= 900, plan.batches
        (True, True, 3)
    """

    accumulate: str = "sum_of_abs"
    max_batches: int | None = None

    name: ClassVar[str] = "pme"
    stage: ClassVar[str] = "before"

    def __post_init__(self) -> None:
        super().__post_init__()
        SaliencyAccumulator("snip", self.accumulate)

    def scores(self, problem: Problem, record: Record) -> dict[str, TokenScores]:
        saliency, total = SaliencyAccumulator("snip", self.accumulate), 0
        weights = problem.weights
        for weight in weights.values():
            total += weight.numel() * max(4, weight.element_size())
        with table_gradients(problem):
            for number in backward_passes(problem, "saliency", self.max_batches):
                saliency.update(weights)
                record.batches = number + 1
                record.note(problem.dense_nbytes + gradient_bytes(problem) + total)
        found = saliency.scores()
        record.note(problem.dense_nbytes + 2 * total)
        check_used(found, record.batches)
        return {name: EntryScores(scores) for name, scores in found.items()}
