"""How far a cache is from the full one: the same text read with both, from the same tokens on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import CacheLayerMixin

from graphlossy.llm.kv._eviction import EvictionCache
from graphlossy.llm.kv._kivi import KIVICache
from graphlossy.llm.kv._lossy_cache import LossyCache, layer_bytes
from graphlossy.llm.kv._states import ATTENTION
from graphlossy.llm.kv.schemes import CacheScheme

__all__ = ["Quality", "compare_caches", "with_attention"]


@dataclass(frozen=True)
class Quality:
    """Of one cache over the scored tokens of one text.

    Attributes:
        scheme: its name.
        tokens: that were scored.
        nll: sum of -log p of the text's tokens, in nats.
        kl: sum of KL(full || this) of the next token's distribution, in nats.
        agreement: at how many tokens both find the same word most likely.
        nbytes: of the cache at the end.
        bytes_16: the same if what is in full precision took 2 bytes a number, as in a 16-bit model.
        plain_16: bytes of all keys and values of the text at 2 bytes a number.
    """

    scheme: str
    tokens: int
    nll: float
    kl: float
    agreement: int
    nbytes: int
    bytes_16: int
    plain_16: int


class with_attention:
    """Lets a model attend as a cache needs it, inside a ``with`` block.

    Models that add sinks of their own to the softmax (gpt-oss), which our attention does not know, keep theirs where
    the cache allows it.
    """

    def __init__(self, model: Any, cache: Any) -> None:
        own = isinstance(cache, KIVICache) and any(
            isinstance(getattr(m, "sinks", None), Tensor) for m in model.modules()
        )
        self._model, self._wanted = model, ATTENTION if isinstance(cache, LossyCache) and not own else None
        self._before = model.config._attn_implementation

    def __enter__(self) -> None:
        if self._wanted is not None:
            self._model.set_attn_implementation(self._wanted)

    def __exit__(self, *_: Any) -> None:
        self._model.set_attn_implementation(self._before)


@torch.inference_mode()
def compare_caches(model: Any, ids: Tensor, schemes: Sequence[Any], prompt: int, step: int = 8) -> Iterator[Quality]:
    """Reads a text with the full cache and then with each scheme, the first ``prompt`` tokens at once.

    The words after them are scored: each is predicted from a cache that holds all before the pass it is in.

    Args:
        model: in evaluation, of transformers.
        ids: int64 [1, T].
        schemes: what is compared, of :class:`CacheScheme` or with a ``name`` and ``make(config)`` as it has; the full
            cache comes first of its own.
        prompt: tokens that are read at once, at least 1 and fewer than T - 1.
        step: tokens of each later pass.

    Yields:
        One result for each scheme, that of the full cache (``"plain"``) first.

    Raises:
        ValueError: the text is not longer than the prompt, or a number is below 1.
    """
    if ids.shape[0] != 1 or not 1 <= prompt < ids.shape[1] - 1 or step < 1:
        raise ValueError(
            f"needs one text of more than prompt + 1 tokens and step >= 1, got {tuple(ids.shape)}, prompt {prompt} and "
            f"step {step}"
        )
    full: Tensor | None = None
    for scheme in [CacheScheme("plain"), *(s for s in schemes if s.name != "plain")]:
        cache = scheme.make(model.config)
        with with_attention(model, cache):
            found = _log_probabilities(model, ids, cache, prompt, step)
        if full is None:
            full = found
        yield _result(scheme.name, ids[0, prompt + 1 :], found, full, cache)


def _log_probabilities(model: Any, ids: Tensor, cache: Any, prompt: int, step: int) -> Tensor:
    """float32 [T - prompt - 1, words] of the tokens after the prompt's successor."""
    model(ids[:, :prompt], past_key_values=cache, logits_to_keep=1)
    if isinstance(cache, EvictionCache):
        cache.end_prompt()  # what follows stands for what is written, one token at a time
    parts = []
    for start in range(prompt, ids.shape[1] - 1, step):
        logits = model(ids[:, start : min(start + step, ids.shape[1] - 1)], past_key_values=cache).logits[0]
        parts.append(functional.log_softmax(logits.float(), -1))
    return torch.cat(parts)


def _result(name: str, words: Tensor, found: Tensor, full: Tensor, cache: Any) -> Quality:
    kl = 0.0
    for a, b in zip(full.split(64), found.split(64), strict=True):  # a few tokens at a time: words are many
        kl += float(functional.kl_div(b, a, reduction="sum", log_target=True))
    nll = -float(found.gather(1, words[:, None]).sum())
    agreement = int((found.argmax(-1) == full.argmax(-1)).sum())
    return Quality(name, len(words), nll, kl, agreement, *cache_bytes(cache))


def cache_bytes(cache: Any) -> tuple[int, int, int]:
    """(nbytes, bytes_16, plain_16) of :class:`Quality`."""
    if hasattr(cache, "bytes_by_layer"):
        kinds = cache.bytes_by_layer()
        full = sum(layer.get(kind, 0) for layer in kinds for kind in ("window", "sinks", "plain"))
        plain, held = cache.plain_bytes, cache.nbytes
    else:
        held = full = plain = sum(layer_bytes(layer)["plain"] for layer in cache.layers)
    width = next(
        layer.dtype.itemsize for layer in cache.layers if isinstance(layer, CacheLayerMixin) and layer.is_initialized
    )
    return held, held - full + full * 2 // width, plain * 2 // width
