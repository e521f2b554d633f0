"""The exception that stands for recommender data that cannot be used, and the check for pandas."""

from __future__ import annotations

from typing import Any

__all__ = ["DataError", "import_pandas"]


class DataError(ValueError):
    """Data that are missing, cannot be read, or hold values from which nothing can be learned.

    The message is one line: the file, the line and the column, what was found, what is allowed, what to do.
    """


def import_pandas() -> Any:
    """The pandas module.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise ImportError(
            'reading tables needs pandas, which is not installed: pip install "graphlossy[recsys]"'
        ) from None
    return pandas
