"""The error of a benchmark that cannot be run as it was asked for."""

from __future__ import annotations

__all__ = ["BenchmarkError"]


class BenchmarkError(ValueError):
    """A request, a folder or a file that the user has to change; the text says what is wrong and what to do."""
