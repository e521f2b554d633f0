"""Cross-entropy over a large vocabulary from the layer's input: logits, probabilities and their gradient in pieces.

A language model's logits are the largest tensor of a step: [N, V] for N tokens and V words, and plain autograd keeps
their log-softmax and then makes a gradient of the same size. Here the backward pass computes the logits again, some
rows at a time, from the input h [N, D] of the last linear layer and the log-sum of each row's exponentials,

    dlogits = (softmax(h W^T + b) - onehot(y)) * scale,   dh = dlogits W,   dW = dlogits^T h,

so neither of the two exists as a whole. The gradients are exact, and the loss is the same number bit for bit.
No gradient passes through the logits themselves: who asks for it after the loss (``torch.autograd.grad(loss, logits)``)
is told by torch that they are not part of the graph; hooks and ``retain_grad`` set before the loss keep torch's way.
(Wijmans et al., "Cut your losses in large-vocabulary language models", ICLR 2025, go further and fuse the forward too.)
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from graphlossy._compress._codecs import Alive
from graphlossy._compress._intercept import Interceptor
from graphlossy._compress._storages import storage_of
from graphlossy.autograd._once import once_differentiable

if TYPE_CHECKING:
    from graphlossy._compress._session import Session

__all__ = ["LossRouter"]

# Fewer classes than this, or fewer than twice the width of the features: the logits are nothing to speak of.
_LEAST_CLASSES = 1024
# Elements of a piece of the logits: 32 MiB of float32 on a CPU.
_BLOCK = {"cpu": 1 << 23}
_DEVICE_BLOCK = 1 << 26
# Of the sum over the rows; no class.
_IGNORED = -100
_CASTS = ("to", "float", "double")
# What may lie between the layer and the loss: views and casts.
_PASSED = frozenset(f"{name}Backward0" for name in "View UnsafeView ReshapeAlias Alias ToCopy".split())


class _Logits(NamedTuple):
    """Logits that a linear layer made in this pass, or a cast of them."""

    storage: StorageWeakRef
    version: int
    numel: int
    node: Any  # of the layer in the graph
    made: tuple[weakref.ref[Tensor], ...]  # what the layer, and each cast since, returned
    inputs: tuple[Tensor, Tensor, Tensor | None]  # hidden, weight, bias
    versions: tuple[int | None, ...]  # of the inputs
    dtype: torch.dtype  # in which the layer computed them

    def is_untouched(self, logits: Tensor) -> bool:
        """Whether the gradient would pass from ``logits`` to the layer unseen, and finds what the layer was given."""
        node = logits.grad_fn
        while node is not None and node is not self.node:
            if node.name() not in _PASSED:
                return False  # a module's backward hook, say
            node = node.next_functions[0][0]
        seen = [t for t in (logits, *(ref() for ref in self.made)) if t is not None]
        watched = any(t.retains_grad or _has_foreign_hooks(t) for t in seen)
        return node is not None and not watched and self.versions == _versions(self.inputs)


def _versions(inputs: tuple[Tensor | None, ...]) -> tuple[int | None, ...]:
    return tuple(None if t is None or t.is_inference() else t._version for t in inputs)


def _has_foreign_hooks(t: Tensor) -> bool:
    """Whether somebody else waits for the gradient of ``t``: a byte budget's own hooks only measure it."""
    return any(not type(hook).__module__.startswith("graphlossy.") for hook in (t._backward_hooks or {}).values())


