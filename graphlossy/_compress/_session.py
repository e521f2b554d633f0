"""One forward pass under compression: what each operation saves is stored by the rule of that operation.

Two public mechanisms of torch work together. A ``TorchFunctionMode`` sees every torch call, functional ones included,
and so knows which operation is running; saved-tensor hooks are handed what that operation keeps for its backward pass
and store it as the operation's rule says. The operations and their backward formulas stay torch's own.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from graphlossy._compress._bits import BitPolicy
from graphlossy._compress._codecs import (
    Alive,
    CastAgain,
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
from graphlossy._compress._frames import COMPILED, OURS, OUTSIDE, UNKNOWN, Frame, frame_of
from graphlossy._compress._intercept import Interceptor
from graphlossy._compress._modules import ModuleStack
from graphlossy._compress._recompute import KnownTensors
from graphlossy._compress._rules import op_name, rule_for
from graphlossy._compress._storages import FirstTimes, address_of, lives_anyway, storage_of, weight_copy
from graphlossy.core import narrow_index
from graphlossy.core.ledger import GRADIENTS, Ledger, Record

__all__ = ["Session"]

# Below this many elements a tensor is kept as it is: the fixed cost of storing it otherwise is not worth it.
MIN_ELEMENTS = 4096
# Rows shorter than this are scalars attached to a node or an edge (norms, attention coefficients, edge weights): small
# beside the features, and an error in one of them multiplies a whole row.
MIN_CHANNELS = 16


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
        recompute: compute the results of cheap operations again instead of storing them.
        interceptors: carry some torch calls out in another way.
    """

    def __init__(self, policy: BitPolicy | None, ledger: Ledger, modules: ModuleStack, seed: int,
                 is_over: Callable[[], bool], recompute: bool = False,
                 interceptors: Sequence[Interceptor] = ()) -> None:  # fmt: skip
        super().__init__()
        self.policy, self.ledger, self.modules = policy, ledger, modules
        self._seed, self._is_over = seed, is_over
        self._count, self._turn = 0, Turn()
        self._frame = OUTSIDE
        self._entered = self._paused = False
        self._made_here: dict[int, StorageWeakRef] = {}
        self._gathers: dict[int, _Gathered] = {}
        self._plain, self._kept = FirstTimes(), FirstTimes()  # what autograd keeps alive, what we do
        self._payloads: dict[tuple[Any, ...], tuple[Any, StorageWeakRef]] = {}
        self._known = KnownTensors() if recompute else None
        self._interceptors = interceptors
        self._originals: dict[int, int] = {}
        self._stored_at: dict[int, tuple[StorageWeakRef, int]] = {}
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
        self._plain.clear()
        self._kept.clear()
        self._payloads.clear()
        if self._known is not None:
            self._known.clear()
        self._originals.clear()
        self._stored_at.clear()
        for interceptor in self._interceptors:
            interceptor.end()
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
            if self._known is not None:
                self._known.begin()
            replaced = self._replace(name, args, kwargs)
            out = func(*args, **kwargs) if replaced is None else replaced
            if self._known is not None and replaced is None:
                self._known.made(func, name, args, kwargs, out)
            for interceptor in self._interceptors:
                interceptor.made(name, args, kwargs, out)
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

    def _replace(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a torch call that is carried out in another way here, or None."""
        out = None if self.policy is None else self.modules.replace(name, args, kwargs)
        if out is None and self._interceptors and self._hooks_in_force():
            results = (interceptor.replace(self, name, args, kwargs) for interceptor in self._interceptors)
            out = next((result for result in results if result is not None), None)
        return out

    # -- for interceptors -------------------------------------------------------------------------------------------

    def is_stored(self, t: Tensor) -> bool:
        """Whether saving ``t`` would cost nothing, because it is stored already or follows from what is."""
        if lives_anyway(t) or (self._known is not None and self._known.has(t)):
            return True
        seen, numel = self._stored_at.get(t.data_ptr(), (None, 0))
        return seen is not None and not seen.expired() and numel == t.numel() and t.is_contiguous()

    def spared(self, t: Tensor, nbytes: int) -> None:
        """Plain autograd would keep ``nbytes`` more in this call, of a tensor like ``t``; nothing is kept."""
        self._enter(t, self._frame, nbytes, 0, 8.0 * t.element_size(), "exact", "recomputed", None)

    def stands_in(self, t: Tensor, original: Tensor, nbytes: int | None = None) -> None:
        """``t`` is going to be saved in this call in place of ``original``, or of ``nbytes`` of copies of it."""
        self._originals[t.data_ptr()] = self._plain.bytes(original) if nbytes is None else nbytes

    def next_seed(self) -> int:
        """A seed of this pass that was not given before."""
        self._count += 1
        # Weyl sequence: distinct 63-bit seeds; the kernel hashes them.
        return (self._seed + self._count * 0x9E3779B97F4A7C15) & 0x7FFF_FFFF_FFFF_FFFF

    def _note_made(self, out: Tensor, args: tuple[Any, ...]) -> None:
        """Remembers that ``out`` was made in this pass: if no gradient flows to it, only that tells it from an input.

        It may be detached later, or saved by a user's function, in which nothing has a gradient.
        """
        storage = None if out._is_view() else storage_of(out)
        if storage is not None:
            address = storage.data_ptr()
            # detach(), in-place operations and no-op casts give back the storage that they were given.
            if not any(address_of(a) == address for a in args[:2]):
                self._made_here[address] = StorageWeakRef(storage)

    def _note_gathered(self, out: Tensor, args: tuple[Any, ...]) -> None:
        """Remembers rows gathered from a smaller tensor: PyG's messages x_j, which can be gathered again."""
        if len(args) != 3 or args[1] not in (0, -args[0].dim()) or out.numel() <= args[0].numel():
            return
        storage, source, rows = storage_of(out), args[0], args[2]
        if storage is not None and out.is_contiguous() and not source.is_inference() and not rows.is_inference():
            made = StorageWeakRef(storage), out.numel(), out._version
            self._gathers[storage.data_ptr()] = _Gathered(*made, weakref.ref(source), source._version, rows)

    # -- the hooks --------------------------------------------------------------------------------------------------

    def _pack(self, t: Tensor) -> Any:
        frame = self._frame if self._frame is not OUTSIDE else frame_of(sys._getframe(1))
        with torch._C.DisableTorchFunction():
            if storage_of(t) is None or t.numel() == 0 or self._is_over():
                return t
            copied, source = weight_copy(t, (*frame.args, *frame.kwargs.values()))
            if copied and (source is None or self._known is None):
                return self._keep(t, t, frame)
            if source is not None:
                self._enter(t, frame, self._plain.bytes(t), 0, 8.0 * t.element_size(), "exact", "recomputed", None)
                return CastAgain(source, t)
            if lives_anyway(t):
                return Alive(t)
            if frame.name == "sparse_mm" and t.dim() == 1:  # the cached graph's own arrays
                return Alive(t)
            if frame is COMPILED:
                if t.grad_fn is not None and t.grad_fn.name() != "CompiledFunctionBackward":
                    return Alive(t)  # handed in: the activation before the compiled part
            elif t.grad_fn is None and self._is_input(t, frame):
                return Alive(t)
            small = squeeze_expanded(t) if 0 in t.stride() else t
            stored = None if self._known is None or small is not t else self._compute_again(t, frame, self._known)
            if stored is not None:
                return stored
            stored = self._keep(t, small, frame) if self.policy is None else self._store(t, small, frame, self.policy)
            if self._known is not None:
                self._known.stored(t, stored)
            if isinstance(stored.payload, (Kept, LowBit)):
                self._stored_at[t.data_ptr()] = StorageWeakRef(t.untyped_storage()), t.numel()
            return stored

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
        if frame in (OUTSIDE, UNKNOWN, OURS):
            return True
        address = address_of(t)
        return any(address_of(a) == address for a in (*frame.args, *frame.kwargs.values()))

    def _was_made_here(self, t: Tensor) -> bool:
        address = address_of(t)
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
        make = partial(kind, bits=bits, group_size=policy.group_size)
        return share("quantized", bits, rule.gradient, lambda flat: make(flat, seed=self.next_seed()), (kind,))

    def _compute_again(self, t: Tensor, frame: Frame, known_tensors: KnownTensors) -> Stored | None:
        """If ``t`` follows from what is stored by cheap operations: how, where that is good enough for this one."""
        if t.numel() < MIN_ELEMENTS or not t.is_floating_point():
            return None
        known = known_tensors.find(t, frame.name, frame.args)
        if known is None or frame.rule.values is not None or not isinstance(known.part.source, Stored):
            return None
        gradient = known.gradient
        if gradient != "exact":
            if frame.rule.kind == "exact" or known.bits < frame.rule.min_bits or not _worth_rounding(t, frame):
                return None
            gradient = max(gradient, frame.rule.gradient, key=GRADIENTS.index)
        self._enter(t, frame, self._plain.bytes(t), 0, known.bits, gradient, "recomputed", None)
        shape = tuple(t.shape)
        return Stored(known.part.source.payload, tuple(range(t.dim())), shape, shape, self._turn)

    def _gather_again(self, t: Tensor, small: Tensor, frame: Frame, policy: BitPolicy) -> Stored | None:
        """If the rows of ``t`` were gathered from a smaller tensor: stores that one and the index instead."""
        made = self._gathers.get(t.untyped_storage().data_ptr())
        source = made.source() if made is not None and not made.storage.expired() else None
        if made is None or source is None or small.data_ptr() != t.data_ptr() or t._version != made.version:
            return None
        if small.numel() != made.numel:  # a slice of them
            return None
        if source._version != made.source_version or not small.is_contiguous() or lives_anyway(source):
            return None
        plain = self._plain.bytes(t)
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
        plain, own = self._plain.bytes(t), self._kept.bytes(t)
        plain, bits = self._originals.pop(t.data_ptr(), plain), 8.0 * t.element_size()
        self._enter(t, frame, plain, own, bits, "exact", "exact" if own else "shared", stored.payload)
        return stored

    def _share(self, t: Tensor, small: Tensor, frame: Frame, how: str, bits: float, gradient: str,
               make: Callable[[Tensor], Payload], form: tuple[Any, ...] = ()) -> Stored:  # fmt: skip
        """Stores ``t`` as ``make`` says, unless the same content is stored in the same form already."""
        flat, order = dense_order(small)
        # Views of one dense block share it whatever their shape; the version tells an in-place change.
        layout = None if flat.data_ptr() == small.data_ptr() else (tuple(small.shape), tuple(small.stride()))
        key = (how, *form, small.data_ptr(), small.numel(), layout, small.dtype, small.is_neg(), small._version)
        plain = self._plain.bytes(t)
        plain = self._originals.pop(t.data_ptr(), plain)
        known, storage = self._payloads.get(key, (None, None))
        # The address may belong to another tensor by now.
        payload = known() if known is not None and storage is not None and not storage.expired() else None
        if isinstance(payload, LowBit) and payload.sure_bits < frame.rule.min_bits:
            payload = None
        if payload is None:
            payload = make(flat)
            self._payloads[key] = (weakref.ref(payload), StorageWeakRef(small.untyped_storage()))
            self._enter(t, frame, plain, payload.nbytes, bits, gradient, how, payload)
        else:
            self._enter(t, frame, plain, 0, bits, gradient, "shared", None)
        return Stored(payload, order, tuple(small.shape), tuple(t.shape), self._turn)

    def _enter(self, t: Tensor, frame: Frame, plain: int, saved: int, bits: float, gradient: str, how: str,
               owner: object) -> None:  # fmt: skip
        dtype = str(t.dtype).removeprefix("torch.")
        record = Record(self.modules.name, frame.name, tuple(t.shape), dtype, plain, saved, bits, gradient, how)
        entry = self.ledger.add(record, owner)
        self._turn.freed(t.device, plain - saved)
        if self.policy is not None and owner is not None:
            self.policy.stored(owner, entry, frame.rule.min_bits, self.next_seed)


def _unpack(stored: Any) -> Tensor:
    return stored.unpack() if isinstance(stored, (Stored, Alive)) else stored


def _worth_rounding(small: Tensor, frame: Frame) -> bool:
    if small.dim() < 2 or small.numel() < MIN_CHANNELS * small.shape[0]:
        return False
    rounds = frame.rule.rounds
    return rounds is None or rounds(small, frame.args, frame.kwargs)
