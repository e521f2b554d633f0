"""`HashEmbedding`: tokens share the rows of a smaller table, each the sum of one or more of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphlossy.recsys.tables._base import Table, check_at_least
from graphlossy.recsys.tables._budget import largest_that_fits
from graphlossy.recsys.tables._mixing import MOST, below, hash_key, hash_words

__all__ = ["HashEmbedding"]


class HashEmbedding(Table):
    """The hashing trick (Weinberger et al., ICML 2009); several hashes: Bloom embeddings (Serrà and Karatzoglou, 2017).

    row(x) = sum over k of weight[h_k(x)].

    Args:
        num_embeddings: tokens V.
        embedding_dim: width d.
        rows: of the table that is stored.
        num_hashes: rows that are added for a token; two tokens are the same only where all of theirs are.
        padding_idx: token whose row is zero.
        sparse: sparse gradients.
        seed: of the hashes.
        init_std: standard deviation of an element of a row.
        device, dtype: as in torch.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> table = HashEmbedding(10**6, 16, rows=1000, num_hashes=2)
        >>> table(torch.tensor([3, 999_999])).shape, table.nbytes
        (torch.Size([2, 16]), 64008)
    """

    kind = "hash"
    _sizing = ("num_hashes",)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rows: int,
        num_hashes: int = 1,
        padding_idx: int | None = None,
        sparse: bool = False,
        *,
        seed: int = 0,
        init_std: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, sparse, init_std)
        self.num_rows = check_at_least("rows", rows, 1, MOST)
        self.num_hashes = check_at_least("num_hashes", num_hashes, 1)
        self.shared = nn.Parameter(torch.empty((rows, embedding_dim), device=device, dtype=dtype))
        self.register_buffer("key", hash_key(seed, device))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.normal_(self.shared, std=self.init_std / self.num_hashes**0.5)

    def places(self, ids: Tensor) -> Tensor:
        """int64 [N, num_hashes]: rows of the stored table that make up the row of each token."""
        return below(hash_words(ids, self.key, self.num_hashes), self.num_rows)

    def _rows(self, ids: Tensor) -> Tensor:
        found = functional.embedding(self.places(ids), self.shared, sparse=self.sparse)
        return found.sum(1) if self.num_hashes > 1 else found.squeeze(1)

    def scores(self, queries: Tensor) -> Tensor:
        """Products [B, V] of ``queries`` [B, d] with all rows; the stored rows are multiplied once each."""
        self.check_queries(queries)
        narrow = queries @ self.shared.to(queries.dtype).T
        at = self.places(torch.arange(self.num_embeddings, device=self.device))
        out = narrow.index_select(1, at[:, 0])
        for k in range(1, self.num_hashes):
            out = out + narrow.index_select(1, at[:, k])
        return self._without_padding(out)

    @classmethod
    def bytes_of(
        cls, num_embeddings: int, embedding_dim: int, dtype: torch.dtype = torch.float32, *, rows: int, **_: Any
    ) -> int:
        return rows * embedding_dim * dtype.itemsize + 8

    @classmethod
    def options_for_budget(
        cls, num_embeddings: int, embedding_dim: int, nbytes: int, dtype: torch.dtype = torch.float32, **options: Any
    ) -> dict[str, Any]:
        def size(rows: int) -> int:
            return cls.bytes_of(num_embeddings, embedding_dim, dtype, rows=rows)

        what = f"a hash embedding of width {embedding_dim}"
        return {**options, "rows": largest_that_fits(size, nbytes, 1, max(1, min(num_embeddings, MOST)), what)}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.num_rows} rows, {self.num_hashes} hashes"
