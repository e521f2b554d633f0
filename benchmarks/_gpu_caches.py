"""Caches of keys and values on a GPU: the attention of a new token, and how many texts fit beside a model."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import _report
from benchmarks._meter import meter_for
from graphlossy.core._memory import is_out_of_memory

__all__ = ["SCHEMES", "attention", "largest", "search"]

SCHEMES = ("plain", "4bit", "k4v2-r", "2bit")
PIECE = 512  # tokens that are read at once


def _config(tiny: bool, layers: int) -> Any:
    """Of the shape of Llama 3.2 with 3 billion weights, fewer words apart."""
    from transformers import LlamaConfig

    hidden, heads, key_heads, inner, words = (64, 4, 2, 64, 100) if tiny else (3072, 24, 8, 8192, 32_000)
    return LlamaConfig(
        vocab_size=words, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, max_position_embeddings=2**15,
    )  # fmt: skip


@torch.inference_mode()
def attention(device: str, tiny: bool = False) -> dict[str, Any]:
    """Milliseconds of the attention of one new token in one layer, behind 16,384 others in each of 8 texts.

    ``plain`` is torch's own over float16 keys and values, as transformers calls it; ``plain, grouped`` the same with
    the heads that share keys as queries of one; the others are our kernel over packed ones.
    """
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    from graphlossy.core.packed_attention import packed_attention
    from graphlossy.llm.kv.schemes import parse_cache

    batch, tokens, repeats = (2, 512, 3) if tiny else (8, 16_384, 20)
    config = _config(tiny, 1)
    heads, width = config.num_key_value_heads, config.head_dim
    torch.manual_seed(0)
    keys, values = (torch.randn(batch, heads, tokens, width, device=device).half() for _ in range(2))
    query = torch.randn(batch, config.num_attention_heads, 1, width, device=device).half()
    grouped = query.view(batch, heads, -1, width)
    meter = meter_for(torch.device(device))

    def milliseconds(run: Callable[[], Any]) -> dict[str, Any]:
        for _ in range(3):
            run()
        found = []
        for _ in range(repeats):
            begin = meter.clock()
            for _ in range(10):
                run()
            found.append(100 * (meter.clock() - begin))
        return _report.spread(found)

    found = {
        "plain": milliseconds(lambda: sdpa(query, keys, values, enable_gqa=True)),
        "plain, grouped": milliseconds(lambda: sdpa(grouped, keys, values)),
    }
    for name in SCHEMES[1:]:
        cache: Any = parse_cache(name).make(config)
        cache.update(keys, values, 0)
        held = cache.own_layers[0].packed_tokens()
        found[name] = milliseconds(partial(packed_attention, grouped, held))
    return found


@torch.inference_mode()
def largest(device: str, name: str, tiny: bool = False) -> dict[str, Any]:
    """The most texts of 8,192 tokens that fit into a cache beside a model of 3 billion float16 weights.

    Random keys and values are read 512 tokens at a time, as a prompt in pieces gives them, and the model writes two
    tokens. On the CPU, which only tries the script out, at most 2 texts.

    Returns:
        ``batch``, and of that many ``cache_bytes``.
    """
    from transformers import AutoModelForCausalLM

    from graphlossy.llm.kv._quality import cache_bytes, with_attention
    from graphlossy.llm.kv.schemes import parse_cache

    config, length = _config(tiny, 2 if tiny else 28), 256 if tiny else 8192
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16).eval()
    held = {0: 0}

    def fill(batch: int) -> int:
        cache = parse_cache(name).make(model.config)
        with with_attention(model, cache):
            for start in range(0, length, PIECE):
                shape = (batch, config.num_key_value_heads, min(PIECE, length - start), config.head_dim)
                for layer in range(config.num_hidden_layers):
                    cache.update(*(torch.randn(shape, device=device, dtype=torch.float16) for _ in range(2)), layer)
            for _ in range(2):
                model(torch.ones(batch, 1, dtype=torch.long, device=device), past_key_values=cache)
        return cache_bytes(cache)[0]

    def fits(batch: int) -> bool:
        try:
            held[batch] = fill(batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        return batch in held

    batch = search(fits, 2 if device == "cpu" else 2**20)
    return {"batch": batch, "cache_bytes": held[batch]}


def search(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to ``most`` that fits, to a 32nd of it; 0 if 1 does not.

    Example:
        >>> search(lambda n: n <= 37, 1000), search(lambda n: n <= 0, 9), search(lambda n: True, 9)
        (37, 0, 9)
    """
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    if high > most:
        if low == most or fits(most):
            return most
        high = most
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
