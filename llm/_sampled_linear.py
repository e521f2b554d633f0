"""Linear layers that keep a sample of their input's rows for the gradient of the weight.

y = x W^T + b; dx = dy W and db = sum(dy) are exact, dW = dy^T x = sum_i dy_i x_i^T is estimated from k of the n rows
(tokens), unbiased but for top-k: WTA-CRS (Liu et al., NeurIPS 2023) and its relatives in graphlossy.core.sample_rows.
The forward value is torch's own. Modules that are given the same input (q, k and v; gate and up) share one sample.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from graphlossy._compress._intercept import Interceptor
from graphlossy.core.sampling import RowSample, sample_rows
from graphlossy.llm._norms import NormCache

if TYPE_CHECKING:
    from graphlossy._compress._session import Session

__all__ = ["RowSampling"]

# As in the paper's code: fewer rows would say nothing of the others.
_FEWEST_ROWS = 10
# Inputs narrower than this (what a LoRA adapter hands to its second half) cost less than the sample's indices.
_NARROWEST = 32
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class RowSampling:
    """Which linear layers keep how many rows, chosen how; and what is remembered from one pass to the next.

    Args:
        method: of :func:`graphlossy.core.sample_rows`.
        share: of the rows, in (0, 1].
        modules: names of the layers.
    """

    def __init__(self, method: str, share: float, modules: Collection[str]) -> None:
        self.method, self.share, self.modules = method, share, frozenset(modules)
        self.norms = NormCache()

    @property
    def needs_ids(self) -> bool:
        """Whether samples have to be known by number: everything but uniform draws weighs rows by their gradients."""
        return self.method != "uniform" and self.share < 1

    def check_ids(self, ids: Any) -> None:
        """Raises where the numbers of a batch's samples are missing or of the wrong kind."""
        if ids is None and self.needs_ids:
            raise ValueError(
                f"estimator {self.method!r} weighs rows by the gradients of each sample's last visit and has to know "
                "the samples: give the model sample_ids, integers [B] (graphlossy.llm.SampleIds and with_sample_ids "
                "put them into batches), or take estimator='uniform'"
            )
        if ids is not None and not (isinstance(ids, Tensor) and ids.dim() == 1 and ids.dtype in _INTEGERS):
            what = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(f"sample_ids must be an integer tensor [B], one number for each sample; got {what}")

    def begin_pass(self, ids: Tensor | None) -> Interceptor:
        """What carries out the linear layers of a pass over the samples ``ids`` [B]."""
        return _Sampler(self, [] if ids is None else ids.flatten().tolist())

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"norms": self.norms.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        self.norms.load_state_dict(state["norms"])

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of a model starts without memories, as it starts with an empty ledger.
        return RowSampling, (self.method, self.share, self.modules)


@dataclass
class _Group:
    """Layers with one input: their sample. It lives no longer than the input, nor than the forward pass."""

    storage: StorageWeakRef
    version: int
    sample: RowSample
    index: Tensor
    rows: Tensor | None  # kept rows [m, D]; None: the whole input costs nothing
    visit: _Visit


@dataclass
class _Visit:
    """What the backward pass has to know of a group: nothing of its rows, which are kept in another form then.

    Attributes:
        leader: first layer of the group, under whose name the norms are kept.
        shape: samples and tokens, where the rows are those.
        squares: squared norms of the gradient's rows, layer by layer.
    """

    leader: str
    shape: tuple[int, int] | None
    squares: dict[str, Tensor] = field(default_factory=dict)


