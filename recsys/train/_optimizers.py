"""The optimizers of a model: one for rows with sparse gradients, one for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graphlossy.recsys.train._tables import make_sparse, sparse_parameters, tables_of
from graphlossy.recsys.train.config import FitConfig

__all__ = ["make_optimizers", "state_bytes"]


def make_optimizers(model: nn.Module, config: FitConfig, seed: int = 0) -> list[torch.optim.Optimizer]:
    """Adam for what has dense gradients, and the optimizer of ``config`` for rows whose gradients are sparse.

    With ``"adam"`` tables keep the kind of gradient that they have; with the others every table that can is given
    sparse gradients. ``seed`` is of the stochastic rounding of low-bit rows.
    """
    if config.optimizer != "adam":
        make_sparse(model)
    rows = sparse_parameters(model)
    apart = {id(parameter) for parameter in rows}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    found: list[torch.optim.Optimizer] = []
    if rows:
        from graphlossy.recsys.optim import RowwiseAdagrad, SparseAdamW

        if config.optimizer == "rowwise_adagrad":
            found.append(RowwiseAdagrad(rows, lr=config.lr, seed=seed))
        else:
            found.append(SparseAdamW(rows, lr=config.lr, weight_decay=0.0, seed=seed))
    if rest:
        found.append(torch.optim.Adam(rest, lr=config.lr))
    return found


def state_bytes(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    """Bytes that the tables take up in training: values, maps, the optimizers' state and, if dense, the gradient."""
    tables = list(tables_of(model).values())
    storages: dict[int, int] = {}

    def count(value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()

    ours = {}
    for table in tables:
        for tensor in (*table.parameters(), *table.buffers()):
            count(tensor)
            count(getattr(tensor, "grad", None))
        ours |= {id(parameter): parameter for parameter in table.parameters()}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            if id(parameter) in ours:
                for value in state.values():
                    count(value)
    return sum(storages.values())
