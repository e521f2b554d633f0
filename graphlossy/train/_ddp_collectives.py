"""What the processes of a job tell each other besides gradients; one process alone gets back what it gave."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from graphlossy.train._ddp_group import PeerError, control_group, is_peer_failure, peer_error
from graphlossy.train._errors import TrainError

__all__ = [
    "average_buffers",
    "barrier",
    "broadcast_object",
    "gather_objects",
    "on_all",
    "on_main",
    "reduce_mean",
    "reduce_sum",
]

T = TypeVar("T")
Value = TypeVar("Value", float, Tensor)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def reduce_sum(value: Value) -> Value:
    """The sum of every process's ``value``, in every process; a tensor keeps its type and device.

    Args:
        value: a number (added in float64) or a tensor of the same shape everywhere.

    Example:
        >>> reduce_sum(2.5)
        2.5
    """
    if _world_size() == 1:
        return value
    if not isinstance(value, Tensor):
        total = torch.tensor(value, dtype=torch.float64)
        _all_reduce(total, control_group())
        return total.item()
    total = value.detach().clone()
    _all_reduce(total, None if total.is_cuda else control_group())
    return total


def reduce_mean(value: Value) -> Value:
    """The mean of every process's ``value``, in every process.

    Args:
        value: a number or a floating-point tensor of the same shape everywhere.

    Example:
        >>> reduce_mean(2.5)
        2.5
    """
    return reduce_sum(value) / _world_size()


def broadcast_object(value: T) -> T:
    """Rank 0's ``value``, in every process: plain values and CPU tensors.

    Example:
        >>> broadcast_object({"epoch": 3})
        {'epoch': 3}
    """
    if _world_size() == 1:
        return value
    box = [value]
    _call(lambda: dist.broadcast_object_list(box, src=0, group=control_group()))
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Every process's ``value`` in the order of the ranks, in every process: plain values and CPU tensors.

    Example:
        >>> gather_objects("a")
        ['a']
    """
    values: list[Any] = [value] * _world_size()
    if len(values) > 1:
        _call(lambda: dist.all_gather_object(values, value, group=control_group()))
    return values


def barrier(timeout: float = 600.0) -> None:
    """Waits until every process has come here.

    Args:
        timeout: seconds after which it is given up; rank 0's message then names the ranks that are missing.

    Raises:
        PeerError: another process stopped, or did not come in time.
    """
    if _world_size() > 1:
        limit = timedelta(seconds=timeout)
        _call(lambda: dist.monitored_barrier(control_group(), timeout=limit, wait_all_ranks=True))


def on_main(action: Callable[[], T]) -> T:
    """Runs ``action`` in rank 0 only, and gives its result, or its error, to every process.

    Args:
        action: returns plain values and CPU tensors.

    Raises:
        TrainError: in the other processes, with the message of whatever rank 0 raised.

    Example:
        >>> on_main(lambda: 3)
        3
    """
    if _world_size() == 1:
        return action()
    return _told(action, dist.get_rank() == 0)


def on_all(action: Callable[[], T]) -> T:
    """Runs ``action`` in every process; if it fails in one, all of them stop together instead of waiting for it.

    Args:
        action: for example loading the data; must not call collectives itself.

    Raises:
        TrainError: in processes where ``action`` was right, with the message of the first one where it failed.

    Example:
        >>> on_all(lambda: 3)
        3
    """
    if _world_size() == 1:
        return action()
    result: Any = None
    failure: Exception | None = None
    try:
        result = action()
    except Exception as error:
        failure = error
    messages = gather_objects(_line(failure))
    if failure is not None:
        raise failure
    for rank, message in enumerate(messages):
        if message is not None:
            raise TrainError(f"rank {rank}: {message}")
    return result


def _told(action: Callable[[], T], here: bool) -> T:
    result: Any = None
    failure: Exception | None = None
    if here:
        try:
            result = action()
        except Exception as error:
            failure = error
    message, result = broadcast_object((_line(failure), result))
    if failure is not None:
        raise failure
    if message is not None:
        raise TrainError(f"rank 0: {message}")
    return result


def _line(error: Exception | None) -> str | None:
    if error is None:
        return None
    text = str(error).strip().split("\n")[0]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def average_buffers(model: nn.Module) -> None:
    """Replaces every floating-point buffer (BatchNorm's running statistics) by its mean over the processes.

    Needed before evaluation where the processes train on different nodes; full-batch replicas have equal buffers.

    Args:
        model: the module or its wrapper.
    """
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point() and buffer.numel()]
    if _world_size() == 1 or not buffers:
        return
    mean = reduce_mean(torch.cat([buffer.detach().reshape(-1).double() for buffer in buffers]))
    start = 0
    for buffer in buffers:
        buffer.copy_(mean[start : start + buffer.numel()].view(buffer.shape))
        start += buffer.numel()


def _all_reduce(tensor: Tensor, group: Any) -> None:
    _call(lambda: dist.all_reduce(tensor, group=group))


def _call(collective: Callable[[], Any]) -> None:
    try:
        collective()
    except PeerError:
        raise
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        raise peer_error(error) from None
