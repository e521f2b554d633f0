"""What our caches have in common: layers of their own among those of the model, their bytes, the padding of rows."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from graphlossy.llm.kv._layer import RowsLayer, storage_bytes
from graphlossy.llm.kv._rows import mask_of_caller, padding_of

__all__ = ["LossyCache", "check_config", "layer_bytes", "nothing_grows", "release"]

_STATES = ("conv_states", "recurrent_states")  # of linear attention, by number


class LossyCache(Cache):
    """A cache some of whose layers are ours; it reads the padding of rows off the attention mask of the first pass.

    Args:
        layers: ours and the model's own.
        config: of the model's text part; the model's own object, which tells of its attention.
    """

    left_padded_only = False  # whether pads behind a row's first real token cannot be told from tokens

    def __init__(self, layers: list[Any], config: Any) -> None:
        super().__init__(layers=layers)
        self._config = config

    def __deepcopy__(self, memo: dict[int, Any]) -> LossyCache:
        """A copy for the same model: its configuration is no copy."""
        memo[id(self._config)] = self._config
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__dict__.update({name: deepcopy(value, memo) for name, value in self.__dict__.items()})
        return other

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends tokens to a layer, as transformers asks for it.

        Raises:
            ValueError: the model has more layers than the cache was made for, or not the attention that it needs, or
                the tokens do not fit to what is held.
        """
        if layer_idx >= len(self.layers):
            raise ValueError(
                f"this cache was made for a model of {len(self.layers)} layers, and was given the tokens of layer "
                f"{layer_idx}: make one of the model's own config"
            )
        layer = self.layers[layer_idx]
        self.attended_by(self._config._attn_implementation, layer)
        found: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        release(layer)
        return found

    def attended_by(self, implementation: str, layer: Any) -> None:
        """Learns, before a layer's tokens come, what attention of the model they are for; raises ValueError if none."""

    @property
    def own_layers(self) -> list[Any]:
        """The layers that are ours."""
        return [layer for layer in self.layers if isinstance(layer, RowsLayer)]

    @property
    def nbytes(self) -> int:
        """Bytes of all storages, those of layers that are the model's own included."""
        return sum(sum(kinds.values()) for kinds in self.bytes_by_layer())

    @property
    def plain_bytes(self) -> int:
        """Bytes of the same tokens in the model's own cache."""
        return sum(
            layer.plain_bytes if isinstance(layer, RowsLayer) else sum(layer_bytes(layer).values())
            for layer in self.layers
        )

    def bytes_by_layer(self) -> list[dict[str, int]]:
        """For each layer its bytes by kind: ``packed`` codes, ``metadata``, ``window``, ``sinks``, ``plain``."""
        return [layer.bytes_by_kind() if isinstance(layer, RowsLayer) else layer_bytes(layer) for layer in self.layers]

    def set_padding(self, attention_mask: Tensor) -> None:
        """Tells how many pads are before each row's first real token.

        Models of transformers need no such call: it is read off the attention mask of their first pass, unless that has
        four dimensions.

        Args:
            attention_mask: [B, T], 0 for pads, as the tokenizer gives it.

        Raises:
            ValueError: there are tokens in the cache, or the mask has another shape, or pads where none can be.
        """
        if attention_mask.dim() != 2:
            raise ValueError(f"attention_mask must have the shape [rows, tokens], got {tuple(attention_mask.shape)}")
        if any(layer.seen for layer in self.own_layers):
            raise ValueError("there are tokens in this cache: tell it of padding before the first pass, or reset() it")
        pads = self._padding_of(attention_mask != 0)
        for layer in self.own_layers:
            layer.padding = list(pads)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """As transformers asks for it; the padding is read off the mask that it is about to use."""
        first = self.own_layers[0]
        begins = first.seen == 0 or any(first.seen <= pads for pads in first.padding)
        if begins or (self.left_padded_only and query_length > 1):
            mask = mask_of_caller(len(first.padding) if first.seen else None, first.seen + query_length)
            if mask is not None:
                pads = self._padding_of(mask[:, : first.seen + query_length] != 0)
                if begins:
                    for layer in self.own_layers:
                        layer.padding = list(pads)
        return super().get_mask_sizes(query_length, layer_idx)

    def _padding_of(self, mask: Tensor) -> list[int]:
        """Pads of each row of a mask [B, T] of bools; raises ValueError if there are others that cannot be."""
        if self.left_padded_only and bool((mask[:, :-1] & ~mask[:, 1:]).any()):
            raise ValueError(
                f"attention_mask hides tokens behind a row's first real one; {type(self).__name__} takes pads on the "
                "left alone: tokenizer.padding_side = 'left'"
            )
        return padding_of(mask)

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last ``-tokens_to_remove`` tokens of every row, in all layers or in none.

        0 only lets layers of the model's own go of what they record for rollbacks.

        Raises:
            ValueError: the number is positive, there are not so many tokens, or a layer cannot be rolled back.
        """
        for number, layer in enumerate(self.layers if tokens_to_remove else ()):
            if isinstance(layer, RowsLayer):
                layer.check_crop(tokens_to_remove)
            elif not _goes_back(layer, -tokens_to_remove):
                raise ValueError(
                    f"layer {number} ({type(layer).__name__}) cannot be rolled back by {-tokens_to_remove} tokens: "
                    "recurrent states never can, and windows and convolutions only if they recorded the tokens "
                    "(cache.activate_past_recording() before they are read)"
                )
        super().crop(tokens_to_remove)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows of the batch that ``indices`` names, by numbers or as a mask."""
        for layer in self.layers:
            _take_states(layer, lambda state: state[indices.to(state.device)])
            if hasattr(layer, "batch_select_indices"):
                layer.batch_select_indices(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row of the batch."""
        for layer in self.layers:
            _take_states(layer, lambda state: state.repeat_interleave(repeats, 0))
            if hasattr(layer, "batch_repeat_interleave"):
                layer.batch_repeat_interleave(repeats)


def layer_bytes(layer: Any) -> dict[str, int]:
    """Bytes of a layer of the model's own: keys and values, or the states of linear attention."""
    held: list[Any] = [getattr(layer, name, None) for name in ("keys", "values")]
    for name in _STATES:
        held += getattr(layer, name, {}).values()
    return {"plain": storage_bytes(*(t for t in held if isinstance(t, Tensor)))}


def _goes_back(layer: Any, count: int) -> bool:
    """Whether a layer of transformers' own can forget its last ``count`` tokens now."""
    if not layer.is_croppable or (hasattr(layer, "conv_states") and not layer.record_past):
        return False
    if not getattr(layer, "is_sliding", False) or (seen := layer.get_seq_length()) < layer.sliding_window:
        return True
    return bool(layer.record_past and layer.keys.shape[-2] >= min(seen, layer.sliding_window - 1 + count))


def _take_states(layer: Any, taken: Callable[[Tensor], Tensor]) -> None:
    """Takes rows of the states of linear attention; transformers has that for beams alone."""
    for name in _STATES:
        states = getattr(layer, name, {})
        states.update({number: taken(state) for number, state in states.items() if state is not None})


def release(layer: Any) -> None:
    """Lets a sliding window go of the text that it is a view of: transformers keeps all of it until the next pass."""
    if getattr(layer, "is_sliding", False) and isinstance(layer.keys, Tensor):
        keys, values = layer.keys, layer.values
        if 4 * storage_bytes(keys) > 5 * keys.numel() * keys.element_size():  # not one token more in every pass
            layer.keys, layer.values = keys.clone(), values.clone()


def nothing_grows(layers: list[Any], what: str) -> ValueError:
    """The error of a model none of whose layers can be ours."""
    both = {type(x).__name__ for x in layers if isinstance(x, DynamicLayer) and hasattr(x, "conv_states")}
    if both:
        return ValueError(
            f"layers that keep tokens and a state in one ({', '.join(sorted(both))}) are not supported yet"
        )
    return ValueError(f"no layer of this model has a cache that grows with the text: there is nothing to {what}")


def check_config(config: Any) -> None:
    """Raises TypeError unless ``config`` is a configuration of transformers."""
    if not hasattr(config, "get_text_config"):
        raise TypeError(f"config must be a model's configuration (model.config), got {type(config).__name__}")
