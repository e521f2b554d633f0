"""``EvictionCache`` and ``H2OCache``: caches that keep the tokens that matter, for transformers' models."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from graphlossy.llm.kv import scorers
from graphlossy.llm.kv._evicting_layer import Budget, EvictingLayer
from graphlossy.llm.kv._file import read_cache, restore_layers, whole, write_cache
from graphlossy.llm.kv._kivi import KIVICache
from graphlossy.llm.kv._kivi_layer import KIVILayer
from graphlossy.llm.kv._lossy_cache import LossyCache, check_config, nothing_grows
from graphlossy.llm.kv._packed_eviction import PackedEvictingLayer
from graphlossy.llm.kv._states import ATTENTION
from graphlossy.llm.kv.scorers import H2O, Scorer

__all__ = ["EvictionCache", "H2OCache"]


class EvictionCache(LossyCache):
    """Keeps, for every row and head of keys, the tokens that a scorer values most, and the recent ones.

    Give it to any model of transformers whose attention is ours: ``model.set_attn_implementation("graphlossy")``, then
    ``model.generate(**inputs, past_key_values=EvictionCache(model.config, SnapKV(), heavy=512, recent=64))``. A pass
    sees all tokens that are kept and its own, then those beyond the budget are dropped: the prompt itself is read in
    full. Positions stay those of the text. Only layers whose cache grows with it are treated; sliding-window and
    linear-attention layers keep theirs. A row padded on the left keeps what it would keep alone. What was dropped
    cannot come back: the cache cannot be rolled back.

    Args:
        config: of the model.
        scorer: one of :mod:`graphlossy.llm.kv.scorers`.
        heavy: tokens of the highest scores that are kept, or if a fraction their share of what was read: of the first
            pass and of later ones of several tokens (a prompt in pieces, the next turn of a conversation).
        recent: last tokens that are kept, likewise; at least one.
        storage: a :class:`KIVICache` of the same model; what is kept is stored in few bits as it would; None: in full
            precision. After the first pass tokens are dropped a chunk at a time then, and of packed ones alone: a row
            keeps up to a chunk more than its budget, and never fewer than sinks, ``residual_length`` and a chunk.
        prompt_only: drop tokens of the prompt alone, which is the first pass and those of several tokens that follow it
            at once (a prompt in pieces). From the first later pass of a single token on all is kept: what is generated,
            and what is read in further turns. None: as the method is published (SnapKV and ExpectedAttention do so).

    Raises:
        TypeError: ``config`` is no configuration of transformers, ``scorer`` no scorer, ``storage`` no KIVICache, or
            ``prompt_only`` neither a bool nor None.
        ValueError: ``heavy`` or ``recent`` is out of range, layers of the model share keys and values, or ``storage``
            is of another model or leaves a layer as it is.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from graphlossy.llm.kv.scorers import Knorm
        >>> config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        ...                      num_attention_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        >>> model = LlamaForCausalLM(config).eval()
        >>> model.set_attn_implementation("graphlossy")
        >>> cache = EvictionCache(config, Knorm(), heavy=0.2, recent=30)
        >>> out = model.generate(torch.arange(3, 63)[None].repeat(1, 10), past_key_values=cache, max_new_tokens=4)
        >>> cache.get_seq_length(), cache.own_layers[0].counts
        (603, [150])
    """

    def __init__(
        self,
        config: Any,
        scorer: Scorer,
        *,
        heavy: int | float,
        recent: int | float,
        storage: KIVICache | None = None,
        prompt_only: bool | None = None,
    ) -> None:
        check_config(config)
        _check_scorer(scorer)
        if not (prompt_only is None or isinstance(prompt_only, bool)):
            raise TypeError(f"prompt_only must be True, False or None, got {prompt_only!r}")
        once = scorer.prompt_only if prompt_only is None else prompt_only
        budget = Budget(_amount("heavy", heavy), _amount("recent", recent))
        layers = DynamicCache(config=config).layers
        text = config.get_text_config(decoder=True)
        if getattr(text, "num_kv_shared_layers", None):
            raise ValueError(
                "layers of this model share keys and values, which only one of them can drop: KIVICache can"
            )
        stores = [None] * len(layers) if storage is None else _stores(config, storage, layers)
        for number, (layer, store) in enumerate(zip(layers, stores, strict=True)):
            if store is not None:
                layers[number] = PackedEvictingLayer(scorer, budget, store, once)
            elif type(layer) is DynamicLayer:
                layers[number] = EvictingLayer(scorer, budget, once)
        if not any(isinstance(layer, EvictingLayer) for layer in layers):
            raise nothing_grows(layers, "drop")
        super().__init__(layers, text)
        self.arguments: dict[str, Any] = {
            "scorer": type(scorer).__name__,
            "options": asdict(scorer) if is_dataclass(scorer) else {},
            "heavy": heavy,
            "recent": recent,
            "prompt_only": once,
            "storage": None if storage is None else storage.arguments,
        }

    left_padded_only = True

    def attended_by(self, implementation: str, layer: Any) -> None:
        if implementation != ATTENTION:
            raise ValueError(
                f"{type(self).__name__} must learn what attention its tokens are paid: "
                f"model.set_attn_implementation({ATTENTION!r}) first (it is {implementation!r}; "
                "some old models have their own for good, and config must be the model's own object)"
            )

    def end_prompt(self) -> None:
        """Tells that the prompt was read: with ``prompt_only`` nothing is dropped any more, however it is passed.

        A pass of a single token tells it too; before one of several that is no piece of the prompt (a text to be
        scored, a question about what was read) only this does.
        """
        for layer in self.own_layers:
            layer.end_prompt()

    def save(self, path: str | Path) -> None:
        """Writes all that is kept to a safetensors file, whole or not at all.

        Raises:
            ValueError: a layer of the model's own is of a kind whose state is not known.
        """
        write_cache(Path(path), "EvictionCache", self._config, self.arguments, self.layers)

    @classmethod
    def load(
        cls, path: str | Path, config: Any, device: torch.device | str | None = None, scorer: Scorer | None = None
    ) -> EvictionCache:
        """The cache that :meth:`save` wrote, for the model of this configuration; it goes on as if never stopped.

        Args:
            path: of the file.
            config: of the model.
            device: where it goes; None: the CPU.
            scorer: of the cache; None: as it was, if it is one of ours.

        Raises:
            FileNotFoundError: there is no file.
            TypeError: ``scorer`` is no scorer.
            ValueError: the file is damaged, no file of such a cache, of another model, or of a scorer that is not ours.
        """
        check_config(config)
        path = Path(path)
        if scorer is not None:
            _check_scorer(scorer)
        arguments, about, tensors = read_cache(path, "EvictionCache", config, device)
        with whole(path):
            name, options, storage = (arguments[key] for key in ("scorer", "options", "storage"))
            if scorer is None:
                if name not in scorers.__all__:
                    raise ValueError(
                        f"{path} was kept by a scorer {name} that is not ours: give load(..., scorer={name}())"
                    )
                kind = getattr(scorers, name)
                scorer = kind(**{field.name: options[field.name] for field in fields(kind)})
            amounts = {key: arguments[key] for key in ("heavy", "recent", "prompt_only")}
            store = None if storage is None else KIVICache.of_arguments(config, storage)
            cache = cls._of(path, config, scorer, storage=store, **amounts)
        restore_layers(path, cache.layers, about, tensors)
        return cache

    @classmethod
    def _of(cls, path: Path, config: Any, scorer: Any, **amounts: Any) -> EvictionCache:
        """An empty cache for what ``path`` holds."""
        return EvictionCache(config, scorer, **amounts)


class H2OCache(EvictionCache):
    """Heavy hitters, by all attention that they were paid, and the recent tokens (Zhang et al., H2O, NeurIPS 2023).

    An :class:`EvictionCache` with the scorer :class:`graphlossy.llm.kv.scorers.H2O`. A token's score is the attention
    paid to it by queries that could see it, summed over the query heads that share its head of keys; it is computed
    some queries at a time, so the matrix of a long prompt never exists. ``load`` takes what this scorer kept, and no
    other; it gives an ``H2OCache``.

    Args:
        config: of the model.
        heavy: tokens of the highest scores that are kept, or if a fraction their share of what was read.
        recent: last tokens that are kept, likewise; at least one.
        storage: a :class:`KIVICache` of the same model: how what is kept is stored; None: in full precision.
        prompt_only: drop tokens of the prompt alone and keep all that is generated.
    """

    def __init__(
        self,
        config: Any,
        heavy: int | float = 0.1,
        recent: int | float = 0.1,
        storage: KIVICache | None = None,
        prompt_only: bool = False,
    ) -> None:
        super().__init__(config, H2O(), heavy=heavy, recent=recent, storage=storage, prompt_only=prompt_only)

    @classmethod
    def _of(cls, path: Path, config: Any, scorer: Any, **amounts: Any) -> EvictionCache:
        if not isinstance(scorer, H2O):
            raise ValueError(
                f"{path} holds what {type(scorer).__name__}() kept, not H2O(): load it with EvictionCache.load"
            )
        return H2OCache(config, **amounts)


def _check_scorer(scorer: Any) -> None:
    if not isinstance(scorer, Scorer):
        raise TypeError(f"scorer must be one of graphlossy.llm.kv.scorers, such as H2O(), got {scorer!r}")


def _stores(config: Any, storage: Any, layers: list[Any]) -> list[KIVILayer | None]:
    """Empty layers with the settings of ``storage``; None where the model has a layer of its own."""
    if not isinstance(storage, KIVICache):
        raise TypeError(f"storage must be a KIVICache or None, got {type(storage).__name__}")
    if len(storage.layers) != len(layers):
        raise ValueError(f"storage is of another model: it has {len(storage.layers)} layers, this one {len(layers)}")
    stores: list[KIVILayer | None] = []
    for number, layer in enumerate(KIVICache.of_arguments(config, storage.arguments).layers):
        if type(layer) is DynamicLayer:  # rows would keep another number of tokens there, and there is one mask for all
            raise ValueError(f"storage leaves layer {number} as it is; here it must pack every layer that grows")
        if isinstance(layer, KIVILayer):
            layer.split = replace(layer.split, rollback=0)  # there are no rollbacks here
        stores.append(layer if isinstance(layer, KIVILayer) else None)
    return stores


def _amount(name: str, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, Real) or not value >= 0:
        raise ValueError(f"{name} must be a number of tokens, or a share of the prompt below 1, got {value!r}")
    if isinstance(value, Integral):
        return int(value)
    if value >= 1:
        raise ValueError(f"{name} must be a whole number of tokens or a share below 1, got {value!r}")
    return float(value)
