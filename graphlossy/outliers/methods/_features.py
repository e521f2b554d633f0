"""Products with the feature matrix, by its non-zero entries where they are few."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.autograd import CSRGraph, spmm

__all__ = ["Features"]

_FEW = 0.1  # share of non-zero entries up to which the sparse products are faster


class Features:
    """X [N, F] as a factor of dense matrices, on the CPU.

    Example:
        >>> features = Features(torch.eye(3))
        >>> features.times(torch.ones(3, 2)).shape, features.before(torch.ones(2, 3)).shape
        (torch.Size([3, 2]), torch.Size([2, 3]))
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.sparse: tuple[CSRGraph, CSRGraph] | None = None
        where = x.nonzero(as_tuple=True)
        if len(where[0]) <= _FEW * x.numel():
            (n, width), values = x.shape, x[where]
            there, back = torch.stack(where), torch.stack(where[::-1])
            self.sparse = (
                CSRGraph(there, values, n, width, flow="target_to_source"),
                CSRGraph(back, values, width, n, flow="target_to_source"),
            )

    def times(self, m: Tensor) -> Tensor:
        """X M."""
        return self.x @ m if self.sparse is None else spmm(self.sparse[0], m.contiguous())

    def transposed_times(self, m: Tensor) -> Tensor:
        """X^T M."""
        return self.x.t() @ m if self.sparse is None else spmm(self.sparse[1], m.contiguous())

    def before(self, m: Tensor) -> Tensor:
        """M X."""
        return m @ self.x if self.sparse is None else spmm(self.sparse[1], m.t().contiguous()).t()

    def before_transposed(self, m: Tensor) -> Tensor:
        """M X^T."""
        return m @ self.x.t() if self.sparse is None else spmm(self.sparse[0], m.t().contiguous()).t()
