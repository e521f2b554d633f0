"""Results of cheap operations are computed again from what is stored anyway, and stored nowhere.

A transformer's block keeps the same numbers many times over: the input of a norm, the normalised input, its product
with the weight; the input of an activation, its result, the product of that with the other half. Each follows from the
ones before it by an elementwise operation, which costs little beside the matrix products around it. Chen et al.
("Training deep nets with sublinear memory cost", 2016) compute whole layers again; here nothing but elementwise
operations and norms run twice, and no product of matrices.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from graphlossy._compress._codecs import Alive, Kept, LowBit, Part, Payload, Recomputed, Regathered, Stored, Turn
from graphlossy._compress._storages import lives_anyway, storage_of
from graphlossy.core.ledger import GRADIENTS

__all__ = ["Known", "KnownTensors"]

_LINEAR = frozenset(
    "mul rmul add radd sub rsub neg to float half bfloat16 double type type_as contiguous clone".split()
)
# What they make of an unbiased argument is not unbiased (a layer norm's result is, with the stored statistics).
_NONLINEAR = frozenset("pow square rsqrt silu gelu relu sigmoid tanh rms_norm layer_norm".split())
# These may save a copy of an argument in another type (autocast) in place of the argument.
_CASTING = frozenset("linear matmul mm addmm bmm baddbmm".split())
_SAME_ORDER = frozenset(f"{name}Backward0" for name in "View UnsafeView ReshapeAlias".split())
# These save their own result.
_OWN_RESULTS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}
# Most operations that run to compute one tensor again. Without a limit a deep network of nothing but cheap operations
# would compute its first layers again for each of the later ones.
_MOST_WORK = 10
# Constants of at most so many elements, and of at most this share of the result's, are copied; larger ones are known
# only where they live anyway.
_SMALL, _SMALL_SHARE = 4096, 16


@dataclass(frozen=True, slots=True)
class Known:
    """How the numbers of a tensor follow from what is stored.

    Attributes:
        part: gives the numbers.
        bits: fewest of what it is computed from.
        gradient: "exact", "unbiased" or "approximate": what its numbers are.
    """

    part: Part
    bits: float
    gradient: str


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of this pass, recognised by its memory, and where its numbers come from. It keeps nothing alive.

    Attributes:
        storage: of the tensor.
        version: of the tensor at that time.
        dtype: of the tensor.
        shape: of the tensor.
        origin: what it is stored as, or the operation that makes it.
        bits: as in :class:`Known`.
        gradient: as in :class:`Known`.
        work: operations that run to compute it; 0: it is stored itself.
    """

    storage: StorageWeakRef
    version: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    origin: _Saved | _Made
    bits: float
    gradient: str
    work: int

    def part(self) -> Part | None:
        """What gives the numbers; None if something that they follow from is gone or was changed in place."""
        stored = self.origin.stored(self.shape)
        return None if stored is None else Part(stored, self.shape)


class _Saved:
    """A saved tensor, without keeping it: the graph it was saved for may be dropped before the pass is over."""

    __slots__ = ("_order", "_payload", "_turn")

    def __init__(self, stored: Stored) -> None:
        self._payload: weakref.ref[Payload] = weakref.ref(stored.payload)
        self._order, self._turn = stored.order, stored.turn

    def stored(self, shape: tuple[int, ...]) -> Stored | None:
        payload = self._payload()
        if payload is None or (isinstance(payload, Kept) and not _is_unchanged(payload)):
            return None
        order = None if self._order is None else tuple(range(len(shape)))
        return Stored(payload, order, shape, shape, self._turn)


class _Constant:
    """A tensor that no gradient of this pass goes through but its own: a parameter, or a copy of a small tensor."""

    __slots__ = ("_alive", "_lasts")

    def __init__(self, value: Tensor, lasts: bool) -> None:
        self._alive, self._lasts = Alive(value), lasts

    def part(self) -> Part | None:
        if not _is_unchanged(self._alive):
            return None
        if not self._lasts:  # a buffer may well be updated before the backward pass
            self._alive, self._lasts = Alive(self._alive.tensor.detach().clone()), True
        return Part(self._alive, tuple(self._alive.tensor.shape))


