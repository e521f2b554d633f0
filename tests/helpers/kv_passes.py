"""Queries, keys and values of one attention layer, and what a model asks of them."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from graphlossy.llm.kv._attention import Call

HEADS, GROUP, WIDTH = 2, 3, 8


def call(mask: Tensor | None = None, softcap: float = 0.0) -> Call:
    return Call(SimpleNamespace(num_key_value_groups=GROUP, is_causal=True), mask, WIDTH**-0.5, softcap)


def drawn(rows: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values; a few keys are looked at a lot."""
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(rows, n, count, WIDTH, generator=draw) for n in (HEADS * GROUP, HEADS, HEADS))
    return q * 3, k, v
