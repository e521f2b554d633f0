"""The sampled structure error as one autograd function over blocks of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphlossy.autograd._once import once_differentiable
from graphlossy.outliers._checks import Graph
from graphlossy.outliers._structure_exact import block_rows, edge_gradients, edge_products

__all__ = ["SampledStructure"]


def _decode(products: Tensor, decoder: str) -> tuple[Tensor, Tensor | None]:
    """f(p) and f'(p); None for a derivative that is 1 everywhere."""
    if decoder == "product":
        return products, None
    value = products.sigmoid()
    return value, value * (1 - value)


def _off_edges(rows: Tensor, chosen: Tensor, edges: tuple[Tensor, Tensor], decoder: str) -> tuple[Tensor, Tensor]:
    """For a block of rows: the sum of f^2 over the drawn columns that are no edges, [R], and f f' of each, [R, K]."""
    f = rows @ chosen.t()
    if decoder == "sigmoid":
        f.sigmoid_()
    f.index_put_(edges, f.new_zeros(()))
    squared = f.square()
    total = squared.sum(1, dtype=torch.float64)
    # f' = f (1 - f) for the sigmoid
    return total, f if decoder == "product" else squared.mul_(f.neg_().add_(1))


class _Sample:
    """The drawn columns J, and which of their entries are edges."""

    def __init__(self, graph: Graph, drawn: Tensor) -> None:
        position = torch.full((graph.num_nodes,), -1, dtype=torch.int64, device=drawn.device)
        position[drawn] = torch.arange(drawn.numel(), device=drawn.device)
        row, col = graph.edge_index
        at = position.index_select(0, col)
        hit = at >= 0
        self.row, self.at = row[hit], at[hit]  # sorted by row
        self.scale = graph.num_nodes / drawn.numel()

    def blocks(self, num_nodes: int, width: int, device: torch.device) -> Any:
        """(first row, last row, edges inside as (row in the block, position in J)) of each block of rows."""
        step = block_rows(width, device)
        starts = torch.arange(0, num_nodes + step, step, device=device).clamp(max=num_nodes)
        bounds = torch.searchsorted(self.row, starts).tolist()
        for i, start in enumerate(range(0, num_nodes, step)):
            inside = slice(bounds[i], bounds[i + 1])
            yield start, min(start + step, num_nodes), (self.row[inside] - start, self.at[inside])


class SampledStructure(torch.autograd.Function):
    """w1 sum over edges (1 - f)^2 + w0 N / K sum over drawn non-edges f^2 for all rows, or its square root.

    The gradient of row i to z_i, D_i, and that of the sum of all rows to the drawn columns, T, are made in the forward
    pass, block by block, as Z is exact then and f is not linear: D, and Z for the edges, are all that is kept of their
    size. With incoming gradients u that are all equal the backward pass is then linear in what was kept; else T is made
    again from the kept Z.
    """

    packs_itself = False  # compress does it

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        columns: Tensor,
        graph: Graph,
        drawn: Tensor,
        weights: tuple[float, float],
        decoder: str,
        rooted: bool,
    ) -> Tensor:
        on, off = weights
        ctx.graph, ctx.drawn, ctx.weights, ctx.decoder, ctx.same = graph, drawn, weights, decoder, columns is z
        needed = any(ctx.needs_input_grad[:2])
        value, derivative = _decode(edge_products(z, columns, graph), decoder)
        squared = torch.zeros(z.size(0), dtype=torch.float64, device=z.device)
        squared.index_add_(0, graph.edge_index[0], (1 - value).double().square(), alpha=on)
        chosen = columns.index_select(0, drawn)
        sample = _Sample(graph, drawn)
        direct = torch.empty_like(z) if needed else None
        total = torch.zeros_like(chosen) if needed else None
        factor = z.new_ones(z.size(0))
        for start, end, edges in sample.blocks(z.size(0), drawn.numel(), z.device):
            rows = z[start:end]
            errors, change = _off_edges(rows, chosen, edges, decoder)
            squared[start:end] += errors * (off * sample.scale)
            if rooted:
                r = squared[start:end]
                factor[start:end] = torch.where(r > 0, 0.5 / r.sqrt(), 0.0).to(z.dtype)
            if direct is not None and total is not None:
                torch.mm(change.mul_(2 * off * sample.scale), chosen, out=direct[start:end])
                total.addmm_(change.mul_(factor[start:end, None]).t(), rows)
        if needed:
            ctx.total = total
            ctx.save_for_backward(
                z,
                None if ctx.same else columns,
                direct,
                factor.unsqueeze(1),
                (-2 * on * (1 - value) * (1 if derivative is None else derivative)).unsqueeze(1),
            )
        return (squared.sqrt() if rooted else squared).to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, columns, direct, factor, on_edges = ctx.saved_tensors
        graph, columns = ctx.graph, z if ctx.same else columns
        each = grad * factor.squeeze(1)
        values = each.index_select(0, graph.edge_index[0]) * on_edges.squeeze(1)
        d_z, d_columns = edge_gradients(values, z, columns, graph)
        d_z.addcmul_(direct, each.unsqueeze(1))
        uniform = grad.numel() > 0 and bool((grad == grad[0]).all())
        total = ctx.total * grad[0] if uniform else _total(ctx, z, columns, each)
        d_columns.index_add_(0, ctx.drawn, total)
        if ctx.same:
            return d_z.add_(d_columns), *[None] * 6
        return d_z, d_columns, *[None] * 5


def _total(ctx: Any, z: Tensor, columns: Tensor, each: Tensor) -> Tensor:
    """The gradient to the drawn columns, [K, d], for row errors weighted with ``each``."""
    chosen = columns.index_select(0, ctx.drawn)
    sample, total = _Sample(ctx.graph, ctx.drawn), torch.zeros_like(chosen)
    for start, end, edges in sample.blocks(z.size(0), ctx.drawn.numel(), z.device):
        rows = z[start:end]
        change = _off_edges(rows, chosen, edges, ctx.decoder)[1].mul_(2 * ctx.weights[1] * sample.scale)
        total.addmm_(change.mul_(each[start:end, None]).t(), rows)
    return total
