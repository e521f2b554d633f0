"""Bytes of the keys and values of a model, for a batch and a length, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from graphlossy.core.budget import format_bytes
from graphlossy.llm._cache_names import PLANNED
from graphlossy.llm.kv._evicting_layer import EvictingLayer
from graphlossy.llm.kv._layer import RowsLayer
from graphlossy.llm.kv._lossy_cache import LossyCache, check_config, layer_bytes, release
from graphlossy.llm.kv.schemes import CacheScheme, parse_cache

__all__ = ["CachePlan", "CacheRow", "plan_cache"]

_LONGEST = 2**24  # tokens: where they are numbered, a layer that drops tokens takes 12 bytes for each for a moment


@dataclass(frozen=True)
class CacheRow:
    """One way to keep keys and values.

    Attributes:
        scheme: its name.
        nbytes: bytes of all layers: codes, scales and offsets, windows and sinks, scores and positions, layers of the
            model's own.
        kinds: the same by ``packed``, ``metadata``, ``window``, ``sinks`` and ``plain``.
        ratio: how many times less than the model's own cache.
        bits_per_number: bits of one number of a key or value of the text, dropped ones included.
    """

    scheme: str
    nbytes: int
    kinds: dict[str, int]
    ratio: float
    bits_per_number: float


@dataclass(frozen=True)
class CachePlan:
    """What :func:`plan_cache` found; ``print(plan)`` shows the table.

    Attributes:
        rows: one for each scheme.
        batch_size: texts.
        length: tokens of each.
    """

    rows: tuple[CacheRow, ...]
    batch_size: int
    length: int

    def __getitem__(self, scheme: str) -> CacheRow:
        """The row of that name."""
        for row in self.rows:
            if row.scheme == scheme:
                return row
        raise KeyError(f"no scheme {scheme!r} in this plan; it has {', '.join(row.scheme for row in self.rows)}")

    def __str__(self) -> str:
        width = max(len(row.scheme) for row in self.rows)
        lines = [f"{self.batch_size} x {self.length} tokens", f"{'':{width}}  {'bytes':>10}  {'less':>6}  bits"]
        for row in self.rows:
            text = f"{format_bytes(row.nbytes):>10}  {row.ratio:5.2f}x  {row.bits_per_number:.2f}"
            lines.append(f"{row.scheme:{width}}  {text}")
        return "\n".join(lines)


def plan_cache(
    config: Any,
    batch_size: int = 1,
    length: int = 8192,
    dtype: torch.dtype = torch.float16,
    caches: str | Sequence[str | CacheScheme] = PLANNED,
) -> CachePlan:
    """Bytes of every cache of a model, after a text is read at once; exact, as they are fed tensors without numbers.

    The states of linear attention, which do not grow with the text, are not in it.

    Args:
        config: of the model.
        batch_size: texts.
        length: tokens of each, at most 2^24.
        dtype: of the model.
        caches: a name or several, as ``graphlossy llm generate --help`` explains them, or what
            :func:`graphlossy.llm.kv.schemes.parse_cache` made of them; the model's own comes first of itself.

    Raises:
        TypeError: ``config`` is no configuration of transformers.
        ValueError: a number is out of range, or there is no such cache, or none for this model.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(num_key_value_heads=8)
        >>> print(plan_cache(config, batch_size=4, length=8192, caches=["4bit", "2bit", "h2o:0.25:0.25+4bit"]))
        4 x 8192 tokens
                                 bytes    less  bits
        plain                  4.0 GiB   1.00x  16.00
        4bit                   1.3 GiB   3.07x  5.21
        2bit                 833.0 MiB   4.92x  3.25
        h2o:0.25:0.25+4bit   727.0 MiB   5.63x  2.84
    """
    check_config(config)
    for name, value in (("batch_size", batch_size), ("length", length)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if length > _LONGEST:
        raise ValueError(f"length must be at most {_LONGEST:,} tokens (2^24), got {length:,}")
    if batch_size * length > 2**40:
        raise ValueError(f"batch_size x length must be at most 2^40 tokens, got {batch_size} x {length}")
    wanted = [caches] if isinstance(caches, str) else caches
    schemes = [parse_cache(cache) if isinstance(cache, str) else cache for cache in wanted]
    text = config.get_text_config(decoder=True)
    each = getattr(text, "per_layer_config", None)  # heads may differ from layer to layer
    found: list[tuple[str, dict[str, int], int]] = []
    for scheme in [CacheScheme("plain"), *(s for s in schemes if s.name != "plain")]:
        cache = scheme.make(config)
        numbers = 0
        for number, layer in enumerate(cache.layers):
            if not isinstance(layer, (RowsLayer, DynamicLayer)):  # linear attention, or layers that share another's
                continue
            # One text: without padding all rows of a batch take the same, and a batch takes no time then.
            shapes = [(1, heads, length, width) for heads, width in _heads(each[number] if each else text)]
            states = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
            layer.update(*states)
            release(layer)
            if isinstance(layer, EvictingLayer):
                layer.settle(True)
            numbers += batch_size * sum(t.numel() for t in _kept(layer, states))
        found.append((scheme.name, {kind: batch_size * n for kind, n in _kinds(cache).items()}, numbers))
    plain = sum(found[0][1].values())
    if not plain:
        raise ValueError(f"a model of the kind {text.model_type!r} keeps no keys and values: there is nothing to plan")
    rows = []
    for scheme, kinds, numbers in found:
        total = sum(kinds.values())
        rows.append(CacheRow(scheme, total, kinds, plain / total, 8 * total / numbers))
    return CachePlan(tuple(rows), batch_size, length)


def _heads(text: Any) -> list[tuple[int, int]]:
    """(heads, width) of keys and of values, as the model gives them to its cache."""
    if not hasattr(text, "num_attention_heads"):
        raise ValueError(f"the configuration of a {text.model_type!r} does not tell how many heads its attention has")
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        heads = 1  # Falcon
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if getattr(text, "kv_lora_rank", None):  # multi-head latent attention: the latent, and the part that is rotated
        return [(1, text.kv_lora_rank), (1, text.qk_rope_head_dim)]
    return [(heads, width), (heads, width)]


def _kept(layer: Any, states: list[torch.Tensor]) -> list[torch.Tensor]:
    """What a layer keeps of the states: a window of its own keeps the last ones."""
    return states if not getattr(layer, "is_sliding", False) else [layer.keys, layer.values]


def _kinds(cache: Cache) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for layer in cache.bytes_by_layer() if isinstance(cache, LossyCache) else map(layer_bytes, cache.layers):
        for kind, count in layer.items():
            kinds[kind] = kinds.get(kind, 0) + count
    return kinds
