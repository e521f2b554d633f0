"""Which torch call, or what else, is saving a tensor."""

from __future__ import annotations

from types import FrameType
from typing import Any, NamedTuple

import torch

from graphlossy._compress import _rules
from graphlossy._compress._rules import Rule

__all__ = ["COMPILED", "OURS", "OUTSIDE", "UNKNOWN", "Frame", "frame_of"]


class Frame(NamedTuple):
    """The torch call that is running."""

    name: str
    rule: Rule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


# Saved by a user's autograd function.
OUTSIDE = Frame("function", _rules.FUNCTION, (), {})
COMPILED = Frame("compiled", _rules.COMPILED, (), {})
# Saved while neither a torch call nor a function was seen: by TorchScript, or the input of a checkpointed region, from
# which everything in it is computed again. As unknown as compiled code.
UNKNOWN = Frame("unknown", _rules.COMPILED, (), {})
# Saved by an autograd function of graphlossy, which has done what there is to do; one that leaves it to compress, as a
# user's function would, says packs_itself = False.
OURS = Frame("graphlossy", _rules.EXACT, (), {})

_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]


def frame_of(caller: FrameType) -> Frame:
    """Who saves a tensor while no torch call is running.

    Args:
        caller: the Python frame that the saved-tensor hook was called from.
    """
    function = caller.f_locals.get("cls") if caller.f_code is _APPLY else None
    name = getattr(function, "__name__", "_NoopSaveInputs")  # which older versions of torch.utils.checkpoint use
    if name == "_NoopSaveInputs":
        return UNKNOWN
    if name == "CompiledFunction":  # a compiled function inside the model
        return COMPILED
    ours = getattr(function, "__module__", "").startswith("graphlossy.") and getattr(function, "packs_itself", True)
    return OURS if ours else OUTSIDE
