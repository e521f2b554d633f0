"""What the optimizers of tables share: chosen rows of float or low-bit tables, and weight decay that waits for them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from graphlossy.core._random import _key
from graphlossy.core.quantize import seed_or_draw
from graphlossy.recsys.rows import LowBitRows, low_bit_rows_of

__all__ = ["RowOptimizer", "check_number", "column", "compute_dtype", "mean_square", "put", "rows_of", "take"]

_BLOCK = 1 << 22  # elements of a table that are decayed at a time
_LONGEST = 2**15 - 1  # steps that an int16 counts
_SHORTEST = 1024
_State = dict[str, Any]


class RowOptimizer(torch.optim.Optimizer, ABC):
    """Base of the optimizers: subclasses say in `_direction` where a step goes.

    A gradient may be dense, which steps the whole parameter, or sparse along the rows of a table (or the elements of a
    flat one), which steps the rows that it names; those named twice have their gradients added up first. A parameter
    that is the handle of low-bit rows has its rows decoded, stepped and rounded again, stochastically.

    Weight decay is decoupled: every step multiplies a parameter by 1 - lr * weight_decay. A row of a table that the
    batch does not touch waits; at its next touch it is multiplied by the product over all the steps it missed, with the
    learning rates of those steps. For that the table keeps an int16 for each row, the step of its last touch, and the
    sum of log(1 - lr * weight_decay) up to each step in float64; `catch_up` applies what is pending, also on its own
    once there are as many steps as rows (1024 at least, 32767 at most), so that the sums stay small. Without decay
    nothing is kept. A parameter without a gradient at a step is not decayed at that step, as in torch.

    Args:
        params: parameters or groups of them, as for every optimizer of torch.
        defaults: of the groups: ``lr``, ``weight_decay``, ``maximize``, ``seed`` and the subclass's own.
    """

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults | {"seed": seed_or_draw(defaults["seed"])})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters with options of their own; see `torch.optim.Optimizer.add_param_group`."""
        if isinstance(param_group, dict):
            self._check_options(self.defaults | param_group)
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if not param.is_floating_point() or param.layout != torch.strided:
                self.param_groups.pop()
                raise TypeError(f"params must be dense float tensors, got {param.dtype} with layout {param.layout}")

    def _check_options(self, group: dict[str, Any]) -> None:
        check_number("lr", group["lr"])
        check_number("weight_decay", group["weight_decay"])
        check_number("eps", group["eps"])
        seed_or_draw(group["seed"])

    @abstractmethod
    def _new_state(self, group: dict[str, Any], param: Tensor, sparse: bool) -> _State:
        """State tensors of a parameter before its first step."""

    @abstractmethod
    def _direction(
        self, group: dict[str, Any], state: _State, grad: Tensor, row: Tensor | None
    ) -> tuple[Tensor, Tensor, float]:
        """(numerator, denominator, size) of the step -size * numerator / denominator; brings the state up to date.

        Args:
            grad: of the whole parameter, or [N, size] of the rows ``row`` (int64 [N], all different).
        """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of every parameter that has a gradient.

        Args:
            closure: computes the loss and the gradients again; its result is returned.

        Raises:
            ValueError: a gradient is sparse in another way than along rows, low-bit rows have a dense one, or lr *
                weight_decay is 1 or more; nothing was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found = [entry for entry in self._numbered() if entry[2].grad is not None]
        for _, group, param in found:
            _check_gradient(param)
            _rate(group)
        for number, group, param in found:
            self._step(number, group, param)
        return loss

    @torch.no_grad()
    def catch_up(self) -> None:
        """Applies the weight decay that rows are waiting for.

        Call it before the model is evaluated, or saved without the optimizer. ``state_dict()`` does not: it holds what
        is pending, and together with the model's own state continues exactly.
        """
        for number, group, param in self._numbered():
            state = self.state.get(param)
            if state and "last" in state:
                self._settle(number, group, param, state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copies what ``state_dict()`` returned; tensors keep their types, also those of half-precision tables."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for name, (_, _, param) in zip(saved, self._numbered(), strict=True):
            for key, value in state_dict["state"].get(name, {}).items():
                self.state[param][key] = _to(value, param.device)

    def _numbered(self) -> Iterator[tuple[int, dict[str, Any], Tensor]]:
        number = 0
        for group in self.param_groups:
            for param in group["params"]:
                yield number, group, param
                number += 1

    def _step(self, number: int, group: dict[str, Any], param: Tensor) -> None:
        grad, state, dtype = param.grad, self.state[param], compute_dtype(param)
        if not state:
            state["step"] = 0
            state.update(self._new_state(group, param, grad.is_sparse))
        state["step"] += 1
        if not grad.is_sparse:
            self._step_all(number, group, param, state)
            return
        grad = grad.to(dtype).coalesce()  # sums of half-precision duplicates in float32
        row, grad = grad._indices()[0], grad._values()
        factor = self._decay(number, group, param, state, row)
        if not row.numel():
            return
        table = rows_of(param)
        values = param.index_select(0, row).to(dtype) if table is None else table.read(row)
        if factor is not None:
            values.mul_(column(factor.to(dtype), values))
        over, under, size = self._direction(group, state, grad.neg() if group["maximize"] else grad, row)
        values.addcdiv_(over, under, value=-size)
        if table is None:
            param.index_copy_(0, row, values.to(param.dtype))
        else:
            table.write(row, values, _seed(group, number, state["step"], 0))

    def _step_all(self, number: int, group: dict[str, Any], param: Tensor, state: _State) -> None:
        if "last" in state:  # sparse gradients before this one
            self._settle(number, group, param, state)
        dtype = compute_dtype(param)
        values, grad = param.to(dtype), param.grad.to(dtype)
        if rate := _rate(group):
            values.mul_(1 - rate)
        over, under, size = self._direction(group, state, grad.neg() if group["maximize"] else grad, None)
        values.addcdiv_(over, under, value=-size)
        if values is not param:
            param.copy_(values)

    def _decay(self, number: int, group: dict[str, Any], param: Tensor, state: _State, row: Tensor) -> Tensor | None:
        """float64 [N] what the rows of this step are to be multiplied with; None where there is no decay."""
        rate = _rate(group)
        if "last" not in state:
            if not rate:
                return None
            state["last"] = torch.zeros(param.shape[0], dtype=torch.int16, device=param.device)
            history = torch.zeros(_SHORTEST + 1, dtype=torch.float64, device=param.device)
            state["pending"] = {"history": history, "steps": 0, "total": 0.0}
        pending, last = state["pending"], state["last"]
        if pending["steps"] >= min(max(param.shape[0], _SHORTEST), _LONGEST):
            self._settle(number, group, param, state)
        pending["steps"] += 1
        pending["total"] += math.log1p(-rate)
        if pending["steps"] == pending["history"].shape[0]:
            pending["history"] = torch.cat([pending["history"], torch.zeros_like(pending["history"])])
        pending["history"][pending["steps"]] = pending["total"]
        since = pending["history"].index_select(0, last.index_select(0, row).to(torch.int64))
        last.index_fill_(0, row, pending["steps"])
        return since.neg_().add_(pending["total"]).exp_()

    def _settle(self, number: int, group: dict[str, Any], param: Tensor, state: _State) -> None:
        pending, last, table = state["pending"], state["last"], rows_of(param)
        if not pending["steps"]:
            return
        factors = (pending["total"] - pending["history"][: pending["steps"] + 1]).exp_()
        step = max(1, _BLOCK // max(1, param.shape[1:].numel()))
        for block, part in enumerate(last.split(step)):
            factor = factors[part.to(torch.int64)].to(compute_dtype(param))
            if table is None:
                values = param[block * step : block * step + part.shape[0]]
                values.mul_(column(factor, values))
            elif (behind := (factor != 1).nonzero().squeeze(1)).numel():
                row, factor = behind + block * step, factor[behind].unsqueeze(1)
                table.write(row, table.read(row) * factor, _seed(group, number, state["step"], 1 + block))
        last.zero_()
        pending["steps"], pending["total"] = 0, 0.0


def rows_of(param: Tensor) -> LowBitRows | None:
    """The low-bit rows that a parameter is the handle of; None for one that holds its own values.

    Raises:
        ValueError: the parameter is a handle, but its table is gone or was not looked up since it was made.
    """
    found = low_bit_rows_of(param)
    if found is None and param.dim() == 2 and param.numel() > 1 and param.stride() == (0, 0):
        raise ValueError(
            "params has the handle of low-bit rows that do not exist any more, or of a table that was not looked up "
            "since it was copied or loaded; make the optimizer from the parameters of the table in use and run a "
            "forward pass first"
        )
    return found


def take(tensor: Tensor, row: Tensor | None) -> Tensor:
    """Chosen rows in memory of their own; the tensor itself for ``row=None``."""
    return tensor if row is None else tensor.index_select(0, row)


def put(tensor: Tensor, row: Tensor | None, values: Tensor) -> None:
    """Writes what `take` gave."""
    if row is not None:
        tensor.index_copy_(0, row, values)


def mean_square(grad: Tensor) -> Tensor:
    """[rows] mean of the squares of each row; a row of a vector is an element."""
    return grad.square() if grad.dim() < 2 else grad.flatten(1).square().mean(1)


def column(values: Tensor, like: Tensor) -> Tensor:
    """``values`` of rows, [N] or as they are, so that they broadcast over the elements of ``like``."""
    return values if values.shape == like.shape else values.view(-1, *(1,) * (like.dim() - 1))


def compute_dtype(param: Tensor) -> torch.dtype:
    """What a step is computed and its state kept in: float64 for float64 parameters, else float32."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def check_number(name: str, value: Any, below: float = math.inf) -> None:
    """Raises unless ``value`` is a number from 0 to ``below``, excluded."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name} must be a single number, got a tensor of shape {tuple(value.shape)}")
    if not 0 <= float(value) < below:
        end = "finite" if below == math.inf else f"below {below:g}"
        raise ValueError(f"{name} must be at least 0 and {end}, got {float(value)!r}")


def _check_gradient(param: Tensor) -> None:
    grad = param.grad
    if not grad.is_sparse:
        if rows_of(param) is not None:
            raise ValueError(
                "low-bit rows need sparse gradients, got a dense one; set sparse=True on their table (quantize_ with "
                "trainable=True does)"
            )
    elif grad.sparse_dim() != 1:
        raise ValueError(
            f"a sparse gradient must be of whole rows of a table, got {grad.sparse_dim()} sparse dimensions of "
            f"{grad.dim()}; make it dense with .to_dense()"
        )


def _rate(group: dict[str, Any]) -> float:
    rate = float(group["lr"]) * float(group["weight_decay"])
    if not rate < 1:
        raise ValueError(
            f"lr * weight_decay must be below 1, got {float(group['lr'])!r} * {float(group['weight_decay'])!r}; a step "
            "would turn the sign of every weight"
        )
    return rate


def _seed(group: dict[str, Any], number: int, step: int, stream: int) -> int:
    return _key(_key(_key(group["seed"], number), step), stream)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {key: _to(entry, device) for key, entry in value.items()}
    return value.to(device, copy=True) if isinstance(value, Tensor) else value
