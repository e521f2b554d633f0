"""Where a tensor's numbers lie, and whether they live whatever autograd keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["FirstTimes", "address_of", "lives_anyway", "storage_of"]

_VIEWS_OF_PARAMETERS = frozenset(
    f"{name}Backward0"
    for name in "ToCopy T Transpose Permute View ReshapeAlias UnsafeView Expand Select Slice Split Clone".split()
)


def storage_of(value: Any) -> torch.UntypedStorage | None:
    """The memory of a dense tensor; None for anything else, and for tensors that only wrap or stand for others."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested:
        return None
    try:
        storage = value.untyped_storage()
        storage.data_ptr()
    except (RuntimeError, NotImplementedError):  # PyG's EdgeIndex, torch.vmap
        return None
    return storage


def address_of(value: Any) -> int | None:
    """Where the storage of a dense tensor begins; None for anything else."""
    storage = storage_of(value)
    return None if storage is None else storage.data_ptr()


def lives_anyway(t: Tensor) -> bool:
    """Whether ``t`` is a parameter, frozen or not, or another leaf that gathers a gradient, or a cast or a view."""
    base = t._base if t._is_view() and t._base is not None else t
    if base.is_leaf:
        return base.requires_grad or isinstance(base, nn.Parameter)
    node = base.grad_fn
    for _ in range(4):
        if node is None or node.name() not in _VIEWS_OF_PARAMETERS:
            return False
        (node, _), *rest = node.next_functions
        if rest:
            return False
        if node is not None and node.name().endswith("AccumulateGrad"):
            return True
    return False


class FirstTimes:
    """Bytes of storages, each counted once as long as it lives."""

    def __init__(self) -> None:
        self._seen: dict[int, StorageWeakRef] = {}

    def clear(self) -> None:
        self._seen.clear()

    def bytes(self, t: Tensor) -> int:
        """Bytes of the storage of ``t`` the first time that it is asked for, then 0."""
        storage = t.untyped_storage()
        seen = self._seen.get(storage.data_ptr())
        if seen is not None and not seen.expired():
            return 0
        self._seen[storage.data_ptr()] = StorageWeakRef(storage)
        return storage.nbytes()
