"""The graph Laplacian L = D - S of the undirected graph, without an [N, N] matrix: products and solutions."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from graphlossy.autograd import CSRGraph, spmm
from graphlossy.outliers._checks import Graph

__all__ = ["Laplacian"]

_COLUMNS = 64  # right-hand sides solved at a time


class Laplacian:
    """L = D - S with S the adjacency matrix in both directions; self loops cancel.

    Args:
        graph: any direction.

    Example:
        >>> laplacian = Laplacian(Graph(torch.empty(2, 0), torch.tensor([[0], [1]]), 2))
        >>> (laplacian @ torch.tensor([[1.0], [3.0]])).flatten()
        tensor([-2.,  2.])
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph.without_self_loops.undirected

    @cached_property
    def adjacency(self) -> CSRGraph:
        return self.graph.adjacency

    @cached_property
    def degrees(self) -> Tensor:
        """[N, 1] float64."""
        return self.graph.degrees.double().unsqueeze(1)

    def __matmul__(self, r: Tensor) -> Tensor:
        """L R, [N, K] of the type of R."""
        return self.degrees.to(r.dtype) * r - spmm(self.adjacency, r.contiguous())

    def solve(self, diagonal: Tensor, gamma: float, b: Tensor, *, tolerance: float = 1e-10) -> Tensor:
        """(diag(diagonal) + gamma L)^-1 B by conjugate gradients in float64, preconditioned by the diagonal.

        The matrix is symmetric and positive definite for a positive diagonal, so the solution is unique; each column
        is iterated until its residual is ``tolerance`` times its right-hand side. O(steps (E + N) K) time, some tens
        of steps for diagonals that are not tiny beside gamma times the degrees, and O(E + 64 N) memory beside B.

        Args:
            diagonal: [N], positive.
            gamma: at least 0.
            b: [N, K].
            tolerance: relative residual.

        Returns:
            [N, K] of the type of B.

        Raises:
            FloatingPointError: the tolerance was not reached.
        """
        diagonal = diagonal.double().unsqueeze(1)
        parts = [self._solve(diagonal, gamma, part.double(), tolerance).to(b.dtype) for part in b.split(_COLUMNS, 1)]
        return torch.cat(parts, 1)

    def _solve(self, diagonal: Tensor, gamma: float, b: Tensor, tolerance: float) -> Tensor:
        """Hestenes and Stiefel, J. Res. NBS 49(6), 1952, all columns at once."""
        inverse = 1 / (diagonal + gamma * self.degrees)
        target = tolerance * b.norm(dim=0)
        z = inverse * b  # the start: exact where a node has no neighbours
        residual = b - diagonal * z - gamma * (self @ z)
        direction = torch.zeros_like(b)
        before = b.new_ones(b.size(1))
        most = 10 * len(b) + 1000
        for step in range(most + 1):
            if bool((residual.norm(dim=0) <= target).all()):
                return z
            scaled = inverse * residual
            now = (residual * scaled).sum(0)
            # Columns that are solved exactly have nothing left to divide by.
            direction = scaled + torch.where(before > 0, now / before, 0.0) * direction if step else scaled
            product = diagonal * direction + gamma * (self @ direction)
            curvature = (direction * product).sum(0)
            length = torch.where(curvature > 0, now / curvature, 0.0)
            z += length * direction
            residual -= length * product
            before = now
        raise FloatingPointError(f"conjugate gradients did not reach the relative residual {tolerance} in {most} steps")
