"""Commands that torchrun starts several times: one process of a machine says what went wrong, all of them fail."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

__all__ = ["RankCommand"]

GRACE = 1.0  # seconds


class RankCommand(click.Command):
    """A command whose errors are printed by one process of each machine and end all of them with the same exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's."""
        with _one_voice(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """As click's."""
        with _one_voice(ctx):
            return super().invoke(ctx)


@contextmanager
def _one_voice(ctx: click.Context) -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        # Not rank 0 alone: each machine has a terminal of its own, and may have a mistake of its own.
        if "RANK" in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(GRACE)  # torchrun ends the others as soon as one has ended: the one that speaks goes first
            ctx.exit(error.exit_code)
        raise
