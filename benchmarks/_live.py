"""Bytes of the tensors alive, whoever holds them: counted the same way for every method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make while it is entered, as long as they live.

    After a forward pass of which only the loss is kept, :attr:`bytes` is what the backward pass holds: saved tensors,
    low-bit copies and masks with their metadata, inputs of checkpointed layers. Nothing a method reports is used.
    :attr:`peak` is the highest sum seen after an operation; scratch memory inside an operation is not in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._before: dict[int, StorageWeakRef] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs or {})):
            if storage._cdata not in self._alive and storage._cdata not in self._before:
                self._before[storage._cdata] = StorageWeakRef(storage)
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            self._note(storage)
        self.peak = max(self.peak, self.bytes)
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        # A weak reference keeps the number from being used again, so an input is never taken for a result.
        if storage._cdata in self._alive or storage._cdata in self._before or storage.nbytes() == 0:
            return
        self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    @property
    def bytes(self) -> int:
        """Bytes alive now of what was made while this mode was entered."""
        gone = [key for key, (ref, _) in self._alive.items() if ref.expired()]
        for key in gone:
            del self._alive[key]
        return sum(size for _, size in self._alive.values())


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    for t in tree_leaves(values):
        if isinstance(t, torch.Tensor):
            for part in _parts(t):
                yield part.untyped_storage()


def _parts(t: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The dense tensors a tensor consists of: sparse matrices have no storage of their own."""
    if t.layout is torch.strided:
        return (t,)
    if t.layout is torch.sparse_csr:
        return t.crow_indices(), t.col_indices(), t.values()
    if t.layout is torch.sparse_csc:
        return t.ccol_indices(), t.row_indices(), t.values()
    if t.layout is torch.sparse_coo:
        return t._indices(), t._values()
    return ()
