"""How often tokens occur, seen by hooks on the tables while the model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphlossy.recsys._preserve import preserved
from graphlossy.recsys.methods._batches import check_ids, each_batch

if TYPE_CHECKING:
    from graphlossy.recsys.methods._problem import Problem

__all__ = ["count_tokens"]


def count_tokens(problem: Problem) -> tuple[dict[str, Tensor], int]:
    """How often each token is looked up in a pass over the batches, int64 [V] by table, and how many batches there are.

    Padding does not count.

    Raises:
        ValueError: there is no batch, or a table is never looked up.
        IdError: a table does not have one of its ids.
    """
    counts = {name: torch.zeros(table.num_embeddings, dtype=torch.int64) for name, table in problem.tables.items()}
    counters = {name: _Counter(name, total) for name, total in counts.items()}
    handles = []
    for name, hook in counters.items():
        handles += [m.register_forward_pre_hook(hook, with_kwargs=True) for m in problem.modules_of(name)]
    batches = 0
    try:
        with preserved(problem.model), torch.no_grad(), torch.random.fork_rng(problem.device_indices()):
            torch.manual_seed(problem.seed)
            for number, batch in each_batch(problem, "counting tokens"):
                for counter in counters.values():
                    counter.batch = number
                problem.loss_fn(problem.model, batch)
                batches = number + 1
    finally:
        for handle in handles:
            handle.remove()
    for name, total in counts.items():
        padding = problem.tables[name].padding_idx
        if padding is not None:
            total[padding] = 0
        if not bool(total.any()):
            raise ValueError(
                f"table {name!r} was not looked up in {batches} batches, so its tokens cannot be counted; leave it "
                "out by match, or give counts"
            )
    return counts, batches


class _Counter:
    def __init__(self, name: str, total: Tensor) -> None:
        self.name, self.total, self.batch = name, total, 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input"]
        check_ids(self.name, module, ids, self.batch)
        found = torch.bincount(ids.detach().reshape(-1).to(torch.int64), minlength=self.total.shape[0])
        self.total += found.cpu()
