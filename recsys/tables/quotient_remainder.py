"""`QREmbedding`: a token is the pair of a quotient and a remainder, and its row is made of theirs."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphlossy.recsys.tables._base import Table, check_at_least
from graphlossy.recsys.tables._budget import largest_that_fits

__all__ = ["QREmbedding"]

MODES = ("mult", "add", "concat")


class QREmbedding(Table):
    """Quotient-remainder embedding (Shi et al., "Compositional embeddings using complementary partitions", KDD 2020).

    Token x has the row remainder[x mod m] * quotient[x div m] (``"mult"``), their sum (``"add"``) or both, one beside
    the other (``"concat"``); no two tokens share both. Values are drawn symmetrically about zero, so that products are
    too, and ids are divided as integers.

    Args:
        num_embeddings: tokens V.
        embedding_dim: width d.
        buckets: remainders m; there are ceil(V / m) quotients.
        mode: ``"mult"``, ``"add"`` or ``"concat"``.
        padding_idx: token whose row is zero.
        sparse: sparse gradients.
        init_std: standard deviation of an element of a row.
        device, dtype: as in torch.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> table = QREmbedding(10**6, 16, buckets=2000)
        >>> table(torch.tensor([3, 999_999])).shape, table.nbytes
        (torch.Size([2, 16]), 160000)
    """

    kind = "qr"
    _sizing = ("mode",)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        buckets: int,
        mode: str = "mult",
        padding_idx: int | None = None,
        sparse: bool = False,
        *,
        init_std: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, sparse, init_std)
        self.buckets, self.mode = check_at_least("buckets", buckets, 1), mode
        wide_r, wide_q = _widths(embedding_dim, mode)
        quotients = -(-num_embeddings // buckets)
        self.remainder = nn.Parameter(torch.empty((buckets, wide_r), device=device, dtype=dtype))
        self.quotient = nn.Parameter(torch.empty((quotients, wide_q), device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        std = {"mult": self.init_std**0.5, "add": self.init_std / 2**0.5, "concat": self.init_std}[self.mode]
        nn.init.normal_(self.remainder, std=std)
        nn.init.normal_(self.quotient, std=std)

    def _rows(self, ids: Tensor) -> Tensor:
        remainder = functional.embedding(ids % self.buckets, self.remainder, sparse=self.sparse)
        quotient = functional.embedding(ids // self.buckets, self.quotient, sparse=self.sparse)
        if self.mode == "mult":
            return remainder * quotient
        return remainder + quotient if self.mode == "add" else torch.cat([remainder, quotient], dim=1)

    def scores(self, queries: Tensor) -> Tensor:
        """Products [B, V] of ``queries`` [B, d] with all rows, none of which is made.

        Token x is column x mod m of block x div m: a query is multiplied with the quotients, then with all remainders.
        """
        self.check_queries(queries)
        remainder, quotient = self.remainder.to(queries.dtype), self.quotient.to(queries.dtype)
        if self.mode == "mult":
            out = (queries.unsqueeze(1) * quotient) @ remainder.T
        else:
            parts = (
                (queries, queries) if self.mode == "add" else queries.split([remainder.shape[1], quotient.shape[1]], 1)
            )
            out = (parts[1] @ quotient.T).unsqueeze(2) + (parts[0] @ remainder.T).unsqueeze(1)
        return self._without_padding(out.flatten(1)[:, : self.num_embeddings].contiguous())

    @classmethod
    def bytes_of(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        dtype: torch.dtype = torch.float32,
        *,
        buckets: int,
        mode: str = "mult",
        **_: Any,
    ) -> int:
        wide_r, wide_q = _widths(embedding_dim, mode)
        return (buckets * wide_r + -(-num_embeddings // buckets) * wide_q) * dtype.itemsize

    @classmethod
    def options_for_budget(
        cls, num_embeddings: int, embedding_dim: int, nbytes: int, dtype: torch.dtype = torch.float32, **options: Any
    ) -> dict[str, Any]:
        mode = options.get("mode", "mult")

        def size(buckets: int) -> int:
            return cls.bytes_of(num_embeddings, embedding_dim, dtype, buckets=buckets, mode=mode)

        # From sqrt(V) on the bytes rise with the buckets; below, every number is tried, for the fewest bytes.
        root = isqrt(max(0, num_embeddings - 1)) + 1
        if size(root) > nbytes:
            wide_r, wide_q = _widths(embedding_dim, mode)
            buckets = torch.arange(1, root + 1)
            sizes = (buckets * wide_r + (num_embeddings + buckets - 1) // buckets * wide_q) * dtype.itemsize
            fits = (sizes <= nbytes).nonzero()
            root = int(buckets[fits[-1] if fits.numel() else sizes.argmin()])
            most = root
        else:
            most = max(1, num_embeddings)
        what = f"a quotient-remainder embedding of {num_embeddings} tokens"
        return {**options, "buckets": largest_that_fits(size, nbytes, root, most, what)}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.buckets} buckets, mode={self.mode!r}"


def _widths(embedding_dim: int, mode: str) -> tuple[int, int]:
    """Widths of a remainder's and of a quotient's row."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    if mode != "concat":
        return embedding_dim, embedding_dim
    if embedding_dim < 2:
        raise ValueError(
            f"mode='concat' needs an embedding_dim of at least 2, got {embedding_dim}; take 'add' or 'mult'"
        )
    return embedding_dim - embedding_dim // 2, embedding_dim // 2
