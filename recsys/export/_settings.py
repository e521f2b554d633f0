"""How a table was constructed, as JSON, and a table of the same construction to load its tensors into."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.recsys.base import CompressedEmbedding
from graphlossy.recsys.multi_size import MultiSizeEmbedding
from graphlossy.recsys.multi_size_bag import MultiSizeEmbeddingBag

__all__ = ["build", "known_classes", "settings_of"]

_DTYPES = ("float16", "bfloat16", "float32", "float64")
_DRAWN = ("seed", "init_std")  # of values that the state_dict then overwrites
_PLACED = ("device", "dtype")


def known_classes(more: Iterable[type] = ()) -> dict[str, type]:
    """Classes that a file may name, by name; ``more`` are the caller's own."""
    from graphlossy.recsys.export.quantized import QuantizedBag, QuantizedTable
    from graphlossy.recsys.tables import KINDS

    own = (MultiSizeEmbedding, MultiSizeEmbeddingBag, QuantizedTable, QuantizedBag, nn.Embedding, nn.EmbeddingBag)
    return {cls.__name__: cls for cls in (*own, *KINDS.values(), *more)}


def settings_of(table: Any) -> dict[str, Any]:
    """The constructor's arguments as JSON: read from the attributes of their names.

    Raises:
        TypeError: an argument has no attribute, or one that is no number, text, bool, None or list of them.
    """
    found: dict[str, Any] = {}
    for name, parameter in _parameters(type(table)).items():
        if name in _PLACED or name.startswith("_") or (isinstance(table, MultiSizeEmbedding) and name in _STRUCTURE):
            continue
        value = getattr(table, name, inspect.Parameter.empty)
        if callable(value):  # ``rows`` is a method: the number of them is num_rows
            value = getattr(table, f"num_{name}", value)
        if value is inspect.Parameter.empty:
            if name in _DRAWN and parameter.default is not inspect.Parameter.empty:
                continue
            raise TypeError(
                f"{type(table).__name__} keeps no attribute {name!r} for its argument of that name, so it cannot be "
                "built again from a file; add one"
            )
        found[name] = _plain(value, f"{type(table).__name__}.{name}")
    found["dtype"] = str(_dtype(table)).removeprefix("torch.")
    return found


# What a MultiSizeEmbedding finds in its state_dict by itself.
_STRUCTURE = ("sizes", "shared_rows", "shared_size")


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Arguments of the constructor, with those that ``**options`` hands on to the parent's."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is nn.Module:
            continue
        own = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        kinds = {parameter.kind for parameter in own}
        for parameter in own:
            if parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
                found.setdefault(parameter.name, parameter)
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return found


def _plain(value: Any, what: str) -> Any:
    if isinstance(value, Tensor) and value.dim() == 1 and value.numel() <= 64:
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(entry, what) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{what} must be a number, text, bool, None or a list of them to be saved, got {type(value).__name__}"
    )


def _dtype(table: Any) -> torch.dtype:
    found = getattr(table, "dtype", None)
    if not isinstance(found, torch.dtype):
        floats = [t.dtype for t in table.state_dict().values() if isinstance(t, Tensor) and t.is_floating_point()]
        found = floats[0] if floats else torch.float32
    return found


def build(cls: type, settings: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    """A table of these settings whose tensors are those of ``state`` themselves, no copies.

    Raises:
        KeyError, RuntimeError, TypeError, ValueError: the settings or the tensors are not those of such a table.
    """
    settings = dict(settings)
    names, dtype = _parameters(cls), settings.pop("dtype")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {_DTYPES}, got {dtype!r}")
    if "dtype" in names:
        settings["dtype"] = getattr(torch, dtype)
    if issubclass(cls, MultiSizeEmbedding):
        settings["sizes"] = 0  # the state_dict says which; nothing is allocated for tokens of size 0
    elif issubclass(cls, (nn.Embedding, nn.EmbeddingBag)):
        settings["device"] = "meta"
    with torch.random.fork_rng(devices=[]):  # its first values are drawn, and then dropped
        table = cls(**settings)
    if not isinstance(table, (CompressedEmbedding, nn.Embedding, nn.EmbeddingBag)):
        raise TypeError(f"{cls.__name__} is no embedding table")
    table.load_state_dict(state, assign=True)
    return table
