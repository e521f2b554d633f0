"""The error of a benchmark that cannot be run as it was asked for."""

from __future__ import annotations

import traceback

__all__ = ["BenchmarkError", "one_line"]


class BenchmarkError(ValueError):
    """A request, a folder or a file that the user has to change; the text says what is wrong and what to do."""


def one_line(error: BaseException) -> str:
    """Kind, first line of the text, and the place in the code, of an exception."""
    text = (str(error).strip() or "no message").splitlines()[0][:500]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{where}"
