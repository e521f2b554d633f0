"""Meeting the other processes in a store of keys in which nothing of an earlier attempt can be mistaken for news.

torchrun keeps one store for all its attempts. A process that it starts anew would find the addresses of those that
died and try to connect to them, so every attempt writes below a name of its own, on which its processes agree first.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

__all__ = ["fresh_store", "meet"]

PAUSE = 0.02  # seconds between two looks


def fresh_store(rank: int, world_size: int, timeout: float) -> dist.Store:
    """The store at MASTER_ADDR:MASTER_PORT, below a name that only the processes of this attempt use.

    Args:
        rank: of this process.
        world_size: number of processes.
        timeout: seconds to wait for the others.

    Raises:
        RuntimeError: the store cannot be reached, or some ranks have not come in time.
    """
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", rank, world_size, timeout=timedelta(seconds=timeout)))
    return dist.PrefixStore(meet(store, rank, world_size, timeout), store)


def meet(store: dist.Store, rank: int, world_size: int, timeout: float) -> str:
    """A name that all living processes of one attempt agree on, whatever dead ones have left in ``store``.

    Rank 0 writes a new name. Every other rank answers the name that it sees with a number of its own, again and again,
    until it finds its number in the list that rank 0 writes once all have answered the new name.

    Args:
        store: shared by all.
        rank: of this process.
        world_size: number of processes.
        timeout: seconds to wait for the others.

    Raises:
        TimeoutError: some ranks have not come in time; rank 0's message names them.

    Example:
        >>> len(meet(dist.HashStore(), rank=0, world_size=1, timeout=1.0))
        32
    """
    own, end = uuid.uuid4().hex, time.monotonic() + timeout
    if rank == 0:
        store.set("graphlossy/name", own)
        answers: dict[int, str] = {}
        while len(answers) < world_size - 1:
            for other in range(1, world_size):
                name, _, number = _read(store, f"graphlossy/answer/{other}").partition(" ")
                if name == own:
                    answers[other] = number
            missing = [other for other in range(1, world_size) if other not in answers]
            _wait(end, f"rank {', '.join(map(str, missing))} has not come")
        store.set(f"graphlossy/list/{own}", " ".join(answers.values()))
        return own
    while True:
        name = _read(store, "graphlossy/name")
        if name:
            store.set(f"graphlossy/answer/{rank}", f"{name} {own}")
            if own in _read(store, f"graphlossy/list/{name}").split():
                return name
        _wait(end, "rank 0 has not come")


def _read(store: dist.Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _wait(end: float, problem: str) -> None:
    if time.monotonic() > end:
        raise TimeoutError(problem)
    time.sleep(PAUSE)