class _Sampler(Interceptor):
    def __init__(self, rows: RowSampling, ids: list[int]) -> None:
        self._rows, self._ids = rows, ids
        self._groups: dict[tuple[Any, ...], _Group] = {}

    def replace(self, session: Session, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        if op not in ("linear", "addmm") or kwargs or not torch.is_grad_enabled():
            return None
        name = session.modules.name
        if name not in self._rows.modules:
            return None
        # transformers' Conv1D, GPT-2's linear layer: addmm(bias, x, W) with W [in, out].
        x, weight, bias = (args[1], args[2].t(), args[0]) if op == "addmm" else (*args, None)[:3]
        count = math.prod(x.shape[:-1])
        keep = max(_FEWEST_ROWS, round(self._rows.share * count))
        if not weight.requires_grad or x.shape[-1] < _NARROWEST or keep >= count or not x.is_floating_point():
            return None
        group = self._group_of(session, x, name, count, keep)
        whole = group.rows is None
        kept = x if group.rows is None else group.rows
        if not whole:  # autocast makes, and plain autograd keeps, a copy for each layer
            session.stands_in(kept, x, None if kept.dtype == x.dtype else x.numel() * kept.element_size())
        record = _Record(self._rows.norms, self._ids, group.visit, name) if self._rows.needs_ids else None
        out: Tensor = _SampledLinear.apply(x, weight, bias, kept, group.index, group.sample, whole, record)
        return out

    def end(self) -> None:
        self._groups.clear()

    def _group_of(self, session: Session, x: Tensor, name: str, count: int, keep: int) -> _Group:
        for key in [key for key, group in self._groups.items() if group.storage.expired()]:
            del self._groups[key]
        # Views of one memory, such as x and x.transpose(0, 1), are other rows in another order.
        layout = None if x.is_contiguous() else (tuple(x.shape), x.stride())
        key = (x.data_ptr(), count, x.shape[-1], x.dtype, layout, torch.is_autocast_enabled(x.device.type))
        known = self._groups.get(key)
        if known is not None and known.version == x._version:
            return known
        samples = len(self._ids)
        shape = (samples, count // samples) if samples and count % samples == 0 else None
        sample = sample_rows(self._weights(x, name, shape), keep, self._rows.method, session.next_seed())
        rows = None
        if not session.is_stored(x):
            with torch.no_grad(), torch._C.DisableTorchFunction():
                rows = x.detach().reshape(count, -1)[sample.index]
                if torch.is_autocast_enabled(x.device.type):
                    rows = rows.to(torch.get_autocast_dtype(x.device.type))
        index = sample.index.to(torch.int32)
        group = _Group(StorageWeakRef(x.untyped_storage()), x._version, sample, index, rows, _Visit(name, shape))
        self._groups[key] = group
        return group

    def _weights(self, x: Tensor, name: str, shape: tuple[int, int] | None) -> Tensor:
        """||x_i|| ||g_i||, with the gradients' norms of the last visit; [n]."""
        flat = x.detach().reshape(-1, x.shape[-1])
        if self._rows.method == "uniform":
            return flat.new_ones(len(flat), dtype=torch.float32)
        weights = torch.linalg.vector_norm(flat, dim=1, dtype=torch.promote_types(flat.dtype, torch.float32))
        # A row that is not finite makes the whole gradient so, even where its own gradient is zero: it is to be seen.
        most = torch.finfo(torch.float32).max
        weights = weights.nan_to_num(nan=most, posinf=most).float().clamp_(max=most)
        norms = None if shape is None else self._rows.norms.lookup(name, self._ids, shape[1])
        return weights if norms is None else weights * (norms / norms.max()).to(weights.device).flatten()


@dataclass
class _Record:
    """Takes the gradient's norms when the backward pass comes to a layer."""

    norms: NormCache
    ids: list[int]
    visit: _Visit
    name: str

    def __call__(self, grad: Tensor) -> None:
        visit = self.visit
        if visit.shape is None:
            return
        visit.squares[self.name] = grad.detach().float().square().sum(1)
        total = torch.stack(list(visit.squares.values())).sum(0)
        self.norms.store(visit.leader, self.ids, total.sqrt().view(visit.shape))


class _SampledLinear(torch.autograd.Function):
    """x [..., D], weight [O, D], bias [O] or None -> [..., O]; ``kept``: x itself (``whole``) or its sampled rows."""

    @staticmethod
    def forward(ctx, x, weight, bias, kept, index, sample, whole, record):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight, kept, index, sample.scale)
        ctx.x_shape, ctx.x_dtype, ctx.whole, ctx.record = x.shape, x.dtype, whole, record
        ctx.bias_dtype = None if bias is None else bias.dtype
        device = x.device.type
        if torch.is_autocast_enabled(device):
            # Some versions of torch would hand the weight's cached copy, made here without a graph, to later calls.
            with torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False):
                out = F.linear(x, weight, bias)
        else:
            out = F.linear(x, weight, bias)
        # With three dimensions it is a view, and torch forbids what changes a custom function's view in place.
        return out.new_empty(0).set_(out) if out._is_view() else out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        weight, kept, index, scale = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (rows @ weight.to(rows.dtype)).to(ctx.x_dtype).view(ctx.x_shape)
        if ctx.needs_input_grad[1]:
            index = index.long()
            some = kept.reshape(-1, kept.shape[-1])[index] if ctx.whole else kept
            scaled = (rows[index] * scale.unsqueeze(1)).to(rows.dtype)  # the factor is applied in float32 at least
            grad_weight = (scaled.t() @ some.to(rows.dtype)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0, dtype=torch.promote_types(rows.dtype, torch.float32)).to(ctx.bias_dtype)
        if ctx.record is not None:
            ctx.record(rows)
        return grad_x, grad_weight, grad_bias, None, None, None, None, None
