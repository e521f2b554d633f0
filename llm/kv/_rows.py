"""Which tokens of a row are in full precision and which are packed, from numbers alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["Split", "mask_of_caller", "padding_of", "row_table", "same"]


@dataclass(frozen=True)
class Split:
    """How a row of real tokens is divided: sinks, packed chunks, and the recent window.

    The first ``sinks`` tokens stay in full precision, and so do at least ``window`` recent ones; whole chunks of
    ``chunk`` tokens between them are packed, oldest first. It follows from the number of tokens alone, so it does not
    matter in which pieces they came. A packed chunk is kept in full precision too until ``rollback`` tokens have
    followed, so that as many can be taken back without a trace.

    Example:
        >>> split = Split(sinks=4, window=8, chunk=4)
        >>> [split.chunks(n) for n in (0, 15, 16, 19, 20)], [split.kept_from(n, split.chunks(n)) for n in (31, 32, 36)]
        ([0, 0, 1, 1, 2], [4, 8, 12])
    """

    sinks: int
    window: int
    chunk: int
    rollback: int = 16

    def chunks(self, tokens: int) -> int:
        """Packed chunks of a row of ``tokens`` real tokens."""
        return max(0, tokens - self.sinks - self.window) // self.chunk

    def kept_from(self, tokens: int, chunks: int) -> int:
        """The first real token that has to be kept in full precision, sinks apart, of a row with ``chunks`` packed."""
        return min(self.sinks, max(0, tokens)) + min(chunks, self.chunks(tokens - self.rollback)) * self.chunk


@lru_cache(maxsize=8)  # one table serves all layers of a pass
def row_table(
    split: Split, padding: tuple[int, ...], packed: tuple[int, ...], seen: int, window_from: int, device: torch.device
) -> Tensor:
    """int32 [B, 4] of :class:`graphlossy.core.packed_attention.PackedTokens`.

    Example:
        >>> split = Split(sinks=4, window=8, chunk=4)
        >>> row_table(split, (0, 30), (3, 0), 32, 12, torch.device("cpu"))
        tensor([[ 0,  4,  3,  4],
                [30,  2,  0, 20]], dtype=torch.int32)
    """
    rows = []
    for pads, chunks in zip(padding, packed, strict=True):
        start, sinks = min(pads, seen), min(split.sinks, max(0, seen - pads))
        rows.append((start, sinks, chunks, start + sinks + chunks * split.chunk - window_from))
    return torch.tensor(rows, dtype=torch.int32).to(device)


def padding_of(mask: Tensor) -> list[int]:
    """Pads before the first real token of every row, of an attention mask [B, T] that is 0 for pads.

    Example:
        >>> padding_of(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]))
        [2, 0, 4]
    """
    real = mask != 0
    first = real.int().argmax(1)
    none = ~real.any(1)
    found: list[int] = first.masked_fill(none, mask.shape[1]).tolist()
    return found


def mask_of_caller(batch: int | None, tokens: int, depth: int = 2) -> Tensor | None:
    """The attention mask [B, at least ``tokens``] that transformers makes a causal mask of at the moment.

    A cache is told nothing of padding; but while that mask is made, the cache is asked for its sizes, by a function
    whose argument ``attention_mask`` is the padding. Where there is none, no row is taken to be padded.
    """
    frame: Any = sys._getframe(depth)
    for _ in range(3):
        if frame is None:
            return None
        mask = frame.f_locals.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= tokens:
            return mask if batch is None or mask.shape[0] == batch else None
        frame = frame.f_back
    return None


def same(values: Sequence[int]) -> bool:
    """Whether all are equal."""
    return len(set(values)) <= 1
