"""Values of the options of ``graphlossy outliers``: lists, sizes, numbers of processes, constructor arguments."""

from __future__ import annotations

import json
from typing import Any

import click

__all__ = ["jobs_of", "names_of", "options_of", "statuses_of"]


def names_of(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    """``a,b`` as a list; None where nothing was given."""
    if value is None:
        return None
    names = [part.strip() for part in value.split(",") if part.strip()]
    if not names:
        raise click.BadParameter(f"expected names with commas between them, got {value!r}")
    return names


def jobs_of(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    """``4``, ``auto`` (the cores this process may use), ``ray`` or ``ray:4``."""
    if value is None or value in ("auto", "ray") or value.startswith("ray:"):
        return value
    if not value.isdigit() or int(value) < 1:
        raise click.BadParameter(f"expected a number of processes, auto, ray or ray:N, got {value!r}")
    return int(value)


def statuses_of(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str]:
    """``failed,TLE,OOM`` in any case of letters."""
    known = {"failed": "failed", "tle": "TLE", "oom": "OOM"}
    found = []
    for name in names_of(ctx, param, value) or []:
        if name.lower() not in known:
            raise click.BadParameter(f"expected some of failed, TLE, OOM, got {name!r}")
        found.append(known[name.lower()])
    return found


def options_of(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """``epoch=50`` for all methods that take it, ``dominant.epoch=50`` for one: ``{"*": {...}, "dominant": {...}}``."""
    found: dict[str, dict[str, Any]] = {}
    for text in values:
        name, sign, value = text.partition("=")
        method, dot, option = name.strip().rpartition(".")
        if not sign or not option.isidentifier():
            raise click.BadParameter(f"expected NAME=VALUE or METHOD.NAME=VALUE, got {text!r}")
        found.setdefault(method if dot else "*", {})[option] = _value(value.strip())
    return found


def _value(text: str) -> Any:
    """A number, true, false, null, or else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if value is None or isinstance(value, (bool, int, float, str)) else text
