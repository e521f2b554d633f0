"""The settings of one fine-tuning run, checked when they are made."""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from graphlossy.core.budget import parse_bytes
from graphlossy.llm.finetune._errors import FinetuneError
from graphlossy.llm.finetune._methods import method_settings
from graphlossy.llm.finetune._schedule import SCHEDULES

__all__ = ["BITS", "ESTIMATORS", "FinetuneConfig"]

TASKS = ("causal", "classify")
DTYPES = ("float32", "bf16")
BITS = (8, 4, 3, 2, 1)
ESTIMATORS = ("wta", "crs", "pps", "topk", "uniform")
SHARE = 0.3  # of the rows, where an estimator is given and no budget


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of a run.

    Attributes:
        task: ``"causal"`` (next token) or ``"classify"`` (a class for every sequence).
        lr: highest learning rate, of AdamW.
        schedule: ``"linear"``, ``"cosine"`` or ``"constant"`` after the warm-up.
        warmup: steps of it; below 1 a share of all steps.
        steps: optimiser steps; None: as many as ``epochs`` need.
        epochs: passes over the training sequences.
        batch_size: sequences of one forward pass.
        accumulate: forward passes of one step; its loss is the mean over all their tokens.
        seed: of the order of the data, of dropout, of what is drawn and rounded, and of new weights.
        dtype: ``"float32"``, or ``"bf16"``: bfloat16 autocast over float32 weights.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        threads: of the CPU; None: torch's choice. A run that goes on has those it began with.
        clip: highest norm of the whole gradient; 0: none.
        weight_decay: of AdamW, for weights of two and more dimensions.
        gradient_checkpointing: the model's own: blocks run again in the backward pass.
        lora_rank: of low-rank adapters (PEFT); None: all weights are trained.
        lora_alpha: their scale; None: twice the rank.
        lora_dropout: before them.
        lora_modules: names of linear layers or endings of them, or ``"all-linear"``; None: PEFT's choice.
        bits: width of saved activations: 8, 4, 3, 2, 1, or None: nothing is rounded.
        budget: share of the token rows in weight gradients, in (0, 1], or most saved bytes, such as ``"6GiB"``.
        estimator: how the rows are drawn: ``"wta"``, ``"crs"``, ``"pps"``, ``"topk"`` or ``"uniform"``;
            None: ``"pps"``, where ``budget`` is a share.
        recompute: cheap results are computed again in the backward pass.
        target_modules: linear layers whose rows are drawn, by name or ending; None: all with a trained weight.
        eval_every: steps between evaluations; None: ten in a run; 0: at the end only.
        eval_sequences: most held-out sequences that an evaluation reads; None: all.
        merge: add adapters to the weights before the tuned model is saved.

    Raises:
        FinetuneError: a setting is not allowed.

    Example:
        >>> FinetuneConfig.from_method("wta", steps=10).budget
        0.3
    """

    task: str = "causal"
    lr: float = 5e-5
    schedule: str = "linear"
    warmup: float = 0.05
    steps: int | None = None
    epochs: int = 1
    batch_size: int = 4
    accumulate: int = 1
    seed: int = 0
    dtype: str = "float32"
    device: str = "auto"
    threads: int | None = None
    clip: float = 1.0
    weight_decay: float = 0.01
    gradient_checkpointing: bool = False
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_modules: tuple[str, ...] | str | None = None
    bits: int | None = 4
    budget: float | str | None = None
    estimator: str | None = None
    recompute: bool = True
    target_modules: tuple[str, ...] | None = None
    eval_every: int | None = None
    eval_sequences: int | None = 64
    merge: bool = False

    def __post_init__(self) -> None:
        for name in ("lora_modules", "target_modules"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        _choice("task", self.task, TASKS)
        _choice("schedule", self.schedule, SCHEDULES)
        _choice("dtype", self.dtype, DTYPES)
        for name, least in (("epochs", 1), ("batch_size", 1), ("accumulate", 1), ("seed", 0)):
            _whole(name, getattr(self, name), least)
        optional = (("steps", 1), ("threads", 1), ("lora_rank", 1), ("eval_every", 0), ("eval_sequences", 1))
        for name, least in optional:
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), least)
        _number("lr", self.lr, above=True)
        for name in ("warmup", "clip", "weight_decay"):
            _number(name, getattr(self, name))
        _number("lora_dropout", self.lora_dropout, below=1)
        if self.lora_alpha is not None:
            _number("lora_alpha", self.lora_alpha, above=True)
        self._check_lossy()

    def _check_lossy(self) -> None:
        if self.bits is not None and (isinstance(self.bits, bool) or self.bits not in BITS):
            raise FinetuneError(f"bits must be one of {', '.join(map(str, BITS))}, or none, got {self.bits!r}")
        if self.estimator is not None:
            _choice("estimator", self.estimator, ESTIMATORS)
        if self.estimator is not None and self.budget is None:
            object.__setattr__(self, "budget", SHARE)
        if self.budget == 1 and not isinstance(self.budget, bool):
            object.__setattr__(self, "budget", 1.0)
        check_budget(self.budget)
        if self.estimator is not None and not isinstance(self.budget, float):
            raise FinetuneError(
                f"estimator {self.estimator} needs a share of the rows in (0, 1] as its budget, got {self.budget}"
            )
        if self.target_modules is not None and not isinstance(self.budget, float):
            raise FinetuneError("target_modules says whose rows are drawn: give a budget in (0, 1] too, such as 0.3")
        if isinstance(self.budget, str) and self.bits is not None:
            raise FinetuneError(f"a budget of bytes chooses the bits itself; leave out bits {self.bits}, or give none")

    @classmethod
    def from_method(cls, method: str, **settings: Any) -> FinetuneConfig:
        """The settings that `method_settings` fills in for a name such as ``"lora+4bit"``, overruled by these."""
        return cls(**{**method_settings(method), **settings})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FinetuneConfig:
        """The settings that `to_dict` gave."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise FinetuneError(f"no setting {', '.join(unknown)}; the settings were made by another version")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def lossy(self) -> bool:
        """Whether anything is switched on."""
        return self.bits is not None or self.budget is not None or self.recompute

    @property
    def needs_sample_ids(self) -> bool:
        """Whether the estimator has to know which sample a row belongs to."""
        return isinstance(self.budget, float) and self.estimator != "uniform"


def check_budget(budget: Any) -> None:
    """Refuses what is neither a share in (0, 1] nor a positive size with a unit."""
    if budget is None or (isinstance(budget, float) and 0 < budget <= 1):
        return
    try:
        if isinstance(budget, str) and parse_bytes(budget) > 0:
            return
    except (ValueError, TypeError):
        pass
    raise FinetuneError(
        f"budget must be a share of the token rows in (0, 1], such as 0.3, or a size with a unit, such as 6GiB; "
        f"got {budget}"
    )


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise FinetuneError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{hint}")


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise FinetuneError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _number(name: str, value: Any, above: bool = False, below: float = math.inf) -> None:
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not right or value < 0 or (above and value == 0) or value >= below:
        kind = "a positive number" if above else "0 or a positive number"
        limit = "" if below == math.inf else f" below {below:g}"
        raise FinetuneError(f"{name} must be {kind}{limit}, got {value!r}")
