"""AdONE: DONE whose embeddings are aligned by a discriminator."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphlossy.outliers._checks import Graph
from graphlossy.outliers.methods._networks import mlp_layers
from graphlossy.outliers.methods.done import _TINY, DONE, _surprise

__all__ = ["AdONE"]


class _Adversary(nn.Module):
    """The two autoencoders and the discriminator of their embeddings."""

    def __init__(self, generator: nn.Module, width: int, dropout: float) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator = nn.Sequential(*mlp_layers([width, max(1, width // 2), 1], dropout, nn.Tanh))


class AdONE(DONE):
    """Adversarial outlier aware network embedding (Bandyopadhyay et al., WSDM 2020): DONE with an adversary.

    A discriminator D learns to tell the embeddings h^a of the features from those h^s of the structure, by
    loss_D = -mean_i log(1 - D(h^a_i)) + log D(h^s_i) (11). In the loss of :class:`~graphlossy.outliers.methods.DONE`
    the term of w5 becomes mean_i log(1/o^c_i) (log(1 - D(h^a_i)) + log D(h^s_i)) (12), which the autoencoders lower by
    making them alike. An epoch is one step of the discriminator and one of the autoencoders. The shares o are
    constants in a step, as in the paper.

    Args:
        w1: weight of the error of the rows.
        w2: weight of the neighbours' distance in the structure embedding.
        w3: weight of the error of the features.
        w4: weight of the neighbours' distance in the feature embedding.
        w5: weight of the alignment.
        structure: ``"exact"``, linear, or ``"dense"``, the definition over [N, N] matrices.
        **options: those of :class:`~graphlossy.outliers._deep.DeepDetector`; ``num_layers`` is at least 2.

    Attributes:
        structural_score_: o^s, [N].
        attribute_score_: o^a, [N].
        combined_score_: o^c, [N].

    Example:
        >>> from torch_geometric.data import Data
        >>> data = Data(x=torch.eye(6), edge_index=torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]))
        >>> round(float(AdONE(epoch=3, hid_dim=4, seed=0).fit(data).decision_score_.sum()), 4)
        1.0
    """

    name, title = "adone", "AdONE"

    def _build(self, graph: Graph) -> nn.Module:
        return _Adversary(super()._build(graph), self.hid_dim, self.dropout)

    def _optimizers(self, module: Any) -> tuple[torch.optim.Optimizer, ...]:
        return tuple(
            torch.optim.Adam(part.parameters(), lr=self.lr, weight_decay=self.weight_decay)
            for part in (module.discriminator, module.generator)
        )

    def _step(self, module: Any, graph: Graph, optimizers: tuple[torch.optim.Optimizer, ...]) -> tuple[Tensor, float]:
        judge, embed = optimizers
        with self._forward():
            h_x, h_s, *errors = module.generator(graph)
        with self._forward():
            odds = _log_odds(module.discriminator, h_x.detach(), h_s.detach())
        self._descend(-odds.mean(), judge)
        with self._forward():
            structure, attributes = self._proximity(*errors)
            apart = (h_x - h_s).square().sum(1)
            score = self._shares(structure, attributes, apart)
            odds = _log_odds(module.discriminator, h_x, h_s)
            loss = (
                _surprise(structure, self.structural_score_)
                + _surprise(attributes, self.attribute_score_)
                + self.w5 * (-self.combined_score_.clamp(min=_TINY).log() * odds).mean()
            )
        self._descend(loss, embed)
        return score, float(loss.detach())


def _log_odds(discriminator: nn.Module, h_x: Tensor, h_s: Tensor) -> Tensor:
    """log(1 - D(h^a)) + log D(h^s), [N], from logits."""
    return -F.softplus(discriminator(h_x)).squeeze(1) - F.softplus(-discriminator(h_s)).squeeze(1)
