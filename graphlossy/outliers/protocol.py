"""Which hyper-parameters and which seed a trial has: both follow from its place in the grid and nothing else.

BOND (Liu et al., NeurIPS 2022, arXiv 2206.10071) runs 20 trials, each with hyper-parameters drawn anew from a small
space, fitted on the whole graph and judged on the same nodes. Its draws came from an unseeded generator; here every
draw is a hash of the run's seed, the data set, the method, the trial and the name of the parameter. So any part of the
grid, in any order, on any number of processes, has the trials that the whole grid has, and a method that gains a
parameter keeps the draws of its others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence
from typing import Any, Protocol

__all__ = ["PROTOCOLS", "derive_seed", "draw", "trial_count", "trial_params"]

PROTOCOLS = ("bond", "fixed")


class Searchable(Protocol):
    """What a method says of its hyper-parameters; `graphlossy.outliers` detectors do."""

    seeded: bool

    @classmethod
    def search_space(cls, dataset: str) -> dict[str, tuple]: ...

    @classmethod
    def fixed(cls, dataset: str) -> dict[str, Any]: ...


def derive_seed(seed: int, *parts: str | int) -> int:
    """A number from 0 to 2^31 - 1 that depends on every argument: BLAKE2b of their text.

    Args:
        seed: seed of the run.
        parts: what the number is for, such as data set, method and trial.

    Example:
        >>> derive_seed(0, "books", "dominant", 0) == derive_seed(0, "books", "dominant", 0)
        True
        >>> derive_seed(0, "books", "dominant", 1) == derive_seed(1, "books", "dominant", 0)
        False
    """
    text = "\0".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") & 0x7FFF_FFFF


def draw(space: Mapping[str, Sequence[Any]], seed: int, dataset: str, method: str, trial: int) -> dict[str, Any]:
    """One value of every parameter, each choice as likely as the others of its parameter.

    Args:
        space: name and choices of each parameter; a single choice is always taken.
        seed: seed of the run.
        dataset, method, trial: place in the grid.

    Raises:
        ValueError: a parameter has no choices.

    Example:
        >>> space = {"lr": (0.1, 0.05, 0.01), "epoch": (300,)}
        >>> draw(space, 0, "books", "dominant", 0) == draw(dict(reversed(space.items())), 0, "books", "dominant", 0)
        True
        >>> draw(space, 0, "books", "dominant", 0)["epoch"]
        300
    """
    drawn = {}
    for name in sorted(space):
        choices = space[name]
        if not len(choices):
            raise ValueError(f"parameter {name!r} of {method} has no choices; give at least one")
        # 31 bits against a handful of choices: no choice is favoured by more than one in 10^8.
        drawn[name] = choices[derive_seed(seed, dataset, method, trial, "parameter", name) % len(choices)]
    return drawn


def trial_params(
    method: type[Searchable], name: str, dataset: str, trial: int, protocol: str, seed: int
) -> dict[str, Any]:
    """Constructor arguments of one trial.

    Args:
        method: class of the method.
        name: key of the method, part of the hash.
        dataset: name of the data set; spaces and defaults depend on it.
        trial: number of the trial, from 0.
        protocol: ``"bond"``, drawn from the method's search space; ``"fixed"``, its published defaults.
        seed: seed of the run.

    Raises:
        ValueError: the protocol is unknown.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}; got {protocol!r}")
    if protocol == "fixed":
        return dict(method.fixed(dataset))
    return draw(method.search_space(dataset), seed, dataset, name, trial)


def trial_count(
    method: type[Searchable], dataset: str, protocol: str, trials: int, effective: Container[str] | None = None
) -> int:
    """How many of ``trials`` differ: one where a method neither draws parameters nor uses its seed.

    Args:
        method: class of the method.
        dataset: name of the data set.
        protocol: ``"bond"`` or ``"fixed"``.
        trials: asked for.
        effective: parameters that have an effect; None: all.
    """
    if method.seeded:
        return trials
    spaces = method.search_space(dataset).items() if protocol == "bond" else ()
    drawn = any(len(choices) > 1 and (effective is None or name in effective) for name, choices in spaces)
    return trials if drawn else 1
