"""``result.json``: what came out of a run, in plain numbers."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

from graphlossy.llm.finetune._folder import versions
from graphlossy.llm.finetune._memory import PEAK_KINDS

if TYPE_CHECKING:
    from graphlossy.llm.finetune._run import Finetuning
    from graphlossy.llm.finetune._step import Stepper

__all__ = ["summarize"]


def summarize(run: Finetuning, lines: list[dict[str, Any]], stepper: Stepper) -> dict[str, Any]:
    """The contents of ``result.json``.

    Args:
        run: that is done.
        lines: of its log.
        stepper: of its last step.

    Returns:
        ``train_loss`` is the mean over the last tenth of the steps; ``saved_bytes`` and ``plain_bytes`` those of the
        step that keeps most; ``peak_bytes`` the highest of any step; ``step_peak_bytes`` the highest of the measured
        steps beyond what was in use when they began; ``seconds_per_step`` the median of the others. What was not
        measured is None.
    """
    steps = [line for line in lines if line["step"] > 0]
    evaluated = [line for line in lines if "valid_loss" in line]
    last = evaluated[-1] if evaluated else {}
    best = min(evaluated, key=lambda line: line["valid_loss"], default={})
    largest = max(steps, key=lambda line: line["saved_bytes"])
    valid_loss = last.get("valid_loss")
    # Measured steps begin by giving memory back, which costs time; the first one also warms up.
    later = steps[1:] or steps
    timed = [line for line in later if line["step_peak_bytes"] is None] or later
    seconds = statistics.median(line["seconds"] for line in timed)
    weights = list(run.model.parameters())
    return {
        "folder": str(run.folder.path),
        "model": getattr(run.model.config, "name_or_path", "") or type(run.model).__name__,
        "architecture": type(run.model).__name__,
        "parameters": sum(weight.numel() for weight in weights),
        "trained_parameters": sum(weight.numel() for weight in stepper.weights),
        "sequences": len(run.train),
        "held_out_sequences": 0 if run.valid is None else len(run.valid),
        "length": run.train.length,
        "steps": run.steps,
        "tokens": sum(line["tokens"] for line in steps),
        "train_loss": statistics.fmean(line["loss"] for line in steps[-max(1, len(steps) // 10) :]),
        "first_valid_loss": evaluated[0]["valid_loss"] if evaluated else None,
        "valid_loss": valid_loss,
        "perplexity": None if valid_loss is None or valid_loss > 700 else math.exp(valid_loss),
        "valid_accuracy": last.get("valid_accuracy"),
        "best_valid_loss": best.get("valid_loss"),
        "best_valid_step": best.get("step"),
        "saved_bytes": largest["saved_bytes"],
        "plain_bytes": largest["plain_bytes"],
        "peak_bytes": _highest(steps, "peak_bytes"),
        "step_peak_bytes": _highest(steps, "step_peak_bytes"),
        "peak_measured_as": PEAK_KINDS[stepper.memory_kind],
        "seconds_per_step": seconds,
        "by_operation": stepper.operations,
        "settings": run.config.to_dict(),
        "about": run.about,
        "versions": versions(),
    }


def _highest(lines: list[dict[str, Any]], key: str) -> int | None:
    found = [line[key] for line in lines if line[key] is not None]
    return max(found) if found else None
