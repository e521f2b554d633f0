"""How fast a model writes with a cache, and the memory that it takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from graphlossy.llm.finetune._memory import StepMemory
from graphlossy.llm.kv._quality import cache_bytes, with_attention
from graphlossy.llm.kv.schemes import CacheScheme

__all__ = ["Speed", "measure_speed"]

WARM_UP = 256  # tokens that are read before anything is measured


@dataclass(frozen=True)
class Speed:
    """Of one cache at one length and batch size.

    Attributes:
        prefill_seconds: for the whole prompt.
        tokens_per_second: of all texts together, while they are written.
        peak_bytes: highest memory of the process, or given out by the CUDA allocator; None where it is not known.
        beyond_bytes: the same above what was in use once the model had been loaded and used.
        peak_measured_as: a key of ``graphlossy.llm.finetune._memory.PEAK_KINDS``.
        cache_bytes: of keys and values at the end.
    """

    prefill_seconds: float
    tokens_per_second: float
    peak_bytes: int | None
    beyond_bytes: int | None
    peak_measured_as: str
    cache_bytes: int


@torch.inference_mode()
def measure_speed(
    model: Any, scheme: CacheScheme, length: int, batch_size: int, new_tokens: int, seed: int = 0
) -> Speed:
    """Reads random tokens at once and writes more, for every text the likeliest token, one at a time.

    The peak is that of this process: other tensors that it holds, or had held, count.

    Args:
        model: in evaluation, of transformers.
        scheme: the cache.
        length: tokens of each prompt.
        batch_size: texts.
        new_tokens: that are written, at least 1.
        seed: of the tokens.

    Raises:
        TypeError, ValueError: the model does not allow the cache.
        MemoryError, RuntimeError: there is not enough memory.
    """
    device = next(model.parameters()).device
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.get_input_embeddings().weight.shape[0], (batch_size, length), generator=draw).to(device)
    _write(model, scheme, ids[:1, :WARM_UP], 2)  # loads kernels and touches every weight
    memory = StepMemory(device)
    memory.start(exact=True)
    prefill, decoding, held = _write(model, scheme, ids, new_tokens)
    peak, beyond = memory.stop()
    return Speed(prefill, batch_size * new_tokens / decoding, peak, beyond, memory.kind, held)


def _write(model: Any, scheme: CacheScheme, ids: torch.Tensor, new_tokens: int) -> tuple[float, float, int]:
    """Seconds for the prompt, seconds for what follows, and bytes of the cache."""
    cache = scheme.make(model.config)
    with with_attention(model, cache):
        begin = _now(ids.device)
        token = model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
        read = _now(ids.device)
        for _ in range(new_tokens):
            token = model(token, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)
        return read - begin, _now(ids.device) - read, cache_bytes(cache)[0]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
