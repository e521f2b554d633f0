"""A torch sparse CSR matrix times a dense one, in less memory: bit for bit the numbers of ``adj @ x``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["csr_product", "is_csr_product"]


def _product(adj: Tensor, x: Tensor) -> Tensor:
    """``adj @ x`` makes a matrix of zeros to add the product to; given the result to write to, addmm needs none."""
    out = x.new_empty(adj.shape[0], x.shape[1])
    nothing = x.new_zeros(()).expand(out.shape)
    return torch.addmm(nothing, adj, x, beta=0, out=out)


class _CSRProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, adj, x):
        ctx.adj = adj
        return _product(adj, x)

    @staticmethod
    def backward(ctx, grad):
        return None, torch.mm(ctx.adj.t(), grad)


def is_csr_product(args: tuple[Any, ...]) -> bool:
    """Whether these arguments of a product are a constant CSR matrix and a dense one, both on the CPU."""
    if len(args) != 2 or not all(isinstance(a, Tensor) and a.dim() == 2 and a.device.type == "cpu" for a in args):
        return False
    adj, x = args
    exact = adj.dtype == x.dtype and x.dtype in (torch.float32, torch.float64)
    dense = x.layout == torch.strided and adj.shape[1] == x.shape[0]
    constant = adj.layout == torch.sparse_csr and not adj.requires_grad
    return constant and dense and exact and x.numel() > 0 and not torch.is_autocast_enabled("cpu")


def csr_product(adj: Tensor, x: Tensor) -> Tensor:
    """``adj @ x`` without the matrix of zeros that torch makes for it: one [N, C] tensor less at the peak.

    Args:
        adj: [M, N] sparse CSR without a gradient, on the CPU.
        x: [N, C] dense.

    Returns:
        [M, C]; the gradient of ``x`` is ``adj.t() @ grad``.

    Example:
        >>> adj = torch.eye(3).to_sparse_csr()
        >>> csr_product(adj, torch.arange(3.0).unsqueeze(1)).flatten()
        tensor([0., 1., 2.])
    """
    return _CSRProduct.apply(adj, x)
