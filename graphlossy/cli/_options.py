"""Options that several groups of commands have."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["finite", "path_of", "with_json", "with_root"]


def path_of(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    """A path that can be one."""
    if value is not None and (not value or "\0" in value):
        raise click.BadParameter(f"expected the name of a file or folder, got {value!r}")
    return None if value is None else Path(value)


def finite(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """A number that is one: NaN is within every range."""
    if not math.isfinite(value):
        raise click.BadParameter(f"expected a finite number, got {value}")
    return value


def with_root(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--root``."""
    text = "Folder of the data sets.  [default: $GRAPHLOSSY_DATA or ~/.cache/graphlossy]"
    return click.option("--root", callback=path_of, metavar="FOLDER", help=text)(function)


def with_json(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--json``, as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")(function)