class LossRouter(Interceptor):
    """Recognises the loss of logits that a linear layer made, and computes it in pieces."""

    def __init__(self) -> None:
        self._logits: dict[int, _Logits] = {}

    def end(self) -> None:
        self._logits.clear()

    def made(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """A torch call returned ``out``: remembers it if it may be logits."""
        for address in [a for a, logits in self._logits.items() if logits.storage.expired()]:
            del self._logits[address]  # with the graph behind them
        if not isinstance(out, Tensor) or out.dim() < 2 or out.shape[-1] < _LEAST_CLASSES or out.grad_fn is None:
            return
        if storage_of(out) is None or not out.is_contiguous() or out.numel() == 0:
            return
        if op == "linear" and not kwargs:
            hidden, weight, bias = (*args, None)[:3]
            if out.shape[-1] >= 2 * hidden.shape[-1]:
                inputs = hidden, weight, bias
                self._enter(out, out.grad_fn, (), inputs, _versions(inputs), out.dtype)
        elif op in _CASTS and isinstance(args[0], Tensor) and out.is_floating_point():
            made = self._lookup(args[0])
            # To a type that holds every number of the other one.
            if made is not None and out is not args[0] and torch.promote_types(args[0].dtype, out.dtype) == out.dtype:
                self._enter(out, made.node, made.made, made.inputs, made.versions, made.dtype)

    def replace(self, session: Session, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The loss, where this is a cross-entropy of known logits with one class for each row; else None."""
        if op != "cross_entropy" or not args or not isinstance(args[0], Tensor) or args[0].dim() != 2:
            return None
        names = ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
        given = dict(zip(names, args, strict=False)) | kwargs
        logits, target = given["input"], given.get("target")
        made = self._lookup(logits)
        if made is None or not made.is_untouched(logits) or not torch.is_grad_enabled():
            return None
        if not isinstance(target, Tensor) or target.dtype != torch.int64 or target.dim() != 1:
            return None
        plain = all(given.get(name) is None for name in ("weight", "size_average", "reduce"))
        reduction = given.get("reduction", "mean")
        if not plain or given.get("label_smoothing", 0.0) != 0.0 or reduction not in ("mean", "sum"):
            return None
        if logits.dtype not in (torch.float32, torch.float64) or logits.shape[0] != target.shape[0]:
            return None
        session.spared(logits, logits.numel() * logits.element_size())  # the log-softmax
        hidden, weight, bias = made.inputs
        loss: Tensor = _CrossEntropy.apply(
            hidden.reshape(-1, hidden.shape[-1]), weight, bias, logits.detach(), target,
            given.get("ignore_index", -100), reduction, made.dtype,
        )  # fmt: skip
        return loss

    def _enter(self, out: Tensor, node: Any, made: tuple[weakref.ref[Tensor], ...], inputs: Any, versions: Any,
               dtype: torch.dtype) -> None:  # fmt: skip
        storage, made = StorageWeakRef(out.untyped_storage()), (*made, weakref.ref(out))
        self._logits[out.data_ptr()] = _Logits(storage, out._version, out.numel(), node, made, inputs, versions, dtype)

    def _lookup(self, t: Tensor) -> _Logits | None:
        made = self._logits.get(t.data_ptr()) if storage_of(t) is not None and t.is_contiguous() else None
        if made is None or made.storage.expired() or made.version != t._version or made.numel != t.numel():
            return None
        return made if t.shape[-1] == made.inputs[1].shape[0] else None


class _CrossEntropy(torch.autograd.Function):
    """Mean or sum of -log softmax(h W^T + b)[y] over the rows whose y is not ``ignored``."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, logits, target, ignored, reduction, dtype):  # type: ignore[no-untyped-def]
        counted = target != ignored
        picked, log_sum = logits.new_empty(logits.shape[0], 1), logits.new_empty(logits.shape[0])
        step = _rows_at_a_time(logits.shape[1], logits.device)
        for start in range(0, logits.shape[0], step):
            part = slice(start, start + step)
            log_softmax = F.log_softmax(logits[part], 1)
            # By torch's own function, which refuses a target that is no class.
            losses = F.nll_loss(log_softmax, target[part], ignore_index=ignored, reduction="none")
            torch.neg(losses, out=picked[part, 0])
            # Where the log-softmax is nearest to 0, the difference loses the fewest digits.
            largest, place = logits[part].max(1, keepdim=True)
            log_sum[part] = (largest - log_softmax.gather(1, place))[:, 0]
        # What needs no gradient is a frozen weight, or features handed in, which live anyway.
        given = tuple(zip((hidden, weight, bias), ctx.needs_input_grad, strict=False))
        ctx.constants = [None if t is None or wanted else Alive(t) for t, wanted in given]
        ctx.save_for_backward(*(t if wanted else None for t, wanted in given), log_sum, target)
        ctx.ignored, ctx.dtype = ignored, dtype
        ctx.divisor = counted.sum().clamp(min=1) if reduction == "mean" else None
        # torch's own sum over the rows, in its own order.
        return F.nll_loss(picked, torch.zeros_like(target).where(counted, _IGNORED), ignore_index=_IGNORED,
                          reduction=reduction)  # fmt: skip

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        *saved, log_sum, target = ctx.saved_tensors
        hidden, weight, bias = (t if c is None else c.unpack() for t, c in zip(saved, ctx.constants, strict=True))
        counted = target != ctx.ignored
        scale = (grad if ctx.divisor is None else grad / ctx.divisor).to(log_sum.dtype)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        low_weight = weight.to(ctx.dtype)
        low_bias = None if bias is None else bias.to(ctx.dtype)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=log_sum.dtype) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=log_sum.dtype) if wants_bias else None
        step = _rows_at_a_time(weight.shape[0], weight.device)
        with _without_autocast(hidden.device.type):
            for start in range(0, hidden.shape[0], step):
                part = slice(start, start + step)
                rows = hidden[part].to(ctx.dtype)
                block = F.linear(rows, low_weight, low_bias).to(log_sum.dtype)
                block.sub_(log_sum[part].unsqueeze(1)).exp_()
                place = target[part].where(counted[part], 0).unsqueeze(1)
                block.scatter_add_(1, place, block.new_full((1, 1), -1.0).expand_as(place))
                block.mul_((scale * counted[part]).unsqueeze(1))
                if grad_bias is not None:
                    grad_bias += block.sum(0)
                block = block.to(ctx.dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = (block @ low_weight).to(hidden.dtype)
                if grad_weight is not None:
                    if block.dtype is grad_weight.dtype:
                        grad_weight.addmm_(block.t(), rows)
                    else:
                        grad_weight += block.t() @ rows
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _rows_at_a_time(classes: int, device: torch.device) -> int:
    return max(1, _BLOCK.get(device.type, _DEVICE_BLOCK) // classes)
