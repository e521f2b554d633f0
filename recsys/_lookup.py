"""Autograd of the multi-size lookup and of the scores: sparse or dense gradients of tables, dense ones of the rest."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from graphlossy.core import multi_size
from graphlossy.core.multi_size import NO_BUCKET, Buckets

__all__ = ["Bags", "look_up", "score"]


class Bags(NamedTuple):
    """How positions are pooled.

    Attributes:
        ends: int64 [B], one past the last position of each bag.
        weights: [N] of the positions, or None.
        mean: divide by the number of positions.
    """

    ends: Tensor
    weights: Tensor | None
    mean: bool


def look_up(
    bucket: Tensor,
    row: Tensor,
    buckets: Buckets,
    trainable: list[Tensor | None],
    dtype: torch.dtype,
    sparse: bool,
    skip: Tensor | None = None,
    counts: Tensor | None = None,
    bags: Bags | None = None,
) -> Tensor:
    """[N, d] rows, or [B, d] with ``bags``.

    Args:
        bucket, row: from `multi_size.lookup`.
        buckets: the tables as the operators take them.
        trainable: for every bucket the parameter that receives its gradient, or None.
        dtype: of the result.
        sparse: give sparse gradients to ``trainable``.
        skip: bool [N], positions without gradient.
        counts: [N], by which the gradient of a position is divided.
        bags: how to pool.
    """
    weights = None if bags is None else bags.weights
    tensors = [*trainable, *buckets.projections]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*tensors, weights)):
        return _LookUp.apply(bucket, row, buckets, dtype, sparse, skip, counts, bags, weights, *tensors)
    return multi_size.forward(bucket, row, buckets, dtype, *(bags or ()))


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        bucket: Tensor,
        row: Tensor,
        buckets: Buckets,
        dtype: torch.dtype,
        sparse: bool,
        skip: Tensor | None,
        counts: Tensor | None,
        bags: Bags | None,
        weights: Tensor | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.buckets, ctx.sparse, ctx.bags, ctx.mean = buckets, sparse, bags is not None, bags is not None and bags.mean
        ctx.save_for_backward(bucket, row, skip, counts, bags.ends if bags else None, weights, *tensors)
        ctx.versions = [t._version for t in buckets.tables]
        return multi_size.forward(bucket, row, buckets, dtype, *(bags or ()))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        bucket, row, skip, counts, ends, weights, *tensors = ctx.saved_tensors
        buckets, many = ctx.buckets, len(ctx.buckets.sizes)
        bag = factor = None
        if ctx.bags:
            row, bucket = row[: int(ends[-1]) if ends.numel() else 0], bucket[: int(ends[-1]) if ends.numel() else 0]
            bag = multi_size.bag_of(ends, row.shape[0])
            factor = None if weights is None else weights[: row.shape[0]]
            if ctx.mean:
                lengths = torch.diff(ends, prepend=ends.new_zeros(1)).clamp(min=1)
                factor = (1.0 / lengths.to(buckets.compute_dtype()))[bag]
        if counts is not None:
            share = 1.0 / counts[: row.shape[0]].to(buckets.compute_dtype())
            factor = share if factor is None else factor * share
        # A table that is stepped between forward and backward would give a projection a gradient of other rows.
        wanted = list(ctx.needs_input_grad[9 + many :])
        if any(wanted) and ctx.versions != [t._version for t in buckets.tables]:
            raise RuntimeError("a table was changed between the forward and the backward pass; step after backward()")
        masked = bucket if skip is None else bucket.masked_fill(skip[: bucket.shape[0]], NO_BUCKET)
        order, numbers, values, matrices = multi_size.backward(grad, masked, row, buckets, bag, factor, wanted)
        grads: list[Tensor | None] = []
        at = element = 0
        for k, count in enumerate(numbers):
            size, param = buckets.sizes[k], tensors[k]
            if param is None or not ctx.needs_input_grad[9 + k]:
                grads.append(None)
            else:
                found = values[element : element + count * size].view(count, size).to(param.dtype)
                grads.append(_table_gradient(param, row[order[at : at + count]], found, ctx.sparse))
            at, element = at + count, element + count * size
        matrices = [None if m is None else m.to(t.dtype) for m, t in zip(matrices, tensors[many:], strict=True)]
        by_weight = None
        if weights is not None and ctx.needs_input_grad[8]:
            rows = multi_size.forward(bucket, row, buckets, buckets.compute_dtype())
            by_weight = torch.zeros_like(weights)
            by_weight[: row.shape[0]] = (rows * grad.to(rows.dtype)[bag]).sum(1).to(weights.dtype)
        return None, None, None, None, None, None, None, None, by_weight, *grads, *matrices


def _table_gradient(param: Tensor, row: Tensor, values: Tensor, sparse: bool) -> Tensor:
    if not sparse:
        return torch.zeros(param.shape, dtype=values.dtype, device=values.device).index_add_(0, row, values)
    return torch.sparse_coo_tensor(row.unsqueeze(0), values, param.shape, check_invariants=False)


def score(
    queries: Tensor,
    planes: Tensor,
    counts: Tensor,
    num_tokens: int,
    buckets: Buckets,
    trainable: list[Tensor | None],
) -> Tensor:
    """[B, V] products of ``queries`` [B, d] with every row; differentiable in queries, float tables and projections."""
    return _Score.apply(queries, planes, counts, num_tokens, buckets, *trainable, *buckets.projections)


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, planes: Tensor, counts: Tensor, num_tokens: int, buckets: Buckets, *tensors: Any
    ) -> Tensor:
        ctx.buckets, ctx.num_tokens = buckets, num_tokens
        ctx.save_for_backward(queries, planes, *tensors)
        return multi_size.scores(planes, counts, num_tokens, buckets, queries).to(queries.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        queries, planes, *tensors = ctx.saved_tensors
        buckets, needs = ctx.buckets, ctx.needs_input_grad
        many, dtype = len(buckets.sizes), buckets.compute_dtype()
        codes = multi_size.unpack_codes(planes, ctx.num_tokens)
        q, by_query = queries.to(dtype), torch.zeros_like(queries, dtype=dtype)
        by_table: list[Tensor | None] = [None] * many
        by_projection = [torch.zeros_like(p, dtype=dtype) for p in buckets.projections]
        for k, size in enumerate(buckets.sizes):
            if not size:
                continue
            tokens = (codes == k).nonzero().squeeze(1)
            g, p = grad[:, tokens].to(dtype), buckets.projection(k)
            rows = buckets.rows(k, torch.arange(tokens.shape[0], device=tokens.device))
            narrow = q if p is None else q @ p.T
            down = g @ rows
            by_query += down if p is None else down @ p
            if needs[5 + k]:
                by_table[k] = (g.T @ narrow).to(tensors[k].dtype)
            if p is not None:
                by_projection[buckets.which[k]][:size] += down.T @ q
        matrices = [m.to(p.dtype) for m, p in zip(by_projection, buckets.projections, strict=True)]
        return by_query.to(queries.dtype), None, None, None, None, *by_table, *matrices
