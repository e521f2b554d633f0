"""The exact structure error as one autograd function: what it keeps, and why its gradient is linear in that."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphlossy.autograd import _ops
from graphlossy.autograd._once import once_differentiable
from graphlossy.outliers._checks import Graph

__all__ = ["EdgeProducts", "ExactStructure", "block_rows", "edge_gradients", "edge_products"]

# Elements of a block: 8 MiB of float64 on a CPU; a GPU needs more to be busy.
_BLOCK = {"cpu": 1 << 20}
_DEVICE_BLOCK = 1 << 24


def block_rows(width: int, device: torch.device) -> int:
    """Rows of ``width`` elements that are worked on at a time."""
    return max(1, _BLOCK.get(device.type, _DEVICE_BLOCK) // max(1, width))


def edge_products(z: Tensor, columns: Tensor, graph: Graph, dtype: torch.dtype = torch.float32) -> Tensor:
    """z_i . c_j of each edge (i, j), [E], in the order of ``graph.edge_index``; no E x d matrix is kept."""
    row, col = graph.edge_index
    out = z.new_empty(row.numel(), dtype=dtype)
    step = block_rows(z.size(1), z.device)
    for start in range(0, row.numel(), step):
        part = slice(start, start + step)
        out[part] = (z.index_select(0, row[part]).to(dtype) * columns.index_select(0, col[part])).sum(1)
    return out


def edge_gradients(values: Tensor, z: Tensor, columns: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
    """B C and B^T Z, where B has ``values`` [E] on the edges."""
    adjacency = graph.adjacency  # its CSR order is that of graph.edge_index, which is sorted
    crow_t, col_t, _ = adjacency.transpose()
    values_t = adjacency.order_values(values, values.dtype, transposed=True, mean=False)
    return (
        _ops.spmm(adjacency.crow, adjacency.col, values, columns, False),
        _ops.spmm(crow_t, col_t, values_t, z, False),
    )


def _gram(a: Tensor, b: Tensor, scale: Tensor | None = None) -> Tensor:
    """A^T diag(scale) B [d, d], summed in float64 over blocks of rows."""
    total = torch.zeros(a.size(1), b.size(1), dtype=torch.float64, device=a.device)
    step = block_rows(a.size(1), a.device)
    for start in range(0, a.size(0), step):
        left = a[start : start + step].double()
        if scale is not None:
            left = left * scale[start : start + step, None]
        total.addmm_(left.t(), b[start : start + step].double())
    return total


def _squared(z: Tensor, columns: Tensor, graph: Graph, gram: Tensor) -> Tensor:
    """deg_i - 2 z_i . (A C)_i + z_i^T gram z_i, [N] float64."""
    adjacency = graph.adjacency
    ones = adjacency.values(torch.float64)
    out = graph.degrees.double()
    step = 16  # columns of A C at a time, so that no float64 copy of [N, d] exists
    for start in range(0, z.size(1), step):
        sums = _ops.spmm(
            adjacency.crow, adjacency.col, ones, columns[:, start : start + step].double().contiguous(), False
        )
        out -= 2 * (sums * z[:, start : start + step]).sum(1)
    step = block_rows(z.size(1), z.device)
    for start in range(0, z.size(0), step):
        rows = z[start : start + step].double()
        out[start : start + step] += ((rows @ gram) * rows).sum(1)
    return out


class ExactStructure(torch.autograd.Function):
    """sum_j w_ij (A_ij - z_i . c_j)^2 for all i, or its square root.

    With u the incoming gradient and r' the derivative of the root (1 without), g_i = u_i r'_i; B has the values
    -2 w0 g_i - 2 (w1 - w0) g_i (1 - z_i . c_j) on the edges, G = C^T C and H = Z^T diag(g) Z. Then

        dZ = B C + 2 w0 diag(g) Z G,        dC = B^T Z + 2 w0 C H.

    G, r', the products on the edges and, for u = 1, H are made in the forward pass from the exact Z and kept exactly:
    they are small. If all u_i are equal, H is u times that one, and dZ and dC are linear in the kept Z and C.
    """

    packs_itself = False  # compress does it

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, columns: Tensor, graph: Graph, weights: tuple[float, float], rooted: bool
    ) -> Tensor:
        same = columns is z
        on, off = weights
        ctx.graph, ctx.same, ctx.weights = graph, same, weights
        gram = _gram(columns, columns)
        squared = _squared(z, columns, graph, gram) * off
        products = None
        if on != off:
            exact = edge_products(z, columns, graph, torch.float64)
            squared.index_add_(0, graph.edge_index[0], (1 - exact).square(), alpha=on - off)
            products = exact.to(z.dtype)
        squared.clamp_(min=0)
        out = squared.sqrt() if rooted else squared
        # d sqrt(r) / dr; 0 where r = 0. Rounding leaves some 1e-15 of the terms in place of 0: no direction either.
        noise = 1e-12 * (1 + graph.degrees)
        slope = torch.where(squared > noise, 0.5 / out, 0.0) if rooted else None
        if any(ctx.needs_input_grad[:2]):
            ctx.gram = gram.to(z.dtype)
            ctx.outer = _gram(z, z, slope).to(z.dtype)
            ctx.save_for_backward(
                z,
                None if same else columns,
                None if slope is None else slope.to(z.dtype).unsqueeze(1),
                None if products is None else products.unsqueeze(1),
            )
        return out.to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, columns, slope, products = ctx.saved_tensors
        graph, (on, off) = ctx.graph, ctx.weights
        columns = z if ctx.same else columns
        each = grad if slope is None else grad * slope.squeeze(1)
        values = each.index_select(0, graph.edge_index[0])
        if products is None:
            values = values * (-2 * off)
        else:
            values = values * (-2 * off - 2 * (on - off) * (1 - products.squeeze(1)))
        d_z, d_columns = edge_gradients(values, z, columns, graph)
        if off:
            uniform = grad.numel() > 0 and bool((grad == grad[0]).all())
            outer = ctx.outer * grad[0] if uniform else _gram(z, z, each).to(z.dtype)
            d_z.addcmul_(z @ ctx.gram, each.unsqueeze(1), value=2 * off)
            d_columns.addmm_(columns, outer, alpha=2 * off)
        if ctx.same:
            return d_z.add_(d_columns), None, None, None, None
        return d_z, d_columns, None, None, None


class EdgeProducts(torch.autograd.Function):
    """z_i . z_j of each edge, [E], keeping Z and no E x d matrix; the gradient is linear in the kept Z."""

    packs_itself = False  # compress does it

    @staticmethod
    def forward(ctx: Any, z: Tensor, graph: Graph) -> Tensor:
        ctx.graph = graph
        ctx.save_for_backward(z)
        return edge_products(z, z, graph)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        by_row, by_column = edge_gradients(grad.contiguous(), z, z, ctx.graph)
        return by_row.add_(by_column), None
