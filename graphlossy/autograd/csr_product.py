"""A torch sparse CSR matrix times a dense one, in less memory and time: bit for bit the numbers of torch's product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphlossy.autograd.graph import sparse_csr
from graphlossy.autograd.graph_cache import GraphCache

__all__ = ["csr_product", "is_csr_product"]

# torch sorts all edges in every backward pass; a graph stays the same, so one sort is enough.
_TRANSPOSES = GraphCache()


def _product(adj: Tensor, x: Tensor, reduce: str | None) -> Tensor:
    """``adj @ x`` makes a matrix of zeros to add the product to; given the result to write to, addmm needs none."""
    if reduce is not None:
        return torch.sparse.mm(adj, x, reduce)
    out = x.new_empty(adj.shape[0], x.shape[1])
    nothing = x.new_zeros(()).expand(out.shape)
    return torch.addmm(nothing, adj, x, beta=0, out=out)


def _transpose(adj: Tensor, mean: bool) -> Tensor:
    """The transpose of ``adj``, its rows divided by their number of entries first if ``mean``."""
    crow, col, values = adj.crow_indices(), adj.col_indices(), adj.values()
    if mean:
        counts = crow.diff()
        values = values / counts.clamp(min=1).to(values.dtype).repeat_interleave(counts)
    out = sparse_csr(crow, col, values, (adj.shape[0], adj.shape[1])).t().to_sparse_csr()
    crow, col = out.crow_indices(), out.col_indices()
    # The product's library takes 32-bit indices: torch would convert them in every call.
    if max(col.numel(), *adj.shape) < 2**31:
        crow, col = crow.to(torch.int32), col.to(torch.int32)
    return sparse_csr(crow, col, out.values(), (adj.shape[1], adj.shape[0]))


class _CSRProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, adj, x, reduce):
        ctx.adj, ctx.version, ctx.mean = adj, adj._version, reduce == "mean"
        if reduce is not None:
            ctx.save_for_backward(x)  # as torch's own does, though only a gradient of adj would read it
        return _product(adj, x, reduce)

    @staticmethod
    def backward(ctx, grad):
        adj, mean = ctx.adj, ctx.mean
        if adj._version != ctx.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"a sparse matrix of shape {tuple(adj.shape)} is at version {adj._version}, expected {ctx.version}"
            )
        transpose = _TRANSPOSES.get((adj,), mean, lambda: _transpose(adj, mean))
        return None, _CSRProduct.apply(transpose, grad, None), None


def is_csr_product(args: tuple[Any, ...]) -> bool:
    """Whether these arguments of a product are a constant CSR matrix and a dense one, both on the CPU.

    A third argument, torch.sparse.mm's reduction, may be ``"sum"`` or ``"mean"``.
    """
    if len(args) not in (2, 3) or (len(args) == 3 and args[2] not in ("sum", "mean")):
        return False
    if not all(isinstance(a, Tensor) and a.dim() == 2 and a.device.type == "cpu" for a in args[:2]):
        return False
    adj, x = args[:2]
    exact = adj.dtype == x.dtype and x.dtype in (torch.float32, torch.float64)
    dense = x.layout == torch.strided and adj.shape[1] == x.shape[0]
    constant = adj.layout == torch.sparse_csr and not adj.requires_grad
    return constant and dense and exact and x.numel() > 0 and not torch.is_autocast_enabled("cpu")


def csr_product(adj: Tensor, x: Tensor, reduce: str | None = None) -> Tensor:
    """``adj @ x`` without the matrix of zeros that torch makes for it, and with a transpose that is made once.

    torch's product needs one [N, C] tensor more at the peak, and sorts the entries of ``adj`` in every backward pass.

    Args:
        adj: [M, N] sparse CSR without a gradient, on the CPU.
        x: [N, C] dense.
        reduce: None for ``adj @ x``; ``"sum"`` or ``"mean"`` for ``torch.sparse.mm(adj, x, reduce)``.

    Returns:
        [M, C]; the gradient of ``x`` is ``adj.t() @ grad``, rows of ``adj`` divided by their entries for ``"mean"``.

    Example:
        >>> adj = torch.eye(3).to_sparse_csr()
        >>> csr_product(adj, torch.arange(3.0).unsqueeze(1)).flatten()
        tensor([0., 1., 2.])
    """
    return _CSRProduct.apply(adj, x, reduce)
