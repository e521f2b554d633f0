"""The file of a cache: codes, windows and what tells them apart, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from graphlossy.core._files import written
from graphlossy.llm.kv._layer import RowsLayer

__all__ = ["read_cache", "restore_layers", "whole", "write_cache"]

_FORMAT, _VERSION = "graphlossy.llm.kv", 3


_SHAPE = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")


def write_cache(path: Path, kind: str, config: Any, arguments: dict[str, Any], layers: list[Any]) -> None:
    """Writes to a file beside ``path`` that then takes its name, so that there is never half a cache.

    Args:
        path: of the file.
        kind: name of the class that loads it.
        config: of the model.
        arguments: that the class makes it of.
        layers: whose state is written.

    Raises:
        ValueError: a layer is of a kind whose state is not known.
    """
    tensors: dict[str, Tensor] = {}
    about: list[dict[str, Any]] = []
    for number, layer in enumerate(layers):
        held, numbers = _state(number, layer)
        about.append({"kind": type(layer).__name__, **numbers})
        tensors |= {f"{number}.{name}": tensor.contiguous().clone() for name, tensor in held.items()}
    # One entry: safetensors writes several in no fixed order, and equal caches are to be equal files.
    facts = {"version": _VERSION, "cache": kind, "model": _shape(config), "arguments": arguments, "layers": about}
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as temporary:
        save_file(tensors, temporary, {_FORMAT: json.dumps(facts)})


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Inside this context what a file lacks, or has of another kind, is a ValueError that calls the file damaged."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); save the cache again") from error


def read_cache(
    path: Path, kind: str, config: Any, device: torch.device | str | None
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Tensor]]:
    """(arguments, what is told of every layer, tensors by ``"<layer>.<name>"``) of a cache of this kind.

    Args:
        path: of the file.
        kind: name of the class that loads it.
        config: of the model.
        device: where the tensors go; None: the CPU.

    Raises:
        FileNotFoundError, ValueError: there is no file, or it is damaged, no such cache, or of another model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).to(device or "cpu") for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated, or no file of a cache ({error}); save the cache again") from error
    if _FORMAT not in metadata:
        raise ValueError(f"{path} is a safetensors file, but not one that a cache of graphlossy.llm wrote")
    with whole(path):
        facts = json.loads(metadata[_FORMAT])
        if facts["version"] != _VERSION:
            raise ValueError(f"{path} has version {facts['version']} of the format; this graphlossy reads {_VERSION}")
        if facts["cache"] != kind:
            raise ValueError(f"{path} holds another cache: load it with {facts['cache']}.load")
        theirs, ours = facts["model"], _shape(config)
        other = [name for name in _SHAPE if theirs.get(name) != ours.get(name)]
        if other:
            told = ", ".join(f"{name} {theirs.get(name)!r}, not {ours.get(name)!r}" for name in other)
            raise ValueError(f"{path} is of another model: {told}")
        return facts["arguments"], facts["layers"], tensors


def _shape(config: Any) -> dict[str, Any]:
    """What tells the keys of one model from another's."""
    text = config.get_text_config(decoder=True)
    return {name: value for name in _SHAPE if isinstance(value := getattr(text, name, None), (int, str))}


def restore_layers(path: Path, layers: list[Any], about: list[dict[str, Any]], tensors: dict[str, Tensor]) -> None:
    """Gives layers back what :func:`write_cache` took from them.

    Raises:
        ValueError: they are of another model, or the file is damaged.
    """
    with whole(path):
        if [type(layer).__name__ for layer in layers] != [facts["kind"] for facts in about]:
            raise ValueError(f"{path} is of another model: other layers")
        for number, (layer, facts) in enumerate(zip(layers, about, strict=True)):
            prefix = f"{number}."
            held = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            if isinstance(layer, RowsLayer):
                if not held and "seen" in facts:
                    raise KeyError(f"{prefix}*")  # an empty layer tells nothing
                layer.load_state(held, facts)
            elif held:
                layer.lazy_initialization(held["keys"], held["values"])
                layer.keys, layer.values = held["keys"], held["values"]
                if hasattr(layer, "cumulative_length"):
                    layer.cumulative_length = facts["cumulative_length"]


def _state(number: int, layer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if isinstance(layer, RowsLayer):
        return layer.state()
    if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
        raise ValueError(
            f"layer {number} is a {type(layer).__name__}, whose state cannot be saved; there are those of "
            "our caches, DynamicLayer and DynamicSlidingWindowLayer"
        )
    numbers = {"cumulative_length": layer.cumulative_length} if hasattr(layer, "cumulative_length") else {}
    return ({"keys": layer.keys, "values": layer.values} if layer.is_initialized else {}), numbers
