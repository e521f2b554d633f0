"""Joining the other processes of a torchrun job, and leaving them: with their results, or with one clear line."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from graphlossy.train._ddp_store import fresh_store
from graphlossy.train._device import resolve_device
from graphlossy.train._errors import TrainError

__all__ = ["PeerError", "Rank", "control_group", "is_main", "is_peer_failure", "session", "setup", "shutdown"]

TIMEOUT = 600.0  # seconds
NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# How gloo and NCCL say that another process has gone or has not come.
SIGNS = (
    "closed by peer", "reset by peer", "closed by remote", "broken pipe", "connection refused", "timed out", "timeout",
    "remote process exited", "socket", "nccl communicator was aborted", "failed to pass monitoredbarrier",
)  # fmt: skip

GRACE = 1.0  # seconds in which a process that failed may still say why

_state: dict[str, Any] = {"owned": False, "control": None, "store": None}


class PeerError(TrainError):
    """Another process of the job stopped or does not answer; the reason is in that process's own message."""


@dataclass(frozen=True)
class Rank:
    """This process's place among the processes that train together.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        local_rank: its number on this machine, which is also the number of its GPU.
        device: where it trains.
        restarts: how often torchrun has started the processes anew.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    restarts: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world_size}"


def setup(device: str = "auto", timeout: float = TIMEOUT) -> Rank:
    """Joins the other processes that torchrun started; without torchrun, the one rank there is and no process group.

    The backend is NCCL on GPUs and gloo on CPUs; what is exchanged besides gradients goes through gloo. A process group
    that the program has made itself is used as it is.

    Args:
        device: ``"auto"``, ``"cpu"`` or ``"cuda"`` (the GPU numbered ``LOCAL_RANK``); without torchrun also
            ``"cuda:N"``.
        timeout: seconds after which waiting for another process is given up.

    Raises:
        TrainError: torchrun's variables are incomplete, the device is not there, or the others cannot be reached.

    Example:
        >>> setup("cpu")
        Rank(rank=0, world_size=1, local_rank=0, device=device(type='cpu'), restarts=0)
    """
    if not timeout > 0:
        raise TrainError(f"timeout must be a positive number of seconds, got {timeout}")
    if dist.is_available() and dist.is_initialized():
        local = _number(os.environ, "LOCAL_RANK") if "LOCAL_RANK" in os.environ else 0
        if dist.get_backend() == "nccl" and _state["control"] is None:
            _state["control"] = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        return Rank(dist.get_rank(), dist.get_world_size(), local, _device(device, local), _restarts())
    if not _launched(os.environ):
        return Rank(0, 1, 0, _device(device, None))
    rank, world_size, local = (_number(os.environ, name) for name in NEEDED[:3])
    found = Rank(rank, world_size, local, _device(device, local), _restarts())
    if world_size > 1:
        _join(found, timeout)
    return found


def _launched(environment: Mapping[str, str]) -> bool:
    """Whether torchrun, or whoever sets its variables, has started this process.

    Raises:
        TrainError: some of the variables are set and others are not.
    """
    if not any(name in environment for name in ("RANK", "WORLD_SIZE")):
        return False
    missing = [name for name in NEEDED if name not in environment]
    if missing:
        raise TrainError(
            f"the environment has RANK or WORLD_SIZE but not {', '.join(missing)}; start with torchrun, or unset them"
        )
    rank, world_size, local = (_number(environment, name) for name in NEEDED[:3])
    if not 0 <= rank < world_size or local < 0:
        raise TrainError(
            f"RANK must be from 0 to below WORLD_SIZE, and LOCAL_RANK from 0; got {rank}, {world_size}, {local}"
        )
    return True


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise TrainError(f"environment variable {name} must be an integer, got {environment[name]!r}") from None


def _restarts() -> int:
    return _number(os.environ, "TORCHELASTIC_RESTART_COUNT") if "TORCHELASTIC_RESTART_COUNT" in os.environ else 0


def _device(name: str, local_rank: int | None) -> torch.device:
    found = resolve_device(name)
    if local_rank is None or found.type == "cpu":
        return found
    if found.index is not None:
        raise TrainError(f"device {name} names one GPU, but every process needs its own; use --device cuda")
    count = torch.cuda.device_count()
    here = _number(os.environ, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else local_rank + 1
    if max(here, local_rank + 1) > count:  # so that all processes of the machine find it, not the last ones only
        raise TrainError(
            f"{here} processes on this machine find {count} GPU(s); use --nproc-per-node {count}, or --device cpu"
        )
    return torch.device("cuda", local_rank)


def _join(rank: Rank, timeout: float) -> None:
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if not dist.is_available():
        raise TrainError("this torch was built without torch.distributed; run one process, without torchrun")
    limit = timedelta(seconds=timeout)
    cuda = rank.device.type == "cuda"
    if cuda:
        torch.cuda.set_device(rank.device)
    try:
        store = _state["store"] = fresh_store(rank.rank, rank.world_size, timeout)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=store,
            rank=rank.rank,
            world_size=rank.world_size,
            timeout=limit,
            device_id=rank.device if cuda else None,
        )
        _state["control"] = dist.new_group(backend="gloo", timeout=limit) if cuda else None
    except (RuntimeError, TimeoutError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise PeerError(f"{rank} cannot join the others at {where} within {timeout:g} s: {reason}") from None
    _state["owned"] = True


def shutdown(failed: bool = False) -> None:
    """Leaves the process group that :func:`setup` joined.

    Args:
        failed: this process stops before the others; False waits until all of them are done.

    Raises:
        PeerError: another process stopped early.
    """
    if not _state["owned"]:
        return
    _state["owned"] = False
    try:
        if not failed:
            dist.monitored_barrier(_state["control"])
    except RuntimeError as error:
        failed = True
        raise peer_error(error) from None
    finally:
        # NCCL waits in destroy_process_group for calls that a dead peer will never answer; the exit ends them.
        if not failed or dist.get_backend() != "nccl":
            dist.destroy_process_group()
        _state["control"] = _state["store"] = None


@contextmanager
def session(device: str = "auto", timeout: float = TIMEOUT) -> Iterator[Rank]:
    """``with session() as rank``: :func:`setup` at the start; leaves the group at the end or at an error.

    Inside another session it takes part in the group that there is, and leaves it to the outer one.

    An error in one process reaches the others, which wait for it in a collective call, as a :class:`PeerError`, so that
    every process ends and torchrun can start them anew.

    Args:
        device: see :func:`setup`.
        timeout: see :func:`setup`.

    Raises:
        PeerError: another process stopped or does not answer.
        TrainError: see :func:`setup`.

    Example:
        >>> with session("cpu") as rank:
        ...     print(rank)
        rank 0 of 1
    """
    inner = dist.is_available() and dist.is_initialized()
    rank = setup(device, timeout)
    try:
        yield rank
    except BaseException as error:
        theirs = rank.world_size > 1 and is_peer_failure(error)
        reason = _hear() if theirs else _tell(rank, error)
        if not inner:
            shutdown(failed=True)
        if theirs:
            raise (
                PeerError(f"another process of this job stopped: {reason}") if reason else peer_error(error)
            ) from error
        raise
    if not inner:
        shutdown()


def _tell(rank: Rank, error: BaseException) -> str:
    """Leaves the reason of this process's failure where the others find it; they learn of it by a closed connection."""
    text = str(error).strip().split("\n")[0]
    line = f"{rank}: {text if isinstance(error, ValueError) and text else f'{type(error).__name__}: {text}'}"
    if _state["store"] is not None:
        with suppress(RuntimeError):
            _state["store"].set("failed", line)
    return line


def _hear() -> str:
    """The reason that a failed process has left; empty if it was killed or the store has gone too."""
    end = time.monotonic() + GRACE
    with suppress(RuntimeError):
        while _state["store"] is not None and time.monotonic() < end:
            if _state["store"].check(["failed"]):
                return str(_state["store"].get("failed").decode())
            time.sleep(0.02)
    return ""


def is_main() -> bool:
    """Whether this process writes files and talks to the user: rank 0, or the only one.

    Example:
        >>> is_main()
        True
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"  # before the processes have met, and after they have parted


def control_group() -> Any:
    """The gloo group for small things on the CPU; None is the default group."""
    return _state["control"]


def is_peer_failure(error: BaseException) -> bool:
    """Whether ``error`` says that another process has gone or does not answer."""
    if isinstance(error, (PeerError, dist.DistError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in SIGNS)


def peer_error(error: BaseException) -> PeerError:
    """The one line for a failure of another process."""
    if isinstance(error, PeerError):
        return error
    reason = str(error).strip().split("\n")[0]
    reason = reason[reason.find("] ") + 2 :] if reason.startswith("[") else reason  # without gloo's file and line
    return PeerError(f"another process of this job stopped or does not answer ({reason}); its own message says why")
