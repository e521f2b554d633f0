"""What a run tells while it goes on; the bars of a terminal are one listener."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphlossy.outliers.runner.grid import Trial

__all__ = ["Observer"]


class Observer:
    """Hears what happens and does nothing; subclasses override what they care for."""

    def started(self, trials: Sequence[Trial], done: int, facts: Mapping[str, Any]) -> None:
        """The data sets are known and ``trials`` are going to run, ``done`` having been found in the folder."""

    def news(self, trial: Trial, message: tuple[Any, ...]) -> None:
        """``("started", bytes)`` or ``("epoch", number, loss)`` of a running trial."""

    def finished(self, record: Mapping[str, Any]) -> None:
        """A trial has its record."""
