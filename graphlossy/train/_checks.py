"""Checks of single settings; every refusal names the setting, what was given and what is allowed."""

from __future__ import annotations

import difflib
import math
from typing import Any

from graphlossy.core.budget import parse_bytes
from graphlossy.train._errors import TrainError

__all__ = ["NOT_REWEIGHTED", "SAMPLERS", "SPARSIFIERS", "check_budget", "check_choice", "check_flag", "check_number",
           "check_sampling", "check_size", "check_text", "parse_sparsify"]  # fmt: skip

SPARSIFIERS = ("degree", "random", "k-neighbor", "local-degree", "resistance")
NOT_REWEIGHTED = ("local-degree",)  # its choice is not random: no weights make its expectation right
_NEIGHBORS = ("batch_size", "num_neighbors", "num_workers")
# Which settings each kind of mini-batch takes.
SAMPLERS: dict[str, tuple[str, ...]] = {
    "neighbor": _NEIGHBORS,
    "degree-neighbor": _NEIGHBORS,
    "saint-node": ("batch_size", "num_workers"),
    "saint-edge": ("batch_size", "num_workers"),
    "saint-walk": ("batch_size", "walk_length", "num_workers"),
    "cluster": ("batch_size", "num_parts", "num_workers"),
    "sparsify": ("num_workers",),
}


def parse_sparsify(value: str) -> tuple[str, float]:
    """Method and share of edges of a text such as ``"degree:0.5"``.

    Raises:
        TrainError: it is no such text.

    Example:
        >>> parse_sparsify("degree:0.5")
        ('degree', 0.5)
    """
    method, _, number = value.partition(":")
    check_choice("sparsify", method, SPARSIFIERS)
    try:
        ratio = float(number)
    except ValueError:
        ratio = math.nan
    if not 0 < ratio <= 1:
        raise TrainError(
            f"sparsify must be METHOD:SHARE, the share of edges kept above 0 and at most 1, such as degree:0.5; "
            f"got {value!r}"
        )
    return method, ratio


def check_sampling(config: Any) -> None:
    """Refuses sampling and sparsification settings that do not go together."""
    for name in ("batch_size", "num_parts", "walk_length"):
        if getattr(config, name) is not None:
            check_size(name, getattr(config, name), 1, 2**31 - 1)
    check_size("num_workers", config.num_workers, 0, 1024)
    if config.sampler is not None:
        check_choice("sampler", config.sampler, tuple(SAMPLERS))
    allowed = SAMPLERS.get(config.sampler or "", ())
    for name in ("batch_size", "num_neighbors", "num_parts", "walk_length", "num_workers"):
        if getattr(config, name) not in (None, 0) and name not in allowed:
            users = [kind for kind, names in SAMPLERS.items() if name in names]
            given = "no sampler" if config.sampler is None else f"sampler {config.sampler}"
            raise TrainError(f"{name} is for sampler {', '.join(users)}, but there is {given}")
    if config.num_neighbors is not None:
        for number in config.num_neighbors:
            if number != -1:
                check_size("num_neighbors", number, 1, 2**31 - 1)
        if len(config.num_neighbors) != config.layers:
            raise TrainError(
                f"num_neighbors must have one number for each of the {config.layers} layers, "
                f"got {','.join(map(str, config.num_neighbors))}"
            )
    if config.sampler == "sparsify" and config.sparsify is None:
        raise TrainError("sampler sparsify needs sparsify, the share of edges in each epoch, such as degree:0.5")
    if config.sparsify is None:
        for name, is_given in (("sparsify_eval", config.sparsify_eval), ("reweight", config.reweight is not None)):
            if is_given:
                raise TrainError(f"{name} needs sparsify, such as degree:0.5")
        return
    check_text("sparsify", config.sparsify)
    method, _ = parse_sparsify(config.sparsify)
    if config.sampler == "sparsify" and method != "degree":
        raise TrainError(f"sampler sparsify thins by degree, so sparsify must be degree:SHARE, got {config.sparsify!r}")
    if config.sampler == "sparsify" and config.sparsify_eval:
        raise TrainError("sparsify_eval needs a graph that is thinned once; leave it out, or sampler sparsify")
    if config.reweight and config.model == "gat":
        raise TrainError("reweight is not for gat, whose attention takes no edge weights; leave it out")
    if config.reweight and method in NOT_REWEIGHTED:
        raise TrainError(f"reweight is not for sparsify {method}, whose choice is not random; leave it out")


def check_budget(budget: str) -> None:
    """Refuses what is no positive size."""
    try:
        positive = parse_bytes(budget) > 0
    except (ValueError, TypeError):
        positive = False
    if not positive:
        raise TrainError(f"budget must be a positive size such as 800MiB or 1.5GiB, got {budget!r}")


def check_size(name: str, value: int, least: int, most: int | None = None) -> None:
    """Refuses what is no whole number from ``least`` to ``most``."""
    allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        raise TrainError(f"{name} must be a whole number {allowed}, got {value!r}")


def check_number(name: str, value: float, most: float, zero: bool = False) -> None:
    """Refuses what is no positive number (or 0, if ``zero``) of at most ``most``."""
    if not (0 <= value if zero else 0 < value) or not value <= most:
        kind = "0 or a positive number" if zero else "a positive number"
        raise TrainError(f"{name} must be {kind} of at most {most:g}, got {value}")


def check_text(name: str, value: str) -> None:
    """Refuses what is no text, and NUL characters."""
    if not isinstance(value, str) or "\0" in value:
        raise TrainError(f"{name} must be a text, got {value!r}")


def check_flag(name: str, value: bool) -> None:
    """Refuses what is neither true nor false."""
    if not isinstance(value, bool):
        raise TrainError(f"{name} must be true or false, got {value!r}")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuses what is not among ``allowed``, with a near name."""
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise TrainError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{hint}")
