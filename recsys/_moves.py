"""Rows on their way from one table to another of another width, with what optimizers keep about them."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Move", "Transfer", "check_held", "extend_projection", "make_move", "replace_parameters"]

_CHUNK = 1 << 22  # elements at a time
# States that are squares of gradients: of torch's Adam family, Adagrad, RMSprop and Adadelta, and of this package.
_SQUARES = {"exp_avg_sq", "max_exp_avg_sq", "sum", "square_avg"}


@dataclass(frozen=True)
class Move:
    """Rows of one old table that become rows of a new one.

    Attributes:
        source, target: int64 [N] rows there and here.
        values: float64 [old width, new width] that takes rows to their new form; None: their elements keep their
            places, and are cut off or followed by zeros.
        gradients: the same for gradients of rows.
        ratio: mean square of an element of a gradient, new to old, for gradients that have no preferred direction.
    """

    source: Tensor
    target: Tensor
    values: Tensor | None = None
    gradients: Tensor | None = None
    ratio: float = 1.0

    def take_values(self, old: Tensor, new: Tensor) -> None:
        """Writes the rows of ``old`` to ``new``, whose other elements stay."""
        self._take(old, new, self.values)

    def take_state(self, name: str, old: Tensor, new: Tensor) -> None:
        """Writes what an optimizer keeps under ``name``: a tensor of the rows' shape, or a number for each."""
        if self.gradients is None or (old.dim() == 1 and name not in _SQUARES):
            self._take(old, new, None)
        elif name not in _SQUARES:
            self._take(old, new, self.gradients)
        else:  # which direction the squares were in is unknown
            mean = old[self.source].flatten(1).mean(1) if old.dim() > 1 else old[self.source]
            mean = mean * self.ratio
            new[self.target] = (mean if new.dim() == 1 else mean.unsqueeze(1).expand(-1, new.shape[1])).to(new.dtype)

    def _take(self, old: Tensor, new: Tensor, matrix: Tensor | None) -> None:
        step = max(1, _CHUNK // max(1, old[:1].numel(), new[:1].numel()))
        for source, target in zip(self.source.split(step), self.target.split(step), strict=True):
            rows = old[source]
            if old.dim() == 1:
                new[target] = rows
            elif matrix is not None:
                new[target] = (rows.to(matrix.dtype) @ matrix).to(new.dtype)
            else:
                width = min(rows.shape[1], new.shape[1])
                new[target, :width] = rows[:, :width].to(new.dtype)


def make_move(source: Tensor, target: Tensor, old: Tensor | None, new: Tensor | None, dim: int, nested: bool) -> Move:
    """The least-squares move between rows whose projections are ``old`` and ``new``; None is the identity of ``dim``.

    Args:
        nested: the shorter projection begins the longer one, so that rows can grow by zeros.
    """
    if old is None and new is None:
        return Move(source, target)
    nested = nested and old is not None and new is not None
    device = (new if old is None else old).device
    identity = torch.eye(dim, dtype=torch.float64, device=device)
    before, after = (identity if p is None else p.detach().to(torch.float64) for p in (old, new))
    grows = nested and before.shape[0] <= after.shape[0]
    values = None if grows else before @ torch.linalg.pinv(after)
    gradients = None if nested else (after @ torch.linalg.pinv(before)).T
    lengths = [float(p.square().sum()) / max(1, p.shape[0]) for p in (before, after)]
    return Move(source, target, values, gradients, lengths[1] / lengths[0] if lengths[0] else 1.0)


def extend_projection(matrix: Tensor | None, gram: Tensor, count: int) -> Tensor:
    """A projection [count, d] that begins with the rows of ``matrix``.

    The new rows are orthogonal to those and to each other, as long as sqrt(d), and hold as much as they can of what the
    others leave of rows Y [N, d].

    Args:
        matrix: [r, d], r <= count, or None.
        gram: float64 [d, d], Y^T Y.
    """
    dim = gram.shape[0]
    if matrix is None:
        kept, rest = gram.new_empty((0, dim)), torch.eye(dim, dtype=gram.dtype, device=gram.device)
    else:
        kept = matrix.detach().to(gram.dtype)
        rest = torch.linalg.qr(kept.T, mode="complete").Q[:, kept.shape[0] :]
    vectors = torch.linalg.eigh(rest.T @ gram @ rest).eigenvectors.flip(1)
    new = (rest @ vectors).T[: count - kept.shape[0]] * math.sqrt(dim)
    return torch.cat([kept, new])


@dataclass(frozen=True)
class Transfer:
    """A parameter that takes the place of another.

    Attributes:
        old: what it replaces, None for a parameter that is new.
        new: None for one that is gone.
        sources: whose rows it got, and how.
        like: parameters, the first of which that an optimizer holds says to which of its groups a new one belongs.
    """

    old: Tensor | None
    new: Tensor | None
    sources: tuple[tuple[Tensor, Move], ...] = ()
    like: tuple[Tensor, ...] = field(default=())


def check_held(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> None:
    """Raises unless ``optimizer`` holds one of ``params``, if there is any."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if params and not any(id(p) in held for p in params):
        raise ValueError("optimizer holds no parameter of the embedding; give the one that trains it, or None")


def replace_parameters(optimizer: torch.optim.Optimizer, transfers: list[Transfer]) -> None:
    """Puts the new parameters where the old ones were, with the state of the rows they got.

    Raises:
        ValueError: a state is of a form that cannot be moved; the optimizer was not changed.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    entries = []
    for transfer in transfers:
        group = _group_of(groups, transfer)
        if group is not None:
            entries.append((transfer, group, _moved_state(optimizer, transfer, group)))
    for transfer, group, state in entries:
        params = group["params"]
        at = next((i for i, p in enumerate(params) if p is transfer.old), len(params))
        params[at : at + 1] = [] if transfer.new is None else [transfer.new]
        if transfer.old is not None:
            optimizer.state.pop(transfer.old, None)
        if transfer.new is not None and state:
            optimizer.state[transfer.new] = state


def _group_of(groups: dict[int, dict[str, Any]], transfer: Transfer) -> dict[str, Any] | None:
    if transfer.old is not None:
        return groups.get(id(transfer.old))
    if transfer.new is None or not transfer.new.requires_grad:
        return None
    known = (*(p for p, _ in transfer.sources), *transfer.like)
    return next((groups[id(p)] for p in known if id(p) in groups), None)


def _moved_state(optimizer: torch.optim.Optimizer, transfer: Transfer, group: dict[str, Any]) -> dict[str, Any]:
    new = transfer.new
    if new is None:
        return {}
    nothing = torch.empty(0, dtype=torch.int64)
    own = () if transfer.old is None else ((transfer.old, Move(nothing, nothing)),)
    found = [(p, optimizer.state[p], move) for p, move in (*own, *transfer.sources) if optimizer.state.get(p)]
    # numbers such as the count of steps: its own, else those of the source that has made the most steps
    found.sort(key=lambda entry: (entry[0] is transfer.old, float(entry[1].get("step", 0))), reverse=True)
    result: dict[str, Any] = {}
    for name in dict.fromkeys(name for _, state, _ in found for name in state):
        values = [(state[name], p, move) for p, state, move in found if state.get(name) is not None]
        of_rows = [(value, move) for value, p, move in values if _is_of_rows(name, value, p)]
        if not of_rows:
            result[name] = copy.deepcopy(values[0][0]) if values else None
            continue
        form = of_rows[0][0]
        initial = float(group.get("initial_accumulator_value", 0.0)) if name == "sum" else 0.0
        shape = new.shape[:1] if form.dim() == 1 else new.shape
        result[name] = torch.full(shape, initial, dtype=form.dtype, device=new.device)
        for value, move in of_rows:
            move.take_state(name, value.to_dense() if value.is_sparse else value, result[name])
    return result


def _is_of_rows(name: str, value: Any, param: Tensor) -> bool:
    if not isinstance(value, Tensor) or value.dim() == 0:
        return False
    if value.shape in (param.shape, param.shape[:1]):
        return True
    raise ValueError(
        f"optimizer state {name!r} of shape {tuple(value.shape)} is neither of the table's shape {tuple(param.shape)} "
        "nor a number for each row, and cannot follow the rows; give None and make a new optimizer after the resize"
    )
