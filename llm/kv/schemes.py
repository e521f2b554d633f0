"""Caches by name: ``"4bit"``, ``"k4v2-r-w32"``, ``"h2o:0.25:0.25+4bit"``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from transformers.cache_utils import Cache, DynamicCache

from graphlossy.llm._cache_names import GRAMMAR
from graphlossy.llm.kv._eviction import EvictionCache
from graphlossy.llm.kv._kivi import KIVICache
from graphlossy.llm.kv.scorers import H2O, TOVA, ExpectedAttention, Knorm, Scorer, SnapKV, StreamingLLM

__all__ = ["CacheScheme", "parse_cache"]

_SCORERS: dict[str, type[Scorer]] = {
    "h2o": H2O, "tova": TOVA, "snapkv": SnapKV, "expected": ExpectedAttention, "knorm": Knorm,
    "streaming": StreamingLLM,
}  # fmt: skip
_WIDTHS = re.compile(r"(?:(?P<both>\d)bit|k(?P<key>\d)v(?P<value>\d))(?P<options>(?:-(?:r|[wsgv]\d+))*)")
_OPTIONS = {"w": "residual_length", "s": "sinks", "g": "group_size", "v": "value_group_size"}


@dataclass(frozen=True)
class CacheScheme:
    """A cache that can be made for any model.

    Attributes:
        name: as it was parsed.
        scorer: says which tokens are kept; None: all.
        amounts: ``heavy``, ``recent`` and ``prompt_only`` of :class:`graphlossy.llm.EvictionCache`.
        packing: arguments of :class:`graphlossy.llm.KIVICache`; None: in full precision.
    """

    name: str
    scorer: Scorer | None = None
    amounts: dict[str, Any] = field(default_factory=dict)
    packing: dict[str, Any] | None = None

    def make(self, config: Any) -> Cache:
        """An empty cache for the model of this configuration.

        Raises:
            TypeError, ValueError: the model or the numbers do not allow it; see the caches.
        """
        store = None if self.packing is None else KIVICache(config, **self.packing)
        if self.scorer is not None:
            return EvictionCache(config, self.scorer, **self.amounts, storage=store)
        return DynamicCache(config=config) if store is None else store


def parse_cache(name: str) -> CacheScheme:
    """The cache of a name; ``graphlossy llm generate --help`` has the names.

    Raises:
        ValueError: no cache has this name.

    Example:
        >>> scheme = parse_cache("h2o:0.25:64+k4v2-r")
        >>> scheme.amounts, scheme.packing
        ({'heavy': 0.25, 'recent': 64}, {'key_bits': 4, 'value_bits': 2, 'rotate_values': True})
    """
    text = name.strip().lower()
    scorer: Scorer | None = None
    amounts: dict[str, Any] = {}
    packing: dict[str, Any] | None = None
    for number, part in enumerate(() if text == "plain" else text.split("+")):
        kind, *given = part.strip().split(":")
        match = _WIDTHS.fullmatch(part.strip())
        if kind.removesuffix("-p") in _SCORERS and number == 0 and len(given) <= 2:
            scorer = _SCORERS[kind.removesuffix("-p")]()
            heavy, recent = (_amount(name, word) for word in [*given, "0.1", "0.1"][:2])
            amounts = {"heavy": heavy, "recent": recent} | ({"prompt_only": True} if kind.endswith("-p") else {})
        elif match and packing is None:
            if match["both"]:
                packing = {"bits": int(match["both"])}
            else:
                packing = {"key_bits": int(match["key"]), "value_bits": int(match["value"])}
            for option in match["options"].split("-")[1:]:
                packing |= {"rotate_values": True} if option == "r" else {_OPTIONS[option[0]]: int(option[1:])}
        else:
            raise ValueError(f"no cache has the name {name!r}; there are:\n{GRAMMAR}")
    return CacheScheme(text, scorer, amounts, packing)


def _amount(name: str, word: str) -> int | float:
    try:
        return int(word) if word.isdigit() else float(word)
    except ValueError:
        raise ValueError(f"{word!r} in {name!r} is no number of tokens and no share of the prompt") from None
