"""Builds the tables and projections of a multi-size table for new sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from graphlossy.core import multi_size
from graphlossy.recsys._moves import Move, Transfer, extend_projection, make_move
from graphlossy.recsys._sizes import hash_rows
from graphlossy.recsys._state import SHARED
from graphlossy.recsys.multi_size import MultiSizeEmbedding
from graphlossy.recsys.rows import FloatRows, LowBitRows

__all__ = ["Rebuild"]

_CHUNK = 1 << 22  # elements at a time


class Rebuild:
    """Builds the tables and projections of ``table`` for new sizes from those of ``old``.

    Args:
        table: is changed.
        old: what it was, from `graphlossy.recsys.resize`.
        sizes: int64 [V] or more, of all tokens.
        init: ``"normal"``, ``"zeros"``, ``"mean"`` or float [appended, d]: rows of appended tokens.
    """

    def __init__(self, table: MultiSizeEmbedding, old: MultiSizeEmbedding, sizes: Tensor, init: str | Tensor) -> None:
        self.table, self.old, self.sizes = table, old, sizes
        self.init = init
        self.tokens, self.dim = old.num_embeddings, old.embedding_dim
        self.transfers: list[Transfer] = []
        self.rewritten: list[Tensor] = [(sizes[: self.tokens] != old.sizes).nonzero().squeeze(1)]
        self.decoded: dict[int, Tensor] = {}
        low = [rows for rows in old.tables.values() if isinstance(rows, LowBitRows)]
        self.low = low[0] if low else None
        self.group_size = max((rows.group_size for rows in low), default=0)
        params = [rows.trainable for rows in old.tables.values() if rows.trainable is not None]
        self.params = tuple(params)
        matrices = list(old.projections.values())
        self.rows_train = any(p.requires_grad for p in params or matrices) or not (params or matrices)
        self.matrices_train = any(p.requires_grad for p in matrices) if matrices else self.rows_train

    def run(self) -> tuple[int, Tensor, list[Transfer]]:
        """(tokens of another width, ids of those whose row was computed anew, what an optimizer has to replace)."""
        table = self.table
        table._arrange(self.sizes, self.sizes.unique().tolist() or [self.dim])
        table.num_embeddings, table._kept = self.sizes.shape[0], None
        codes = multi_size.unpack_codes(table.planes, table.num_embeddings)
        groups = {k: (codes == k).nonzero().squeeze(1) for k in range(len(table._kinds)) if table._width(k)}
        table.projections, table.tables = self._projections(groups), nn.ModuleDict()
        for k, tokens in groups.items():
            key = table._key(k)
            table.tables[key] = self._shared(tokens) if key == SHARED else self._rows(k, key, tokens)
        for key in self.old.tables.keys() - table.tables.keys():
            if (param := self.old.tables[key].trainable) is not None:
                self.transfers.append(Transfer(param, None))
        return self.rewritten[0].numel(), torch.cat(self.rewritten).unique(), self.transfers

    def _projections(self, groups: dict[int, Tensor]) -> nn.ParameterDict:
        old, width = self.old.projections, self.table._width
        narrow = {k: tokens for k, tokens in groups.items() if width(k) < self.dim}
        found: dict[str, Tensor] = {}
        if self.table.projection == "nested" and narrow:
            known = old["nested"] if "nested" in old else None
            have, need = 0 if known is None else known.shape[0], max(width(k) for k in narrow)
            wider = [tokens for k, tokens in narrow.items() if width(k) > have]
            found["nested"] = extend_projection(known, self._gram(wider), need) if need > have else known[:need]
        elif narrow:
            for size in sorted({width(k) for k in narrow}):
                if str(size) in old:
                    found[str(size)] = old[str(size)]
                else:
                    gram = self._gram([tokens for k, tokens in narrow.items() if width(k) == size])
                    found[str(size)] = extend_projection(None, gram, size)
        result = nn.ParameterDict()
        for key, matrix in found.items():
            known = old[key] if key in old else None
            if known is not None and known.shape == matrix.shape:
                result[key] = known
                continue
            needs = self.matrices_train if known is None else known.requires_grad
            result[key] = nn.Parameter(matrix.to(self.old.dtype, copy=True), requires_grad=needs)
            rows = torch.arange(min(0 if known is None else known.shape[0], matrix.shape[0]), device=matrix.device)
            sources = () if known is None else ((known, Move(rows, rows)),)
            self.transfers.append(Transfer(known, result[key], sources, (*old.values(), *self.params)))
        for key in old.keys() - result.keys():
            self.transfers.append(Transfer(old[key], None))
        return result

    def _gram(self, groups: list[Tensor]) -> Tensor:
        """Y^T Y of the outputs Y that tokens have had, or that are asked for."""
        gram = torch.zeros((self.dim, self.dim), dtype=torch.float64, device=self.table.device)
        for part in torch.cat(groups).split(max(1, _CHUNK // self.dim)):
            rows = [self.old.rows(part[part < self.tokens])]
            if isinstance(self.init, Tensor):
                rows.append(self.init.to(gram.device)[part[part >= self.tokens] - self.tokens])
            for y in rows:
                y = y.to(torch.float64)
                gram += y.T @ y
        return gram

    def _matrix(self, module: MultiSizeEmbedding, k: int) -> Tensor | None:
        size = module._width(k)
        if size == self.dim:
            return None
        return module.projections["nested"][:size] if module.projection == "nested" else module.projections[str(size)]

    def _rows(self, k: int, key: str, tokens: Tensor) -> FloatRows | LowBitRows:
        """The table of the width of bucket ``k``."""
        old = self.old
        known = old.tables[key] if key in old.tables else None
        kept = int((tokens < self.tokens).sum())
        bucket, row = old._place(tokens[:kept])
        if known is not None and known.shape[0] == kept == tokens.shape[0]:
            if bool((bucket == old._kinds.index(self.table._kinds[k])).all()):
                return known
        dtype = old.dtype if self.low is None else torch.float32
        values = torch.zeros((tokens.shape[0], self.table._width(k)), dtype=dtype, device=old.device)
        values[kept:] = self._fresh(tokens[kept:] - self.tokens, k)
        sources, copied = [], []
        for j in bucket.unique().tolist():
            if not old._width(j):
                continue
            at = (bucket == j).nonzero().squeeze(1)
            matrices = self._matrix(old, j), self._matrix(self.table, k)
            same = old._key(j) == key
            if same or old._width(j) == self.table._width(k):
                matrices = None, None  # the projection is the same one
            move = make_move(row[at], at, *matrices, self.dim, self.table.projection == "nested")
            move.take_values(self._values(j), values)
            if same:
                copied.append(move)
            if (param := old.tables[old._key(j)].trainable) is not None:
                sources.append((param, move))
        rows = self._new_rows(values)
        if self.low is not None:
            self._keep_codes(known, rows, copied, tokens[:kept])
        param = None if known is None else known.trainable
        if rows.trainable is not None:
            self.transfers.append(Transfer(param, rows.trainable, tuple(sources), self.params))
        return rows

    def _new_rows(self, values: Tensor) -> FloatRows | LowBitRows:
        if self.low is None:
            rows: FloatRows | LowBitRows = FloatRows(values)
        else:
            rows = LowBitRows(values, self.low.bits, self.group_size, self.low.is_trainable, "nearest")
        return rows.requires_grad_(self.rows_train)

    def _keep_codes(self, known: LowBitRows | None, rows: LowBitRows, copied: list[Move], tokens: Tensor) -> None:
        """Rows with scales of their own that stay in their width are not rounded again."""
        if not rows.is_trainable:
            self.rewritten.append(tokens)
        elif known is not None:
            for move in copied:
                for name in ("packed", "scale", "offset"):
                    getattr(rows, name)[move.target] = getattr(known, name)[move.source]

    def _values(self, j: int) -> Tensor:
        """The old table of bucket ``j`` in float."""
        if j not in self.decoded:
            self.decoded[j] = self.old.tables[self.old._key(j)].dense().detach()
        return self.decoded[j]

    def _fresh(self, index: Tensor, k: int) -> Tensor:
        """Rows of bucket ``k`` for appended tokens, the ``index``-th ones."""
        size, std, init = self.table._width(k), self.old.init_std, self.init
        shape = index.shape[0], size
        if not index.numel() or (isinstance(init, str) and init == "zeros"):
            return torch.zeros(shape, device=index.device)
        if isinstance(init, str) and init == "normal":
            return torch.randn(shape, device=index.device) * (std / math.sqrt(size) if size < self.dim else std)
        wanted = init.to(index.device)[index] if isinstance(init, Tensor) else self._mean()
        matrix, wanted = self._matrix(self.table, k), wanted.to(torch.float64)
        return wanted if matrix is None else wanted @ torch.linalg.pinv(matrix.detach().to(torch.float64))

    def _mean(self) -> Tensor:
        total = torch.zeros((1, self.dim), dtype=torch.float64, device=self.old.device)
        for part in torch.arange(self.tokens, device=self.old.device).split(max(1, _CHUNK // self.dim)):
            total += self.old.rows(part).sum(0, dtype=torch.float64)
        return total / max(1, self.tokens)

    def _shared(self, tokens: Tensor) -> FloatRows | LowBitRows:
        """The table of hashed rows: as it is, or the means of what its first tokens have been."""
        if SHARED in self.old.tables:
            return self.old.tables[SHARED]
        table = self.table
        known = tokens[tokens < self.tokens]
        values = torch.zeros((table.shared_rows, table.shared_size), dtype=torch.float64, device=known.device)
        place = hash_rows(known, table.shared_rows)
        matrix = self._matrix(table, 0)
        back = None if matrix is None else torch.linalg.pinv(matrix.detach().to(torch.float64))
        step = max(1, _CHUNK // self.dim)
        for part, at in zip(known.split(step), place.split(step), strict=True):
            y = self.old.rows(part).to(torch.float64)
            values.index_add_(0, at, y if back is None else y @ back)
        values /= torch.bincount(place, minlength=table.shared_rows).clamp(min=1).unsqueeze(1)
        rows = self._new_rows(values.to(self.old.dtype if self.low is None else torch.float32))
        if rows.trainable is not None:
            self.transfers.append(Transfer(None, rows.trainable, (), self.params))
        return rows
