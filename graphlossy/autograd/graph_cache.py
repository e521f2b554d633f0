"""Graphs cached by the identity of the tensors that they were built from.

Convolutions are handed the same ``edge_index`` in every layer and every epoch. Sorting it takes longer than a sparse
product, so the result is kept as long as the tensor lives, unchanged. A data pointer alone does not identify a tensor:
after it is freed, a new one may get the same address. Each entry therefore also watches the storage's life.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from graphlossy.autograd.graph import CSRGraph, plain_tensor

__all__ = ["GraphCache", "cached_graph", "clear_graph_cache"]


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.layout is torch.sparse_csr:
        return tensor.crow_indices(), tensor.col_indices()
    if tensor.layout is torch.sparse_csc:
        return tensor.ccol_indices(), tensor.row_indices()
    if tensor.layout is torch.sparse_coo:
        return (tensor._indices(),)
    return (plain_tensor(tensor),)


def _values(tensor: Tensor) -> Tensor | None:
    if tensor.layout is torch.strided:
        return None
    values = tensor._values() if tensor.layout is torch.sparse_coo else tensor.values()
    return values.detach()


def _identity(tensor: Tensor) -> tuple[Hashable, list[StorageWeakRef]]:
    key, refs = [], []
    version = plain_tensor(tensor)._version
    for part in _parts(tensor):
        storage = part.untyped_storage()
        refs.append(StorageWeakRef(storage))
        layout = (storage.data_ptr(), part.storage_offset(), tuple(part.shape), part.stride())
        key.append((*layout, part.dtype, part.device, version))
    return (tensor.layout, tuple(tensor.shape), *key), refs


class _Entry:
    def __init__(self, refs: list[StorageWeakRef], values: list[Tensor | None], result: Any):
        self.refs, self.values, self.result = refs, values, result

    def alive(self) -> bool:
        return not any(ref.expired() for ref in self.refs)


class GraphCache:
    """A least-recently-used cache of what is built from tensors that are recognised by identity.

    A hit needs the same storage, offset, shape, stride and version counter, and that the storage has lived since.
    The values of sparse tensors are compared element by element as well, since torch does not count the edits of a
    sparse tensor's values through another alias. Edits behind torch's back (through NumPy or ``.data``) are not seen.

    Args:
        maxsize: most entries kept. Entries whose tensors are gone are dropped at the next call.

    Example:
        >>> cache, edge_index = GraphCache(), torch.tensor([[0, 1], [1, 0]])
        >>> cache.get((edge_index,), "sum", lambda: edge_index.sum().item())
        2
        >>> len(cache)
        1
    """

    def __init__(self, maxsize: int = 16):
        if maxsize < 1:
            raise ValueError(f"maxsize must be at least 1, got {maxsize}")
        self.maxsize = maxsize
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, tensors: tuple[Tensor | None, ...], options: Hashable, build: Callable[[], Any]) -> Any:
        """The result of ``build()`` for these tensors and options, from the cache if nothing has changed."""
        if any(t is not None and t.is_inference() for t in tensors):
            return build()  # inference tensors do not count their edits
        with self._lock:
            for stale in [key for key, entry in self._entries.items() if not entry.alive()]:
                del self._entries[stale]
            key: list[Hashable] = [options]
            refs: list[StorageWeakRef] = []
            values: list[Tensor | None] = []
            for tensor in tensors:
                if tensor is not None:
                    identity, weak = _identity(tensor)
                    key.append(identity)
                    refs += weak
                    values.append(_values(tensor))
                else:
                    key.append(None)
            entry = self._entries.get(tuple(key))
            if entry is not None and all(
                a is None or (b is not None and torch.equal(a, b)) for a, b in zip(values, entry.values, strict=True)
            ):
                self._entries.move_to_end(tuple(key))
                return entry.result
            result = build()
            kept = [None if v is None else v.clone() for v in values]
            self._entries[tuple(key)] = _Entry(refs, kept, result)
            self._entries.move_to_end(tuple(key))
            while len(self._entries) > self.maxsize:
                self._entries.popitem(last=False)
            return result

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)

    def __deepcopy__(self, memo: dict) -> GraphCache:
        return GraphCache(self.maxsize)


_CACHE = GraphCache()


def cached_graph(
    edge_index: Tensor,
    edge_weight: Tensor | None = None,
    num_dst: int | None = None,
    num_src: int | None = None,
    flow: str = "source_to_target",
) -> CSRGraph:
    """:class:`CSRGraph` of these arguments, built again only if a tensor was replaced or edited in place.

    Weights that require a gradient are attached to the cached edges: see :meth:`CSRGraph.with_weight`.

    Example:
        >>> edge_index = torch.tensor([[0, 1], [1, 0]])
        >>> cached_graph(edge_index) is cached_graph(edge_index)
        True
    """
    if isinstance(edge_index, CSRGraph):
        return edge_index if edge_weight is None else edge_index.with_weight(edge_weight)
    if not isinstance(edge_index, Tensor):
        raise TypeError(f"edge_index must be a tensor, got {type(edge_index).__name__}")
    options = (num_dst, num_src, flow)
    if edge_index.layout is not torch.strided:
        if edge_weight is not None:
            raise ValueError("edge_weight must be None with a sparse matrix: put the weights in its values")
        if edge_index.requires_grad:
            pattern = _CACHE.get((edge_index.detach(),), options, lambda: CSRGraph(edge_index.detach()))
            return _attach(pattern, edge_index)
        return _CACHE.get((edge_index,), options, lambda: CSRGraph(edge_index, None, num_dst, num_src, flow))
    if edge_weight is not None and edge_weight.requires_grad:
        pattern = _CACHE.get((edge_index,), options, lambda: CSRGraph(edge_index, None, num_dst, num_src, flow))
        return pattern.with_weight(edge_weight)
    return _CACHE.get(
        (edge_index, edge_weight), options, lambda: CSRGraph(edge_index, edge_weight, num_dst, num_src, flow)
    )


def _attach(pattern: CSRGraph, adj: Tensor) -> CSRGraph:
    if adj.layout is torch.sparse_coo:
        adj = adj.coalesce()
    return pattern.with_weight(adj.values())


def clear_graph_cache() -> None:
    """Forget all cached graphs (they are also dropped when their tensors are freed)."""
    _CACHE.clear()
