"""`DeepFM`: a factorization machine and a perceptron on the same embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from graphlossy.recsys.models._base import MLP, CTRModel, check_hidden
from graphlossy.recsys.models.fm import pairwise

__all__ = ["DeepFM"]


class DeepFM(CTRModel):
    """FM plus an MLP on the embeddings of all fields, tables shared (Guo et al., IJCAI 2017, eq. 1 to 4).

    Args:
        fields, embedding_dim, first_order, init_std: as for `CTRModel`.
        hidden: widths of the hidden layers.
        dropout: probability, after every hidden layer.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace as Field
        >>> model = DeepFM([Field(name=name, kind="token", num_tokens=5) for name in ("user", "item")])
        >>> model({"user": torch.tensor([2, 4]), "item": torch.tensor([0, 3])}).shape
        torch.Size([2])
    """

    def __init__(
        self,
        fields: Iterable[Any],
        embedding_dim: int = 16,
        hidden: Sequence[int] = (64, 32),
        dropout: float = 0.0,
        first_order: bool = True,
        init_std: float = 0.01,
    ) -> None:
        super().__init__(fields, embedding_dim, first_order, init_std)
        self.deep = MLP(self.num_fields * embedding_dim, check_hidden(hidden, dropout), 1, dropout)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits [B]."""
        vectors = self.embed(batch)
        return self.first_order(batch) + pairwise(vectors) + self.deep(vectors.flatten(1)).squeeze(1)
