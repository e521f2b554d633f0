"""PyG's convolutions, called with a plain ``edge_index``, sent to their own sparse product.

With a plain ``edge_index`` PyG gathers one message per edge, forward and backward; those E x C tensors, never saved,
are the peak. The same layers have a second form, ``message_and_aggregate``, that takes a sparse matrix. For the time of
one forward the layer's ``propagate`` is sent there, on a CSR matrix that is built once per graph. The sums are the
same numbers in another order of summation.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from graphlossy.autograd.csr_product import csr_product, is_csr_product
from graphlossy.autograd.graph import CSRGraph, plain_tensor
from graphlossy.autograd.spmm import spmm

__all__ = ["EdgeCache", "Router"]

_SUMS = {"add": "sum", "sum": "sum", "mean": "mean"}
_MESSAGE_HOOKS = (
    "_propagate_forward_pre_hooks", "_propagate_forward_hooks", "_message_forward_pre_hooks", "_message_forward_hooks",
    "_aggregate_forward_pre_hooks", "_aggregate_forward_hooks", "_message_and_aggregate_forward_pre_hooks",
    "_message_and_aggregate_forward_hooks",
)  # fmt: skip


class EdgeCache:
    """CSR matrices by the content of ``edge_index`` and ``edge_weight``; a few, least recently used dropped first.

    Layers such as GCNConv normalise the same edges anew in every call, so identity alone would never hit: an entry is
    recognised by identity (same storage, same version) or else by comparing the numbers, which is far cheaper than
    sorting the edges. The compared copies are 32-bit.
    """

    def __init__(self, capacity: int = 8) -> None:
        self._capacity = capacity
        self._entries: list[_Entry] = []

    def lookup(self, edge_index: Tensor, edge_weight: Tensor | None, num_dst: int, num_src: int,
               flow: str) -> Tensor:  # fmt: skip
        """The matrix [num_dst, num_src] of these edges as a torch sparse CSR tensor."""
        head = (tuple(edge_index.shape), edge_weight is None, num_dst, num_src, flow, edge_index.device,
                None if edge_weight is None else edge_weight.dtype)  # fmt: skip
        same_kind = [e for e in self._entries if e.head == head]
        entry = next((e for e in same_kind if e.is_same(edge_index, edge_weight)), None)
        if entry is None:
            entry = next((e for e in same_kind if e.is_equal(edge_index, edge_weight)), None)
        if entry is None:
            entry = _Entry(head, edge_index, edge_weight, num_dst, num_src, flow)
            del self._entries[: max(0, len(self._entries) + 1 - self._capacity)]
        else:
            self._entries.remove(entry)
        self._entries.append(entry)
        return entry.adj

    def graph_of(self, adj: Any) -> CSRGraph | None:
        """The graph whose matrix :meth:`lookup` returned as ``adj``."""
        return next((e.graph for e in self._entries if e.adj is adj), None)


class _Entry:
    def __init__(self, head: tuple[Any, ...], edge_index: Tensor, edge_weight: Tensor | None, num_dst: int,
                 num_src: int, flow: str) -> None:  # fmt: skip
        self.head = head
        self.graph = CSRGraph(edge_index, edge_weight, num_dst=num_dst, num_src=num_src, flow=flow)
        self.adj = self.graph.adj
        self._index = edge_index.to(torch.int32) if max(num_dst, num_src) < 2**31 else edge_index.clone()
        self._weight = None if edge_weight is None else edge_weight.clone()
        self._identity = _identity(edge_index, edge_weight)

    def is_same(self, edge_index: Tensor, edge_weight: Tensor | None) -> bool:
        mine, theirs = self._identity, _identity(edge_index, edge_weight)
        return all(m[:-1] == t[:-1] and not m[-1].expired() for m, t in zip(mine, theirs, strict=True))

    def is_equal(self, edge_index: Tensor, edge_weight: Tensor | None) -> bool:
        if not torch.equal(self._index, edge_index.to(self._index.dtype)):
            return False
        same = edge_weight is None or (self._weight is not None and torch.equal(self._weight, edge_weight))
        if same:  # the next call with these very tensors need not compare
            self._identity = _identity(edge_index, edge_weight)
        return same


def _identity(*tensors: Tensor | None) -> tuple[tuple[Any, ...], ...]:
    return tuple(
        (t.data_ptr(), tuple(t.shape), t.stride(), t._version, StorageWeakRef(t.untyped_storage()))
        for t in tensors
        if t is not None
    )


class Router:
    """Prepares PyG's sum and mean convolutions and carries out their sparse products.

    Args:
        cache: where the CSR matrices are kept from one forward pass to the next.
    """

    def __init__(self, cache: EdgeCache) -> None:
        self._cache = cache
        # The last two results of modules and propagate calls: (who made it, the tensor).
        self._recent: deque[tuple[Any, weakref.ref[Tensor]]] = deque(maxlen=2)

    def enter(self, module: nn.Module, hooks_in_force: Callable[[], bool]) -> Callable[[], None] | None:
        """Called before ``module``'s forward: redirects ``propagate``; returns what puts it back.

        Not inside a checkpointed region: its recomputation happens outside this pass and must save the same tensors.
        """
        if not _is_message_passing(module) or "propagate" in vars(module) or not hooks_in_force():
            return None
        plain: Any = module.propagate

        def propagate(edge_index: Any, size: Any = None, **kwargs: Any) -> Tensor:
            out = self._fused(module, edge_index, size, kwargs)
            if out is None:
                out = plain(edge_index, size=size, **kwargs)
            if isinstance(module.aggr, str) and module.aggr in _SUMS:  # max and the like save their result
                self._recent.append((propagate, weakref.ref(out)))
            return out

        vars(module)["propagate"] = propagate
        return lambda: vars(module).__delitem__("propagate")

    def finished(self, module: nn.Module, out: Any) -> None:
        """Called after ``module``'s forward."""
        if isinstance(out, Tensor):
            self._recent.append((module, weakref.ref(out)))

    def replace(self, module: nn.Module | None, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a torch call inside ``module``'s forward, carried out in less memory; None: as it is."""
        if name == "sparse_mm" and len(args) >= 2:
            graph = self._cache.graph_of(args[0])
            if graph is not None:
                return spmm(graph, args[1], reduce=args[2] if len(args) > 2 else "sum")
        if name in ("matmul", "mm", "sparse_mm") and not kwargs and is_csr_product(args):
            return csr_product(*args)
        if name == "add" and len(args) == 2 and not kwargs and self._may_add_in_place(module, *args):
            return args[0].add_(args[1])
        return None

    def _may_add_in_place(self, module: nn.Module | None, out: Any, other: Any) -> bool:
        """GCNConv's ``out + self.bias`` and SAGEConv's ``out + self.lin_r(x)``: nothing else holds ``out`` there.

        The sum is the same numbers; one N x C tensor less is alive at the peak.
        """
        if not isinstance(out, Tensor) or not isinstance(other, Tensor) or out.grad_fn is None or module is None:
            return False
        if out.dtype != other.dtype:
            return False
        kind = f"{type(module).__module__}.{type(module).__name__}"
        made = [(maker, ref()) for maker, ref in self._recent]
        if kind == "torch_geometric.nn.conv.gcn_conv.GCNConv":
            plain = not module._propagate_forward_hooks and bool(made)
            return (
                plain and other is module.bias and made[-1][0] is vars(module).get("propagate") and made[-1][1] is out
            )
        if kind == "torch_geometric.nn.conv.sage_conv.SAGEConv":
            left, right = getattr(module, "lin_l", None), getattr(module, "lin_r", None)
            hooked = left is None or bool(left._forward_hooks)
            return not hooked and [m for m, _ in made] == [left, right] and made[0][1] is out and made[1][1] is other
        return False

    def _fused(self, module: Any, edge_index: Any, size: Any, kwargs: dict[str, Any]) -> Tensor | None:
        kind: Any = type(module)
        if not _is_plain(edge_index) or not _is_routable(kind) or module.explain or not module.fuse:
            return None
        if any(getattr(module, hooks, None) for hooks in _MESSAGE_HOOKS) or module.decomposed_layers > 1:
            return None
        if not isinstance(module.aggr, str) or module.aggr not in _SUMS or module.node_dim not in (-2, 0):
            return None
        weight = kwargs.get("edge_weight")
        others = [v for k, v in kwargs.items() if k.startswith("edge_") and k != "edge_weight" and v is not None]
        if others or (weight is not None and not _is_constant_weight(weight, edge_index)):
            return None
        features = [t for v in kwargs.values() for t in (v if isinstance(v, (tuple, list)) else (v,))
                    if isinstance(t, Tensor) and t is not weight]  # fmt: skip
        if any(t.dim() != 2 for t in features):
            return None
        names = _parameters(kind)
        if any(n not in kwargs for n in names):
            return None
        sizes = module._check_input(edge_index, size)
        for value in kwargs.values():
            pair = value if isinstance(value, (tuple, list)) else (value, value)
            if value is not weight:
                for which, t in enumerate(pair[:2]):
                    if isinstance(t, Tensor):
                        module._set_size(sizes, which, t)
        src, dst = (0, 1) if module.flow == "source_to_target" else (1, 0)
        num_src, num_dst = sizes[src], sizes[dst] if sizes[dst] is not None else sizes[src]
        adj = self._cache.lookup(plain_tensor(edge_index), weight, num_dst, num_src, module.flow)
        return module.message_and_aggregate(adj, **{n: kwargs[n] for n in names})


def _is_message_passing(module: nn.Module) -> bool:
    base = sys.modules.get("torch_geometric.nn.conv.message_passing")
    return base is not None and isinstance(module, base.MessagePassing)


def _is_plain(edge_index: Any) -> bool:
    return (
        isinstance(edge_index, Tensor)
        and edge_index.layout == torch.strided
        and edge_index.dtype == torch.int64
        and edge_index.dim() == 2
        and edge_index.shape[0] == 2
    )


def _is_constant_weight(weight: Any, edge_index: Tensor) -> bool:
    return (
        isinstance(weight, Tensor)
        and weight.is_floating_point()
        and not weight.requires_grad
        and weight.shape == (edge_index.shape[1],)
    )


@lru_cache(maxsize=256)
def _is_routable(kind: Any) -> bool:
    """Whether both forms of the layer come from one class of PyG itself, which promises that they agree."""

    def definer(method: str) -> type:
        return next(c for c in kind.__mro__ if method in vars(c))

    fused = definer("message_and_aggregate")
    base = "torch_geometric.nn.conv.message_passing"
    return (
        fused is definer("message")
        and fused.__module__.startswith("torch_geometric.nn.")
        and fused.__module__ != base
        and all(definer(m).__module__ == base for m in ("aggregate", "update"))
    )


@lru_cache(maxsize=256)
def _parameters(kind: Any) -> tuple[str, ...]:
    """Names of what ``message_and_aggregate`` takes after the matrix."""
    return tuple(inspect.signature(kind.message_and_aggregate).parameters)[2:]
