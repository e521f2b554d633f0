"""Adagrad with one number a row: the optimizer of large tables, which adds 4 bytes to each row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphlossy.recsys.optim._rows import RowOptimizer, check_number, column, compute_dtype, mean_square, put, take

__all__ = ["RowwiseAdagrad"]


class RowwiseAdagrad(RowOptimizer):
    r"""Adagrad (Duchi et al., JMLR 2011) whose sum of squares is shared by the elements of a row.

    A row w with gradient g of D elements has one number s:

        s <- s + mean(g**2)        w <- (1 - lr * weight_decay) * w - lr * g / (sqrt(s) + eps)

    which is the EXACT_ROWWISE_ADAGRAD of FBGEMM with its decoupled decay: gradients of a row that a batch names
    several times are added up before they are squared. In a parameter with a dense gradient a row is an entry of the
    first dimension, a single number for a vector.

    Sparse gradients step only the rows they name, and the handles of low-bit rows can be stepped; see the notes on
    decay and on `catch_up` there. The decay is decoupled, so that it can wait: torch's Adagrad adds it to the gradient,
    and refuses it for sparse ones.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        eps: added to the root.
        weight_decay: decoupled.
        initial_accumulator_value: s before the first step.
        maximize: step along the gradient.
        seed: of the stochastic rounding of low-bit rows; None draws one from torch's global generator.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> from torch import nn
        >>> table = nn.Embedding(1000, 8, sparse=True)
        >>> optimizer = RowwiseAdagrad(table.parameters(), lr=0.1)
        >>> table(torch.tensor([3, 3, 7])).sum().backward()
        >>> optimizer.step()
        >>> optimizer.state[table.weight]["sum"][[3, 7, 9]].tolist()
        [4.0, 1.0, 0.0]
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        *,
        maximize: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "eps": eps,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "maximize": maximize,
                "seed": seed,
            },
        )

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        check_number("initial_accumulator_value", group["initial_accumulator_value"])

    def _new_state(self, group: dict[str, Any], param: Tensor, sparse: bool) -> dict[str, Any]:
        value, dtype = float(group["initial_accumulator_value"]), compute_dtype(param)
        return {"sum": torch.full(param.shape[:1], value, dtype=dtype, device=param.device)}

    def _direction(
        self, group: dict[str, Any], state: dict[str, Any], grad: Tensor, row: Tensor | None
    ) -> tuple[Tensor, Tensor, float]:
        total = take(state["sum"], row).add_(mean_square(grad))
        put(state["sum"], row, total)
        return grad, column(total.sqrt().add_(group["eps"]), grad), float(group["lr"])
