"""Switches what the settings ask for on and off, and counts what a plain model keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from graphlossy._compress import compress, restore
from graphlossy.core.ledger import Ledger
from graphlossy.llm.finetune._config import FinetuneConfig
from graphlossy.llm.finetune._errors import user_errors

__all__ = ["by_operation", "counted", "load_state", "state", "switch_off", "switch_on"]


def switch_on(model: nn.Module, config: FinetuneConfig) -> Ledger:
    """`graphlossy.llm.compress` with the settings' arguments; its ledger.

    Raises:
        FinetuneError: an argument is not allowed, or names no module of the model.
    """
    from graphlossy.llm import compress as switch

    targets = None if config.target_modules is None else list(config.target_modules)
    with user_errors():
        return switch(
            model,
            budget=config.budget,
            estimator=config.estimator,
            bits=config.bits,
            target_modules=targets,
            recompute=config.recompute,
            seed=config.seed,
        )


def switch_off(model: nn.Module) -> None:
    """Undoes `switch_on`."""
    restore(model)


def state(model: nn.Module) -> Any:
    """What a checkpoint needs of the switch."""
    from graphlossy.llm import state as read

    return read(model)


def load_state(model: nn.Module, values: Any) -> None:
    """Gives it back."""
    from graphlossy.llm import load_state as write

    write(model, values)


@contextmanager
def counted(model: nn.Module) -> Iterator[Ledger]:
    """Inside this context a plain model's forward passes are counted; nothing is compressed."""
    ledger = compress(model, bits=None, seed=0)
    try:
        yield ledger
    finally:
        restore(model)


def by_operation(ledger: Ledger) -> list[dict[str, Any]]:
    """The ledger's bytes by operation, most plain bytes first."""
    found: dict[str, dict[str, Any]] = {}
    for record in ledger.records:
        row = found.setdefault(record.op, {"op": record.op, "tensors": 0, "plain_bytes": 0, "saved_bytes": 0,
                                           "gradients": []})  # fmt: skip
        row["tensors"] += 1
        row["plain_bytes"] += record.plain_bytes
        row["saved_bytes"] += record.saved_bytes
        if record.gradient not in row["gradients"]:
            row["gradients"] = sorted([*row["gradients"], record.gradient])
    return sorted(found.values(), key=lambda row: -row["plain_bytes"])
