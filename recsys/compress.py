"""`compress_embeddings`: the tables of an existing model are replaced by smaller ones, under one byte budget."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from graphlossy.core import parse_bytes
from graphlossy.recsys import frameworks
from graphlossy.recsys._compression_report import CompressionReport, TableReport
from graphlossy.recsys._references import replace_references
from graphlossy.recsys._swap import core_of, swap_tables
from graphlossy.recsys._tables import LeftAlone, Table, check_any, find_tables, places_of
from graphlossy.recsys.base import BagOf, CompressedEmbedding
from graphlossy.recsys.methods import Method, Problem, make_method
from graphlossy.recsys.plan import EmbeddingPlan, TablePlan

if TYPE_CHECKING:
    from graphlossy.recsys.multi_size import MultiSizeEmbedding

__all__ = ["CompressionReport", "apply_plan", "compress_embeddings", "finish", "restore_dense"]


def compress_embeddings(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    method: str | Method = "pme",
    budget: int | float | str = "16MiB",
    *,
    match: str | Sequence[str] = "*",
    bits: int = 0,
    seed: int | None = None,
    min_tokens: int = 16,
    frozen: bool = False,
    keep_values: bool | None = None,
    optimizer: Optimizer | Iterable[Optimizer] = (),
    progress: bool = True,
    **options: Any,
) -> CompressionReport:
    """Finds out how small each embedding table of ``model`` can be and replaces the tables in place.

    Every `torch.nn.Embedding` and `torch.nn.EmbeddingBag` that matches is replaced wherever it hangs. A module or a
    weight that is used twice is compressed once and shared again. Either all tables are replaced or, after an error,
    none, and the model is as it was.

    What to do next depends on the method. Where ``report.plan.retrain`` is true, train the model: the new tables are
    random, unless the plan or ``keep_values`` says otherwise. After training `finish` rounds the rows to ``bits``;
    where no training follows they are rounded at once.

    Args:
        model: with its tables; compress before wrapping it for several processes.
        batches: iterable any number of times, such as a list or a DataLoader. Methods that look at no data take ``()``.
        loss_fn: ``loss_fn(model, batch)`` is the scalar loss of one batch.
        method: a name in `graphlossy.recsys.methods.METHODS`, or such an object.
        budget: bytes of all matched tables together, everything that is saved counted: a number, a text such as
            ``"16MiB"``, or a share of their bytes now: ``"1/8"``, ``"12.5%"``.
        match: pattern of the tables' paths as in `fnmatch`, or several.
        bits: of a stored element of the rows: 8, 4 or 2; 0 is float.
        seed: of the search and of new values; None draws one from torch's generator.
        min_tokens: tables with fewer tokens are left alone and not counted.
        frozen: replace tables with ``requires_grad=False`` too; only for methods that keep the values.
        keep_values: start from the closest to the old values; None: as the plan says, which of methods that search
            before training is no.
        optimizer: made before, one or several: the old tables' parameters are replaced in it. Optimizers that the model
            holds as an attribute are found without.
        progress: show a bar.
        options: of the method.

    Returns:
        The plan, bytes before and after, the tables left alone with reasons, and notes on what was lost.

    Raises:
        BudgetError: the method cannot get so small; says how small it can.
        TypeError, ValueError: an argument is not as described, no table matches, ``batches`` are empty, or the loss is
            not finite.

    Example:
        >>> model = nn.Sequential(nn.Embedding(1000, 16), nn.Flatten(), nn.Linear(32, 1))
        >>> batches = [torch.randint(0, 1000, (64, 2)) for _ in range(4)]
        >>> loss_fn = lambda model, ids: model(ids).square().mean()
        >>> report = compress_embeddings(model, batches, loss_fn, "frequency", budget="1/4", seed=0, progress=False)
        >>> report.nbytes <= 16000, type(model[0]).__name__
        (True, 'MultiSizeEmbedding')
    """
    start = time.perf_counter()
    optimizers = _optimizers(optimizer)
    tables, left = find_tables(model, match, min_tokens, frozen)
    check_any(tables, left, match)
    search = make_method(method, **options) if isinstance(method, str) else method
    if not isinstance(search, Method):
        raise TypeError(f"method must be a name or a Method, got {type(method).__name__}")
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    by_name = {table.name: table for table in tables}
    limit = parse_budget(budget, sum(table.nbytes for table in tables))
    modules = {name: table.module for name, table in by_name.items()}
    aliases = {name: table.aliases for name, table in by_name.items()}
    problem = Problem(model, modules, batches, loss_fn, limit, bits, seed, progress, aliases)
    plan = search.search(problem)
    keep = plan.keep_values if keep_values is None else keep_values
    if not keep and any(not table.module.weight.requires_grad for table in tables):
        raise ValueError(f"frozen tables need their values, which {plan.method!r} drops; set keep_values=True")
    built = _build(plan, by_name, keep, seed)
    return _swap(model, plan, built, left, optimizers, start, keep and not plan.retrain)


def apply_plan(
    model: nn.Module, plan: EmbeddingPlan, *, keep_values: bool = False, optimizer: Optimizer | Iterable[Optimizer] = ()
) -> CompressionReport:
    """Gives a fresh ``model`` the tables of ``plan``, so that a state_dict of the compressed model loads into it.

    Args:
        model: of the class and the sizes that the plan was made for.
        plan: of a report, or of `EmbeddingPlan.load`.
        keep_values: start from the closest to the values in ``model`` instead of random ones.
        optimizer: see `compress_embeddings`.

    Raises:
        ValueError: the model lacks a table of the plan, or has one of another size.
    """
    start = time.perf_counter()
    optimizers = _optimizers(optimizer)
    tables, left = find_tables(model, "*", frozen=True)
    by_path = {path: table for table in tables for path in table.paths}
    for planned in plan.tables:
        if planned.name not in by_path:
            reason = next((f": {entry.reason}" for entry in left if entry.name == planned.name), "")
            known = ", ".join(table.name for table in tables) or "none"
            raise ValueError(f"the model has no table {planned.name!r} to replace{reason}; it has: {known}")
        shape = tuple(by_path[planned.name].module.weight.shape)
        if shape != (planned.num_embeddings, planned.embedding_dim):
            wanted = (planned.num_embeddings, planned.embedding_dim)
            raise ValueError(f"table {planned.name!r} is {shape} in the model and {wanted} in the plan")
    planned_tables = {planned.name: by_path[planned.name] for planned in plan.tables}
    used = {table.name for table in planned_tables.values()}
    left += [LeftAlone(t.name, t.nbytes, "the plan does not have it") for t in tables if t.name not in used]
    built = _build(plan, planned_tables, keep_values, plan.seed)
    return _swap(model, plan, built, left, optimizers, start, False)


@torch.no_grad()
def finish(model: nn.Module) -> list[str]:
    """After training: rounds the rows of every table whose plan says so. An optimizer made before no longer applies.

    Returns:
        The names of the tables that were rounded.
    """
    done = []
    for module in model.modules():
        pending = module.__dict__.pop("_finish", None) if isinstance(module, CompressedEmbedding) else None
        if pending is not None:
            table: MultiSizeEmbedding = module  # type: ignore[assignment]
            table.max_norm = None  # a bound on float rows
            table.quantize_(*pending)
            done.append(table.name)
    return done


@torch.no_grad()
def restore_dense(model: nn.Module, *, optimizer: Optimizer | Iterable[Optimizer] = ()) -> list[str]:
    """Puts ordinary torch tables with the same rows in place of all compressed ones.

    Args:
        model: changed in place.
        optimizer: see `compress_embeddings`.

    Returns:
        The paths of the tables that were replaced.
    """
    optimizers = _optimizers(optimizer)
    shared: dict[nn.Module, Table] = {}
    for module, places in places_of(model, (BagOf, CompressedEmbedding)).items():
        table = shared.setdefault(core_of(module), Table(module))  # type: ignore[arg-type]
        table.modules.append((module, places))
    built = [(table, _dense(table.module)) for table in shared.values()]
    replaced, _ = swap_tables(built)
    replace_references(model, replaced, optimizers)
    return [table.name for table, _ in built]


def parse_budget(budget: int | float | str, plain_bytes: int) -> int:
    """Bytes of a budget: a size as `graphlossy.core.parse_bytes` takes it, or a share of ``plain_bytes``.

    Raises:
        TypeError, ValueError: it is neither, or not positive.

    Example:
        >>> parse_budget("1/8", 4000), parse_budget("12.5%", 4000), parse_budget("1KiB", 4000)
        (500, 500, 1024)
    """
    size = None
    if isinstance(budget, str):
        share = re.fullmatch(r"\s*(?:([0-9.]+)\s*/\s*([0-9.]+)|([0-9.]+)\s*%)\s*", budget)
        try:
            if share is not None:
                part = Fraction(share[3]) / 100 if share[3] else Fraction(share[1]) / Fraction(share[2])
                size = int(part * plain_bytes)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"budget={budget!r} is no share; write for example '1/8' or '12.5%'") from None
    elif isinstance(budget, float) and 0 < budget < 1:
        size = int(budget * plain_bytes)
    size = parse_bytes(budget) if size is None else size
    if size <= 0:
        raise ValueError(f"budget must be a positive number of bytes, got {budget!r}")
    return size


def _optimizers(optimizer: Optimizer | Iterable[Optimizer]) -> list[Optimizer]:
    found = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    for one in found:
        if not isinstance(one, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer or several, got {type(one).__name__}")
    return found


def _build(
    plan: EmbeddingPlan, tables: dict[str, Table], keep_values: bool, seed: int
) -> list[tuple[TablePlan, Table, nn.Module]]:
    """The new module of every planned table; none hangs in the model yet."""
    devices = {t.module.weight.device for t in tables.values() if t.module.weight.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        return [
            (planned, tables[planned.name], planned.build(tables[planned.name].module, keep_values))
            for planned in plan.tables
        ]


def _swap(
    model: nn.Module,
    plan: EmbeddingPlan,
    built: list[tuple[TablePlan, Table, nn.Module]],
    left: list[LeftAlone],
    optimizers: list[Optimizer],
    start: float,
    round_now: bool,
) -> CompressionReport:
    """Everything that changes the model; nothing of it depends on the user's data."""
    replaced, notes = swap_tables([(table, module) for _, table, module in built])
    for planned, _, module in built:
        if planned.kind == "multi_size" and planned.bits and planned.bits_when == "after":
            module.__dict__["_finish"] = (planned.bits, planned.group_size)
        if planned.bits and planned.bits_when == "training":
            notes.append(f"rows of {planned.bits} bits are trained: take an optimizer of graphlossy.recsys.optim")
        if planned.sizes is not None and not planned.shared_rows and not bool(planned.sizes.any()):
            notes.append(f"{planned.name}: no token has a row, all are zeros; raise the budget or set min_size=1")
    if round_now:
        finish(model)
    notes += replace_references(model, replaced, optimizers)
    notes += frameworks.notes_on(model)
    rows = tuple(_row(planned, table, module) for planned, table, module in built)
    seconds = time.perf_counter() - start
    return CompressionReport(plan, rows, tuple(left), tuple(dict.fromkeys(notes)), seconds, plan.peak_bytes)


def _row(planned: TablePlan, table: Table, module: nn.Module) -> TableReport:
    mean = None if planned.sizes is None else float(planned.sizes.double().mean())
    return TableReport(
        planned.name, planned.aliases, planned.num_embeddings, planned.embedding_dim, planned.kind, mean, planned.bits,
        table.nbytes, module.nbytes, planned.nbytes,
    )  # fmt: skip


def _dense(module: nn.Module) -> nn.Module:
    """The torch module of the same rows."""
    if hasattr(module, "to_dense"):
        dense: nn.Module = module.to_dense()
    else:
        core = core_of(module)
        weight = core.weight.detach().clone()
        if isinstance(module, BagOf):
            dense = nn.EmbeddingBag(
                *weight.shape, mode=module.mode, include_last_offset=module.include_last_offset, _weight=weight,
                padding_idx=core.padding_idx,
            )  # fmt: skip
        else:
            dense = nn.Embedding(*weight.shape, core.padding_idx, _weight=weight)
    params = list(module.parameters())  # none in a table of fixed codes
    return dense.requires_grad_(not params or any(param.requires_grad for param in params))
