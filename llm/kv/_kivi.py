"""``KIVICache``: keys and values in 1 to 8 bits, as a cache that transformers' models take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from graphlossy.core._schemas import LARGEST_GROUP
from graphlossy.llm.kv._file import read_cache, restore_layers, whole, write_cache
from graphlossy.llm.kv._kivi_layer import KIVILayer
from graphlossy.llm.kv._lossy_cache import LossyCache, check_config, nothing_grows
from graphlossy.llm.kv._rows import Split
from graphlossy.llm.kv._states import ATTENTION

__all__ = ["KIVICache"]

_BITS = (1, 2, 3, 4, 8)
_ALIKE = ("group_size", "residual_length", "sinks", "value_group_size", "rotate_values")  # of all layers
MOST_SINKS = 1024  # there is room for all of them from the first token on


class KIVICache(LossyCache):
    """Keys in few bits per channel, values in few bits per token; attention sinks and a recent window as they are.

    After KIVI (Liu et al., ICML 2024). Give it to any model of transformers: ``model.generate(**inputs,
    past_key_values=KIVICache(model.config))`` or ``model(..., past_key_values=cache)``. Only layers whose cache grows
    with the text are packed; sliding-window and linear-attention layers keep theirs. Rows padded on the left are stored
    as they would be alone: chunks are counted from a row's first real token. It is for inference: no gradient passes
    through it.

    Args:
        config: of the model.
        bits: width of keys and values: 1, 2, 3, 4 or 8.
        key_bits: width of the keys, which need more than values; None: ``bits``.
        value_bits: width of the values; None: ``bits``.
        group_size: tokens of a channel of the keys that share a scale and an offset of 2 bytes each; a multiple of 8.
            Tokens are packed so many at a time.
        value_group_size: channels of a token of the values that share them, likewise; None: ``group_size``, and for
            rotated values of 1 to 3 bits the whole head.
        residual_length: recent tokens in full precision, at least.
        sinks: first tokens in full precision, at most 1,024.
        rotate_values: store values times a Hadamard matrix, after which all channels are alike. With 1 to 3 bits they
            then take codes for normally distributed numbers and a scale alone, without an offset, that keeps sums over
            tokens right on average (:mod:`graphlossy.core.symmetric`).
        per_layer: other widths for some layers, by number: ``bits``, ``(key_bits, value_bits)``, or None for a layer
            that is not packed.

    Raises:
        TypeError: ``config`` is no configuration of transformers, or an argument of the wrong type.
        ValueError: an argument is out of range, or no layer of the model can be packed.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        ...                      num_attention_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        >>> model = LlamaForCausalLM(config).eval()
        >>> cache = KIVICache(config, bits=4)
        >>> out = model.generate(torch.arange(3, 63)[None].repeat(1, 10), past_key_values=cache, max_new_tokens=4)
        >>> cache.get_seq_length(), cache.plain_bytes > 2 * cache.nbytes
        (603, True)
    """

    def __init__(
        self,
        config: Any,
        bits: int = 4,
        *,
        key_bits: int | None = None,
        value_bits: int | None = None,
        group_size: int = 32,
        value_group_size: int | None = None,
        residual_length: int = 128,
        sinks: int = 4,
        rotate_values: bool = False,
        per_layer: Mapping[int, int | tuple[int, int] | None] | None = None,
    ) -> None:
        check_config(config)
        _width("bits", bits)
        widths = (
            _width("key_bits", bits if key_bits is None else key_bits),
            _width("value_bits", bits if value_bits is None else value_bits),
        )
        if not isinstance(rotate_values, bool):
            raise TypeError(f"rotate_values must be True or False, got {rotate_values!r}")
        sizes = {"group_size": group_size}
        if value_group_size is not None:
            sizes["value_group_size"] = value_group_size
        for name, size in sizes.items():
            _whole(name, size, 8, LARGEST_GROUP)
            if size % 8:
                raise ValueError(f"{name} must be a multiple of 8, such as 32, got {size}")
        _whole("residual_length", residual_length, 0)
        _whole("sinks", sinks, 0, MOST_SINKS)
        layers = DynamicCache(config=config).layers
        chosen = dict.fromkeys(range(len(layers)), widths) | _others(per_layer, len(layers))
        split = Split(sinks, residual_length, group_size)
        for number, layer in enumerate(layers):
            pair = chosen[number]
            if type(layer) is DynamicLayer and pair is not None:
                layers[number] = KIVILayer(*pair, value_group_size, split, rotate_values)
        if not any(isinstance(layer, KIVILayer) for layer in layers):
            raise nothing_grows(layers, "pack")
        super().__init__(layers, config.get_text_config(decoder=True))
        each = [None if chosen[number] is None else list(chosen[number] or ()) for number in range(len(layers))]
        self.arguments: dict[str, Any] = {"group_size": group_size, "residual_length": residual_length, "sinks": sinks}
        self.arguments |= {"value_group_size": value_group_size, "rotate_values": rotate_values, "widths": each}

    def attended_by(self, implementation: str, layer: Any) -> None:
        if isinstance(layer, KIVILayer):
            layer.direct = implementation == ATTENTION

    def save(self, path: str | Path) -> None:
        """Writes all that is stored to a safetensors file, whole or not at all.

        Raises:
            ValueError: a layer that is not packed is of a kind whose state is not known.
        """
        write_cache(Path(path), "KIVICache", self._config, self.arguments, self.layers)

    @classmethod
    def load(cls, path: str | Path, config: Any, device: torch.device | str | None = None) -> KIVICache:
        """The cache that :meth:`save` wrote, for the model of this configuration; it goes on as if never stopped.

        Args:
            path: of the file.
            config: of the model.
            device: where it goes; None: the CPU.

        Raises:
            FileNotFoundError: there is no file.
            ValueError: it is damaged, no file of such a cache, or of another model.
        """
        check_config(config)
        arguments, about, tensors = read_cache(Path(path), "KIVICache", config, device)
        with whole(Path(path)):
            cache = cls.of_arguments(config, arguments)
        restore_layers(Path(path), cache.layers, about, tensors)
        return cache

    @classmethod
    def of_arguments(cls, config: Any, arguments: Mapping[str, Any]) -> KIVICache:
        """An empty cache with the attribute ``arguments`` of another one of a model with as many layers.

        Raises:
            KeyError: one is missing.
        """
        others = {name: arguments[name] for name in _ALIKE}
        widths = {i: None if w is None else tuple(w) for i, w in enumerate(arguments["widths"])}
        return cls(config, per_layer=widths, **others)

    @property
    def packed_layers(self) -> list[KIVILayer]:
        """The layers that are packed."""
        return self.own_layers


def _others(per_layer: Any, count: int) -> dict[int, tuple[int, int] | None]:
    found: dict[int, tuple[int, int] | None] = {}
    if not (per_layer is None or isinstance(per_layer, Mapping)):
        raise TypeError(f"per_layer must give widths by the number of a layer, such as {{0: 8}}, got {per_layer!r}")
    for number, value in (per_layer or {}).items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
            raise ValueError(f"per_layer: this model has layers 0 to {count - 1}, got {number!r}")
        pair = value if isinstance(value, (tuple, list)) else (value, value)
        if len(pair) != 2:
            raise ValueError(f"per_layer: give bits, (key_bits, value_bits) or None for layer {number}, got {value!r}")
        name = f"per_layer[{number}]"
        found[number] = None if value is None else (_width(name, pair[0]), _width(name, pair[1]))
    return found


def _width(name: str, bits: Any) -> int:
    if isinstance(bits, bool) or bits not in _BITS:
        raise ValueError(f"{name} must be one of {', '.join(map(str, _BITS))}, got {bits!r}")
    return int(bits)


def _whole(name: str, value: Any, least: int, most: int = 2**31) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number of at least {least} and at most {most:,}, got {value!r}")
