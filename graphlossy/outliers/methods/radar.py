"""Radar: residuals of features that other nodes' features explain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphlossy.outliers._base import Detector
from graphlossy.outliers._checks import Graph, check_number
from graphlossy.outliers.methods._features import Features
from graphlossy.outliers.methods._laplacian import Laplacian

__all__ = ["Radar"]

_SOLVERS = ("alternating", "adam")
_ROWS = 512  # of W updated at a time by Adam
_TINY = 1e-8  # below it the norm of a row is taken as this, where the paper's reweighting divides by it


class Radar(Detector):
    """Residual analysis (Li et al., IJCAI 2017): X = W^T X + R, where W picks the nodes that explain the others.

    ``solver="alternating"`` minimises the paper's objective (5),

        ||X - W^T X - R||_F^2 + alpha ||W||_{2,1} + beta ||R||_{2,1} + gamma tr(R^T L R),

    by its alternating solutions (7) and (9) with reweighted diagonals D_W, D_R = 1 / (2 ||row||):
    W = (X X^T + alpha D_W)^-1 X (X - R)^T and R = (I + beta D_R + gamma L)^-1 (X - W^T X), from
    R = ((1 + beta) I + gamma L)^-1 X. Neither inverse is made: with G = X^T (alpha D_W)^-1 X [F, F],
    W^T X = (X - R) (I - (I + G)^-1) (Woodbury), the norms of W's rows come from the F x F products as well, and R is
    solved by conjugate gradients. The iterates are those of the dense form; O(E + N F + F^2) memory.

    ``solver="adam"`` is what PyGOD and the BOND benchmark run: ``epoch`` steps of Adam from W = I and the same first R
    on ||X - W X - R||_F + gamma tr(R^T L R). Adam normalises each of the N^2 entries of W by its own gradients, for
    which there is no form in fewer: 12 N^2 bytes and O(N^2 F) a step. Only its first R is linear.

    score_i = ||R_i||_2, squared with ``"adam"``.

    Args:
        alpha: weight of W's rows, positive; ``"alternating"``.
        beta: weight of R's rows, at least 0.
        gamma: weight of the graph.
        solver: ``"alternating"`` or ``"adam"``.
        max_iter: most alternations.
        tolerance: relative change of R at which the alternation ends.
        lr: step size of Adam.
        epoch: steps of Adam.
        **base: contamination, seed (:class:`~graphlossy.outliers.Detector`); the seed changes nothing.

    Attributes:
        residual_: R [N, F] float32.
        losses_: the objective after each alternation, or the loss of each step of Adam.

    Example:
        >>> from torch_geometric.data import Data
        >>> x = torch.cat([torch.ones(9, 2), torch.tensor([[-5.0, 5.0]])])
        >>> data = Data(x=x, edge_index=torch.stack([torch.arange(9), torch.arange(9) + 1]))
        >>> Radar().fit(data).residual_.shape
        torch.Size([10, 2])
    """

    name, title = "radar", "Radar"
    paper = "Li et al., Radar: Residual Analysis for Anomaly Detection in Attributed Networks, IJCAI 2017"
    seeded, memory = False, 'O(m + n d + d^2), O(n^2) with solver="adam"'

    residual_: Tensor
    losses_: list[float]

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        solver: str = "alternating",
        max_iter: int = 30,
        tolerance: float = 1e-4,
        lr: float = 4e-3,
        epoch: int = 100,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.alpha = float(check_number("alpha", alpha, 0, open_low=True))
        self.beta = float(check_number("beta", beta, 0))
        self.gamma = float(check_number("gamma", gamma, 0))
        if solver not in _SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(map(repr, _SOLVERS))}, got {solver!r}")
        self.solver = solver
        self.max_iter = check_number("max_iter", max_iter, 1, integer=True)
        self.tolerance = float(check_number("tolerance", tolerance, 0))
        self.lr = float(check_number("lr", lr, 0, open_low=True))
        self.epoch = check_number("epoch", epoch, 1, integer=True)

    @classmethod
    def search_space(cls, dataset: str) -> dict[str, tuple[Any, ...]]:
        """BOND's draws, by its solver: the step size, all else as in PyGOD."""
        return {"solver": ("adam",), "beta": (0.0,), "lr": (0.1, 0.05, 0.01)}

    def _score(self, graph: Graph) -> Tensor:
        graph = graph.to("cpu")
        laplacian = Laplacian(graph)
        self.losses_ = []
        self.residual_ = self._adam(graph, laplacian) if self.solver == "adam" else self._alternate(graph, laplacian)
        square = self.residual_.square().sum(1)
        return square if self.solver == "adam" else square.sqrt()

    def _alternate(self, graph: Graph, laplacian: Laplacian) -> Tensor:
        x = graph.varying_x.double()  # a constant feature leaves no residual, and a large one hides the others'
        features = Features(x)
        ones = x.new_ones(graph.num_nodes)
        residual = laplacian.solve((1 + self.beta) * ones, self.gamma, x)
        weigh_w = ones  # the diagonal of D_W
        for step in range(self.max_iter):
            scale = 1 / (self.alpha * weigh_w).unsqueeze(1)
            inverse = inverse_beside_identity(features.transposed_times(scale * x))
            explained = x - residual
            # W = (alpha D_W)^-1 X (I + G)^-1 (X - R)^T; only its row norms are needed.
            between = inverse @ (explained.t() @ explained) @ inverse
            norm_w = (features.times(between) * x).sum(1).clamp(min=0).sqrt() * scale.squeeze(1)
            rest = x - explained + explained @ inverse
            weigh_w = 0.5 / norm_w.clamp(min=_TINY)
            weigh_r = 0.5 / residual.norm(dim=1).clamp(min=_TINY)
            before = residual
            residual = laplacian.solve(1 + self.beta * weigh_r, self.gamma, rest)
            smooth = float((residual * (laplacian @ residual)).sum())
            loss = float((rest - residual).square().sum()) + self.gamma * smooth
            loss += self.alpha * float(norm_w.sum()) + self.beta * float(residual.norm(dim=1).sum())
            self.losses_.append(loss)
            if self.on_epoch is not None:
                self.on_epoch(step, loss)
            if float((residual - before).norm()) <= self.tolerance * float(before.norm()):
                break
        return residual.float()

    def _adam(self, graph: Graph, laplacian: Laplacian) -> Tensor:
        """Adam (Kingma and Ba, ICLR 2015, algorithm 1) with its gradients written out, W's rows a block at a time."""
        x, n, features = graph.x, graph.num_nodes, Features(graph.x)
        r = laplacian.solve(x.new_full((n,), 1 + self.beta), self.gamma, x)
        w = torch.eye(n)
        moments = [torch.zeros_like(w), torch.zeros_like(w), torch.zeros_like(r), torch.zeros_like(r)]
        product = x.clone()
        for step in range(self.epoch):
            smooth = laplacian @ r
            error = x - product - r
            norm = error.norm()
            self.losses_.append(float(norm) + self.gamma * float((r * smooth).sum()))
            if self.on_epoch is not None:
                self.on_epoch(step, self.losses_[-1])
            error /= norm.clamp(min=torch.finfo(torch.float32).tiny)  # no error, no direction
            for start in range(0, n, _ROWS):
                rows = slice(start, start + _ROWS)
                adam_step(
                    w[rows], -features.before_transposed(error[rows]), moments[0][rows], moments[1][rows], step, self.lr
                )
                product[rows] = features.before(w[rows])
            adam_step(r, smooth.mul_(2 * self.gamma).sub_(error), moments[2], moments[3], step, self.lr)
        return r


def inverse_beside_identity(gram: Tensor) -> Tensor:
    """(I + G)^-1 of a positive semidefinite G, also where the 1 is lost beside G's entries."""
    factor, failed = torch.linalg.cholesky_ex(gram + torch.eye(len(gram), dtype=gram.dtype))
    if not failed:
        return torch.cholesky_inverse(factor)
    values, vectors = torch.linalg.eigh(gram)
    return (vectors / (1 + values.clamp(min=0))) @ vectors.t()


def adam_step(value: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, lr: float) -> None:
    """One step of Adam in place, with torch.optim.Adam's constants; ``step`` counts from 0."""
    mean.lerp_(gradient, 0.1)
    square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    root = square.sqrt().div_((1 - 0.999 ** (step + 1)) ** 0.5).add_(1e-8)
    value.addcdiv_(mean, root, value=-lr / (1 - 0.9 ** (step + 1)))
