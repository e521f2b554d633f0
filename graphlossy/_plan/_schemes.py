"""The ways to train that a plan compares: full precision, bf16 autocast, checkpointing, low bits, a byte budget."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from graphlossy.core.budget import format_bytes, parse_bytes

__all__ = ["DEFAULT_SCHEMES", "FLOAT32", "Scheme", "checkpointable", "parse_scheme"]

_BITS = (1, 2, 3, 4, 8)
_COMPRESS = re.compile(r"compress (\d+) bits?")


@dataclass(frozen=True)
class Scheme:
    """One way to train.

    Attributes:
        bits: width of the saved tensors under ``graphlossy.compress``; None leaves them alone.
        autocast: the forward pass runs under bfloat16 autocast.
        checkpointed: what :func:`checkpointable` finds is recomputed in the backward pass (``torch.utils.checkpoint``).
        budget: most bytes saved under ``graphlossy.compress(budget=...)``, instead of ``bits``.

    Example:
        >>> Scheme(bits=2, autocast=True).name
        'bf16 autocast + compress 2 bits'
    """

    bits: int | None = None
    autocast: bool = False
    checkpointed: bool = False
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.bits is not None and self.bits not in _BITS:
            raise ValueError(f"schemes: bits must be one of {_BITS}, got {self.bits!r}")
        if self.budget is not None and (self.bits is not None or self.budget <= 0):
            raise ValueError(f"schemes: a budget is a positive number of bytes without bits, got {self!r}")

    @property
    def name(self) -> str:
        """As it is written in tables and given to ``plan(schemes=...)``."""
        parts = ["bf16 autocast"] if self.autocast else []
        if self.checkpointed:
            parts.append("checkpoint")
        if self.bits is not None:
            parts.append(f"compress {self.bits} {'bit' if self.bits == 1 else 'bits'}")
        if self.budget is not None:
            parts.append(f"budget {format_bytes(self.budget)}")
        return " + ".join(parts) or "float32"

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """The autocast context of the forward pass."""
        return torch.autocast(device.type, torch.bfloat16) if self.autocast else nullcontext()

    def prepare(self, model: nn.Module) -> None:
        """Wraps the layers of ``model`` (a copy made for probing) where the scheme recomputes them."""
        if self.checkpointed:
            layers = checkpointable(model)
            if not layers:
                raise ValueError(
                    f"{type(model).__name__} has no Sequential or ModuleList whose layers could be recomputed"
                )
            for layer in layers:
                vars(layer)["forward"] = _recomputed(layer)


FLOAT32 = Scheme()
DEFAULT_SCHEMES = (
    FLOAT32,
    Scheme(autocast=True),
    Scheme(checkpointed=True),
    *(Scheme(bits=bits) for bits in (8, 4, 2, 1)),
)


def parse_scheme(given: Any) -> Scheme:
    """A :class:`Scheme` from its name.

    Raises:
        TypeError, ValueError: it is no name of a scheme.
    """
    if isinstance(given, Scheme):
        return given
    if not isinstance(given, str):
        raise TypeError(f"schemes must be names or Scheme objects, got {type(given).__name__}")
    bits, autocast, checkpointed, budget = None, False, False, None
    for part in (part.strip() for part in given.split("+")):
        match = _COMPRESS.fullmatch(part)
        if match and int(match[1]) in _BITS:
            bits = int(match[1])
        elif part == "bf16 autocast":
            autocast = True
        elif part == "checkpoint":
            checkpointed = True
        elif part.startswith("budget "):
            budget = parse_bytes(part.removeprefix("budget "))
        elif part != "float32":
            raise ValueError(
                f"schemes: {part!r} is not known; allowed are 'float32', 'bf16 autocast', 'checkpoint', "
                f"'compress N bits' with N one of {_BITS}, 'budget 1.5GiB', and several joined by ' + '"
            )
    return Scheme(bits, autocast, checkpointed, budget)


def checkpointable(model: nn.Module) -> list[nn.Module]:
    """What checkpointing recomputes: Sequentials of more than two layers, in pieces, and the members of ModuleLists."""
    found: list[nn.Module] = []
    if isinstance(model, nn.Sequential) and len(model) > 2:
        return [model]
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            found.extend(layer for layer in child if any(True for _ in layer.parameters()))
        else:
            found.extend(checkpointable(child))
    return found


def _recomputed(layer: nn.Module) -> Callable[..., Any]:
    plain = layer.forward

    if isinstance(layer, nn.Sequential) and len(layer) > 2:
        segments = round(math.sqrt(len(layer)))

        def sequential(x: Any) -> Any:
            return checkpoint_sequential(layer, segments, x, use_reentrant=False)

        return sequential

    def forward(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(plain, *args, use_reentrant=False, **kwargs)

    return forward
