"""graphlossy::rank_lookup and the multi_size operators on CUDA: csrc/multi_size.cuh, launched as `_cuda` launches.

`graphlossy.core.multi_size` defines the operators; importing this module gives them their CUDA kernels. Results are
those of the reference bit for bit but for the gradient of a projection, a product of matrices for each bucket, which
torch's BLAS adds up in its own order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from graphlossy.core import _cuda, _multi_size, multi_size
from graphlossy.core._multi_size import NO_BUCKET, Buckets
from graphlossy.core._schemas import LIBRARY

__all__ = ["CudaOps"]

_LONG, _INT, _NULL = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p()
_PARTS, _WORDS, _SIZE = len(Buckets._fields), 9, 6  # fields; words of a bucket; which of them is its size
# As in csrc/multi_size.cuh: columns of a thread and threads of a dot product, queries of a thread.
_COLUMNS, _LANES, _QUERIES = 4, _multi_size.LANES, 8
_ROWS = {
    torch.float32: ("float32", "float"),
    torch.float16: ("float16", "half_bits"),
    torch.bfloat16: ("bfloat16", "bfloat16_bits"),
}
_CODES = ("codes", "Codes")
_IDS = {torch.int32: ("int32", "int32_t"), torch.int64: ("int64", "int64_t")}
_GATHERED = 1 << 24  # elements of gradients that are gathered at a time for the gradient of a projection


class CudaOps:
    """The operators on the kernels of one device."""

    def __init__(self, kernels: _cuda.Kernels) -> None:
        self._kernels = kernels

    def rank_lookup(self, ids: Tensor, planes: Tensor, counts: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """graphlossy::rank_lookup. While a CUDA graph is captured, an id out of range is an assertion of the device."""
        multi_size._check_ids(ids, planes, counts)
        bucket, row = _empty(ids.shape, torch.uint8, ids), _empty(ids.shape, torch.int64, ids)
        if not ids.shape[0]:
            return bucket, row
        ids = ids.contiguous()
        wrong = torch.full(
            (1,), -1, dtype=torch.int64, device=ids.device
        )  # as an unsigned number, above every position
        kind, c_type = _IDS[ids.dtype]
        name = f"rank_lookup_{kind}"
        definition, blocks = f"LOSSY_RANK_LOOKUP({c_type},{name})", -(-ids.shape[0] // _cuda.THREADS)
        place = *_map(planes, counts, num_tokens), bucket, row, wrong
        self._kernels._launch(name, definition, blocks, ids, _LONG(ids.shape[0]), *place)
        if _is_capturing(ids):
            torch._assert_async(wrong < 0, f"ids must be below {num_tokens} and not negative")
        elif (at := int(wrong)) >= 0:
            raise multi_size._wrong_id(int(ids[at]), num_tokens)
        return bucket, row

    def multi_size_forward(self, bucket: Tensor, row: Tensor, *rest: Any) -> Tensor:
        """graphlossy::multi_size_forward."""
        buckets, (dtype, ends, weights, mean) = Buckets(*rest[:_PARTS]), rest[_PARTS:]
        held = multi_size._prepare(buckets)
        if held is None or dtype not in _ROWS:
            return multi_size._reference_forward(bucket, row, *rest)
        _check_devices(row, bucket=bucket, ends=ends, weights=weights)
        outputs, dim = (row if ends is None else ends).shape[0], buckets.dim
        out = _empty((outputs, dim), dtype, row)
        if out.numel():
            (kind, c_type), (to, to_type) = _table_kind(buckets), _ROWS[dtype]
            name = f"multi_size_forward_{kind}_{to}"
            lanes = _cuda._log2(min(_cuda.WARP, -(-dim // _COLUMNS)))
            tables = _words(held, buckets, row), _INT(len(buckets.sizes)), _INT(buckets.bits)
            bags = _or_null(ends, torch.int64), _or_null(weights, torch.float32)
            rest = _LONG(outputs), _LONG(dim), _INT(mean), _INT(lanes)
            arguments = *tables, bucket.contiguous(), row.contiguous(), *bags, out, *rest
            definition = f"LOSSY_MULTI_SIZE_FORWARD({c_type},{to_type},{name})"
            self._kernels._launch(name, definition, -(-outputs // (_cuda.THREADS >> lanes)), *arguments)
        return out

    def multi_size_backward(self, grad: Tensor, bucket: Tensor, row: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        """graphlossy::multi_size_backward."""
        buckets, (bag, weights, wanted) = Buckets(*rest[:_PARTS]), rest[_PARTS:]
        held = multi_size._prepare(buckets)
        if held is None:
            return multi_size._reference_backward(grad, bucket, row, *rest)
        _check_devices(row, grad=grad, bucket=bucket, bag=bag, weights=weights)
        grad = (grad if grad.dtype in _ROWS else grad.to(torch.float32)).contiguous()
        bag = None if bag is None else bag.to(torch.int64).contiguous()
        weights = None if weights is None else weights.to(torch.float32).contiguous()
        words, many = _words(held, buckets, row), len(buckets.sizes)
        sorted_bucket, order, bounds = _sort(bucket, buckets.sizes)
        sizes = words.view(many, _WORDS)[:, _SIZE]
        counts = bounds.diff()
        at = (counts * sizes).cumsum(0) - counts * sizes
        ends = bounds.tolist()
        used = ends[-1]
        length = sum((end - start) * size for start, end, size in zip(ends, ends[1:], buckets.sizes, strict=False))
        values = _empty((length,), torch.float32, row)
        if length:
            kind, c_type = _ROWS[grad.dtype]
            name = f"multi_size_values_{kind}"
            arguments = words, grad, _or_null(bag), _or_null(weights), order, sorted_bucket, bounds, at, values
            definition, blocks = f"LOSSY_MULTI_SIZE_VALUES({c_type},{name})", -(-used // (_cuda.THREADS // _LANES))
            self._kernels._launch(name, definition, blocks, *arguments, _LONG(used), _LONG(buckets.dim))
        order = order[:used].clone()
        return order, counts, values, _projections(grad, row, buckets, bag, weights, wanted, order, ends)

    def multi_size_scores(self, planes: Tensor, counts: Tensor, num_tokens: int, *rest: Any) -> Tensor:
        """graphlossy::multi_size_scores."""
        buckets, queries = Buckets(*rest[:_PARTS]), rest[_PARTS]
        held = multi_size._prepare(buckets)
        if held is None:
            return multi_size._reference_scores(planes, counts, num_tokens, *rest)
        _check_devices(planes, counts=counts, queries=queries[0])
        batch = queries[0].shape[1]
        out = _empty((batch, num_tokens), torch.float32, planes)
        if out.numel():
            words = _words(held, buckets, planes)
            sizes = words.view(-1, _WORDS)[:, _SIZE]
            begins = (sizes.cumsum(0) - sizes) * batch
            parts = [q.detach().to(torch.float32).reshape(-1) for q in queries]
            flat = torch.cat(parts, out=_empty((sum(buckets.sizes) * batch,), torch.float32, planes))
            kind, c_type = _table_kind(buckets)
            name = f"multi_size_scores_{kind}"
            definition = f"LOSSY_MULTI_SIZE_SCORES({c_type},{name})"
            arguments = *_map(planes, counts, num_tokens), words, _INT(buckets.bits), flat, begins, out, _LONG(batch)
            blocks = -(-num_tokens * -(-batch // _QUERIES) // _cuda.THREADS)
            self._kernels._launch(name, definition, blocks, *arguments)
        return out


def _empty(shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> Tensor:
    """A result, on the device of ``like``."""
    return torch.empty(tuple(shape), dtype=dtype, device=like.device)


def _or_null(tensor: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | ctypes.c_void_p:
    return _NULL if tensor is None else tensor.to(dtype or tensor.dtype).contiguous()


def _is_capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _check_devices(at: Tensor, **others: Tensor | None) -> None:
    """A kernel that is given an address of another device would end the process's use of CUDA."""
    for name, other in others.items():
        if other is not None and other.device != at.device:
            raise ValueError(f"{name} must be on {at.device}, like the positions, got {other.device}; move it there")


