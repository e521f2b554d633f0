"""Attention straight from packed keys and values, as an attention implementation of transformers: ``"graphlossy"``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from graphlossy.core.packed_attention import PackedTokens, packed_attention
from graphlossy.llm.kv._rotation import rotate

__all__ = ["ATTENTION", "MOST_QUERIES", "PackedStates", "attention"]

ATTENTION = "graphlossy"  # the name of the implementation
MOST_QUERIES = 8  # of a pass: for more, decoding everything once and one large product is faster


class PackedStates:
    """Keys, or values, of one attention layer that are decoded only where something else than our attention reads them.

    Args:
        tokens: what is stored.
        rotated: whether packed values are stored times a Hadamard matrix.
        tensor: gives the states [B, H, T, D] in floating point.
    """

    def __init__(self, tokens: PackedTokens, rotated: bool, tensor: Callable[[], Tensor]) -> None:
        self.tokens, self.rotated, self.tensor = tokens, rotated, tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor(), name)

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor()[index]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def plain(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(map(plain, value))
            return value.tensor() if isinstance(value, PackedStates) else value

        return function(*plain(args), **{name: plain(value) for name, value in (kwargs or {}).items()})


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor | PackedStates,
    value: Tensor | PackedStates,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query [B, heads, Q, D] gives ([B, Q, heads, E], None).

    Packed keys and values are used as they are (:func:`graphlossy.core.packed_attention.packed_attention`); anything
    else is torch's own ``scaled_dot_product_attention``, or step by step where a model caps its scores.

    Raises:
        ValueError: the model adds sinks of its own to the softmax (gpt-oss).
    """
    if others.get("s_aux") is not None:
        raise ValueError(
            f"{type(module).__name__} adds sinks of its own to the softmax, which the attention {ATTENTION!r} does not "
            "know: model.set_attn_implementation('eager')"
        )
    softcap = others.get("softcap")
    packed = isinstance(key, PackedStates) and isinstance(value, PackedStates)
    boolean = attention_mask is None or (attention_mask.dtype == torch.bool and attention_mask.shape[1] == 1)
    if packed and boolean and others.get("position_bias") is None and not dropout:
        return _from_packed(query, key, attention_mask, scaling, softcap or 0.0), None
    if packed:
        key, value = key.tensor(), value.tensor()
    if softcap is not None:
        return _capped(module, query, key, value, attention_mask, scaling, softcap), None
    found: Tensor = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
    )[0]
    return found, None


def _from_packed(query: Tensor, key: Any, mask: Tensor | None, scaling: float | None, softcap: float) -> Tensor:
    batch, heads, positions, width = query.shape
    shared = key.tokens.sinks[0].shape[1]
    if mask is not None:
        mask = mask[:, 0].expand(batch, positions, -1)
    grouped = query.reshape(batch, shared, heads // shared * positions, width)
    packed, full = packed_attention(grouped, key.tokens, mask, scaling, softcap)
    found = full + (rotate(packed) if key.rotated else packed)
    return found.view(batch, heads, positions, -1).transpose(1, 2).to(query.dtype).contiguous()


def _capped(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float
) -> Tensor:
    key, value = (repeat_kv(t, query.shape[1] // t.shape[1]) for t in (key, value))
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device)
        mask = mask.tril(scores.shape[-1] - scores.shape[-2])
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous()


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
