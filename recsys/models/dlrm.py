"""`DLRM`: products of all pairs of embeddings, between two perceptrons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graphlossy.recsys.models._base import MLP, CTRModel, check_hidden
from graphlossy.recsys.models.fm import all_pairs

__all__ = ["DLRM"]


class DLRM(CTRModel):
    """Deep learning recommendation model (Naumov et al., arXiv 1906.00091, section 2).

    The float fields go through the bottom MLP to one vector of width d; the products of all pairs of vectors, and that
    vector itself, go through the top MLP. There are no first-order weights. Without float fields the top MLP sees the
    products and the vectors: of a single product of each pair little could be learned.

    Args:
        fields, embedding_dim, init_std: as for `CTRModel`.
        hidden: widths of the hidden layers of the top MLP.
        bottom: widths of the hidden layers of the bottom MLP.
        dropout: probability, after every hidden layer of the top MLP.

    Example:
        >>> from types import SimpleNamespace as Field
        >>> fields = [Field(name="item", kind="token", num_tokens=5), Field(name="price", kind="float", num_tokens=0)]
        >>> DLRM(fields)({"item": torch.tensor([2, 4]), "price": torch.tensor([0.1, 2.0])}).shape
        torch.Size([2])
    """

    def __init__(
        self,
        fields: Iterable[Any],
        embedding_dim: int = 16,
        hidden: Sequence[int] = (64, 32),
        bottom: Sequence[int] = (32,),
        dropout: float = 0.0,
        init_std: float = 0.01,
    ) -> None:
        super().__init__(fields, embedding_dim, False, init_std)
        self.numeric = None  # the bottom MLP takes the place of a vector for every float field
        floats, vectors = len(self.float_names), len(self.field_names)
        self.bottom = MLP(floats, check_hidden(bottom, 0.0), embedding_dim) if floats else None
        vectors, beside = (vectors + 1, embedding_dim) if floats else (vectors, vectors * embedding_dim)
        inputs = vectors * (vectors - 1) // 2 + beside
        self.top = MLP(inputs, check_hidden(hidden, dropout), 1, dropout)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits [B]."""
        if self.bottom is None:
            vectors = self.embed(batch)
            beside = vectors.flatten(1)
        else:
            beside = self.bottom(self.floats(batch))
            vectors = beside.unsqueeze(1)
            if self.field_names:
                vectors = torch.cat([vectors, self.embed(batch).to(beside.dtype)], dim=1)
        return self.first_order(batch) + self.top(torch.cat([all_pairs(vectors), beside], dim=1)).squeeze(1)
