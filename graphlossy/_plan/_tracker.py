"""The memory that is in use after every torch operation, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["AllocationTracker"]


class AllocationTracker(TorchDispatchMode):
    """Counts the storages that operations allocate while it is entered, and notices when each is freed.

    Tensors that existed before (weights, inputs, the graph) are not counted. Scratch memory that a kernel allocates
    and frees inside one operation is not seen.

    Attributes:
        events: (operation, bytes alive after it), in order.
        live_bytes: bytes alive now.

    Example:
        >>> x = torch.ones(1000)
        >>> with AllocationTracker() as tracker:
        ...     y = (x + 1).mul_(2) + x
        >>> [live for _, live in tracker.events]
        [4000, 4000, 8000]
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, int]] = []
        # By address; a weak reference keeps the address from being used again.
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._external: dict[int, StorageWeakRef] = {}
        self._bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self._live and storage._cdata not in self._external:
                self._external[storage._cdata] = StorageWeakRef(storage)
        out = func(*args, **kwargs)
        self._sweep()
        for storage in _storages(out):
            if storage._cdata not in self._live and storage._cdata not in self._external:
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self._bytes += storage.nbytes()
        self.events.append((str(func), self._bytes))
        return out

    def exclude(self, *tensors: Tensor) -> None:
        """From now on these tensors are not counted (the gradients of the weights have a line of their own)."""
        for storage in _storages(tensors):
            if storage._cdata in self._live:
                self._bytes -= self._live.pop(storage._cdata)[1]
            self._external[storage._cdata] = StorageWeakRef(storage)

    @property
    def live_bytes(self) -> int:
        self._sweep()
        return self._bytes

    def _sweep(self) -> None:
        # As StorageWeakRef.expired(), without its two calls in between: this runs after every operation.
        expired = torch.UntypedStorage._expired
        for address in [address for address, (ref, _) in self._live.items() if expired(ref.cdata)]:
            self._bytes -= self._live.pop(address)[1]


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    if isinstance(value, Tensor):
        for part in _dense_parts(value):
            yield part.untyped_storage()
    elif isinstance(value, dict):
        yield from _storages(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _storages(item)


def _dense_parts(t: Tensor) -> tuple[Tensor, ...]:
    if t.layout == torch.strided:
        return (t,)
    if t.layout == torch.sparse_coo:
        return t._indices(), t._values()
    if t.layout in (torch.sparse_csr, torch.sparse_bsr):
        return t.crow_indices(), t.col_indices(), t.values()
    if t.layout in (torch.sparse_csc, torch.sparse_bsc):
        return t.ccol_indices(), t.row_indices(), t.values()
    return ()
