"""Where a tensor's numbers lie, and whether they live whatever autograd keeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["FirstTimes", "address_of", "cast_like", "layout_of", "lives_anyway", "storage_of", "weight_copy"]

Size = tuple[int, ...]
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
    return _leaf_behind(base, _VIEWS_OF_PARAMETERS) is not None


def _leaf_behind(t: Tensor, passed: frozenset[str]) -> Tensor | None:
    """The leaf that ``t`` was made of by these operations alone."""
    node = t.grad_fn
    for _ in range(5):
        if node is None:
            return None
        if node.name().endswith("AccumulateGrad"):
            leaf: Tensor = getattr(node, "variable")  # noqa: B009 (typing knows it not)
            return leaf
        if node.name() not in passed or len(node.next_functions) != 1:
            return None
        node = node.next_functions[0][0]
    return None


def weight_copy(t: Tensor, arguments: Iterable[Any]) -> tuple[bool, Tensor | None]:
    """Whether ``t`` is a copy of a weight in another type, as autocast makes them, and what makes the same numbers.

    Args:
        t: saved by an operation.
        arguments: of the operation. Only they tell where the copy of a frozen weight comes from.

    Returns:
        The second is the weight, or the view of it that was copied; None where a cast of it is not ``t``.
    """
    if t.grad_fn is not None:
        leaf = _leaf_behind(t, _VIEWS_OF_PARAMETERS)
        if leaf is None or leaf.dtype == t.dtype:
            return False, None
        return True, leaf if _is_cast(t, leaf) else None
    for source in arguments:
        if isinstance(source, Tensor) and not source.requires_grad and not t.requires_grad:
            base = source if source._base is None else source._base
            if isinstance(base, nn.Parameter) and _is_cast(t, source):
                return True, source
    return False, None


def _is_cast(t: Tensor, source: Tensor) -> bool:
    """Compares the numbers: a copy may have been changed since, or lie in memory in another order."""
    if type(source) not in (Tensor, nn.Parameter) or not t.is_floating_point() or not source.is_floating_point():
        return False
    if t.dtype == source.dtype or t.device != source.device:
        return False
    if t.untyped_storage().nbytes() != source.numel() * t.element_size():
        return False
    return torch.equal(cast_like(source, t.dtype, *layout_of(t)), t)


def cast_like(source: Tensor, dtype: torch.dtype, size: Size, stride: Size, offset: int) -> Tensor:
    """A copy of ``source`` in another type, viewed with this layout."""
    return source.detach().to(dtype).as_strided(size, stride, offset)


def layout_of(t: Tensor) -> tuple[Size, Size, int]:
    """Size, strides and offset."""
    return tuple(t.size()), t.stride(), int(t.storage_offset())


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
