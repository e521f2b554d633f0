"""torch-rechub's trainers tell embeddings from other weights by torch's classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.recsys._swap import core_of
from graphlossy.recsys.rows import low_bit_rows_of

__all__ = ["EmbeddingPenalty", "notes_on", "regularize"]


def notes_on(model: nn.Module) -> list[str]:
    """What its trainers get wrong."""
    return [
        "torch-rechub's trainers apply dense_l1 and dense_l2, not embedding_l1 and embedding_l2, to compressed tables; "
        "call graphlossy.recsys.frameworks.torch_rechub.regularize(trainer) if you set them"
    ]


class EmbeddingPenalty(nn.Module):
    """L1 and L2 penalties like torch-rechub's ``RegularizationLoss``, in which compressed tables are embeddings.

    Rows and projections are what is bounded, as parameters of a table; rows of few bits are left out.

    Args:
        penalty: the trainer's own, which keeps its coefficients and does the rest.
    """

    def __init__(self, penalty: nn.Module) -> None:
        super().__init__()
        self.penalty = penalty

    def forward(self, model: nn.Module) -> Tensor | float:
        """The penalty of ``model``."""
        params: dict[int, Tensor] = {}
        for module in model.modules():
            if core_of(module) is not None:
                params.update({id(param): param for param in module.parameters()})
        rest = _Without(model, set(params))
        total = self.penalty(rest)
        for param in params.values():
            if param.requires_grad and low_bit_rows_of(param) is None:
                total = total + self.penalty.embedding_l1 * param.abs().sum() if self.penalty.embedding_l1 else total
                total = total + self.penalty.embedding_l2 * param.square().sum() if self.penalty.embedding_l2 else total
        return total


class _Without:
    """A model as the framework's penalty sees it, without some of its parameters."""

    def __init__(self, model: nn.Module, hidden: set[int]) -> None:
        self.model, self.hidden = model, hidden

    def modules(self) -> Any:
        return self.model.modules()

    def parameters(self) -> list[torch.nn.Parameter]:
        return [param for param in self.model.parameters() if id(param) not in self.hidden]


def regularize(trainer: Any) -> None:
    """Has a trainer of torch-rechub count compressed tables as embeddings in its penalties.

    Args:
        trainer: a ``CTRTrainer``, ``MatchTrainer`` or another that keeps its penalty as ``reg_loss_fn``.

    Raises:
        TypeError: it keeps none.
    """
    penalty = getattr(trainer, "reg_loss_fn", None)
    if not isinstance(penalty, nn.Module):
        raise TypeError(f"trainer must be one of torch-rechub with a reg_loss_fn, got {type(trainer).__name__}")
    if not isinstance(penalty, EmbeddingPenalty):
        trainer.reg_loss_fn = EmbeddingPenalty(penalty)
