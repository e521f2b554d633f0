"""`MultiSizeEmbeddingBag`: sums, means or maxima of rows of different widths, without an intermediate of every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graphlossy.recsys._lookup import Bags
from graphlossy.recsys.base import bag_ends, check_weights, drop_padding, pool
from graphlossy.recsys.multi_size import MultiSizeEmbedding

__all__ = ["MultiSizeEmbeddingBag"]

_MODES = ("sum", "mean", "max")


class MultiSizeEmbeddingBag(MultiSizeEmbedding):
    """`torch.nn.EmbeddingBag` whose tokens have rows of different widths.

    Sums and means are made position by position in one pass; ``"max"`` makes every row first.

    Args:
        num_embeddings, embedding_dim, max_norm, norm_type, scale_grad_by_freq, mode, sparse, include_last_offset,
            padding_idx, device, dtype: as in torch.
        sizes, projection, shared_rows, shared_size, init_std: as for `MultiSizeEmbedding`.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> bag = MultiSizeEmbeddingBag(5, 8, mode="sum", sizes=[8, 4, 4, 1, 0])
        >>> bag(torch.tensor([0, 1, 4]), torch.tensor([0, 2])).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        *,
        sizes: int | Sequence[int] | Tensor | None = None,
        **options: Any,
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {_MODES}, got {mode!r}")
        super().__init__(
            num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, sizes=sizes,
            **options,
        )  # fmt: skip
        self.mode, self.include_last_offset = mode, include_last_offset

    def forward(  # type: ignore[override]
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Pooled rows [B, d].

        Args:
            input: ids [B, L], every row a bag, or [N] with ``offsets``.
            offsets: int64 [B] where each bag begins, [B + 1] with ``include_last_offset``.
            per_sample_weights: of the shape of ``input``, for mode ``"sum"``.

        Raises:
            IdError: an id is not of this table.
            TypeError, ValueError: the arguments do not go together.
        """
        check_weights(per_sample_weights, input, self.mode)
        flat, ends = bag_ends(input, offsets, self.include_last_offset)
        ids = self._flatten(flat)
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        ids, ends, weights = drop_padding(ids, ends, weights, self.padding_idx)
        if self.max_norm is not None:
            self._renormalize(ids)
        if self.mode == "max":
            return pool(self._look_up(ids, None), ends, "max")
        return self._look_up(ids, None, Bags(ends, weights, self.mode == "mean"))

    @torch.no_grad()
    def to_dense(self, sparse: bool = False) -> torch.nn.EmbeddingBag:  # type: ignore[override]
        """An ordinary `torch.nn.EmbeddingBag` with the same rows."""
        return torch.nn.EmbeddingBag(
            self.num_embeddings, self.embedding_dim, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.mode,
            sparse, self.weight.detach().clone(), self.include_last_offset, self.padding_idx,
        )  # fmt: skip
