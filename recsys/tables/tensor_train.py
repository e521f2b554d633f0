"""`TTEmbedding`: the table as a product of three small cores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphlossy.recsys.tables._base import Table, check_at_least
from graphlossy.recsys.tables._budget import largest_that_fits

__all__ = ["TTEmbedding", "factors_of_tokens", "factors_of_width"]

_BLOCK = 1 << 22  # elements of the full table that are made at a time


class TTEmbedding(Table):
    """Tensor-train embedding (Yin et al., "TT-Rec", MLSys 2021).

    With V <= n1 n2 n3 and d <= d1 d2 d3, token (i, j, k) in mixed radix has the row
    A[i] (d1 x r1) B[j] (r1 x d2 r2) C[k] (r2 x d3), cut to d elements.

    Args:
        num_embeddings: tokens V.
        embedding_dim: width d.
        ranks: r1 and r2, or one number for both.
        shape: n1, n2, n3; None is about the cube root of V each.
        dim_shape: d1, d2, d3; None has the least sum, and among those the least product.
        padding_idx: token whose row is zero.
        sparse: sparse gradients.
        init_std: standard deviation of an element of a row.
        device, dtype: as in torch.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> table = TTEmbedding(10**6, 32, ranks=16)
        >>> table.shape, table.dim_shape, table(torch.tensor([3, 999_999])).shape, table.nbytes
        ((100, 100, 100), (4, 2, 4), torch.Size([2, 32]), 256000)
    """

    kind = "tt"
    _sizing = ("shape", "dim_shape")

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        ranks: int | Sequence[int] = 16,
        shape: Sequence[int] | None = None,
        dim_shape: Sequence[int] | None = None,
        padding_idx: int | None = None,
        sparse: bool = False,
        *,
        init_std: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, sparse, init_std)
        self.shape, self.dim_shape = _shapes(num_embeddings, embedding_dim, shape, dim_shape)
        self.ranks = _ranks(ranks)
        self.cores = nn.ParameterList(
            torch.empty((n, width), device=device, dtype=dtype)
            for n, width in zip(self.shape, _core_widths(self.dim_shape, self.ranks), strict=True)
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        # An element of a row is a sum of r1 r2 products of three numbers.
        std = (self.init_std**2 / prod(self.ranks)) ** (1 / 6)
        for core in self.cores:
            nn.init.normal_(core, std=std)

    def _left(self, pairs: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """[U, d1 d2, r2]: A[i] B[j] of the tokens' leading two digits, i n2 + j in ``pairs`` [U]."""
        (r1, r2), (d1, d2, _), n2 = self.ranks, self.dim_shape, self.shape[1]
        a = functional.embedding(pairs // n2, first, sparse=self.sparse).view(-1, d1, r1)
        b = functional.embedding(pairs % n2, second, sparse=self.sparse).view(-1, r1, d2 * r2)
        return torch.bmm(a, b).view(-1, d1 * d2, r2)

    def _rows(self, ids: Tensor) -> Tensor:
        first, second, third = self.cores
        (_, r2), (d1, d2, d3) = self.ranks, self.dim_shape
        # Frequent tokens, and neighbouring ids, share the product of the first two cores.
        pairs, inverse = (ids // self.shape[2]).unique(return_inverse=True)
        left = self._left(pairs, first, second).flatten(1)[inverse].view(-1, d1 * d2, r2)
        right = functional.embedding(ids % self.shape[2], third, sparse=self.sparse).view(-1, r2, d3)
        return torch.bmm(left, right).flatten(1)[:, : self.embedding_dim]

    def _blocks(self) -> Iterator[Tensor]:
        """All rows [.., d] in order, made without a copy of a core for every token."""
        first, second, third = self.cores
        (_, r2), (d1, d2, d3), n3 = self.ranks, self.dim_shape, self.shape[2]
        right = third.view(n3, r2, d3).transpose(0, 1).reshape(r2, n3 * d3)
        step, last = max(1, _BLOCK // (n3 * d1 * d2 * max(d3, r2))), -(-self.num_embeddings // n3)
        for start in range(0, last, step):
            pairs = torch.arange(start, min(last, start + step), device=third.device)
            full = (self._left(pairs, first, second) @ right).view(-1, d1 * d2, n3, d3)
            rows = full.transpose(1, 2).reshape(-1, d1 * d2 * d3)
            yield rows[: self.num_embeddings - start * n3, : self.embedding_dim]

    @property
    def weight(self) -> Tensor:
        """The whole table [V, d], computed anew and differentiable; writing to it changes nothing."""
        blocks = list(self._blocks())
        out = torch.cat(blocks) if blocks else self.cores[0].new_empty((0, self.embedding_dim))
        if self.padding_idx is not None:
            out[self.padding_idx] = 0.0
        return out

    def scores(self, queries: Tensor) -> Tensor:
        """Products [B, V] of ``queries`` [B, d] with all rows; the table is made in blocks."""
        self.check_queries(queries)
        blocks = [queries @ rows.to(queries.dtype).T for rows in self._blocks()]
        out = torch.cat(blocks, dim=1) if blocks else queries.new_empty((queries.shape[0], 0))
        return self._without_padding(out)

    @classmethod
    def bytes_of(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        dtype: torch.dtype = torch.float32,
        *,
        ranks: int | Sequence[int] = 16,
        shape: Sequence[int] | None = None,
        dim_shape: Sequence[int] | None = None,
        **_: Any,
    ) -> int:
        tokens, dims = _shapes(num_embeddings, embedding_dim, shape, dim_shape)
        widths = _core_widths(dims, _ranks(ranks))
        return sum(n * width for n, width in zip(tokens, widths, strict=True)) * dtype.itemsize

    @classmethod
    def options_for_budget(
        cls, num_embeddings: int, embedding_dim: int, nbytes: int, dtype: torch.dtype = torch.float32, **options: Any
    ) -> dict[str, Any]:
        (n1, _, n3), (d1, _, d3) = _shapes(
            num_embeddings, embedding_dim, options.get("shape"), options.get("dim_shape")
        )

        def size(ranks: int | list[int]) -> int:
            return cls.bytes_of(num_embeddings, embedding_dim, dtype, **{**options, "ranks": ranks})

        what = f"a tensor-train embedding of {num_embeddings} tokens"
        # Larger ranks than these make no other tables.
        rank = largest_that_fits(size, nbytes, 1, max(1, n1 * d1, n3 * d3), what)
        # The next equal ranks may take several times the bytes: one of them takes what is left.
        first = largest_that_fits(lambda r: size([r, rank]), nbytes, rank, max(rank, n1 * d1), what)
        second = largest_that_fits(lambda r: size([rank, r]), nbytes, rank, max(rank, n3 * d3), what)
        ranks = max([first, rank], [rank, second], key=size)
        return {**options, "ranks": rank if ranks == [rank, rank] else ranks}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tokens {self.shape}, width {self.dim_shape}, ranks {self.ranks}"


def factors_of_tokens(count: int) -> tuple[int, int, int]:
    """Three nearly equal numbers whose product is at least ``count``, the smallest in the middle.

    >>> factors_of_tokens(1_000_001), factors_of_tokens(0)
    ((101, 100, 100), (1, 1, 1))
    """
    low = max(1, round(count ** (1 / 3)) - 1)
    while low > 1 and low**3 > count:
        low -= 1
    for more in range(7):
        found = sorted(low + (more + part) // 3 for part in range(3))
        if prod(found) >= count:
            break
    return found[2], found[0], found[1]


def factors_of_width(width: int) -> tuple[int, int, int]:
    """Three numbers whose product is at least ``width``, of the least sum, then product; the smallest in the middle.

    >>> factors_of_width(32), factors_of_width(31), factors_of_width(1)
    ((4, 2, 4), (4, 2, 4), (1, 1, 1))
    """
    least = ceil(width ** (1 / 3) - 1e-9)
    found = min(
        (a + b + c, a * b * c, a, b, c)
        for a, b in product(range(1, least + 1), range(1, 2 * least + 1))
        if (c := -(-width // (a * b))) >= b >= a
    )
    return found[4], found[2], found[3]


def _shapes(
    num_embeddings: int, embedding_dim: int, shape: Sequence[int] | None, dim_shape: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    tokens = factors_of_tokens(num_embeddings) if shape is None else _three("shape", shape, num_embeddings)
    dims = factors_of_width(embedding_dim) if dim_shape is None else _three("dim_shape", dim_shape, embedding_dim)
    return tokens, dims


def _three(name: str, factors: Sequence[int], least: int) -> tuple[int, ...]:
    found = tuple(check_at_least(f"{name}[{i}]", n, 1) for i, n in enumerate(factors))
    if len(found) != 3 or prod(found) < least:
        raise ValueError(f"{name} must be three numbers whose product is at least {least}, got {found}")
    return found


def _ranks(ranks: int | Sequence[int]) -> tuple[int, int]:
    pair = tuple(ranks) if isinstance(ranks, (tuple, list)) else (ranks, ranks)
    if len(pair) != 2:
        raise ValueError(f"ranks must be one number or two, got {len(pair)}")
    return check_at_least("ranks", pair[0], 1), check_at_least("ranks", pair[1], 1)


def _core_widths(dims: Sequence[int], ranks: tuple[int, int]) -> tuple[int, int, int]:
    """Elements of a row of each core."""
    return dims[0] * ranks[0], ranks[0] * dims[1] * ranks[1], ranks[1] * dims[2]
