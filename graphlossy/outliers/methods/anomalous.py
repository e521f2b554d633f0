"""ANOMALOUS: residuals of a CUR decomposition of the features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphlossy.outliers._base import Detector
from graphlossy.outliers._checks import Graph, check_number
from graphlossy.outliers.methods._features import Features
from graphlossy.outliers.methods._laplacian import Laplacian
from graphlossy.outliers.methods.radar import adam_step

__all__ = ["ANOMALOUS"]


class ANOMALOUS(Detector):
    """Joint modelling of features and graph (Peng et al., IJCAI 2018): X = X W X + R, W [F, N] picks rows and columns.

    As in PyGOD and the BOND benchmark, ``epoch`` steps of Adam minimise

        ||X - X W X - R||_F + gamma tr(R^T L R)

    from W standard normal and R = ((1 + beta) I + gamma L)^-1 X, the paper's (4) with the norm not squared and without
    its 2,1-norms of W, W^T and R. score_i = ||R_i||_2^2. The first R is solved by conjugate gradients and X W X is
    taken as X (W X), so that all is linear in the graph: O(E + N F + F^2) memory, O(E F + N F^2) a step.

    Args:
        beta: what is added to the unit diagonal for the first R (PyGOD's weight decay), at least 0.
        gamma: weight of the graph.
        lr: step size of Adam.
        epoch: steps of Adam.
        **base: contamination, seed (:class:`~graphlossy.outliers.Detector`).

    Attributes:
        residual_: R [N, F] float32.
        losses_: the loss of each step.

    Example:
        >>> from torch_geometric.data import Data
        >>> x = torch.cat([torch.ones(9, 2), torch.tensor([[-5.0, 5.0]])])
        >>> data = Data(x=x, edge_index=torch.stack([torch.arange(9), torch.arange(9) + 1]))
        >>> int(ANOMALOUS(seed=0).fit(data).decision_score_.argmax())
        9
    """

    name, title = "anomalous", "ANOMALOUS"
    paper = "Peng et al., ANOMALOUS: A Joint Modeling Approach for Anomaly Detection on Attributed Networks, IJCAI 2018"
    seeded, memory = True, "O(m + n d + d^2)"

    residual_: Tensor
    losses_: list[float]

    def __init__(
        self, *, beta: float = 0.0, gamma: float = 1.0, lr: float = 4e-3, epoch: int = 100, **base: Any
    ) -> None:
        super().__init__(**base)
        self.beta = float(check_number("beta", beta, 0))
        self.gamma = float(check_number("gamma", gamma, 0))
        self.lr = float(check_number("lr", lr, 0, open_low=True))
        self.epoch = check_number("epoch", epoch, 1, integer=True)

    @classmethod
    def search_space(cls, dataset: str) -> dict[str, tuple[Any, ...]]:
        """BOND's draws: the step size."""
        return {"lr": (0.1, 0.05, 0.01)}

    def _score(self, graph: Graph) -> Tensor:
        graph = graph.to("cpu")
        x, features, laplacian = graph.x, Features(graph.x), Laplacian(graph)
        r = laplacian.solve(x.new_full((graph.num_nodes,), 1 + self.beta), self.gamma, x)
        w = torch.randn(x.size(1), x.size(0), generator=torch.Generator().manual_seed(self.seed_))
        moments = [torch.zeros_like(w), torch.zeros_like(w), torch.zeros_like(r), torch.zeros_like(r)]
        self.losses_ = []
        for step in range(self.epoch):
            smooth = laplacian @ r
            error = x - features.times(features.before(w)) - r
            norm = error.norm()
            self.losses_.append(float(norm) + self.gamma * float((r * smooth).sum()))
            if self.on_epoch is not None:
                self.on_epoch(step, self.losses_[-1])
            error /= norm.clamp(min=torch.finfo(torch.float32).tiny)  # no error, no direction
            gradient = features.before_transposed(features.transposed_times(error))
            adam_step(w, -gradient, moments[0], moments[1], step, self.lr)
            adam_step(r, smooth.mul_(2 * self.gamma).sub_(error), moments[2], moments[3], step, self.lr)
        self.residual_ = r
        return r.square().sum(1)
