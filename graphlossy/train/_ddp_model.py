"""Sharing one step between processes: who takes which nodes, and a loss whose mean gradient is that of one process."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["partition", "share_of_loss", "unwrap", "wrap"]

# The argument's name from torch 2.13, and before.
_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)
Rows = TypeVar("Rows", Tensor, Sequence[Any])


def partition(rows: Rows, rank: int, world_size: int) -> Rows:
    """The rows of one rank: every ``world_size``-th one. All ranks together have each row once.

    Args:
        rows: numbers of training nodes, a tensor or a sequence; the same, in the same order, in every process.
        rank: from 0.
        world_size: number of processes. With fewer rows than that, some ranks get none.

    Raises:
        ValueError: ``rank`` is not from 0 to below ``world_size``.

    Example:
        >>> [partition([7, 8, 9, 10, 11], rank, 2) for rank in range(2)]
        [[7, 9, 11], [8, 10]]
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to below world_size, got {rank} of {world_size}")
    return rows[rank::world_size]


def wrap(model: nn.Module, **options: Any) -> nn.Module:
    """DistributedDataParallel around ``model``, or ``model`` itself where there is one process.

    Switch compression on with ``graphlossy.compress(model)`` first and keep ``model``: its ledger, state_dict and
    names stay as they are without the wrapper's prefix ``module.``. Keep the wrapper too: gradients are no longer
    averaged once it is gone. All ranks start from rank 0's weights. Buffers are not sent at every step (see
    :func:`average_buffers`).

    Args:
        model: on the device to train on.
        options: for DistributedDataParallel, such as ``find_unused_parameters`` or ``bucket_cap_mb``.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> wrap(model) is model
        True
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return model
    # Without device_ids the inputs are passed on as they are: the same graph object in every step, as caches need it.
    return DistributedDataParallel(model, **{_BUFFERS: False, **options})


def unwrap(model: nn.Module) -> nn.Module:
    """The user's module in a wrapper of :func:`wrap`; any other module is returned as it is."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def share_of_loss(
    loss: Callable[[Tensor, Tensor], Tensor],
    out: Tensor,
    labels: Tensor,
    total: int,
    world_size: int,
    count: int | None = None,
) -> Tensor:
    """The loss to call ``backward`` on, so that the mean of all ranks' gradients is that of the loss over all rows.

    With n_r terms in rank r and n in all, the mean loss over all rows is sum_r (n_r / n) mean_r. The wrapper averages
    gradients, so rank r takes W n_r / n times its own mean. A rank with no rows takes part with a gradient of zeros.

    Args:
        loss: of scores and labels, a mean over the rows' terms, such as ``task.loss`` or ``F.cross_entropy``.
        out: scores of this rank's rows ``[n_r, C]``.
        labels: of the same rows ``[n_r, ...]``.
        total: n, the number of terms of all ranks together.
        world_size: W.
        count: n_r where it is not the number of rows, as with labels that are only known for some tasks.

    Returns:
        A scalar; its mean over the ranks (:func:`reduce_mean`) is the loss over all rows.

    Raises:
        ValueError: there are no terms at all, or fewer than this rank has.

    Example:
        >>> import torch
        >>> out, labels = torch.ones(3, 2, requires_grad=True), torch.tensor([0, 1, 0])
        >>> cross_entropy = nn.functional.cross_entropy
        >>> part = share_of_loss(cross_entropy, out, labels, total=4, world_size=2)
        >>> bool(part == 1.5 * cross_entropy(out, labels))
        True
    """
    count = len(out) if count is None else count
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"total must be the positive number of terms of all ranks, got {total} with {count} here")
    if count == 0:
        # Nothing is read from out, so that a NaN in it cannot reach the others, but every parameter gets a gradient.
        return out[:0].sum()
    return loss(out, labels) * (world_size * count / total)
