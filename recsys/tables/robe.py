"""`ROBEEmbedding`: every block of every row is a piece of one shared array."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.recsys.tables._base import Table, check_at_least, take
from graphlossy.recsys.tables._budget import largest_that_fits
from graphlossy.recsys.tables._mixing import MOST, below, hash_key, hash_words

__all__ = ["ROBEEmbedding"]


class ROBEEmbedding(Table):
    """Random offset block embedding (Desai et al., "The trade-offs of model size in large recommenders", 2022).

    Element c Z + t of token x is s(x, c, t) * shared[(h(x, c) + t) mod M], with blocks of Z elements, a hash h below M
    and random signs s.

    Args:
        num_embeddings: tokens V.
        embedding_dim: width d.
        size: elements M of the shared array.
        block: elements Z of a block; at most d. Longer blocks touch less memory, shorter ones share more evenly.
        padding_idx: token whose row is zero.
        sparse: sparse gradients.
        seed: of the hashes.
        init_std: standard deviation of an element of a row.
        device, dtype: as in torch.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> table = ROBEEmbedding(10**6, 16, size=10_000)
        >>> table(torch.tensor([3, 999_999])).shape, table.nbytes
        (torch.Size([2, 16]), 40008)
    """

    kind = "robe"
    _sizing = ("block",)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        size: int,
        block: int | None = None,
        padding_idx: int | None = None,
        sparse: bool = False,
        *,
        seed: int = 0,
        init_std: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, sparse, init_std)
        self.block = _block(embedding_dim, block)
        self.size = check_at_least("size", size, self.block, MOST)
        self.shared = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.register_buffer("key", hash_key(seed, device))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.normal_(self.shared, std=self.init_std)

    def places(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(elements int64 [N, d] of the shared array, bool [N, d] which of them are taken negative)."""
        words = hash_words(ids, self.key, -(-self.embedding_dim // self.block)).unsqueeze(2)
        step = torch.arange(self.block, device=ids.device)
        at = (below(words, self.size) + step) % self.size  # `below` uses the high half of a word, the signs the low one
        negative = (words >> (step % 32)) & 1
        return at.flatten(1)[:, : self.embedding_dim], negative.flatten(1)[:, : self.embedding_dim].bool()

    def _rows(self, ids: Tensor) -> Tensor:
        at, negative = self.places(ids)
        found = take(self.shared, at, self.sparse)
        return torch.where(negative, -found, found)

    @classmethod
    def bytes_of(
        cls, num_embeddings: int, embedding_dim: int, dtype: torch.dtype = torch.float32, *, size: int, **_: Any
    ) -> int:
        return size * dtype.itemsize + 8

    @classmethod
    def options_for_budget(
        cls, num_embeddings: int, embedding_dim: int, nbytes: int, dtype: torch.dtype = torch.float32, **options: Any
    ) -> dict[str, Any]:
        def size(elements: int) -> int:
            return cls.bytes_of(num_embeddings, embedding_dim, dtype, size=elements)

        least = _block(embedding_dim, options.get("block"))
        most = min(MOST, max(least, num_embeddings * embedding_dim))
        what = f"a ROBE embedding with blocks of {least}"
        return {**options, "size": largest_that_fits(size, nbytes, least, most, what)}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.size} elements, blocks of {self.block}"


def _block(embedding_dim: int, block: int | None) -> int:
    return min(8, embedding_dim) if block is None else check_at_least("block", block, 1, embedding_dim)
