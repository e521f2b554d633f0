"""Attention paid to each key, without the matrix of all queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["attention_sums"]

_CHUNK = 1 << 24  # weights at a time


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
    batch, heads, queries, width = query.shape
    shared, count = keys.shape[1:3]
    first = 0 if last is None else max(0, queries - last)
    step = max(1, _CHUNK // max(1, batch * heads * count))
    total = keys.new_zeros((batch, shared, count), dtype=torch.float32)
    columns = torch.arange(count, device=keys.device)
    transposed = keys.float().transpose(-1, -2)
    for start in range(first, queries, step):
        part = query[:, :, start : start + step].float()
        rows = part.shape[2]
        grouped = part.reshape(batch, shared, heads // shared * rows, width)
        scores = (grouped @ transposed * scaling).view(batch, shared, -1, rows, count)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        if mask is not None:
            seen = mask[:, :, start : start + rows].unflatten(1, (min(shared, mask.shape[1]), -1))
        else:
            place = torch.arange(start, start + rows, device=keys.device) + count - queries
            seen = (columns <= place[:, None])[None, None, None]
        weights = torch.softmax(scores.masked_fill(~seen, torch.finfo(torch.float32).min), -1)
        total += weights.masked_fill(~seen, 0).sum((2, 3))
    return total
