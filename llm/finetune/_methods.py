"""Names for sets of options: ``4bit``, ``wta``, ``lora+4bit``. A name fills in options and does nothing else."""

from __future__ import annotations

import difflib
from typing import Any

from graphlossy.llm.finetune._errors import FinetuneError

__all__ = ["METHODS", "method_settings"]

_LOSSY = {"recompute": True}
# A name: what it says, and the options it fills in.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("what torch keeps by itself", {"bits": None, "budget": None, "estimator": None, "recompute": False}),
    "exact": ("nothing rounded; cheap results are computed again", {"bits": None, **_LOSSY}),
    "8bit": ("8-bit saved activations", {"bits": 8, **_LOSSY}),
    "4bit": ("4-bit saved activations", {"bits": 4, **_LOSSY}),
    "2bit": ("2-bit saved activations", {"bits": 2, **_LOSSY}),
    "wta": ("30 % of the token rows in weight gradients, WTA-CRS", {"budget": 0.3, "estimator": "wta", **_LOSSY}),
    "pps": ("30 % of the token rows, without replacement", {"budget": 0.3, "estimator": "pps", **_LOSSY}),
    "crs": ("30 % of the token rows, with replacement", {"budget": 0.3, "estimator": "crs", **_LOSSY}),
    "lora": ("low-rank adapters (PEFT) beside frozen weights", {"lora_rank": 8, "lr": 2e-4}),
}
# What a name without a word about it means: `wta` rounds nothing, `lora` is plain but for its adapters.
_UNSAID = {"bits": None, "budget": None, "estimator": None, "recompute": False}


def method_settings(name: str) -> dict[str, Any]:
    """The options that a name fills in; parts joined by ``+`` add up, later ones first.

    Raises:
        FinetuneError: a part is not known, or two of them say different things of the same option.

    Example:
        >>> method_settings("pps+4bit") == dict(bits=4, budget=0.3, estimator="pps", recompute=True)
        True
        >>> method_settings("lora")["lora_rank"]
        8
    """
    found: dict[str, Any] = {}
    for part in name.split("+"):
        part = part.strip()
        if part not in METHODS:
            near = difflib.get_close_matches(part, METHODS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise FinetuneError(f"method must be of {', '.join(METHODS)}, joined by +, got {name!r}{hint}")
        for option, value in METHODS[part][1].items():
            before = found.get(option)
            if before is not None and value is not None and before != value and option != "recompute":
                raise FinetuneError(f"method {name!r} sets {option} twice, to {before} and to {value}")
            found[option] = before if value is None else value or before or False
    return {**_UNSAID, **found}
