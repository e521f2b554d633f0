"""Turns the exceptions that stand for a user's mistake into click's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

__all__ = ["user_errors"]


@contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Inside this context, an exception of one of ``kinds`` ends the command with its message and exit code 2.

    Example:
        >>> with user_errors(KeyError):
        ...     raise KeyError("no such thing")
        Traceback (most recent call last):
        ...
        click.exceptions.UsageError: 'no such thing'
    """
    try:
        yield
    except kinds as error:
        raise click.UsageError(str(error)) from error
