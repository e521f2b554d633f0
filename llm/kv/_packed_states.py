"""Keys and values of a :class:`KIVILayer` as they are packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from graphlossy.core.packed_attention import PackedTokens, packed_attention
from graphlossy.llm.kv._rotation import rotate
from graphlossy.llm.kv._states import LazyStates

__all__ = ["MOST_QUERIES", "PackedStates", "attend_packed"]

MOST_QUERIES = 8  # of a pass: for more, decoding everything once and one large product is faster


class PackedStates(LazyStates):
    """Keys, or values, that are decoded only where something else than our attention reads them.

    Args:
        tokens: what is stored.
        rotated: whether packed values are stored times a Hadamard matrix.
        tensor: gives the states [B, H, T, D] in floating point.
    """

    def __init__(self, tokens: PackedTokens, rotated: bool, tensor: Callable[[], Tensor]) -> None:
        super().__init__(tensor)
        self.tokens, self.rotated = tokens, rotated

    def attend(self, query: Tensor, values: Any, call: Any) -> Tensor:
        if call.is_plain:
            return attend_packed(query, self.tokens, self.rotated, call)[0]
        found: Tensor = call.run(query, self.tensor(), values.tensor(), call.mask)
        return found


def attend_packed(
    query: Tensor, tokens: PackedTokens, rotated: bool, call: Any, sums: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention [B, heads, Q, E] of query [B, heads, Q, D] over packed tokens, and its weights [B, H, slots] if wanted.

    Args:
        query: of all heads.
        tokens: of the heads of keys.
        rotated: whether packed values are stored times a Hadamard matrix.
        call: a :class:`graphlossy.llm.kv._attention.Call` that is plain.
        sums: whether the weights, summed over queries and heads that share keys, are wanted.
    """
    batch, heads, positions, width = query.shape
    shared = tokens.sinks[0].shape[1]
    mask = None if call.mask is None else call.mask[:, 0].expand(batch, positions, -1)
    grouped = query.reshape(batch, shared, heads // shared * positions, width)
    packed, full, weights = packed_attention(grouped, tokens, mask, call.scaling, call.softcap, sums)
    total = full + (rotate(packed) if rotated else packed)
    return total.view(batch, heads, positions, -1).to(query.dtype), weights
