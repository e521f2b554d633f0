"""SSEDS: sizes of tables from one shot of saliency on a trained model (Qu et al., SIGIR 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graphlossy.recsys.allocate import ColumnScores
from graphlossy.recsys.methods._base import Record
from graphlossy.recsys.methods._batches import backward_passes, check_used, gradient_bytes, table_gradients
from graphlossy.recsys.methods._problem import Problem
from graphlossy.recsys.methods._sizes import OneSizeMethod

__all__ = ["SSEDS"]


@dataclass(frozen=True)
class SSEDS(OneSizeMethod):
    """A mask of ones multiplies every (table, dimension) of a trained model; dimensions of small |dL/dmask| go.

    The size of a table is the number of its dimensions that are left; the small tables are trained again. The
    derivative for dimension j of a table is the sum of w g over its tokens, added up over the batches.

    Attributes:
        max_batches: that are run; None is all.
        per_byte: rank dimensions by saliency per token of their table, for a dimension costs one number a token;
            False ranks by saliency alone.
        rounding, min_size, fill, projection, group_size, bits_when: see `SizeMethod` and `OneSizeMethod`.

    Example:
        >>> import torch
        >>> from graphlossy.recsys.methods import search
        >>> class Clicks(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.used, self.idle = torch.nn.Embedding(100, 8), torch.nn.Embedding(100, 8)
        ...     def forward(self, ids):
        ...         return (self.used(ids) + 0.01 * self.idle(ids)).sum(1)
        >>> loss_fn = lambda model, ids: model(ids).square().mean()
        >>> search(Clicks(), [torch.arange(100)], loss_fn, "sseds", budget="1.75kB").sizes
        {'used': {4: 100}, 'idle': {0: 100}}
    """

    rounding: str = "exact"
    max_batches: int | None = None
    per_byte: bool = False

    name: ClassVar[str] = "sseds"
    stage: ClassVar[str] = "after"

    def scores(self, problem: Problem, record: Record) -> dict[str, ColumnScores]:
        weights = problem.weights
        sums = {name: torch.zeros(w.shape[1], dtype=torch.float64, device=w.device) for name, w in weights.items()}
        with table_gradients(problem):
            for number in backward_passes(problem, "saliency of dimensions", self.max_batches):
                for name, weight in weights.items():
                    sums[name] += _columns(weight.detach(), weight.grad)
                record.batches = number + 1
                record.note(problem.dense_nbytes + 2 * gradient_bytes(problem))
        check_used(sums, record.batches)
        found: dict[str, ColumnScores] = {}
        for name, total in sums.items():
            tokens = max(weights[name].shape[0], 1)
            found[name] = ColumnScores(total.abs() / (tokens if self.per_byte else 1), weights[name].shape[0])
        return found


def _columns(weight: Tensor, grad: Tensor | None) -> Tensor | float:
    """float64 [d]: the sum of w g over the tokens."""
    if grad is None:
        return 0.0
    if grad.is_sparse:
        return (weight[grad._indices()[0]] * grad._values()).sum(0, dtype=torch.float64)
    return (weight * grad).sum(0, dtype=torch.float64)
