"""`search`: from a model and a budget to a plan in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from torch import Tensor, nn

from graphlossy.recsys.methods._base import Method
from graphlossy.recsys.methods._problem import Problem
from graphlossy.recsys.methods.frequency import Frequency
from graphlossy.recsys.methods.full import Full
from graphlossy.recsys.methods.low_precision import LowPrecision
from graphlossy.recsys.methods.magnitude import Magnitude
from graphlossy.recsys.methods.mde import MDE
from graphlossy.recsys.methods.pep import PEP
from graphlossy.recsys.methods.pme import PME
from graphlossy.recsys.methods.post_training import Int2, Int4, Int8
from graphlossy.recsys.methods.shared import DHE, QR, ROBE, TT, Hash
from graphlossy.recsys.methods.sseds import SSEDS
from graphlossy.recsys.methods.uniform import Uniform
from graphlossy.recsys.plan import EmbeddingPlan

__all__ = ["METHODS", "make_method", "search"]

_ALL: tuple[type[Method], ...] = (
    PME, Frequency, MDE, Uniform, Magnitude, PEP, SSEDS, Hash, QR, TT, ROBE, DHE, Int8, Int4, Int2, LowPrecision, Full,
)  # fmt: skip
METHODS: dict[str, type[Method]] = {method.name: method for method in _ALL}


def make_method(name: str, **options: Any) -> Method:
    """A method by its name.

    Args:
        name: one of `METHODS`.
        options: its fields.

    Raises:
        ValueError: there is no such method, or no such option of it.

    Example:
        >>> make_method("frequency", alpha=0.25).alpha
        0.25
    """
    found = METHODS.get(name) if isinstance(name, str) else None
    if found is None:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {name!r}")
    known = [f.name for f in fields(found)]
    unknown = [option for option in options if option not in known]
    if unknown:
        has = f"its options are {', '.join(known)}" if known else "it has no options"
        raise ValueError(f"method {name!r} has no option {unknown[0]!r}; {has}")
    return found(**options)


def search(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor] | None,
    method: str | Method = "pme",
    budget: int | float | str = "16MiB",
    match: str | Sequence[str] = "*",
    *,
    bits: int = 0,
    seed: int = 0,
    progress: bool = False,
    counts: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> EmbeddingPlan:
    """Finds out how small the tables of a model can be; the model stays as it is.

    Args:
        model: with `torch.nn.Embedding` or `torch.nn.EmbeddingBag` tables. Frozen tables are left alone, shared ones
            taken once.
        batches: of training data, iterable again and again; ``()`` for methods that look at none.
        loss_fn: ``loss_fn(model, batch)`` is the scalar loss of one batch; None for methods that look at no data.
        method: a name in `METHODS` or a `Method`.
        budget: bytes of all matched tables together, everything counted: a number, a text such as ``"16MiB"``, or a
            share of their bytes: ``"1/8"``.
        match: pattern of the tables' paths as in `fnmatch`, or several.
        bits: of stored elements, for methods with sizes: 8, 4, 2 or 1; 0 is float.
        seed: of every random choice.
        progress: show a bar.
        counts: [V] token counts by table, if they are known.
        options: of the method.

    Returns:
        Sizes and the like, as plain data.

    Raises:
        BudgetError: the method cannot get so small; ``minimum`` says how small it can.
        TypeError, ValueError: an argument is not as described, no table matches, there is no batch, or a loss or a
            gradient is not finite.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Embedding(1000, 16), nn.Linear(16, 1))
        >>> batches = [(torch.rand(256) ** 3 * 1000).long() for _ in range(4)]
        >>> plan = search(model, batches, lambda m, ids: m(ids).square().mean(), "pme", budget="1/8")
        >>> plan.nbytes <= 8000, plan.stage, plan.tables[0].name
        (True, 'before', '0')
    """
    from graphlossy.recsys.compress import parse_budget

    chosen = make_method(method, **options) if isinstance(method, str) else method
    if not isinstance(chosen, Method):
        raise TypeError(f"method must be a name or a Method, got {type(method).__name__}")
    if options and not isinstance(method, str):
        raise ValueError(f"options go with a method's name; this {chosen.name} has its own: {', '.join(options)}")
    loss: Any = _no_loss if loss_fn is None else loss_fn
    known = None if counts is None else dict(counts)
    rest = {"bits": bits, "seed": seed, "progress": progress, "known_counts": known}
    problem = Problem.of(model, batches, loss, 0, match, **rest)
    return chosen.search(replace(problem, budget=parse_budget(budget, problem.dense_nbytes)))


def _no_loss(model: nn.Module, batch: Any) -> Tensor:
    raise ValueError("this method runs the model on batches; give loss_fn")
