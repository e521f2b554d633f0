"""A multi-size table that changes while it is used: new tokens, wider and narrower rows, with the optimizer's state."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphlossy.recsys._moves import check_held, replace_parameters
from graphlossy.recsys._rebuild import Rebuild
from graphlossy.recsys._sizes import check_sizes
from graphlossy.recsys.base import BagOf
from graphlossy.recsys.multi_size import MultiSizeEmbedding

__all__ = ["ResizeReport", "append_tokens", "rebalance", "refit", "resize_rows"]

_CHUNK = 1 << 22  # elements at a time
_INITS = ("normal", "zeros", "mean")


@dataclass(frozen=True)
class ResizeReport:
    """What a change of sizes did.

    Attributes:
        changed: tokens whose row has another width.
        appended: new tokens.
        rewritten: tokens whose row was computed or rounded again: those changed, and those whose low-bit rows share
            scales with them.
        error: norm of the change of the looked-up rows of ``rewritten`` tokens, relative to their norm before.
        largest: largest change of an element of them.
        nbytes_before, nbytes_after: of the table.
    """

    changed: int
    appended: int
    rewritten: int
    error: float
    largest: float
    nbytes_before: int
    nbytes_after: int


def append_tokens(
    embedding: MultiSizeEmbedding | BagOf,
    count: int,
    sizes: int | Sequence[int] | Tensor | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    init: str | Tensor = "normal",
) -> ResizeReport:
    """Appends tokens, with ids from the old ``num_embeddings`` on; the others keep ids and rows.

    Args:
        embedding: a `MultiSizeEmbedding`, a bag of one, or a `BagOf` one.
        count: new tokens.
        sizes: their widths, [count] or one for all; None is the smallest width in use that is not 0.
        optimizer: that trains the table: it goes on with the new parameters, and keeps its state.
        init: ``"normal"`` as in a new table; ``"zeros"``; ``"mean"`` of all rows there are; or a tensor [count, d]
            whose closest rows are taken.

    Raises:
        TypeError, ValueError: an argument is not as described; nothing was changed.

    Example:
        >>> from graphlossy.recsys import MultiSizeEmbedding
        >>> table = MultiSizeEmbedding(4, 8, sizes=[8, 4, 4, 2])
        >>> append_tokens(table, 2).appended, table.sizes.tolist()
        (2, [8, 4, 4, 2, 2, 2])
    """
    table = _table_of(embedding)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"count must be an int of at least 0, got {count!r}")
    if sizes is None:
        sizes = min((size for size in table._kinds if size), default=0)
    found = check_sizes(sizes, count, table.embedding_dim)
    return refit(embedding, torch.cat([table.sizes, found.to(table.device)]), optimizer, init)


def resize_rows(
    embedding: MultiSizeEmbedding | BagOf,
    ids: Sequence[int] | Tensor,
    sizes: int | Sequence[int] | Tensor,
    optimizer: torch.optim.Optimizer | None = None,
) -> ResizeReport:
    """Gives the tokens ``ids`` rows of other widths; see `refit`.

    Args:
        embedding, optimizer: as for `append_tokens`.
        ids: int64 [N], all different.
        sizes: their new widths, [N] or one for all.

    Example:
        >>> from graphlossy.recsys import MultiSizeEmbedding
        >>> table = MultiSizeEmbedding(4, 8, sizes=[8, 4, 2, 2])
        >>> before = table.weight
        >>> report = resize_rows(table, [2], 4)
        >>> table.sizes.tolist(), report.error, bool(table.weight.equal(before))
        ([8, 4, 4, 2], 0.0, True)
    """
    table = _table_of(embedding)
    at = table.check_ids(
        torch.as_tensor(ids, device=table.device).reshape(-1) if len(ids) else table.counts.new_empty(0)
    )
    if at.unique().numel() != at.numel():
        raise ValueError("ids must be all different; some are given more than once")
    new = table.sizes
    new[at] = check_sizes(sizes, at.numel(), table.embedding_dim).to(new.device)
    return refit(embedding, new, optimizer)


def rebalance(
    embedding: MultiSizeEmbedding | BagOf, scores: Tensor, optimizer: torch.optim.Optimizer | None = None
) -> ResizeReport:
    """Gives the widths that there are to the tokens anew, the widest to those of the highest score.

    So the table keeps its bytes while tokens that have become popular, or matter more to the loss, are promoted and
    others demoted. Of equal scores the wider row stays.

    Args:
        embedding, optimizer: as for `append_tokens`.
        scores: [V], such as counts of the last days or a saliency.

    Example:
        >>> from graphlossy.recsys import MultiSizeEmbedding
        >>> table = MultiSizeEmbedding(4, 8, sizes=[8, 4, 2, 2])
        >>> rebalance(table, torch.tensor([5, 1, 9, 1])).changed, table.sizes.tolist()
        (3, [4, 2, 8, 2])
    """
    table = _table_of(embedding)
    if tuple(scores.shape) != (table.num_embeddings,) or bool(scores.isnan().any()):
        shape = tuple(scores.shape)
        raise ValueError(
            f"scores must be one number for each of {table.num_embeddings} tokens, got shape {shape} or NaN"
        )
    sizes = table.sizes
    widest = sizes.argsort(descending=True, stable=True)
    order = widest[scores.to(sizes.device)[widest].argsort(descending=True, stable=True)]
    new = torch.empty_like(sizes)
    new[order] = sizes[widest]
    return refit(embedding, new, optimizer)


@torch.no_grad()
def refit(
    embedding: MultiSizeEmbedding | BagOf,
    sizes: Sequence[int] | Tensor,
    optimizer: torch.optim.Optimizer | None = None,
    init: str | Tensor = "normal",
) -> ResizeReport:
    """Gives every token the width in ``sizes``, in place; more sizes than tokens append tokens.

    With ``projection="nested"`` a row that grows changes no output: not a bit of it from one width below d to another
    (zeros are appended), up to rounding to width d. With ``"per_size"`` it becomes the closest in least squares under
    the projection of its new width; that of a width not used before is made to hold what its rows were, as far as it
    can. A row that shrinks becomes the closest in least squares. Low-bit rows are decoded, moved and rounded to nearest
    again; where they share scales all of a table that changes are. ``error`` of the report says what the output has
    changed by. A nested projection that needs more rows gets orthogonal ones.

    The parameters of changed tables are new objects; with ``optimizer``, of torch or of this package, they take the
    places of the old ones in its groups. States of the table's shape follow the rows, zeros in new elements; a number
    for each row follows it; counts of steps are kept. Between a projected row and one of width d, first moments go
    through the projections and squares become their mean, as their directions are not known. Old and new tables are in
    memory together for a moment.

    Args:
        embedding, optimizer, init: as for `append_tokens`.
        sizes: [V] or more.

    Raises:
        TypeError, ValueError: an argument is not as described, or the optimizer has a state that cannot be moved;
            nothing was changed.

    Example:
        >>> from graphlossy.recsys import MultiSizeEmbedding
        >>> from graphlossy.recsys.optim import SparseAdamW
        >>> table = MultiSizeEmbedding(3, 8, sizes=[4, 4, 2], sparse=True)
        >>> optimizer = SparseAdamW(table.parameters())
        >>> table(torch.tensor([2])).sum().backward()
        >>> optimizer.step()
        >>> report = refit(table, [4, 2, 4], optimizer)
        >>> table(torch.tensor([2])).sum().backward()
        >>> optimizer.step()
    """
    table = _table_of(embedding)
    sizes = check_sizes(sizes, len(sizes), table.embedding_dim).to(table.device)
    appended = sizes.shape[0] - table.num_embeddings
    if appended < 0:
        raise ValueError(f"sizes must have at least {table.num_embeddings} entries, got {sizes.shape[0]}")
    _check_init(init, appended, table.embedding_dim)
    if optimizer is not None:
        check_held(optimizer, [p for p in table.parameters() if p.requires_grad])
        if hasattr(optimizer, "catch_up"):
            optimizer.catch_up()  # what rows wait for is counted by their table
    old = _snapshot(table)
    before = old.nbytes
    try:
        changed, rewritten, transfers = Rebuild(table, old, sizes, init).run()
        error, largest = _difference(old, table, rewritten)
        if optimizer is not None:
            replace_parameters(optimizer, transfers)
    except BaseException:
        table.__dict__.update(old.__dict__)
        raise
    if isinstance(embedding, BagOf):
        embedding.num_embeddings = table.num_embeddings
    return ResizeReport(changed, appended, rewritten.numel(), error, largest, before, table.nbytes)


def _table_of(embedding: MultiSizeEmbedding | BagOf) -> MultiSizeEmbedding:
    table = embedding.embedding if isinstance(embedding, BagOf) else embedding
    if not isinstance(table, MultiSizeEmbedding):
        raise TypeError(f"embedding must be a MultiSizeEmbedding or a bag of one, got {type(table).__name__}")
    return table


def _check_init(init: str | Tensor, count: int, dim: int) -> None:
    if isinstance(init, Tensor):
        if tuple(init.shape) != (count, dim) or not init.is_floating_point():
            raise ValueError(f"init must be float [{count}, {dim}], a row for each new token, got {tuple(init.shape)}")
    elif init not in _INITS:
        raise ValueError(f"init must be one of {_INITS} or a tensor, got {init!r}")


def _snapshot(table: MultiSizeEmbedding) -> MultiSizeEmbedding:
    """The table as it is now, sharing its tensors, whatever is done to ``table``."""
    old = copy.copy(table)
    for name in ("_parameters", "_buffers", "_modules"):
        old.__dict__[name] = dict(table.__dict__[name])
    return old


def _difference(old: MultiSizeEmbedding, new: MultiSizeEmbedding, ids: Tensor) -> tuple[float, float]:
    """(norm of the change of the tokens' rows relative to their norm, largest change of an element)."""
    change = norm = largest = 0.0
    for part in ids.split(max(1, _CHUNK // old.embedding_dim)):
        if part.numel():
            before, after = old.rows(part).to(torch.float64), new.rows(part).to(torch.float64)
            norm += float(before.square().sum())
            change += float((after - before).square().sum())
            largest = max(largest, float((after - before).abs().max()))
    return (math.sqrt(change / norm) if norm else (math.inf if change else 0.0)), largest
