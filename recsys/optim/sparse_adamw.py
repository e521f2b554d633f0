"""AdamW for tables with sparse gradients and for dense parameters, in one optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphlossy.recsys.optim._rows import RowOptimizer, check_number, column, compute_dtype, mean_square, put, take

__all__ = ["SparseAdamW"]


class SparseAdamW(RowOptimizer):
    r"""AdamW (Loshchilov and Hutter, ICLR 2019), in which a sparse gradient steps only the rows it names.

    With t the number of steps of the parameter, for the rows that have a gradient g:

        m <- beta1 * m + (1 - beta1) * g        v <- beta2 * v + (1 - beta2) * g**2
        w <- (1 - lr * weight_decay) * w - lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)

    The moments of the other rows stay as they are (lazy, as in `torch.optim.SparseAdam`, which has no decay); their
    weight decay is made up for at their next touch, exactly, for any schedule of the learning rate. A row touched at
    every step, and a parameter with a dense gradient, go where `torch.optim.AdamW` takes them. ``eps`` is added where
    AdamW adds it, after the correction of v; SparseAdam adds it before, which differs where roots are near ``eps``.

    Args:
        params: parameters or groups of them; handles of low-bit rows too.
        lr: learning rate.
        betas: of the moments; beta1 = 0 keeps no first moment.
        eps: added to the root.
        weight_decay: decoupled. Call `catch_up` before evaluating a model: rows the last batches did not touch wait.
        rowwise: keep one v for each row of a table with sparse gradients, the mean over its elements. With beta1 = 0
            the state of a row is then a single number.
        maximize: step along the gradient.
        seed: of the stochastic rounding of low-bit rows; None draws one from torch's global generator.

    Moments are float32 (float64 for float64 parameters) also for half-precision tables, whose small squares would
    vanish otherwise.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> from torch import nn
        >>> table, layer = nn.Embedding(1000, 8, sparse=True), nn.Linear(8, 1)
        >>> optimizer = SparseAdamW([*table.parameters(), *layer.parameters()], lr=0.1, weight_decay=0.5)
        >>> before = table.weight.detach().clone()
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     layer(table(torch.tensor([3, 7]))).sum().backward()
        ...     optimizer.step()
        >>> bool(table.weight[9].equal(before[9]))
        True
        >>> optimizer.catch_up()
        >>> bool(torch.allclose(table.weight[9], before[9] * 0.95**2))
        True
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        rowwise: bool = False,
        *,
        maximize: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "rowwise": rowwise,
                "maximize": maximize,
                "seed": seed,
            },
        )

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"betas must be two numbers, got {betas!r}")
        for i, beta in enumerate(betas):
            check_number(f"betas[{i}]", beta, 1.0)

    def _new_state(self, group: dict[str, Any], param: Tensor, sparse: bool) -> dict[str, Any]:
        dtype = compute_dtype(param)
        square = param.shape[:1] if sparse and group["rowwise"] else param.shape
        state = {"exp_avg_sq": torch.zeros(square, dtype=dtype, device=param.device)}
        if group["betas"][0]:
            state["exp_avg"] = torch.zeros(param.shape, dtype=dtype, device=param.device)
        return state

    def _direction(
        self, group: dict[str, Any], state: dict[str, Any], grad: Tensor, row: Tensor | None
    ) -> tuple[Tensor, Tensor, float]:
        (beta1, beta2), step = group["betas"], state["step"]
        square = take(state["exp_avg_sq"], row)
        if square.shape == grad.shape:
            square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        else:
            square.mul_(beta2).add_(mean_square(grad), alpha=1 - beta2)
        put(state["exp_avg_sq"], row, square)
        root = square.sqrt() if row is None else square.sqrt_()
        under = column(root.div_((1 - beta2**step) ** 0.5).add_(group["eps"]), grad)
        if "exp_avg" not in state:
            return grad, under, float(group["lr"])
        mean = take(state["exp_avg"], row).lerp_(grad, 1 - beta1)
        put(state["exp_avg"], row, mean)
        return mean, under, float(group["lr"]) / (1 - beta1**step)
