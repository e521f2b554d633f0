"""Tables in torch's own low-bit form, torch.ops.quantized: 8, 4 or 2 bits, with a scale and a bias for every row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.recsys.base import CompressedEmbedding, bag_ends, check_weights, drop_padding, pool
from graphlossy.recsys.export._find import block_rows, core_of, dense_rows, pooling_of, replaced, settled

__all__ = ["QuantizedBag", "QuantizedTable", "to_torch_quantized"]

_NAMES = {8: "byte", 4: "4bit", 2: "2bit"}
_MODES = ("sum", "mean", "max")
_LARGEST_HALF = 65504.0


class QuantizedTable(CompressedEmbedding):
    """A table whose rows are d codes of 8, 4 or 2 bits, a scale and a bias, as ``torch.ops.quantized`` packs them.

    A row takes d + 8 bytes at 8 bits (float32 scale and bias), d / 2 + 4 at 4 bits and d / 4 + 4 at 2 bits (float16),
    with d rounded up to a multiple of 8 / bits. It is looked up on the CPU and has no gradient. `to_torch_quantized`
    makes one.

    Args:
        num_embeddings: tokens V.
        embedding_dim: width d.
        bits: 8, 4 or 2.
        padding_idx: as in `torch.nn.Embedding`.

    Attributes:
        packed: uint8 [V, bytes of a row].

    Raises:
        ValueError: ``bits`` is none of these.
    """

    packed: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, bits: int = 8, padding_idx: int | None = None) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        if isinstance(bits, bool) or bits not in _NAMES:
            raise ValueError(f"bits must be one of {tuple(_NAMES)}, got {bits!r}")
        self.bits = bits
        shape = num_embeddings, _padded(embedding_dim, bits) * bits // 8 + (8 if bits == 8 else 4)
        self.register_buffer("packed", torch.empty(shape, dtype=torch.uint8))

    @property
    def dtype(self) -> torch.dtype:
        """Of a looked-up row."""
        return torch.float32

    def _sum(self, ids: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
        if self.packed.device.type != "cpu":
            raise ValueError(f"tables of torch.ops.quantized are looked up on the CPU, got {self.packed.device}")
        if not starts.numel():
            return torch.zeros((0, self.embedding_dim))
        look_up = getattr(torch.ops.quantized, f"embedding_bag_{_NAMES[self.bits]}_rowwise_offsets")
        return look_up(self.packed, ids, starts, per_sample_weights=weights)[:, : self.embedding_dim]

    def rows(self, ids: Tensor) -> Tensor:
        return self._sum(ids, torch.arange(ids.shape[0]), None)  # bags of one

    @property
    def error_bound(self) -> Tensor:
        """float32 [V]: how far an element may be from the table that was packed.

        Half a step of the row's codes, where a step is (max - min) / (2**bits - 1) of the row, and what rounding the
        scale and the bias to float32 (8 bits; and 1e-8) or float16 (4 and 2 bits) adds.
        """
        levels = 2**self.bits - 1
        if self.bits == 8:
            step, bias = self.packed[:, -8:].contiguous().view(torch.float32).unbind(1)
            relative, smallest = 2.0**-22, 1e-8  # by which the operator widens a range before it divides by it
        else:
            step, bias = self.packed[:, -4:].contiguous().view(torch.float16).float().unbind(1)
            relative, smallest = 2.0**-11, 2.0**-25 * (levels + 1)  # half of the smallest positive float16
        return step / 2 + relative * (bias.abs() + levels * step) + smallest

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.bits} bits"


class QuantizedBag(QuantizedTable):
    """`QuantizedTable` with the pooling of `torch.nn.EmbeddingBag`, weights and offsets included.

    Args:
        num_embeddings, embedding_dim, bits, padding_idx: as for `QuantizedTable`.
        mode: ``"sum"``, ``"mean"`` or ``"max"``.
        include_last_offset: as in torch.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        bits: int = 8,
        padding_idx: int | None = None,
        mode: str = "mean",
        include_last_offset: bool = False,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, bits, padding_idx)
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {_MODES}, got {mode!r}")
        self.mode, self.include_last_offset = mode, include_last_offset

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Pooled rows [B, d], see `torch.nn.EmbeddingBag.forward`.

        Raises:
            IdError: an id is not of this table.
            TypeError, ValueError: the arguments do not go together.
        """
        check_weights(per_sample_weights, input, self.mode)
        ids, ends = bag_ends(self.check_ids(input), offsets, self.include_last_offset)
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        ids, ends, weights = drop_padding(ids, ends, weights, self.padding_idx)
        if self.mode == "max":
            return pool(self.rows(ids), ends, "max")
        used = int(ends[-1]) if ends.numel() else 0
        lengths = torch.diff(ends, prepend=ends.new_zeros(1))
        total = self._sum(ids[:used], ends - lengths, None if weights is None else weights[:used].float())
        # The operators have an argument for the mode, which they ignore: they add up.
        return total / lengths.clamp(min=1).unsqueeze(1) if self.mode == "mean" else total


def _padded(dim: int, bits: int) -> int:
    per = 8 // bits
    return -(-dim // per) * per


def to_torch_quantized(table: nn.Module, bits: int = 8) -> Any:
    """A table as ``torch.ops.quantized`` stores it, packed block by block; of a model, a copy with such tables.

    An element is off by at most half a step of its row, (max - min) / (2**bits - 1), and a little for the rounded scale
    and bias; `QuantizedTable.error_bound` has the exact bound of every row. Rows of narrow tokens are projected first
    and take the full width: the result is smaller than a dense table, not than a multi-size one.

    Args:
        table: compressed or not, which gives a `QuantizedTable`, or a `QuantizedBag` for a bag; or a model with tables,
            none of which is copied.
        bits: 8, 4 or 2.

    Raises:
        TypeError: ``table`` is no module.
        ValueError: a model has no table; ``bits`` is none of these; a row holds a NaN or an infinity, or, for 4 and 2
            bits, a number beyond float16.

    Example:
        >>> from graphlossy.recsys import MultiSizeEmbedding
        >>> table = MultiSizeEmbedding(1000, 32, sizes=[32] * 100 + [4] * 900)
        >>> packed = to_torch_quantized(table, bits=8)
        >>> error = (packed.weight - table.weight).abs().amax(1)
        >>> bool((error <= packed.error_bound).all()), packed.nbytes
        (True, 40000)
    """
    made: dict[int, QuantizedTable] = {}  # what is looked up and pooled, by two modules, is packed once

    def convert(module: nn.Module) -> QuantizedTable:
        new = _packed(module, bits, made.get(id(core_of(module))))
        made.setdefault(id(core_of(module)), new)
        return new

    return replaced(table, convert)


@torch.no_grad()
def _packed(table: nn.Module, bits: int, same: QuantizedTable | None) -> QuantizedTable:
    core: Any = core_of(table)
    pooling = pooling_of(table)
    arguments = core.num_embeddings, core.embedding_dim, bits, core.padding_idx
    out = QuantizedTable(*arguments) if pooling is None else QuantizedBag(*arguments, *pooling)
    out.name = getattr(core, "name", "")
    if same is not None:
        out.packed = same.packed
        return out
    core = settled(core)
    pack = getattr(torch.ops.quantized, f"embedding_bag_{_NAMES[bits]}_prepack")
    step = block_rows(core.embedding_dim)
    for start in range(0, core.num_embeddings, step):
        end = min(start + step, core.num_embeddings)
        rows = dense_rows(core, start, end).float().cpu()
        _check_finite(rows, start, bits)
        extra = _padded(core.embedding_dim, bits) - core.embedding_dim
        # Columns that are cut off again have values of the row, so that its range stays what it was.
        rows = torch.cat([rows, rows[:, :1].expand(-1, extra)], dim=1) if extra else rows
        out.packed[start:end] = pack(rows.contiguous())
    return out


def _check_finite(rows: Tensor, start: int, bits: int) -> None:
    largest = float("inf") if bits == 8 else _LARGEST_HALF
    low, high = rows.aminmax(dim=1)
    sound = (low > -largest) & (high < largest) & (high - low < largest)  # False for a NaN
    if not bool(sound.all()):
        at = int((~sound).nonzero()[0])
        limit = "finite" if bits == 8 else f"below {_LARGEST_HALF:.0f} (float16) for {bits} bits"
        raise ValueError(f"row {start + at} has values from {low[at]:.6g} to {high[at]:.6g}; they must be {limit}")
