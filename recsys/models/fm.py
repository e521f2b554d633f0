"""`FM`: factorization machine."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from graphlossy.recsys.models._base import CTRModel

__all__ = ["FM", "all_pairs", "pairwise"]


class FM(CTRModel):
    """Factorization machine of degree 2: y = b + sum_i w_i + sum_{i<j} <v_i, v_j> (Rendle, ICDM 2010, eq. 1).

    Args:
        fields, embedding_dim, first_order, init_std: as for `CTRModel`.

    Example:
        >>> from types import SimpleNamespace as Field
        >>> model = FM([Field(name=name, kind="token", num_tokens=5) for name in ("user", "item")], embedding_dim=4)
        >>> model({"user": torch.tensor([2, 4]), "item": torch.tensor([0, 3])}).shape
        torch.Size([2])
    """

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits [B]."""
        return self.first_order(batch) + pairwise(self.embed(batch))


def pairwise(vectors: Tensor) -> Tensor:
    """Sum of the products of all pairs among ``vectors`` [B, F, d], [B]: (|sum v|^2 - sum |v|^2) / 2, in O(F d)."""
    total = vectors.sum(dim=1)
    return (total.square().sum(dim=1) - vectors.square().sum(dim=(1, 2))) / 2


def all_pairs(vectors: Tensor) -> Tensor:
    """Products of all pairs i < j among ``vectors`` [B, F, d]: [B, F (F - 1) / 2]."""
    products = vectors @ vectors.transpose(1, 2)
    first, second = torch.triu_indices(vectors.shape[1], vectors.shape[1], offset=1, device=vectors.device)
    return products[:, first, second]
