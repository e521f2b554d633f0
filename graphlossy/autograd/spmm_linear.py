"""Aggregation followed by a linear layer, y = (A x) W^T + x R^T + b, that keeps x once and no aggregated copy.

The weight gradient of GraphSAGE's neighbour branch (Hamilton et al., NeurIPS 2017) is usually dy^T (A x), so A x is
kept beside the x of the root branch. But dy^T (A x) = (A^T dy)^T x, and A^T dy is wanted anyway, for dx = (A^T dy) W.
So x suffices, the same x that the root branch keeps (or computes again), and the sparse product is done once, as
before. Where x needs no gradient the product would be extra work, and A x is kept in low bits instead. Linear in what
is kept, so unbiased either way.

Both directions go block by block over the rows: beside the input and the output, neither A x nor A^T dy nor the output
of one branch ever exists as a whole, and x is unpacked once for all its gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from graphlossy.autograd import _ops
from graphlossy.autograd._once import once_differentiable
from graphlossy.autograd._packed import Meta, block_rows, check_bits, pack
from graphlossy.autograd.graph import CSRGraph
from graphlossy.autograd.linear import linear, weight_grad
from graphlossy.autograd.recipe import Layout, Recipe, keep, reference
from graphlossy.autograd.spmm import spmm

__all__ = ["spmm_linear"]


def _csr_blocks(crow: Tensor, starts: Sequence[int], ends: Sequence[int]) -> Iterator[tuple[Tensor, slice]]:
    """Row pointers and the range of entries of the rows [start, end) of a CSR matrix."""
    edges = crow[torch.tensor([*starts, *ends[-1:]], dtype=torch.int64, device=crow.device)].tolist()
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        yield crow[start : end + 1] - edges[number], slice(edges[number], edges[number + 1])


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, root: Tensor | None, crow: Tensor, col: Tensor, values: Tensor,
    mean: bool, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    rows = crow.numel() - 1
    out = x.new_empty(rows, weight.size(0), dtype=dtype)
    weight, bias, root = (None if t is None else t.to(dtype) for t in (weight, bias, root))
    step = block_rows((rows, max(x.size(1), out.size(1))), 1, x.device)
    starts = range(0, rows, step)
    ends = [min(start + step, rows) for start in starts]
    with torch.autocast(x.device.type, enabled=False):
        for start, end, (pointers, part) in zip(starts, ends, _csr_blocks(crow, starts, ends), strict=True):
            aggregated = _ops.spmm(pointers, col[part], values[part], x, mean).to(dtype)
            block = F.linear(aggregated, weight, bias)
            out[start:end] = block if root is None else block.add_(F.linear(x[start:end].to(dtype), root))
    return out


_forward_op = _ops.define(
    "spmm_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? root, Tensor crow, Tensor col, Tensor values, "
    "bool mean, ScalarType dtype) -> Tensor",
    _forward,
    lambda x, weight, bias, root, crow, col, values, mean, dtype: x.new_empty(
        crow.numel() - 1, weight.size(0), dtype=dtype
    ),
)


def _backward(
    grad: Tensor, weight: Tensor, root: Tensor | None, crow_t: Tensor, col_t: Tensor, values_t: Tensor,
    tensors: list[Tensor], affine: int, scales: list[float], bits: int, group_size: int, shape: Sequence[int],
    dtype: torch.dtype, wants_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    recipe = Layout(Meta(bits, group_size, False, tuple(shape), dtype), affine, tuple(scales)).rebuild(tensors)
    grad_x, grad_weight, grad_root = _backward_fake(
        grad, weight, root, crow_t, col_t, values_t, tensors, affine, scales, bits, group_size, shape, dtype, wants_x
    )
    grad_weight.zero_(), grad_root.zero_()
    if shape[0] == 0:
        return grad_x, grad_weight, grad_root
    weight, root = weight.to(grad.dtype), None if root is None else root.to(grad.dtype)
    rows, step = shape[0], block_rows(shape, group_size, grad.device)
    starts = range(0, rows, step)
    ends = [min(start + step, rows) for start in starts]
    with torch.autocast(grad.device.type, enabled=False):
        parts = _csr_blocks(crow_t, starts, ends)
        for (start, end, block), (pointers, part) in zip(recipe.blocks(), parts, strict=True):
            spread = _ops.spmm(pointers, col_t[part], values_t[part].to(grad.dtype), grad, False)
            own = grad[start:end] if root is not None else None
            if wants_x:
                back = spread @ weight
                grad_x[start:end] = back if own is None or root is None else back.addmm_(own, root)
            _accumulate(grad_weight, spread, block)
            if own is not None:
                _accumulate(grad_root, own, block)
    return grad_x, grad_weight, grad_root


def _accumulate(total: Tensor, grad: Tensor, block: Tensor) -> None:
    """total += grad^T block, in the type of ``total``."""
    if grad.dtype is total.dtype:
        total.addmm_(grad.t(), block.to(total.dtype))
    else:
        total += grad.t() @ block.to(grad.dtype)


def _backward_fake(  # type: ignore[no-untyped-def]
    grad, weight, root, crow_t, col_t, values_t, tensors, affine, scales, bits, group_size, shape, dtype, wants_x
):
    accumulator = torch.promote_types(torch.promote_types(grad.dtype, dtype), torch.float32)
    grad_weight = grad.new_empty(weight.shape, dtype=accumulator)
    grad_root = grad.new_empty((0,) if root is None else root.shape, dtype=accumulator)
    return grad.new_empty(tuple(shape) if wants_x else (0,), dtype=dtype), grad_weight, grad_root


_backward_op = _ops.define(
    "spmm_linear_backward(Tensor grad, Tensor weight, Tensor? root, Tensor crow_t, Tensor col_t, Tensor values_t, "
    "Tensor[] tensors, int affine, float[] scales, int bits, int group_size, SymInt[] shape, ScalarType dtype, "
    "bool wants_x) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _linear_dtype(x: Tensor) -> torch.dtype:
    """Type in which a linear layer computes here."""
    kind = x.device.type
    casts = torch.is_autocast_enabled(kind) and x.dtype is not torch.float64
    return torch.get_autocast_dtype(kind) if casts else x.dtype


def _bias_grad(grad: Tensor, dtype: torch.dtype) -> Tensor:
    return grad.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).to(dtype)


class _SpMMLinear(torch.autograd.Function):
    """y = (A x) W^T + x R^T + b; the recipe describes x."""

    @staticmethod
    def forward(ctx, x, weight, bias, root, crow, col, values, crow_t, col_t, values_t, mean, layout, *tensors):
        ctx.layout, ctx.input_dtype = layout, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(weight, root, crow_t, col_t, values_t, *tensors)
        return _forward_op(x, weight, bias, root, crow, col, values, mean, _linear_dtype(x))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, root, crow_t, col_t, values_t, *tensors = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, wants_root = ctx.needs_input_grad[:4]
        meta, affine, scales = ctx.layout
        grad_x, grad_weight, grad_root = _backward_op(
            grad.contiguous(), weight, root, crow_t, col_t, values_t, tensors, affine, list(scales),
            meta.bits, meta.group_size, list(meta.shape), ctx.input_dtype, wants_x,
        )  # fmt: skip
        return (
            grad_x if wants_x else None,
            grad_weight.to(weight.dtype) if wants_weight else None,
            _bias_grad(grad, ctx.bias_dtype) if wants_bias else None,
            grad_root.to(root.dtype) if wants_root else None,
            *[None] * (8 + len(tensors)),
        )


class _KeptAggregateLinear(torch.autograd.Function):
    """The same where x needs no gradient; the recipe describes A x, and x lives anyway."""

    @staticmethod
    def forward(ctx, aggregated, x, weight, bias, root, layout, *tensors):
        ctx.layout, ctx.bias_dtype = layout, None if bias is None else bias.dtype
        ctx.save_for_backward(weight, root, None if root is None else x, *tensors)
        out = F.linear(aggregated, weight, bias)
        if root is not None:
            for start, end, block in reference(x).blocks():
                out[start:end] += F.linear(block, root)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, root, x, *tensors = ctx.saved_tensors
        grad_weight = grad_bias = grad_root = None
        if ctx.needs_input_grad[2]:
            grad_weight = weight_grad(grad, ctx.layout.rebuild(tensors)).to(weight.dtype)
        if ctx.needs_input_grad[3]:
            grad_bias = _bias_grad(grad, ctx.bias_dtype)
        if ctx.needs_input_grad[4]:
            grad_root = weight_grad(grad, reference(x)).to(root.dtype)
        return None, None, grad_weight, grad_bias, grad_root, None, *[None] * len(tensors)


def spmm_linear(
    graph: CSRGraph,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    reduce: str = "sum",
    *,
    root: Tensor | None = None,
    bits: int | None = 2,
    group_size: int = 256,
) -> Tensor:
    """(A x) W^T + x R^T + b, keeping ``x`` in ``bits`` bits, or nothing where it can be computed again or lives anyway.

    Kept per element of ``x`` if it needs a gradient: 0 bits with a recipe or if another layer packed the same ``x``,
    else bits + 32 / group_size; if it needs none: as many per element of A x.

    Args:
        graph: [num_dst, num_src].
        x: [num_src, D].
        weight: W [O, D].
        bias: [O] or None.
        reduce: ``"sum"`` or ``"mean"``.
        root: R [O, D] of the node's own features, or None; the graph must be square then.
        bits: 1, 2, 3, 4, 8 or None (exact: A x is kept as it is).
        group_size: elements that share a scale and an offset.

    Returns:
        [num_dst, O].

    Raises:
        ValueError: if the shapes do not fit or ``bits`` or ``reduce`` is not supported.

    Example:
        >>> graph = CSRGraph(torch.tensor([[0, 1, 2], [1, 2, 1]]), num_dst=3)
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> spmm_linear(graph, x, torch.tensor([[10.0]]), reduce="mean").flatten()
        tensor([ 0., 20., 20.])
    """
    check_bits(bits)
    if x.dim() != 2 or weight.dim() != 2 or x.size(1) != weight.size(1):
        raise ValueError(f"x must have shape [num_src, {weight.size(-1)}], got {tuple(x.shape)}")
    if reduce not in ("sum", "add", "mean") or x.size(0) != graph.num_src:
        return spmm(graph, x, reduce)  # raises, with the reason
    if root is not None and (root.shape != weight.shape or graph.num_dst != graph.num_src):
        raise ValueError(
            f"root must have the shape of weight, {tuple(weight.shape)}, and the graph as many destinations as "
            f"sources; got {tuple(root.shape)} and {graph.num_dst} x {graph.num_src}"
        )
    if bits is None or graph.edge_weight is not None or not weight.requires_grad:
        out = linear(spmm(graph, x, reduce, bits=bits), weight, bias, bits=bits, group_size=group_size)
        return out if root is None else out + linear(x, root, bits=bits, group_size=group_size)
    if not torch.is_grad_enabled():
        out = linear(spmm(graph, x, reduce), weight, bias, bits=bits)  # draws one seed, as with gradients
        return out if root is None else out.add_(F.linear(x, root))
    if not x.requires_grad:
        aggregated = spmm(graph, x, reduce)
        recipe = Recipe(pack(aggregated, bits, group_size))
        whole = root if not torch.compiler.is_compiling() else None  # which would unroll the loop over its blocks
        out = _KeptAggregateLinear.apply(aggregated, x, weight, bias, whole, recipe.layout, *recipe.tensors)
        return out if whole is root else out + linear(x, root, bits=bits, group_size=group_size)
    mean = reduce == "mean"
    crow_t, col_t = graph.transpose_pattern()
    values, values_t = graph.values(x.dtype), graph.values(x.dtype, transposed=True, mean=mean)
    recipe = keep(x, bits, group_size)
    arrays = (graph.crow, graph.col, values, crow_t, col_t, values_t, mean)
    return _SpMMLinear.apply(x, weight, bias, root, *arrays, recipe.layout, *recipe.tensors)