def _map(planes: Tensor, counts: Tensor, num_tokens: int) -> tuple[Any, ...]:
    """The map as `Rank` in csrc/multi_size.cuh takes it."""
    words = -(-num_tokens // _multi_size.WORD)
    bits, codes = planes.shape[0] // words if words else 0, max(1, counts.shape[1])
    sizes = _LONG(words), _LONG(num_tokens), _INT(bits), _INT(codes), _INT(counts.dtype == torch.int64)
    return planes.contiguous(), counts.contiguous(), *sizes


def _table_kind(buckets: Buckets) -> tuple[str, str]:
    if buckets.bits:
        return _CODES
    return next((_ROWS[t.dtype] for t, size in zip(buckets.tables, buckets.sizes, strict=True) if size),
                _ROWS[torch.float32])  # fmt: skip


# The description of tables on their device, for as long as the one on the host is kept.
_on_device: WeakKeyDictionary[multi_size._Held, Tensor] = WeakKeyDictionary()


def _words(held: multi_size._Held, buckets: Buckets, like: Tensor) -> Tensor:
    """int64 [K * 9], the array of ``held`` on the device of ``like``, where the tables must be."""
    words = _on_device.get(held)
    if words is None or words.device != like.device:
        for k, size in enumerate(buckets.sizes):
            if size:
                codes = {"scales": buckets.scales[k], "offsets": buckets.offsets[k]} if buckets.bits else {}
                _check_devices(like, tables=buckets.tables[k], **codes)
        _check_devices(like, **{f"projections[{k}]": p for k, p in enumerate(buckets.projections)})
        words = _on_device[held] = torch.tensor(held.array[:], dtype=torch.int64).to(like.device)
    return words


def _sort(bucket: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Positions in the order of their buckets, those of one bucket in their own order.

    Returns:
        (sorted, order, bounds): uint8 [N] and int64 [N]; int64 [K + 1] where every bucket begins, and where the last
        one ends. Positions without a bucket, or of one of size 0, come after it.
    """
    for k, size in enumerate(sizes):
        if not size:
            bucket = bucket.masked_fill(bucket == k, NO_BUCKET)
    ordered, order = bucket.sort(stable=True)
    edges = torch.arange(len(sizes) + 1, dtype=torch.uint8, device=bucket.device)
    return ordered, order, torch.searchsorted(ordered, edges)


@torch.no_grad()
def _projections(
    grad: Tensor, row: Tensor, buckets: Buckets, bag: Tensor | None, weights: Tensor | None, wanted: Sequence[bool],
    order: Tensor, ends: Sequence[int],
) -> Tensor:  # fmt: skip
    """Gradients of the ``wanted`` projections, flat: rows^T times gradients, for each bucket."""
    elements = [p.numel() if want else 0 for p, want in zip(buckets.projections, wanted, strict=True)]
    flat = torch.zeros(sum(elements), dtype=torch.float32, device=row.device)
    sums = [part.view(-1, buckets.dim) for part in flat.split(elements)]
    step = max(1, _GATHERED // buckets.dim)
    for k, (size, which) in enumerate(zip(buckets.sizes, buckets.which, strict=True)):
        if not size or which < 0 or not wanted[which]:
            continue
        for start in range(ends[k], ends[k + 1], step):
            at = order[start : min(start + step, ends[k + 1])]
            g = grad[at if bag is None else bag[at]].to(torch.float32)
            if weights is not None:
                g = weights[at].unsqueeze(1) * g
            sums[which][:size].addmm_(buckets.rows(k, row[at]).T, g)
    return flat


def _kernel(name: str) -> Callable[..., Any]:
    return lambda kernels, *arguments: getattr(CudaOps(kernels), name)(*arguments)


for _name, _reference in multi_size._REFERENCES.items():
    LIBRARY.impl(_name, _cuda.with_reference(_kernel(_name), _reference), "CUDA")
