"""The sizes that a method gave to tokens, in few numbers."""

from __future__ import annotations

from typing import Any

import torch

from graphlossy.recsys.models import table_keys

__all__ = ["size_summary"]


def size_summary(plan: Any, data: Any) -> dict[str, Any] | None:
    """What the tokens of a plan got; None where they have no sizes of their own.

    Args:
        plan: with ``tables``, as `graphlossy.recsys.plan.EmbeddingPlan`.
        data: whose fields know how often every token was seen.

    Returns:
        ``mean``; ``zero_share`` of the tokens without a row; ``histogram``, tokens of every size; ``by_count``, for
        tokens seen 0, 1, 2 to 3, 4 to 7, ... times their mean size. Tables of width 1 are left out.
    """
    keys = table_keys(field.name for field in data.fields if field.kind != "float")
    counts = {keys[f.name]: getattr(f, "counts", None) for f in data.fields if f.kind != "float"}
    sizes, seen = [], []
    for table in plan.tables:
        if table.embedding_dim == 1:
            continue
        if table.sizes is None:
            return None
        field = table.name.rpartition(".")[2]
        sizes.append(table.sizes.to("cpu", torch.int64))
        known = counts.get(field)
        same = known is not None and len(known) == len(table.sizes)
        seen.append(known.to("cpu", torch.int64) if same else torch.full_like(sizes[-1], -1))
    if not sizes:
        return None
    size, count = torch.cat(sizes), torch.cat(seen)
    kinds, tokens = size.unique(return_counts=True)
    return {
        "mean": float(size.double().mean()),
        "zero_share": float((size == 0).double().mean()),
        "histogram": {str(k): n for k, n in zip(kinds.tolist(), tokens.tolist(), strict=True)},
        "by_count": _by_count(size, count),
    }


def _by_count(size: torch.Tensor, count: torch.Tensor) -> list[dict[str, float]]:
    found, low = [], 0
    while bool((count >= low).any()):
        high = max(1, 2 * low)
        chosen = (count >= low) & (count < high)
        if bool(chosen.any()):
            mean = float(size[chosen].double().mean())
            found.append({"count": low, "tokens": int(chosen.sum()), "mean_size": mean})
        low = high
    return found
