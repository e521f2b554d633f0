"""Attention paid to each key, without the matrix of all queries and keys."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

__all__ = ["attention_sums"]

_CHUNK, _CHUNK_GPU = 1 << 20, 1 << 24  # weights at a time: 4 MB stay in the cache of a CPU, and GPUs want more
_ROWS = 8  # queries at a time, at least: fewer make slow products


def attention_sums(
    query: Tensor, keys: Tensor, mask: Tensor | None, scaling: float, softcap: float = 0.0, last: int | None = None
) -> Tensor:
    """Columns of the softmax weights, summed over queries and over the heads that share keys: float32 [B, H, K].

    Args:
        query: [B, heads, Q, D].
        keys: [B, H, K, D].
        mask: bool [B, 1 or heads, Q, K], False where a query does not see a key; a query that sees none counts for
            nothing. None: causal, the last query sees all.
        scaling: factor of the products.
        softcap: c of c tanh(x / c), applied to the products; 0: none.
        last: only the last so many queries; None: all.

    Example:
        >>> attention_sums(torch.zeros(1, 2, 3, 8), torch.zeros(1, 1, 3, 8), None, 1.0)
        tensor([[[3.6667, 1.6667, 0.6667]]])
    """
    batch, heads, queries, _ = query.shape
    shared, count = keys.shape[1:3]
    group = heads // shared
    first = 0 if last is None else max(0, queries - last)
    chunk = _CHUNK if keys.device.type == "cpu" else _CHUNK_GPU
    rows = max(1, min(queries, max(_ROWS, chunk // max(1, group * count))))
    heads_of_keys = min(shared, max(1, chunk // max(1, rows * group * count)))
    samples = min(batch, max(1, chunk // max(1, rows * group * count * heads_of_keys)))
    total = keys.new_zeros((batch, shared, count), dtype=torch.float32)
    if mask is not None:
        mask = mask.unflatten(1, (min(shared, mask.shape[1]), -1)).expand(batch, -1, -1, -1, -1)
    starts = range(first, queries, rows), range(0, batch, samples), range(0, shared, heads_of_keys)
    for row, sample, head in product(*starts):
        b, h = slice(sample, sample + samples), slice(head, head + heads_of_keys)
        part = query[b, :, row : row + rows].unflatten(1, (shared, group))[:, h].float() * scaling
        place = row + count - queries  # of the first of these queries
        seen, end = None, min(count, place + rows)
        if mask is not None:
            seen = mask[b, h if mask.shape[1] > 1 else slice(None), :, row : row + rows]
            end = count
            if queries > 1:  # half of a prompt's mask is its future
                columns = seen.flatten(0, -2).any(0).nonzero()
                end = int(columns[-1]) + 1 if len(columns) else 1
            seen = seen[..., :end]
        scores = part.flatten(2, 3) @ keys[b, h, :end].float().transpose(-1, -2)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.unflatten(2, (group, -1))
        if seen is not None:
            scores.masked_fill_(~seen, torch.finfo(torch.float32).min)
            counted = seen.any(-1).float().expand(part.shape[:-1])
        else:
            columns = torch.arange(place, end, device=keys.device)
            later = columns > torch.arange(place, place + part.shape[3], device=keys.device)[:, None]
            scores[..., place:].masked_fill_(later, torch.finfo(torch.float32).min)
            counted = scores.new_ones(part.shape[:-1])
        weights = torch.softmax(scores, -1).flatten(2, 3)
        total[b, h, :end] += (counted.flatten(2, 3).unsqueeze(2) @ weights).squeeze(2)
    return total
