"""Low-bit keys and values of rows that differ, and attention over them row by row."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from graphlossy.core._packed_attention import decode
from graphlossy.core.packed_attention import PackedTokens
from graphlossy.core.quantize import quantize


def pack(x: Tensor, bits: int, group: int) -> tuple[Tensor, ...]:
    found = quantize(x.contiguous(), bits, group, rounding="nearest")
    return tuple(t.view(*x.shape[:4], t.shape[-1]) for t in (found.packed, found.scale, found.offset))


def example(
    batch: int = 2, heads: int = 2, queries: int = 3, width: int = 16, out: int = 16, chunks: int = 3, chunk: int = 32,
    sinks: int = 4, window: int = 9, bits: tuple[int, int] = (4, 4), group: int = 32,
    dtype: torch.dtype = torch.float32, seed: int = 0,
) -> tuple[Tensor, PackedTokens]:  # fmt: skip
    """Rows of which each has another number of pads, sinks, chunks and recent tokens."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    group = min(group, -(-out // 8) * 8)
    keys = pack(normal(batch, heads, chunks, width, chunk), bits[0], chunk)
    values = pack(normal(batch, heads, chunks, chunk, out) + 0.5, bits[1], group)
    pairs = [[normal(batch, heads, n, size).to(dtype) for size in (width, out)] for n in (sinks, window)]
    rows = [[3 * b, max(0, sinks - b), max(0, chunks - b), min(b, window)] for b in range(batch)]
    tokens = PackedTokens(keys, values, *bits, chunk, group, *pairs, torch.tensor(rows, dtype=torch.int32))
    return normal(batch, heads, queries, width), tokens


def length(tokens: PackedTokens) -> int:
    """Tokens of the longest row, pads included."""
    start, sinks, chunks, first = tokens.rows.T
    return int((start + sinks + chunks * tokens.chunk + tokens.window[0].shape[2] - first).max())


def straight(
    query: Tensor, tokens: PackedTokens, mask: Tensor | None, softcap: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Row by row in float64, of the tokens that a row has and nothing else."""
    out = tokens.sinks[1].shape[-1]
    keys = decode(tokens.keys, tokens.key_bits, tokens.key_group, tokens.chunk).transpose(-1, -2)
    values = decode(tokens.values, tokens.value_bits, tokens.value_group, out)
    found = torch.zeros(2, *query.shape[:3], out, dtype=torch.float64)
    counts = tokens.sinks[0].shape[2], tokens.keys[0].shape[2] * tokens.chunk, tokens.window[0].shape[2]
    sums = torch.zeros(*query.shape[:2], sum(counts), dtype=torch.float64)
    for b, (start, sinks, chunks, first) in enumerate(tokens.rows.tolist()):
        for h in range(query.shape[1]):
            parts = [tokens.sinks[0][b, h, :sinks], keys[b, h, :chunks].flatten(0, 1), tokens.window[0][b, h, first:]]
            k = torch.cat([part.double() for part in parts])
            parts = [tokens.sinks[1][b, h, :sinks], values[b, h, :chunks].flatten(0, 1), tokens.window[1][b, h, first:]]
            v = torch.cat([part.double() for part in parts])
            is_packed = torch.zeros(len(k), 1, dtype=torch.bool)
            is_packed[sinks : sinks + chunks * tokens.chunk] = True
            for r in range(query.shape[2]):
                scores = k @ query[b, h, r].double() / math.sqrt(query.shape[-1])
                scores = softcap * torch.tanh(scores / softcap) if softcap else scores
                seen = torch.ones(len(k), dtype=torch.bool)
                if mask is not None:
                    seen = mask[b, r % mask.shape[1], start : start + len(k)]
                if seen.any():
                    weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), 0)[:, None]
                    found[0, b, h, r] = (weights * v * is_packed).sum(0)
                    found[1, b, h, r] = (weights * v * ~is_packed).sum(0)
                    parts = weights[:, 0].split([sinks, chunks * tokens.chunk, counts[2] - first])
                    for slot, part in zip((0, counts[0], counts[0] + counts[1] + first), parts, strict=True):
                        sums[b, h, slot : slot + len(part)] += part
    return found[0].float(), found[1].float(), sums.float()


def off(found: Any, expected: Any) -> float:
    return max(float((a - b).abs().max()) if a.numel() else 0.0 for a, b in zip(found, expected, strict=True))