@dataclass(frozen=True, slots=True)
class _Made:
    """The result of ``func(*args, **kwargs)``, where tensors are :class:`_Tensor` or :class:`_Constant`."""

    func: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def stored(self, shape: tuple[int, ...]) -> Stored | None:
        args = tuple(_part(a) for a in self.args)
        kwargs = {name: _part(a) for name, a in self.kwargs.items()}
        if any(a is _GONE for a in (*args, *kwargs.values())):
            return None
        return Stored(Recomputed(self.func, args, kwargs), tuple(range(len(shape))), shape, shape, Turn())


_GONE = object()


def _part(argument: Any) -> Any:
    if not isinstance(argument, (_Tensor, _Constant)):
        return argument
    part = argument.part()
    return _GONE if part is None else part


class KnownTensors:
    """What is known of the tensors of one forward pass, by the address of their first element and their length."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], _Tensor] = {}
        self._saved: list[_Tensor] = []  # by the operation that is running

    def clear(self) -> None:
        """Forgets everything: the pass is over."""
        self._known.clear()
        self._saved.clear()

    def begin(self) -> None:
        """An operation begins."""
        self._saved.clear()

    def stored(self, t: Tensor, stored: Any) -> None:
        """``t`` was saved as ``stored``."""
        payload = getattr(stored, "payload", None)
        if not isinstance(payload, (Kept, LowBit, Regathered)) or not t.is_contiguous():
            return  # a mask gives back other numbers than the tensor's
        gradient, bits = "exact", 8.0 * t.element_size()
        if isinstance(payload, LowBit):
            gradient, bits = "unbiased", float(payload.sure_bits)
        elif isinstance(payload, Regathered):
            gradient, bits = "unbiased", 1.0  # of whatever width its source is
        new, there = _tensor(t, _Saved(stored), bits, gradient, 0), self._lookup(t)
        # What was computed again for one operation may be stored for the next one, which needs it more exact.
        if there is None or GRADIENTS.index(gradient) <= GRADIENTS.index(there.gradient) or there.part() is None:
            self._known[t.data_ptr(), t.numel()] = new
        self._saved.append(new)

    def has(self, t: Tensor) -> bool:
        """Whether the numbers of ``t`` follow from what is stored."""
        known = self._lookup(t)
        return known is not None and known.part() is not None

    def find(self, t: Tensor, op: str, args: tuple[Any, ...]) -> Known | None:
        """How to compute ``t``, which ``op`` is about to save, again; None if it is not known, or stored itself."""
        if not t.is_contiguous():
            return None
        known = self._lookup(t)
        if known is None and op in _OWN_RESULTS and args and isinstance(args[0], Tensor):
            source = self._lookup(args[0])
            if source is not None and args[0].shape == t.shape:
                known = _result(_OWN_RESULTS[op], op, (source,), {}, [source], t)
        if known is None and op in _CASTING:
            for original in args:
                source = self._lookup(original) if isinstance(original, Tensor) else None
                if source is not None and _is_cast_of(t, original):
                    known = _result(Tensor.to, "to", (source, t.dtype), {}, [source], t)
        if known is None or not 0 < known.work <= _MOST_WORK:
            return None
        part = known.part()
        return None if part is None else Known(part, known.bits, known.gradient)

    def made(self, func: Callable[..., Any], op: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """``func(*args, **kwargs)`` returned ``out``: remembers how, if it is cheap and its arguments are known."""
        if op not in _LINEAR and op not in _NONLINEAR:
            return
        if storage_of(out) is None or out.grad_fn is None or out._is_view() or not out.is_contiguous():
            return
        known = self._cheap(func, op, args, kwargs, out)
        if known is not None and op == "layer_norm" and known.gradient != "exact":
            known = self._layer_norm(args, kwargs, out)
        if known is not None and known.work <= _MOST_WORK:
            self._known[out.data_ptr(), out.numel()] = known

    def _cheap(self, func: Any, op: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> _Tensor | None:
        storage, sources = out.untyped_storage().data_ptr(), []
        values: list[Any] = []
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                if storage_of(value) is None or value.untyped_storage().data_ptr() == storage:
                    return None  # sparse, or changed in place
                known = self._lookup(value)
                if known is not None:
                    sources.append(known)
                values.append(_constant(value, out) if known is None else known)
                if values[-1] is None:
                    return None
            else:
                values.append(value)
        named = dict(zip(kwargs, values[len(args) :], strict=True))
        return _result(func, op, tuple(values[: len(args)]), named, sources, out) if sources else None

    def _layer_norm(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> _Tensor | None:
        """With the statistics that were saved: those of a rounded input would be of larger variance."""
        given = dict(zip(("input", "normalized_shape", "weight", "bias"), args, strict=False)) | kwargs
        x, affine = given["input"], [w for w in (given.get("weight"), given.get("bias")) if w is not None]
        source, lengths = self._lookup(x), tuple(x.shape[: x.dim() - len(given["normalized_shape"])])
        rows = [t for t in self._saved if t.shape[: len(lengths)] == lengths and t.shape != x.shape]
        constants = [_constant(w, out) for w in affine]
        if source is None or len(rows) != 2 or None in constants:
            return None
        func = partial(_normalize, dtype=out.dtype, has_weight=given.get("weight") is not None)
        return _result(func, "add", (source, *rows, *constants), {}, [source, *rows], out)

    def _lookup(self, t: Tensor) -> _Tensor | None:
        if storage_of(t) is None or not t.is_contiguous() or t.is_neg():
            return None
        known = self._known.get((t.data_ptr(), t.numel()))
        if known is None or known.storage.expired() or known.version != t._version or known.dtype != t.dtype:
            return None
        return known if known.shape == t.shape else replace(known, shape=tuple(t.shape))


def _tensor(t: Tensor, origin: _Saved | _Made, bits: float, gradient: str, work: int) -> _Tensor:
    storage = StorageWeakRef(t.untyped_storage())
    return _Tensor(storage, t._version, t.dtype, tuple(t.shape), origin, bits, gradient, work)


def _result(func: Any, op: str, args: tuple[Any, ...], kwargs: dict[str, Any], sources: list[_Tensor],
            out: Tensor) -> _Tensor:  # fmt: skip
    """What is known of ``out = func(*args, **kwargs)``, which was computed from ``sources``."""
    rounded = [source for source in sources if source.gradient != "exact"]
    gradient = max((source.gradient for source in sources), key=GRADIENTS.index)
    if rounded and (op in _NONLINEAR or len(rounded) > 1):  # two roundings may be of one tensor
        gradient = "approximate"
    device = out.device.type
    if torch.amp.is_autocast_available(device):
        func = partial(
            _under_autocast, func, device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        )
    made = _Made(func, args, kwargs)
    work = 1 + sum(source.work for source in sources)
    return _tensor(out, made, min(source.bits for source in sources), gradient, work)


def _constant(value: Tensor, out: Tensor) -> _Constant | None:
    lasts = lives_anyway(value) or isinstance(value, nn.Parameter)
    small = value.numel() <= min(_SMALL, out.numel() // _SMALL_SHARE)
    return _Constant(value, lasts) if lasts or (small and value.grad_fn is None) else None


def _is_unchanged(alive: Alive) -> bool:
    return alive.version is None or alive.tensor._version == alive.version


def _is_cast_of(t: Tensor, original: Tensor) -> bool:
    """Whether ``t`` is a copy of ``original`` in another type, perhaps as a matrix of all its rows."""
    node = t.grad_fn
    while node is not None and node.name() in _SAME_ORDER:
        node = node.next_functions[0][0]
    if node is None or node.name() != "ToCopyBackward0" or t.numel() != original.numel():
        return False
    node, index = node.next_functions[0]
    return node is original.grad_fn and index == original.output_nr


def _under_autocast(func: Any, device: str, enabled: bool, dtype: torch.dtype, *args: Any, **kwargs: Any) -> Tensor:
    """``func`` under the autocast of the forward pass, in which a power, say, may be of another type."""
    with torch.autocast(device, dtype, enabled=enabled, cache_enabled=False):
        out: Tensor = func(*args, **kwargs)
    return out


def _normalize(x: Tensor, mean: Tensor, inverse: Tensor, *affine: Tensor, dtype: torch.dtype,
               has_weight: bool) -> Tensor:  # fmt: skip
    weight = affine[0] if has_weight else None
    bias = affine[-1] if len(affine) > has_weight else None
    out = (x - mean) * inverse
    if weight is not None:
        out = out * weight
    return (out if bias is None else out + bias).to(dtype)
