"""`PrunedEmbedding`: the entries that pruning kept, with a byte for the column of each and a byte for every row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.recsys.tables._base import Table, check_at_least, take
from graphlossy.recsys.tables._budget import largest_that_fits

__all__ = ["PrunedEmbedding"]

_ROWS = 64  # of the directory's entries
_ELEMENTS = 1 << 22  # products that the scores make at a time


class PrunedEmbedding(Table):
    """A table of which only some entries are stored; the others are zero.

    In float32 an entry costs 5 bytes (6 for d > 256) and a row 1.06 (2.06 for d > 255): its value and column; the
    row's number of entries and, for every 64 rows, where theirs begin. The usual compressed sparse rows with 4-byte
    columns and pointers cost 8 and 4.

    Args:
        num_embeddings: tokens V.
        embedding_dim: width d.
        kept: entries. They are spread evenly over rows and columns; see `from_mask` for a choice of them.
        padding_idx: token whose row gets no gradient; zero to begin with.
        sparse: sparse gradients of the flat values.
        init_std: standard deviation of a value.
        device, dtype: as in torch.

    Attributes:
        values: the parameter [kept], row after row.
        columns: uint8 [kept], or int16 for d > 256.
        row_counts: uint8 [V], or int16 for d > 255.
        directory: int32 [ceil(V / 64)] entries before each 64 rows; int64 from 2**31 entries on.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> mask = torch.eye(8, dtype=torch.bool)
        >>> table = PrunedEmbedding.from_mask(torch.ones(8, 8), mask)
        >>> torch.equal(table.weight.detach(), torch.eye(8)), table.nbytes
        (True, 52)
    """

    kind = "pruned"
    _sizing = ()
    columns: Tensor
    row_counts: Tensor
    directory: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        kept: int = 0,
        padding_idx: int | None = None,
        sparse: bool = False,
        *,
        init_std: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, sparse, init_std)
        check_at_least("embedding_dim", embedding_dim, 1, 2**15 - 1)
        kept = check_at_least("kept", kept, 0, num_embeddings * embedding_dim)
        bounds = torch.arange(num_embeddings + 1, device=device) * (kept // max(1, num_embeddings))
        bounds += (
            torch.arange(num_embeddings + 1, device=device) * (kept % max(1, num_embeddings)) // max(1, num_embeddings)
        )
        # Consecutive entries are in consecutive columns, so those of a row, at most d, are all different.
        self._store(bounds.diff(), torch.arange(kept, device=device) % embedding_dim)
        self.values = nn.Parameter(torch.empty(kept, device=device, dtype=dtype))
        self.reset_parameters()

    def _store(self, counts: Tensor, columns: Tensor) -> None:
        """Keeps where the entries are: int64 [V] numbers of them by row, and their columns, row after row."""
        self.register_buffer("columns", columns.to(_column_dtype(self.embedding_dim)))
        self.register_buffer("row_counts", counts.to(_count_dtype(self.embedding_dim)))
        before = (counts.cumsum(0) - counts)[::_ROWS]
        self.register_buffer("directory", before.to(_directory_dtype(columns.shape[0])))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.normal_(self.values, std=self.init_std)
        if self.padding_idx is not None:
            at, _ = self._entries(torch.tensor([self.padding_idx], device=self.device))
            self.values[at] = 0.0

    @classmethod
    @torch.no_grad()
    def from_mask(cls, dense: Tensor, mask: Tensor, **options: Any) -> PrunedEmbedding:
        """The entries of a dense table that a mask keeps, with their values.

        Args:
            dense: float [V, d].
            mask: bool [V, d], True where an entry is kept.
            options: ``padding_idx``, ``sparse``, and others of the class.

        Raises:
            ValueError: the two are not of one shape with two dimensions.
            TypeError: ``mask`` is not bool.
        """
        if dense.dim() != 2 or dense.shape != mask.shape:
            shapes = f"{tuple(dense.shape)} and {tuple(mask.shape)}"
            raise ValueError(f"dense and mask must have one shape [tokens, width], got {shapes}")
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, got {str(mask.dtype).removeprefix('torch.')}; compare it with 0")
        table = cls(*dense.shape, **({"device": dense.device, "dtype": dense.dtype} | options))
        mask = mask.to(dense.device)
        table._store(mask.sum(1).to(table.device), mask.nonzero()[:, 1].to(table.device))
        table.values = nn.Parameter(dense.detach()[mask].to(table.values))
        return table

    @property
    def kept(self) -> int:
        """Entries that are stored."""
        return self.values.shape[0]

    @property
    def mask(self) -> Tensor:
        """bool [V, d], True where an entry is stored."""
        out = torch.zeros((self.num_embeddings, self.embedding_dim), dtype=torch.bool, device=self.device)
        row = torch.arange(self.num_embeddings, device=self.device).repeat_interleave(self.row_counts.to(torch.int64))
        out[row, self.columns.to(torch.int64)] = True
        return out

    def _entries(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(int64 [M] all entries of the rows ``ids`` [N], position in ``ids`` of each)."""
        block, within = ids // _ROWS, ids % _ROWS
        step = torch.arange(_ROWS, device=ids.device)
        near = self.row_counts[(block * _ROWS).unsqueeze(1).add(step).clamp(max=self.num_embeddings - 1)]
        before = near.masked_fill(step >= within.unsqueeze(1), 0).sum(1, dtype=torch.int64)
        counts = self.row_counts[ids].to(torch.int64)
        first = self.directory[block] + before - (counts.cumsum(0) - counts)
        owner = torch.arange(ids.shape[0], device=ids.device).repeat_interleave(counts)
        return first[owner] + torch.arange(owner.shape[0], device=ids.device), owner

    def _rows(self, ids: Tensor) -> Tensor:
        at, owner = self._entries(ids)
        out = self.values.new_zeros(ids.shape[0] * self.embedding_dim)
        place = owner * self.embedding_dim + self.columns[at]
        return out.scatter(0, place, take(self.values, at, self.sparse)).view(-1, self.embedding_dim)

    def rows(self, ids: Tensor) -> Tensor:
        """[N, d] of int64 ids [N] that were found valid, differentiable; padding is like any other token."""
        return self._rows(ids)

    @property
    def weight(self) -> Tensor:
        """The whole table [V, d], computed anew and differentiable; writing to it changes nothing."""
        row = torch.arange(self.num_embeddings, device=self.device).repeat_interleave(self.row_counts.to(torch.int64))
        out = self.values.new_zeros(self.num_embeddings * self.embedding_dim)
        return out.scatter(0, row * self.embedding_dim + self.columns, self.values).view(-1, self.embedding_dim)

    def scores(self, queries: Tensor) -> Tensor:
        """Products [B, V] of ``queries`` [B, d] with all rows: a product for each query and entry."""
        self.check_queries(queries)
        ends = self.row_counts.cumsum(0, dtype=torch.int64)
        if not self.kept or not queries.shape[0]:
            return (queries.sum() + self.values.sum()) * queries.new_zeros((queries.shape[0], self.num_embeddings))
        row = torch.arange(self.num_embeddings, device=self.device).repeat_interleave(self.row_counts.to(torch.int64))
        blocks, start, step = [], 0, max(self.embedding_dim, _ELEMENTS // queries.shape[0])
        while start < self.num_embeddings:  # whole rows of about `step` entries
            first = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(torch.searchsorted(ends, first + step, right=True)))
            last = int(ends[stop - 1])
            products = queries[:, self.columns[first:last].to(torch.int64)] * self.values[first:last].to(queries.dtype)
            out = products.new_zeros((queries.shape[0], stop - start))
            blocks.append(out.index_add(1, row[first:last] - start, products))
            start = stop
        return torch.cat(blocks, dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        errors: list[str] = rest[-1]
        own = {name: state_dict.get(prefix + name) for name in ("values", "columns", "row_counts", "directory")}
        if all(isinstance(t, Tensor) for t in own.values()) and own["row_counts"].shape == (self.num_embeddings,):
            if wrong := self._what_is_wrong(**own):
                errors.append(f"{prefix or type(self).__name__}: {wrong}")
                return
            if own["values"].shape != self.values.shape:
                self.values = nn.Parameter(self.values.new_empty(own["values"].shape), self.values.requires_grad)
            for name in ("columns", "directory"):
                setattr(self, name, torch.empty_like(own[name], device=self.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _what_is_wrong(self, values: Tensor, columns: Tensor, row_counts: Tensor, directory: Tensor) -> str:
        counts = row_counts.to(torch.int64)
        if row_counts.dtype != self.row_counts.dtype or columns.dtype != self.columns.dtype:
            return f"its columns are not those of a table of width {self.embedding_dim}"
        if columns.shape != values.shape or int(counts.sum()) != values.shape[0]:
            return f"row_counts add up to {int(counts.sum())}, for {tuple(values.shape)} values"
        if columns.numel() and not 0 <= int(columns.min()) <= int(columns.max()) < self.embedding_dim:
            return f"column {int(columns.max())} is not in a table of width {self.embedding_dim}"
        if not torch.equal(directory.to(torch.int64), (counts.cumsum(0) - counts)[::_ROWS]):
            return "the directory does not go with row_counts"
        return ""

    @classmethod
    def bytes_of(
        cls, num_embeddings: int, embedding_dim: int, dtype: torch.dtype = torch.float32, *, kept: int, **_: Any
    ) -> int:
        entry = dtype.itemsize + _column_dtype(embedding_dim).itemsize
        row = _count_dtype(embedding_dim).itemsize
        return kept * entry + num_embeddings * row + -(-num_embeddings // _ROWS) * _directory_dtype(kept).itemsize

    @classmethod
    def options_for_budget(
        cls, num_embeddings: int, embedding_dim: int, nbytes: int, dtype: torch.dtype = torch.float32, **options: Any
    ) -> dict[str, Any]:
        def size(kept: int) -> int:
            return cls.bytes_of(num_embeddings, embedding_dim, dtype, kept=kept)

        most = num_embeddings * embedding_dim
        what = f"a pruned embedding of {num_embeddings} tokens"
        return {**options, "kept": largest_that_fits(size, nbytes, min(1, most), most, what)}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.kept} entries"


def _column_dtype(embedding_dim: int) -> torch.dtype:
    return torch.uint8 if embedding_dim <= 256 else torch.int16


def _count_dtype(embedding_dim: int) -> torch.dtype:
    return torch.uint8 if embedding_dim <= 255 else torch.int16


def _directory_dtype(kept: int) -> torch.dtype:
    return torch.int32 if kept < 2**31 else torch.int64
