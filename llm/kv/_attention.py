"""Attention that knows our caches, as an attention implementation of transformers: ``"graphlossy"``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from graphlossy.llm.kv._states import ATTENTION, LazyStates

__all__ = ["Call", "attention"]


@dataclass(frozen=True)
class Call:
    """What a model asks for.

    Attributes:
        module: the attention layer.
        mask: bool or float [B, 1, Q, T], or None.
        scaling: factor of the products.
        softcap: c of c tanh(x / c), applied to the products; 0: none.
        dropout: of the weights.
        others: arguments of some models.
    """

    module: Any
    mask: Tensor | None
    scaling: float
    softcap: float = 0.0
    dropout: float = 0.0
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether mask, scaling and cap say all."""
        boolean = self.mask is None or (self.mask.dtype == torch.bool and self.mask.shape[1] == 1)
        return boolean and self.others.get("position_bias") is None and not self.dropout

    def run(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """[B, heads, Q, E] of plain tensors: torch's own attention, or step by step where scores are capped."""
        if self.softcap:
            return _capped(query, keys, values, mask, self.scaling, self.softcap)
        options = {"dropout": self.dropout, "scaling": self.scaling, **self.others}
        found: Tensor = sdpa_attention_forward(self.module, query, keys, values, mask, **options)[0]
        return found.transpose(1, 2)


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor | LazyStates,
    value: Tensor | LazyStates,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query [B, heads, Q, D] gives ([B, Q, heads, E], None).

    What our caches give is used as they say; anything else is torch's own ``scaled_dot_product_attention``.

    Raises:
        ValueError: the model adds sinks of its own to the softmax (gpt-oss).
    """
    if others.get("s_aux") is not None:
        raise ValueError(
            f"{type(module).__name__} adds sinks of its own to the softmax, which the attention {ATTENTION!r} does not "
            "know: use a KIVICache after model.set_attn_implementation('eager'); caches that drop tokens cannot be had"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    softcap = others.pop("softcap", None) or 0.0
    call = Call(module, attention_mask, scaling, softcap, dropout, others)
    if isinstance(key, LazyStates) and isinstance(value, LazyStates):
        found = key.attend(query, value, call)
    else:
        key, value = (t.tensor() if isinstance(t, LazyStates) else t for t in (key, value))
        found = call.run(query, key, value, attention_mask)
    return found.transpose(1, 2).contiguous(), None


def _capped(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float, softcap: float) -> Tensor:
    keys, values = (repeat_kv(t, query.shape[1] // t.shape[1]) for t in (keys, values))
    scores = softcap * torch.tanh(query @ keys.transpose(-1, -2) * scaling / softcap)
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device)
        mask = mask.tril(scores.shape[-1] - scores.shape[-2])
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype) @ values


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
