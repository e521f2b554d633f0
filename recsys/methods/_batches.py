"""Runs a model over its batches, forward and backward, and says which one went wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphlossy.recsys.base import IdError

if TYPE_CHECKING:
    from graphlossy.recsys.methods._problem import Problem

__all__ = [
    "backward_passes",
    "check_gradients",
    "check_ids",
    "check_used",
    "each_batch",
    "gradient_bytes",
    "loss_of",
    "table_gradients",
]


def each_batch(problem: Problem, what: str, max_batches: int | None = None) -> Iterator[tuple[int, Any]]:
    """(number from 0, batch) of the first ``max_batches`` batches, with a bar if the problem wants one.

    Raises:
        ValueError: there is none, or ``max_batches`` is not positive.
    """
    if max_batches is not None and max_batches < 1:
        raise ValueError(f"max_batches must be at least 1 or None (all), got {max_batches}")
    number = -1
    for number, batch in enumerate(_with_bar(problem, what, max_batches)):
        yield number, batch
        if number + 1 == max_batches:
            break
    if number < 0:
        raise ValueError("batches are empty: the search needs at least one batch; was a generator used up before?")


def _with_bar(problem: Problem, what: str, max_batches: int | None) -> Iterator[Any]:
    if not problem.progress:
        yield from problem.batches
        return
    from rich.console import Console
    from rich.progress import track

    try:
        total = len(problem.batches)
    except TypeError:
        total = None
    if max_batches is not None:
        total = max_batches if total is None else min(total, max_batches)
    console = Console(stderr=True)
    # In a log the finished bar stays as a line; on a terminal it makes way for the next one.
    yield from track(problem.batches, what, total, console=console, transient=console.is_terminal)


def loss_of(problem: Problem, batch: Any, number: int) -> Tensor:
    """The loss of a batch, found to be a finite scalar with a gradient.

    Raises:
        TypeError, ValueError: it is not; the text names the batch.
        IdError: a table of the model does not have an id of the batch.
    """
    try:
        loss = problem.loss_fn(problem.model, batch)
    except IdError:
        raise
    except (IndexError, RuntimeError) as error:
        if isinstance(error, IndexError) or "num_embeddings" in str(error):  # that of a table, that of a bag
            _name_wrong_id(problem, batch, number)
        raise
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_fn must return a scalar tensor, got {type(loss).__name__} for batch {number}")
    if loss.numel() != 1:
        raise ValueError(f"loss_fn must return a scalar, got {tuple(loss.shape)} for batch {number}; take its mean")
    if not bool(loss.isfinite()):
        value = float(loss.detach())
        raise ValueError(f"the loss of batch {number} is {value}; look at that batch, or at the model's weights")
    if not loss.requires_grad:
        raise ValueError(f"the loss of batch {number} does not depend on any parameter that has a gradient")
    return loss


def check_ids(name: str, table: nn.Embedding | nn.EmbeddingBag, ids: Tensor, number: int) -> None:
    """Raises IdError where a table does not have one of the ids of a batch; torch's own error names nothing."""
    if not ids.numel():
        return
    low, high = (int(value) for value in ids.detach().aminmax())
    if low < 0 or high >= table.num_embeddings:
        raise IdError(
            f"batch {number}: table {name!r} has {table.num_embeddings} tokens, ids from 0 to "
            f"{table.num_embeddings - 1}, and is asked for id {low if low < 0 else high}; map unseen tokens to one "
            "that is kept for them, or make the table larger"
        )


def _name_wrong_id(problem: Problem, batch: Any, number: int) -> None:
    """Runs a batch that failed in a lookup again: raises IdError if its ids are why, else what it raised."""
    handles = []
    for name, table in problem.model.named_modules():
        if isinstance(table, (nn.Embedding, nn.EmbeddingBag)):

            def hook(module: Any, args: Any, kwargs: Any, name: str = name) -> None:
                check_ids(name, module, args[0] if args else kwargs["input"], number)

            handles.append(table.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        with torch.no_grad():
            problem.loss_fn(problem.model, batch)
    finally:
        for handle in handles:
            handle.remove()


def check_gradients(weights: Mapping[str, Tensor], number: int) -> None:
    """Raises ValueError where the gradient of one of these parameters holds a NaN or an infinity."""
    for name, weight in weights.items():
        if weight.grad is None:
            continue
        values = weight.grad._values() if weight.grad.is_sparse else weight.grad
        # The sum is finite for nearly all that is, and needs no memory.
        if not bool(values.sum().isfinite()) and not bool(values.isfinite().all()):
            raise ValueError(f"the gradient of table {name!r} is not finite for batch {number}, though the loss is")


def check_used(scores: Mapping[str, Tensor], batches: int) -> None:
    """Raises ValueError where all scores of a table, made from its gradients in so many batches, are zero."""
    for name, found in scores.items():
        if not bool(found.any()):
            raise ValueError(
                f"table {name!r} got no gradient in {batches} batches: is it used by loss_fn? Leave it out by match, "
                "or give more batches"
            )


def gradient_bytes(problem: Problem) -> int:
    """Bytes of the tables' present gradients; sparse ones exist twice while entries of one token are added up."""
    total = 0
    for weight in problem.weights.values():
        grad = weight.grad
        if grad is not None and grad.is_sparse:
            total += 2 * sum(t.numel() * t.element_size() for t in (grad._indices(), grad._values()))
        elif grad is not None:
            total += grad.numel() * grad.element_size()
    return total


@contextmanager
def table_gradients(problem: Problem) -> Iterator[None]:
    """Gradients of the tables alone, and sparse ones where torch can: a batch then costs what its tokens cost."""
    kept = {id(w) for w in problem.weights.values()}
    frozen = [p for p in problem.model.parameters() if p.requires_grad and id(p) not in kept]
    thawed = [w for w in problem.weights.values() if not w.requires_grad]
    modules = [m for name in problem.tables for m in problem.modules_of(name)]
    flags = [(m, m.sparse) for m in modules]
    try:
        for p in frozen:
            p.requires_grad_(False)
        for w in thawed:
            w.requires_grad_(True)
        for m in modules:
            m.sparse = _can_be_sparse(m)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(True)
        for w in thawed:
            w.requires_grad_(False)
        for m, flag in flags:
            m.sparse = flag


def _can_be_sparse(module: nn.Embedding | nn.EmbeddingBag) -> bool:
    return not module.scale_grad_by_freq and getattr(module, "mode", "sum") != "max"


def backward_passes(problem: Problem, what: str, max_batches: int | None = None) -> Iterator[int]:
    """Fills the tables' gradients with those of one batch after another; yields the batch's number.

    Raises:
        TypeError, ValueError: there is no batch, or a loss or a gradient is not finite.
    """
    for number, batch in each_batch(problem, what, max_batches):
        for weight in problem.weights.values():
            weight.grad = None
        with torch.enable_grad():
            loss_of(problem, batch, number).backward()
        check_gradients(problem.weights, number)
        yield number
    for weight in problem.weights.values():
        weight.grad = None
