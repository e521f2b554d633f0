"""Caches whose layers must know how many pads each row begins with."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from graphlossy.llm.kv._rows import mask_of_caller, padding_of

__all__ = ["PaddedCache"]


class PaddedCache(Cache):
    """A cache that reads the padding off the attention mask of the first pass."""

    @property
    def padded_layers(self) -> list[Any]:
        """The layers with the attributes ``padding`` (pads of each row) and ``seen`` (tokens of a row)."""
        raise NotImplementedError

    def set_padding(self, attention_mask: Tensor) -> None:
        """Tells how many pads are before each row's first real token.

        Models of transformers need no such call: it is read off the attention mask of their first pass.

        Args:
            attention_mask: [B, T], 0 for pads, as the tokenizer gives it.

        Raises:
            ValueError: there are tokens in the cache, or the mask has another shape.
        """
        if attention_mask.dim() != 2:
            raise ValueError(f"attention_mask must have the shape [rows, tokens], got {tuple(attention_mask.shape)}")
        if any(layer.seen for layer in self.padded_layers):
            raise ValueError("there are tokens in this cache: tell it of padding before the first pass, or reset() it")
        for layer in self.padded_layers:
            layer.padding = padding_of(attention_mask)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """As transformers asks for it; the padding is read off the mask that it is about to use."""
        first = self.padded_layers[0]
        if first.seen == 0 or any(first.seen <= pads for pads in first.padding):
            mask = mask_of_caller(len(first.padding) if first.seen else None, first.seen + query_length)
            if mask is not None:
                pads = padding_of(mask[:, : first.seen + query_length])
                for layer in self.padded_layers:
                    layer.padding = list(pads)
        return super().get_mask_sizes(query_length, layer_idx)
