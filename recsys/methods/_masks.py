"""Which entries of all tables together a budget of bytes can hold, stored as `PrunedEmbedding` stores them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from graphlossy.core import format_bytes, prune_to_budget
from graphlossy.recsys.methods._base import Method
from graphlossy.recsys.methods._problem import Problem
from graphlossy.recsys.methods.full import Full
from graphlossy.recsys.plan import TablePlan
from graphlossy.recsys.tables._budget import BudgetError
from graphlossy.recsys.tables.pruned import PrunedEmbedding

__all__ = ["check_mask_budget", "plan_masks"]


def _bytes(problem: Problem, name: str, kept: int) -> int:
    table = problem.tables[name]
    return PrunedEmbedding.bytes_of(table.num_embeddings, table.embedding_dim, table.weight.dtype, kept=kept)


def check_mask_budget(problem: Problem, method: str) -> None:
    """Raises BudgetError where the budget does not hold a single entry beside what a row costs."""
    names = list(problem.tables)
    fixed = sum(min(_bytes(problem, n, 0), Full.whole(problem, n).nbytes) for n in names)
    minimum = fixed + min(_bytes(problem, n, 1) - _bytes(problem, n, 0) for n in names)
    if minimum > problem.budget:
        raise BudgetError(
            f"budget is {problem.budget} bytes ({format_bytes(problem.budget)}); the rows of {method} tables need at "
            f"least {minimum} bytes ({format_bytes(minimum)}), however few entries are kept: raise the budget or take "
            "a method with sizes",
            minimum,
        )


def plan_masks(method: Method, problem: Problem, scores: Mapping[str, Tensor]) -> list[TablePlan]:
    """Keeps the entries of the highest scores under one threshold.

    A table that would be larger with its entries' columns than without any pruning stays whole.

    Args:
        method: for the names.
        problem: with the budget.
        scores: float [V, d] by table; may be negative.
    """
    check_mask_budget(problem, method.name)
    whole: dict[str, TablePlan] = {}
    while True:
        free = problem.budget - sum(plan.nbytes for plan in whole.values())
        masks = _keep_best(problem, {n: s for n, s in scores.items() if n not in whole}, free)
        plain = {name: Full.whole(problem, name) for name in masks}
        larger = [n for n, mask in masks.items() if _bytes(problem, n, int(mask.sum())) >= plain[n].nbytes]
        if not larger:
            break
        whole |= {name: plain[name] for name in larger}
    plans = []
    for name in problem.tables:
        if name in whole:
            plans.append(whole[name])
        else:
            plans.append(TablePlan(**method.place(problem, name), kind="pruned", mask=masks[name].cpu()))
    return plans


def _keep_best(problem: Problem, scores: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
    if not scores:
        return {}
    free = budget - sum(_bytes(problem, name, 0) for name in scores)
    costs = [_bytes(problem, name, 1) - _bytes(problem, name, 0) for name in scores]
    low, high = max(0, free // max(costs)), max(0, free // min(costs))
    masks = prune_to_budget(scores, 1, low)
    while low < high:  # entries of different cost: 16 bits, or wide tables
        middle = (low + high + 1) // 2
        found = prune_to_budget(scores, 1, middle)
        if sum(_bytes(problem, name, int(mask.sum())) for name, mask in found.items()) <= budget:
            low, masks = middle, found
        else:
            high = middle - 1
    return {name: mask.to(torch.bool) for name, mask in masks.items()}
