"""The learning rate of a step, from the number of the step alone: there is no state to save."""

from __future__ import annotations

import math

__all__ = ["SCHEDULES", "learning_rate", "warmup_steps"]

SCHEDULES = ("linear", "cosine", "constant")


def warmup_steps(warmup: float, steps: int) -> int:
    """Steps of warm-up: ``warmup`` itself from 1 on, below it a share of all ``steps``.

    Example:
        >>> warmup_steps(0.1, 200), warmup_steps(5, 200), warmup_steps(0, 200), warmup_steps(50, 20)
        (20, 5, 0, 20)
    """
    return min(steps, int(warmup) if warmup >= 1 else math.ceil(warmup * steps))


def learning_rate(step: int, steps: int, lr: float, schedule: str = "linear", warmup: int = 0) -> float:
    """The rate of one step: a linear rise over ``warmup`` steps, then ``schedule`` down to 0 after the last step.

    Args:
        step: its number, from 1.
        steps: of the whole run.
        lr: the highest rate.
        schedule: ``"linear"``, ``"cosine"`` (half a period, Loshchilov and Hutter, ICLR 2017, without restarts) or
            ``"constant"``.
        warmup: steps of the rise; the last of them has ``lr``.

    Example:
        >>> [round(learning_rate(step, 4, 1.0, "linear", 2), 2) for step in (1, 2, 3, 4)]
        [0.5, 1.0, 1.0, 0.5]
        >>> round(learning_rate(3, 4, 1.0, "cosine"), 3)
        0.5
    """
    if step <= warmup:
        return lr * step / warmup
    if schedule == "constant":
        return lr
    done = (step - 1 - warmup) / max(1, steps - warmup)
    return lr * (1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
