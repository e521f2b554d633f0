"""`ExportableTable`: a table as a module of plain torch operators of static form, which exporters take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.recsys.base import IdError
from graphlossy.recsys.export._find import core_of, pooling_of, replaced
from graphlossy.recsys.export._layout import layout_of

__all__ = ["ExportableTable", "FAR", "check_unknown", "exportable"]

FAR = 1 << 40  # added to an id that is not of the table: no gather has such an element, so it is refused


def check_unknown(unknown: int | str, num_embeddings: int) -> int | None:
    """The token that stands for unknown ids, None for ``"error"``."""
    if unknown == "error":
        return None
    if isinstance(unknown, bool) or not isinstance(unknown, int) or not 0 <= unknown < num_embeddings:
        raise ValueError(f"unknown must be 'error' or a token from 0 to {num_embeddings - 1}, got {unknown!r}")
    return unknown


def exportable(model: nn.Module, unknown: int | str = "error", bits: int | None = None) -> nn.Module:
    """A copy of ``model`` for serving, each of its tables an `ExportableTable`; in evaluation mode.

    Args:
        model: any module with tables, or a table. It is left as it is, and the tables are not copied beside.
        unknown: what unknown ids do in every table: ``"error"``, or the token that stands for them.
        bits: round float rows to so many bits.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> model = nn.Sequential(nn.EmbeddingBag(10, 4), nn.Linear(4, 1))
        >>> ids = torch.tensor([[1, 2], [3, 3]])
        >>> torch.allclose(exportable(model)(ids), model(ids))
        True
    """
    return replaced(model, lambda table: ExportableTable(table, unknown, bits)).eval()


class ExportableTable(nn.Module):
    """A table of embeddings in plain torch operators, none of whose shapes depends on the data.

    For `torch.export`, `torch.onnx` and other exporters, which the operators of compressed tables, their checks and
    `torch.nn.EmbeddingBag` get in the way of. Multi-size and low-bit tables stay compressed; the map is 4 bytes a token
    instead of some bits. Tables of other kinds (hashed, factorised, pruned) are folded to dense rows; ``bits`` makes
    those small again. Rows are those of ``table`` but for the order in which a projection's products are added.

    Args:
        table: compressed or not, or a bag.
        unknown: what an id that is not of the table does: ``"error"``, or the token that stands for it.
        bits: round float rows to 8, 4, 2 or 1 bits, in groups of 64 elements.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> from graphlossy.recsys import MultiSizeEmbedding
        >>> table = MultiSizeEmbedding(1000, 32, sizes=[32] * 100 + [4] * 900)
        >>> static = ExportableTable(table, unknown=0)
        >>> ids = torch.tensor([3, 999, 5000])
        >>> torch.allclose(static(ids), table(torch.tensor([3, 999, 0])), atol=1e-5)
        True
        >>> program = torch.export.export(static, (ids,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    """

    place: Tensor | None
    starts: Tensor
    sizes: Tensor
    strides: Tensor
    bases: Tensor
    last: Tensor
    flat: Tensor
    group_sizes: Tensor
    group_bases: Tensor
    scale: Tensor
    offset: Tensor
    powers: Tensor

    def __init__(self, table: nn.Module, unknown: int | str = "error", bits: int | None = None) -> None:
        super().__init__()
        layout = layout_of(table, bits)
        core: Any = core_of(table)
        self.num_embeddings, self.embedding_dim, self.dtype = layout.num_embeddings, layout.dim, layout.dtype
        self.padding_idx, self.name, self.pooling = core.padding_idx, getattr(core, "name", ""), pooling_of(table)
        self.unknown = check_unknown(unknown, layout.num_embeddings)
        self.width, self.unit, self.bits = layout.width, layout.unit, layout.bits
        self.projected = [size for size, _ in layout.projections]
        self.register_buffer("place", None)
        device = core.device if hasattr(core, "device") else core.weight.device
        for name, tensor in layout.tensors.items():
            self.register_buffer(name, tensor.to(device, copy=True))  # nothing in common with the table, nor a view

    @property
    def nbytes(self) -> int:
        """Bytes of all that is exported."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @property
    def weight(self) -> Tensor:
        """The whole table [V, d], computed anew."""
        return self.rows(torch.arange(self.num_embeddings, device=self.flat.device))

    def forward(self, input: Tensor, per_sample_weights: Tensor | None = None) -> Tensor:
        """Rows [*, d] of ids [*]; of a bag [B, d] for ids [B, L], where padding fills short bags up.

        Raises:
            IdError: an id is not of this table (in Python; an exported graph has an error of its runtime's).
            ValueError: a bag's ids have one dimension, or weights go with another mode than ``"sum"``.
        """
        if self.pooling is None:
            return self.rows(input.reshape(-1)).view(*input.shape, self.embedding_dim)
        if input.dim() != 2:
            raise ValueError(f"input of an exported bag must be [bags, length], got shape {tuple(input.shape)}; pad it")
        rows = self.rows(input.reshape(-1)).view(*input.shape, self.embedding_dim)
        mode = self.pooling.mode
        if per_sample_weights is not None:
            if mode != "sum":
                raise ValueError(f"per_sample_weights need mode='sum', got mode={mode!r}")
            rows = rows * per_sample_weights.unsqueeze(2).to(rows.dtype)
        return self._pool(rows, input, mode)

    def _pool(self, rows: Tensor, ids: Tensor, mode: str) -> Tensor:
        if self.padding_idx is None:
            counts = torch.full((1, 1), ids.shape[1], dtype=rows.dtype, device=rows.device)
            real = None
        else:
            real = (ids != self.padding_idx).unsqueeze(2)
            counts = real.sum(1).to(rows.dtype)
        if mode == "max":
            if real is None:
                return rows.amax(1)
            return torch.where(counts > 0, rows.masked_fill(~real, float("-inf")).amax(1), torch.zeros_like(rows[:, 0]))
        total = (rows if real is None else rows.masked_fill(~real, 0.0)).sum(1)
        return total / counts.clamp(min=1) if mode == "mean" else total

    def rows(self, ids: Tensor) -> Tensor:
        """[N, d] of integer ids [N]."""
        ids = self._known(ids.to(torch.int64))
        place = ids if self.place is None else self.place.index_select(0, ids).to(torch.int64)
        bucket = (place.unsqueeze(1) >= self.starts[1:]).sum(1) if self.starts.shape[0] > 1 else None
        size = self._pick(self.sizes, bucket)
        first = (place - self._pick(self.starts, bucket)) * self._pick(self.strides, bucket)
        column = torch.arange(self.width // self.unit, device=ids.device)
        # Columns behind the end of a row repeat its last ones, and are set to zero after.
        inner = first.unsqueeze(1) + torch.minimum(column, self._pick(self.last, bucket).unsqueeze(1))
        at = inner + self._pick(self.bases, bucket).unsqueeze(1)
        if self.bits:
            group = self._pick(self.group_bases, bucket).unsqueeze(1)
            found = self._decode(at, group + inner // self._pick(self.group_sizes, bucket).unsqueeze(1))
        else:
            found = self.flat.index_select(0, at.reshape(-1)).view(-1, self.width)
            found = found.to(torch.promote_types(found.dtype, torch.float32))
        if bucket is not None:
            beyond = torch.arange(self.width, device=ids.device) >= size.unsqueeze(1)
            found = found.masked_fill(beyond, 0.0)
        return self._project(found, size).to(self.dtype)

    def _known(self, ids: Tensor) -> Tensor:
        right = (ids >= 0) & (ids < self.num_embeddings)
        if self.unknown is not None:
            return torch.where(right, ids, self.unknown)
        if not torch.compiler.is_compiling() and not bool(right.all()):
            feature = f"feature {self.name!r}: " if self.name else ""
            raise IdError(
                f"{feature}id {int(ids[~right][0])} is not in the table of {self.num_embeddings} tokens (ids from 0 to "
                f"{self.num_embeddings - 1}); map unseen tokens to one, or export with unknown=<that token>"
            )
        return torch.where(right, ids, ids.abs() + FAR)

    @staticmethod
    def _pick(values: Tensor, bucket: Tensor | None) -> Tensor:
        return values if bucket is None else values.index_select(0, bucket)

    def _decode(self, element: Tensor, group: Tensor) -> Tensor:
        per = self.powers.shape[0]
        byte = self.flat.index_select(0, (element // per).reshape(-1)).view(element.shape).to(torch.int64)
        power = self.powers.index_select(0, (element % per).reshape(-1)).view(element.shape)
        code = (byte // power) % 2**self.bits
        scale, offset = (
            values.index_select(0, group.reshape(-1)).view(group.shape).to(torch.float32)
            for values in (self.scale, self.offset)
        )
        return code.to(torch.float32) * scale + offset

    def _project(self, found: Tensor, size: Tensor) -> Tensor:
        out = found if self.width == self.embedding_dim else None
        for at, own in enumerate(self.projected):
            matrix = getattr(self, f"projection_{at}").to(found.dtype)
            wide = found[:, : matrix.shape[0]] @ matrix
            chosen = size == own if own else size < self.embedding_dim
            out = wide if out is None else torch.where(chosen.unsqueeze(1), wide, out)
        return found if out is None else out

    def extra_repr(self) -> str:
        bag = "" if self.pooling is None else f", mode={self.pooling.mode!r}"
        return f"{self.num_embeddings}, {self.embedding_dim}{bag}, {self.nbytes} bytes"
