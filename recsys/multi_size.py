"""`MultiSizeEmbedding`: every token has a row as wide as it needs, in memory as in the file.

Tokens of one width are a dense table; a projection takes its rows to the common width d. Which table a token is in is
stored in a few bits (see `graphlossy.core._multi_size`). The idea of a size for every token, found by pruning, is PME's
(Liu et al., Frontiers in Big Data 6, 2023); projections of narrow rows are those of mixed-dimension embeddings
(Ginart et al., ISIT 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graphlossy.core import multi_size
from graphlossy.core.multi_size import Buckets
from graphlossy.recsys._lookup import look_up, score
from graphlossy.recsys._sizes import check_sizes, hash_rows, leading_vectors
from graphlossy.recsys._state import SHARED, restructure
from graphlossy.recsys._storage import PROJECTIONS
from graphlossy.recsys.base import CompressedEmbedding
from graphlossy.recsys.rows import FloatRows, LowBitRows

__all__ = ["MultiSizeEmbedding"]


class _Layout(NamedTuple):
    modules: tuple[nn.Module | str, ...]  # the tables, then the names of the projections
    kinds: list[int]
    rows: list[Any]
    which: list[int]
    sizes: list[int]
    group_sizes: list[int]
    bits: int


class MultiSizeEmbedding(CompressedEmbedding):
    """`torch.nn.Embedding` whose tokens have rows of different widths.

    Args:
        num_embeddings: tokens V.
        embedding_dim: common width d.
        padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, device, dtype: as in torch; ``max_norm`` bounds
            the row at its common width.
        sizes: width of every token's own row, [V], or one for all; from 0 (no row: zeros, or a shared one) to d.
        projection: ``"nested"``: rows of s < d elements are projected by the first s rows of one matrix, so that a row
            can grow by zeros without a change of the output. ``"per_size"``: a matrix for every width. Rows of width
            d are not projected.
        shared_rows: tokens of size 0 share this many hashed rows; 0: their rows are zeros.
        shared_size: width of a shared row; None is the smallest other width, or d.
        init_std: standard deviation of an element at the common width; torch's is 1.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> table = MultiSizeEmbedding(5, 8, sizes=[8, 4, 4, 1, 0], padding_idx=4)
        >>> table(torch.tensor([[0, 3], [1, 4]])).shape, table.sizes.tolist()
        (torch.Size([2, 2, 8]), [8, 4, 4, 1, 0])
    """

    planes: Tensor
    counts: Tensor
    bucket_sizes: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        *,
        sizes: int | Sequence[int] | Tensor | None = None,
        projection: str = "nested",
        shared_rows: int = 0,
        shared_size: int | None = None,
        init_std: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        if projection not in PROJECTIONS:
            raise ValueError(f"projection must be one of {PROJECTIONS}, got {projection!r}")
        if isinstance(shared_rows, bool) or not isinstance(shared_rows, int) or shared_rows < 0:
            raise ValueError(f"shared_rows must be an int of at least 0, got {shared_rows!r}")
        self.max_norm, self.norm_type = max_norm, norm_type
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse
        self.projection, self.shared_rows, self.init_std = projection, shared_rows, init_std
        found = check_sizes(embedding_dim if sizes is None else sizes, self.num_embeddings, self.embedding_dim)
        kinds = found.unique().tolist() or [embedding_dim]
        if shared_rows and shared_size is None:
            shared_size = next((s for s in kinds if s), embedding_dim)
        if shared_rows and not 1 <= int(shared_size or 0) <= embedding_dim:
            raise ValueError(f"shared_size must be from 1 to embedding_dim = {embedding_dim}, got {shared_size!r}")
        self.shared_size = int(shared_size or 0) if shared_rows else 0
        device = torch.get_default_device() if device is None else torch.device(device)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self._kept: _Layout | None = None
        self.register_buffer("like", torch.empty(0, device=device, dtype=dtype), persistent=False)
        self._arrange(found, kinds)
        self._build([int((found == size).sum()) for size in kinds])
        self.reset_parameters()

    # The structure: from sizes, from a state_dict or with other tables.

    def _arrange(self, sizes: Tensor, kinds: list[int]) -> None:
        """Stores which bucket each token is in; bucket k has width ``kinds[k]``."""
        codes = torch.bucketize(sizes, torch.tensor(kinds, device=sizes.device)).to(torch.uint8)
        planes, counts = multi_size.rank_map(codes, len(kinds))
        device = self.like.device
        self.register_buffer("planes", planes.to(device))
        self.register_buffer("counts", counts.to(device))
        self.register_buffer("bucket_sizes", torch.tensor(kinds, dtype=torch.int32, device=device))
        self._kinds = kinds

    def _build(self, rows: list[int]) -> None:
        """New tables with so many rows for every bucket, and projections."""
        self.tables, self.projections = nn.ModuleDict(), nn.ParameterDict()
        for k, count in enumerate(rows):
            if self._width(k):
                count = count if self._kinds[k] else self.shared_rows
                self.tables[self._key(k)] = FloatRows(self.like.new_empty((count, self._width(k))))
        narrow = sorted({self._width(k) for k in range(len(rows))} - {0, self.embedding_dim})
        if self.projection == "nested" and narrow:
            self.projections["nested"] = nn.Parameter(self.like.new_empty((narrow[-1], self.embedding_dim)))
        elif narrow:
            for size in narrow:
                self.projections[str(size)] = nn.Parameter(self.like.new_empty((size, self.embedding_dim)))

    def _width(self, k: int) -> int:
        return self._kinds[k] or self.shared_size

    def _key(self, k: int) -> str:
        return str(self._kinds[k]) if self._kinds[k] else SHARED

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random rows: at the common width an element has the standard deviation ``init_std``.

        The rows of a projection are orthogonal and as long as sqrt(d), so that a step of an optimizer moves the output
        about as much as that of a full table.
        """
        for matrix in self.projections.values():
            square = torch.empty((self.embedding_dim, self.embedding_dim), dtype=torch.float32, device=matrix.device)
            nn.init.orthogonal_(square, gain=math.sqrt(self.embedding_dim))
            matrix.copy_(square[: matrix.shape[0]])
        for rows in self.tables.values():
            if isinstance(rows, FloatRows):
                narrow = rows.shape[1] < self.embedding_dim
                nn.init.normal_(rows.weight, std=self.init_std / (math.sqrt(rows.shape[1]) if narrow else 1.0))
        self._clear_padding()

    def _clear_padding(self) -> None:
        if self.padding_idx is None:
            return
        bucket, row = self._place(torch.tensor([self.padding_idx], device=self.device))
        k = int(bucket[0])
        rows = self.tables[self._key(k)] if self._kinds[k] else None
        if isinstance(rows, FloatRows):
            rows.weight.data[row] = 0

    @property
    def sizes(self) -> Tensor:
        """Width of every token's own row: int64 [V]."""
        codes = multi_size.unpack_codes(self.planes, self.num_embeddings)
        return self.bucket_sizes.to(torch.int64)[codes.to(torch.int64)]

    @property
    def dtype(self) -> torch.dtype:
        """Of a looked-up row."""
        return self.like.dtype

    # Lookup.

    def _place(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(bucket, row) of int64 ids [N]."""
        try:
            bucket, row = multi_size.lookup(ids, self.planes, self.counts, self.num_embeddings)
        except IndexError:
            wrong = (ids < 0) | (ids >= self.num_embeddings)
            raise self.id_error(int(ids[wrong][0])) from None
        if self.shared_rows and not self._kinds[0]:
            row = torch.where(bucket == 0, hash_rows(ids, self.shared_rows), row)
        return bucket, row

    def _layout(self) -> _Layout:
        """What of `Buckets` changes only with the structure, kept because a lookup of few ids takes no longer."""
        modules = (*self.tables._modules.values(), *self.projections)
        if self._kept is None or self._kept.modules != modules or self._kept.kinds != self._kinds:
            widths = [self._width(k) for k in range(len(self._kinds))]
            rows = [self.tables[self._key(k)] if size else None for k, size in enumerate(widths)]
            keys = list(self.projections)
            which = [-1] * len(widths)
            for k, size in enumerate(widths):
                if 0 < size < self.embedding_dim:
                    which[k] = keys.index("nested" if "nested" in keys else str(size))
            groups = [r.group_size if isinstance(r, LowBitRows) else 0 for r in rows]
            bits = max([r.bits for r in rows if isinstance(r, LowBitRows)], default=0)
            self._kept = _Layout(modules, list(self._kinds), rows, which, widths, groups, bits)
        return self._kept

    def _parts(self) -> tuple[Buckets, list[Tensor | None]]:
        """(tables and projections for the operators, the parameters that receive the tables' gradients)."""
        layout, empty = self._layout(), self.like
        matrices = list(self.projections.values())
        if not layout.bits:
            try:
                weights = [None if rows is None else rows._parameters["weight"] for rows in layout.rows]
            except KeyError:  # a parametrized table, or a replica of DataParallel
                weights = [None if rows is None else rows.weight for rows in layout.rows]
            tables = [empty if w is None else w for w in weights]
            return Buckets(tables, [], [], matrices, *layout[3:], self.embedding_dim), weights
        tables, scales, offsets, trainable = [], [], [], []
        for rows in layout.rows:
            stored = (empty,) * 3 if rows is None else (rows.packed, *rows.metadata())
            for to, value in zip((tables, scales, offsets), stored, strict=True):
                to.append(value)
            trainable.append(None if rows is None else rows.trainable)
        return Buckets(tables, scales, offsets, matrices, *layout[3:], self.embedding_dim), trainable

    def _flatten(self, input: Tensor) -> Tensor:
        if not isinstance(input, Tensor) or input.dtype not in (torch.int64, torch.int32):
            return self.check_ids(input).reshape(-1)  # says what is wrong, or converts
        return input.reshape(-1).to(torch.int64)

    def forward(self, input: Tensor) -> Tensor:
        """Rows of the tokens ``input``: [*, d] for ids [*]; see `CompressedEmbedding.forward`."""
        ids = self._flatten(input)
        if self.max_norm is not None:
            self._renormalize(ids)
        skip = None if self.padding_idx is None else ids == self.padding_idx
        return self._look_up(ids, skip).view(*input.shape, self.embedding_dim)

    def rows(self, ids: Tensor) -> Tensor:
        return self._look_up(ids, None)

    def _look_up(self, ids: Tensor, skip: Tensor | None, bags: Any = None) -> Tensor:
        bucket, row = self._place(ids)
        counts = None
        if self.scale_grad_by_freq:
            _, inverse, times = ids.unique(return_inverse=True, return_counts=True)
            counts = times[inverse]
        out = look_up(bucket, row, *self._parts(), self.like.dtype, self.sparse, skip, counts, bags)
        if bags is None and self.padding_idx is not None and self.shared_rows and not self._kinds[0]:
            out = out.masked_fill(((ids == self.padding_idx) & (bucket == 0)).unsqueeze(1), 0.0)  # shares no row
        return out

    @torch.no_grad()
    def _renormalize(self, ids: Tensor) -> None:
        ids = ids.unique()
        bucket, row = self._place(ids)
        norm = self._look_up(ids, None).float().norm(self.norm_type, dim=1)
        factor = torch.where(norm > self.max_norm, self.max_norm / (norm + 1e-7), torch.ones_like(norm))
        for k in range(len(self._kinds)):
            rows = self.tables[self._key(k)] if self._kinds[k] else None
            if isinstance(rows, LowBitRows):
                raise ValueError("max_norm needs float rows: low-bit rows cannot be rescaled one by one")
            if rows is not None:
                at, weight = bucket == k, rows.weight.data  # earlier lookups of this step stay good, as torch's do
                weight[row[at]] *= factor[at].unsqueeze(1).to(weight.dtype)

    @property
    def weight(self) -> Tensor:
        """The whole table [V, d], computed anew and differentiable; writing to it changes nothing."""
        buckets, _ = self._parts()
        out = self.like.new_zeros((self.num_embeddings, self.embedding_dim))
        codes = multi_size.unpack_codes(self.planes, self.num_embeddings)
        for k, size in enumerate(buckets.sizes):
            if not size:
                continue
            tokens = (codes == k).nonzero().squeeze(1)
            rows = self.tables[self._key(k)].dense().to(self.dtype)
            if not self._kinds[k]:
                tokens = tokens if self.padding_idx is None else tokens[tokens != self.padding_idx]
                rows = rows[hash_rows(tokens, self.shared_rows)]
            if (which := buckets.which[k]) >= 0:
                with torch.autocast(self.device.type, enabled=False):  # the rows that a lookup gives
                    rows = rows @ buckets.projections[which][:size].to(self.dtype)
            out = out.index_copy(0, tokens, rows)
        return out

    def scores(self, queries: Tensor) -> Tensor:
        """Products [B, V] of ``queries`` [B, d] with all rows, none of which is made at its common width."""
        self.check_queries(queries)
        if self.shared_rows and not self._kinds[0]:
            return super().scores(queries)
        buckets, trainable = self._parts()
        if buckets.bits:  # codes take the sparse gradients of a lookup only
            trainable = [None] * len(trainable)
        return score(queries, self.planes, self.counts, self.num_embeddings, buckets, trainable)

    # Low-bit rows.

    @torch.no_grad()
    def quantize_(self, bits: int, group_size: int = 64, *, trainable: bool = False, rounding: str = "nearest",
                  seed: int | None = None) -> MultiSizeEmbedding:  # fmt: skip
        """Rounds the tables to ``bits`` bits in place; projections stay as they are.

        Args:
            bits: 2, 4 or 8 (or 1).
            group_size: elements, of neighbouring rows too, that share a scale and an offset (4 bytes); a multiple of 8.
            trainable: keep a scale for each row, and step the codes with an optimizer of this package; gradients
                become sparse.
            rounding: ``"nearest"`` or ``"stochastic"``.
            seed: of the stochastic rounding.
        """
        if self.max_norm is not None:
            raise ValueError("max_norm needs float rows: low-bit rows cannot be rescaled one by one; set it to None")
        for key, rows in list(self.tables.items()):
            self.tables[key] = LowBitRows(rows.dense(), bits, group_size, trainable, rounding, seed)
        self.sparse = self.sparse or trainable
        return self

    # Conversion and state.

    @classmethod
    @torch.no_grad()
    def from_pretrained(
        cls, embeddings: Tensor, freeze: bool = True, *, sizes: int | Sequence[int] | Tensor, **options: Any
    ) -> MultiSizeEmbedding:
        """A multi-size table that is close to a dense one [V, d].

        Narrow rows are coefficients of the leading right singular vectors of the rows that have to be narrow. For one
        width, and for ``"per_size"``, that is the least-squares projection; nested widths share the vectors.

        Args:
            embeddings: float [V, d].
            freeze: no gradients.
            sizes, options: as for the class.
        """
        if embeddings.dim() != 2:
            raise ValueError(f"embeddings must be [tokens, width], got shape {tuple(embeddings.shape)}")
        options = {"device": embeddings.device, "dtype": embeddings.dtype} | options
        table = cls(*embeddings.shape, sizes=sizes, **options)
        table.assign(embeddings)
        return table.requires_grad_(not freeze)

    @torch.no_grad()
    def assign(self, dense: Tensor) -> None:
        """Sets float rows and projections to the closest to ``dense`` [V, d]; shared rows to the means of theirs.

        Raises:
            ValueError: the rows are low-bit ones.
        """
        if any(isinstance(rows, LowBitRows) for rows in self.tables.values()):
            raise ValueError(
                "assign sets float rows, these have low bits; make a new table and quantize_ it afterwards"
            )
        codes, dense = multi_size.unpack_codes(self.planes, self.num_embeddings), dense.detach()
        dense = dense if dense.dtype == torch.float64 else dense.float()
        groups = {k: (codes == k).nonzero().squeeze(1) for k in range(len(self._kinds)) if self._width(k)}
        narrow = {k: at for k, at in groups.items() if self._width(k) < self.embedding_dim}
        for key, matrix in self.projections.items():
            used = [at for k, at in narrow.items() if key in ("nested", str(self._width(k)))]
            matrix.copy_(leading_vectors(dense[torch.cat(used)], matrix.shape[0]))
        scale = self.embedding_dim**-0.5
        for k, at in groups.items():
            weight, rows = self.tables[self._key(k)].weight, dense[at]
            if k in narrow:
                matrix = self.projections["nested" if self.projection == "nested" else str(self._width(k))]
                rows = rows @ matrix[: self._width(k)].to(rows.dtype).T * scale**2
            if self._kinds[k]:
                weight.copy_(rows)
            else:
                place = hash_rows(at, self.shared_rows)
                times = torch.bincount(place, minlength=self.shared_rows).clamp(min=1).unsqueeze(1)
                weight.copy_(torch.zeros_like(weight, dtype=rows.dtype).index_add_(0, place, rows) / times)

    @torch.no_grad()
    def to_dense(self, sparse: bool = False) -> nn.Embedding:
        """An ordinary `torch.nn.Embedding` with the same rows."""
        weight = self.weight.detach().clone()
        return nn.Embedding(
            self.num_embeddings, self.embedding_dim, self.padding_idx, self.max_norm, self.norm_type,
            self.scale_grad_by_freq, sparse, _weight=weight,
        )  # fmt: skip

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if wrong := restructure(self, state_dict, prefix):
            rest[-1].append(f"{prefix or type(self).__name__}: {wrong}")  # the list of errors
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        kinds = ", ".join(f"{int(n)} of {size}" for size, n in zip(self._kinds, self._numbers(), strict=True))
        return f"{super().extra_repr()}, rows: {kinds}"

    def _numbers(self) -> list[int]:
        codes = multi_size.unpack_codes(self.planes, self.num_embeddings)
        return torch.bincount(codes.to(torch.int64), minlength=len(self._kinds)).tolist()
