"""One forward pass under compression: what each operation saves is stored by the rule of that operation.

Two public mechanisms of torch work together. A ``TorchFunctionMode`` sees every torch call, functional ones included,
and so knows which operation is running; saved-tensor hooks are handed what that operation keeps for its backward pass
and store it as the operation's rule says. The operations and their backward formulas stay torch's own.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from graphlossy._compress._bits import BitPolicy
from graphlossy._compress._codecs import (
    Alive,
    Kept,
    LowBit,
    Narrowed,
    Payload,
    Regathered,
    Stored,
    Turn,
    TwoValued,
    Unneeded,
    ZerosKept,
    dense_order,
    squeeze_expanded,
)
from graphlossy._compress._frames import COMPILED, OUTSIDE, UNKNOWN, Frame, frame_of
from graphlossy._compress._modules import ModuleStack
from graphlossy._compress._rules import op_name, rule_for
from graphlossy.core import narrow_index
from graphlossy.core.ledger import Ledger, Record

__all__ = ["Session"]

# Below this many elements a tensor is kept as it is: the fixed cost of storing it otherwise is not worth it.
MIN_ELEMENTS = 4096
# Rows shorter than this are scalars attached to a node or an edge (norms, attention coefficients, edge weights): small
# beside the features, and an error in one of them multiplies a whole row.
MIN_CHANNELS = 16

_VIEWS_OF_PARAMETERS = frozenset(
    f"{name}Backward0"
    for name in "ToCopy T Transpose Permute View ReshapeAlias UnsafeView Expand Select Slice Split Clone".split()
)


class _Gathered(NamedTuple):
    """``out = source.index_select(0, rows)``."""

    storage: StorageWeakRef
    numel: int
    version: int
    source: weakref.ref[Tensor]
    source_version: int
    rows: Tensor


class Session(TorchFunctionMode):
    """Enters the mode and the hooks for one forward pass, and fills ``ledger``.

    Args:
        policy: chooses the width of each tensor; ``None`` counts only and stores everything as it is.
        ledger: receives one record per saved tensor.
        modules: knows which module's forward is running.
        seed: start of the counter-based rounding noise.
        is_over: whether the pass has ended without anybody saying so; nothing is done from then on.
    """

    def __init__(
        self, policy: BitPolicy | None, ledger: Ledger, modules: ModuleStack, seed: int, is_over: Callable[[], bool]
    ) -> None:
        super().__init__()
        self.policy, self.ledger, self.modules = policy, ledger, modules
        self._seed, self._is_over = seed, is_over
        self._count, self._turn = 0, Turn()
        self._frame = OUTSIDE
        self._entered = self._paused = False
        self._made_here: dict[int, StorageWeakRef] = {}
        self._gathers: dict[int, _Gathered] = {}
        self._counted: dict[int, StorageWeakRef] = {}
        self._payloads: dict[tuple[Any, ...], tuple[Any, StorageWeakRef]] = {}
        modules.hooks_in_force, modules.pause, modules.resume = (
            self._hooks_in_force, self.enter_compiled, self.leave_compiled)  # fmt: skip
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    # -- the mode ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Session:
        if self.policy is not None:
            self.policy.begin(self.ledger)
        self._hooks.__enter__()
        self._entered = True
        if not self._paused:
            super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if not self._paused:
            super().__exit__(*exc)
        self._hooks.__exit__(*exc)
        # The tables only serve while tensors are being saved; the stored tensors belong to the graph now.
        self._made_here.clear()
        self._gathers.clear()
        self._counted.clear()
        self._payloads.clear()
        if self.policy is not None and exc[0] is None:
            self.policy.end()

    def enter_compiled(self) -> None:
        """Compiled code comes next: the mode steps aside (the compiler would trace it), the hooks stay."""
        if self._entered:
            super().__exit__(None, None, None)
        self._paused = True
        self._frame = COMPILED

    def leave_compiled(self) -> None:
        """Compiled code is over."""
        self._paused = False
        self._frame = OUTSIDE
        super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():  # traced into a compiled function inside the model
            return func(*args, **kwargs)
        name = op_name(func)
        if name == "get" or self._is_over():  # attributes such as .shape
            return func(*args, **kwargs)
        outer = self._frame
        self._frame = Frame(name, rule_for(name, args), args, kwargs)
        try:
            if self.policy is not None:
                replaced = self.modules.replace(name, args, kwargs)
                out = func(*args, **kwargs) if replaced is None else replaced
            else:
                out = func(*args, **kwargs)
            if self.policy is not None:
                self.policy.watch(out)
        finally:
            self._frame = outer
        if isinstance(out, Tensor):
            self._note_made(out, args)
            if name == "index_select":
                self._note_gathered(out, args)
        elif isinstance(out, (tuple, list)):
            for item in out:
                if isinstance(item, Tensor):
                    self._note_made(item, args)
        return out

    def _note_made(self, out: Tensor, args: tuple[Any, ...]) -> None:
        """Remembers that ``out`` was made in this pass: if no gradient flows to it, only that tells it from an input.

        It may be detached later, or saved by a user's function, in which nothing has a gradient.
        """
        storage = None if out._is_view() else _storage(out)
        if storage is not None:
            address = storage.data_ptr()
            # detach(), in-place operations and no-op casts give back the storage that they were given.
            if not any(_address(a) == address for a in args[:2]):
                self._made_here[address] = StorageWeakRef(storage)

    def _note_gathered(self, out: Tensor, args: tuple[Any, ...]) -> None:
        """Remembers rows gathered from a smaller tensor: PyG's messages x_j, which can be gathered again."""
        if len(args) != 3 or args[1] not in (0, -args[0].dim()) or out.numel() <= args[0].numel():
            return
        storage, source, rows = _storage(out), args[0], args[2]
        if storage is not None and out.is_contiguous() and not source.is_inference() and not rows.is_inference():
            made = StorageWeakRef(storage), out.numel(), out._version
            self._gathers[storage.data_ptr()] = _Gathered(*made, weakref.ref(source), source._version, rows)

    # -- the hooks --------------------------------------------------------------------------------------------------

    def _pack(self, t: Tensor) -> Any:
        frame = self._frame if self._frame is not OUTSIDE else frame_of(sys._getframe(1))
        with torch._C.DisableTorchFunction():
            if _storage(t) is None or t.numel() == 0 or self._is_over():
                return t
            if _lives_anyway(t):
                return Alive(t)
            if frame.name == "sparse_mm" and t.dim() == 1:  # the cached graph's own arrays
                return Alive(t)
            if frame is COMPILED:
                if t.grad_fn is not None and t.grad_fn.name() != "CompiledFunctionBackward":
                    return Alive(t)  # handed in: the activation before the compiled part
            elif t.grad_fn is None and self._is_input(t, frame):
                return Alive(t)
            small = squeeze_expanded(t) if 0 in t.stride() else t
            if self.policy is None:
                return self._keep(t, small, frame)
            return self._store(t, small, frame, self.policy)

    def _hooks_in_force(self) -> bool:
        """Whether tensors saved now reach us. Inside a checkpointed region, or under ``save_on_cpu``, they do not."""
        top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
        if top_hooks is None:  # a torch that does not tell
            return True
        top = top_hooks(False)
        return top is not None and top[0] == self._pack

    def _is_input(self, t: Tensor, frame: Frame) -> bool:
        """Whether ``t``, which needs no gradient, was handed in from outside (and so lives whatever we do)."""
        if self._was_made_here(t):
            return False
        if frame in (OUTSIDE, UNKNOWN):
            return True
        address = _address(t)
        return any(_address(a) == address for a in (*frame.args, *frame.kwargs.values()))

    def _was_made_here(self, t: Tensor) -> bool:
        address = _address(t)
        made = None if address is None else self._made_here.get(address)
        return made is not None and not made.expired()

    def _store(self, t: Tensor, small: Tensor, frame: Frame, policy: BitPolicy) -> Stored:
        """Stores ``t`` by the rule of the operation that saves it; ``small`` is ``t`` without expanded dimensions."""
        rule, share = frame.rule, partial(self._share, t, small, frame)
        if small.numel() < MIN_ELEMENTS:
            return self._keep(t, small, frame)
        if t.dtype == torch.bool:
            return share("mask", 1, "exact", lambda flat: TwoValued(flat, None, 0.0, 1.0, torch.bool))
        if t.dtype == torch.int64 and narrow_index(small).dtype == torch.int32:
            return share("narrowed", 32, "exact", lambda flat: Narrowed(narrow_index(flat)))
        # What compiled code both returns and saves may be a log-softmax.
        returned = frame is COMPILED and t.grad_fn is not None
        returned |= frame is UNKNOWN and t.grad_fn is not None and "Softmax" in t.grad_fn.name()
        if not t.is_floating_point() or rule.kind == "exact" or returned:
            return self._keep(t, small, frame)
        if rule.values is not None:
            low, high = rule.values(frame.args, frame.kwargs, t)
            is_high = None if rule.high is None else partial(rule.high, frame.args, frame.kwargs)
            form = (frame.name, low, high)
            return share("mask", 1, "exact", lambda flat: TwoValued(flat, is_high, low, high, t.dtype), form)
        if frame.name == "sparse_mm" and not frame.args[0].requires_grad:
            # torch.sparse.mm(A, x, "mean") saves x, which only the gradient of A's values would need.
            return share("unneeded", 0, "exact", lambda flat: Unneeded(t))
        if not _worth_rounding(small, frame):
            return self._keep(t, small, frame)
        again = self._gather_again(t, small, frame, policy)
        if again is not None:
            return again
        bits = policy.bits(self.modules.name, frame.name, rule.min_bits)
        unknown = frame in (OUTSIDE, COMPILED, UNKNOWN)
        kind = ZerosKept if unknown and ZerosKept.fits(small) else LowBit
        return share("quantized", bits, rule.gradient, lambda flat: kind(flat, bits, self._next_seed()), (kind,))

    def _gather_again(self, t: Tensor, small: Tensor, frame: Frame, policy: BitPolicy) -> Stored | None:
        """If the rows of ``t`` were gathered from a smaller tensor: stores that one and the index instead."""
        made = self._gathers.get(t.untyped_storage().data_ptr())
        source = made.source() if made is not None and not made.storage.expired() else None
        if made is None or source is None or small.data_ptr() != t.data_ptr() or t._version != made.version:
            return None
        if small.numel() != made.numel:  # a slice of them
            return None
        if source._version != made.source_version or not small.is_contiguous() or _lives_anyway(source):
            return None
        plain = self._plain_bytes(t)
        given = source.grad_fn is None and not self._was_made_here(source)
        stored = Alive(source) if given else self._store(source, source, frame, policy)
        payload = Regathered(stored, self._pack(made.rows))
        low = stored.payload if isinstance(stored, Stored) else None
        exact = 8.0 * t.element_size(), "exact"
        bits, gradient = (low.bits, frame.rule.gradient) if isinstance(low, LowBit) else exact
        self._enter(t, frame, plain, 0, bits, gradient, "gathered", None)
        return Stored(payload, tuple(range(small.dim())), tuple(small.shape), tuple(t.shape), self._turn)

    def _keep(self, t: Tensor, small: Tensor, frame: Frame) -> Stored:
        stored = Stored(Kept(t), None, tuple(small.shape), tuple(t.shape), self._turn)
        plain = self._plain_bytes(t)
        bits = 8.0 * t.element_size()
        self._enter(t, frame, plain, plain, bits, "exact", "exact" if plain else "shared", stored.payload)
        return stored

    def _share(self, t: Tensor, small: Tensor, frame: Frame, how: str, bits: float, gradient: str,
               make: Callable[[Tensor], Payload], form: tuple[Any, ...] = ()) -> Stored:  # fmt: skip
        """Stores ``t`` as ``make`` says, unless the same content is stored in the same form already."""
        flat, order = dense_order(small)
        # Views of one dense block share it whatever their shape; the version tells an in-place change.
        layout = None if flat.data_ptr() == small.data_ptr() else (tuple(small.shape), tuple(small.stride()))
        key = (how, *form, small.data_ptr(), small.numel(), layout, small.dtype, small.is_neg(), small._version)
        plain = self._plain_bytes(t)
        known, storage = self._payloads.get(key, (None, None))
        # The address may belong to another tensor by now.
        payload = known() if known is not None and storage is not None and not storage.expired() else None
        if isinstance(payload, LowBit) and payload.bits < frame.rule.min_bits:
            payload = None
        if payload is None:
            payload = make(flat)
            self._payloads[key] = (weakref.ref(payload), StorageWeakRef(small.untyped_storage()))
            self._enter(t, frame, plain, payload.nbytes, bits, gradient, how, payload)
        else:
            self._enter(t, frame, plain, 0, bits, gradient, "shared", None)
        return Stored(payload, order, tuple(small.shape), tuple(t.shape), self._turn)

    def _next_seed(self) -> int:
        self._count += 1
        # Weyl sequence: distinct 63-bit seeds; the kernel hashes them.
        return (self._seed + self._count * 0x9E3779B97F4A7C15) & 0x7FFF_FFFF_FFFF_FFFF

    def _plain_bytes(self, t: Tensor) -> int:
        """Bytes that plain autograd keeps alive for ``t``: its storage, counted once."""
        storage = t.untyped_storage()
        seen = self._counted.get(storage.data_ptr())
        if seen is not None and not seen.expired():
            return 0
        self._counted[storage.data_ptr()] = StorageWeakRef(storage)
        return storage.nbytes()

    def _enter(self, t: Tensor, frame: Frame, plain: int, saved: int, bits: float, gradient: str, how: str,
               owner: object) -> None:  # fmt: skip
        dtype = str(t.dtype).removeprefix("torch.")
        record = Record(self.modules.name, frame.name, tuple(t.shape), dtype, plain, saved, bits, gradient, how)
        entry = self.ledger.add(record, owner)
        if self.policy is not None and owner is not None:
            self.policy.stored(owner, entry, frame.rule.min_bits, self._next_seed)


def _storage(value: Any) -> torch.UntypedStorage | None:
    """The memory of a dense tensor; None for anything else, and for tensors that only wrap or stand for others."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested:
        return None
    try:
        storage = value.untyped_storage()
        storage.data_ptr()
    except (RuntimeError, NotImplementedError):  # PyG's EdgeIndex, torch.vmap
        return None
    return storage


def _address(value: Any) -> int | None:
    """Where the storage of a dense tensor begins; None for anything else."""
    storage = _storage(value)
    return None if storage is None else storage.data_ptr()


def _unpack(stored: Any) -> Tensor:
    return stored.unpack() if isinstance(stored, (Stored, Alive)) else stored


def _worth_rounding(small: Tensor, frame: Frame) -> bool:
    if small.dim() < 2 or small.numel() < MIN_CHANNELS * small.shape[0]:
        return False
    rounds = frame.rule.rounds
    return rounds is None or rounds(small, frame.args, frame.kwargs)


def _lives_anyway(t: Tensor) -> bool:
    """Whether ``t`` is a parameter (or another leaf that gathers a gradient), or a cast or a view of one."""
    base = t._base if t._is_view() and t._base is not None else t
    if base.is_leaf:
        return base.requires_grad
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
