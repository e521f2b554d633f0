"""Seeds and draws follow from the place in the grid and nothing else."""

from __future__ import annotations

import collections
import subprocess
import sys

import pytest

from graphlossy.outliers.methods import METHODS
from graphlossy.outliers.protocol import PROTOCOLS, derive_seed, draw, trial_count, trial_params

SPACE = {"lr": (0.1, 0.05, 0.01), "dropout": (0.0, 0.1, 0.3), "epoch": (300,)}


def test_another_process_derives_the_same() -> None:
    code = "from graphlossy.outliers.protocol import *; print(derive_seed(3, 'books', 'lof', 7))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == derive_seed(3, "books", "lof", 7)


def test_every_part_counts_and_parts_do_not_run_together() -> None:
    places = [
        (0, "a", "b", 1),
        (1, "a", "b", 1),
        (0, "ab", "", 1),
        (0, "a", "b", 2),
        (0, "b", "a", 1),
        (0, "a", "b", "1"),
    ]
    assert len({derive_seed(*place) for place in places}) == len(places)
    assert all(0 <= derive_seed(0, "x", n) < 2**31 for n in range(100))


def test_draws_cover_the_space_about_evenly() -> None:
    drawn = [draw(SPACE, 0, "books", "dominant", trial) for trial in range(900)]
    pairs = collections.Counter((d["lr"], d["dropout"]) for d in drawn)
    assert len(pairs) == 9 and all(60 <= count <= 140 for count in pairs.values())
    assert {d["epoch"] for d in drawn} == {300}


def test_a_new_parameter_leaves_the_others_alone() -> None:
    wider = {"weight": (0.8, 0.5, 0.2), **SPACE}
    for trial in range(20):
        before, after = draw(SPACE, 0, "books", "dominant", trial), draw(wider, 0, "books", "dominant", trial)
        assert {name: after[name] for name in before} == before


def test_a_parameter_without_choices() -> None:
    with pytest.raises(ValueError, match="parameter 'lr' of lof has no choices"):
        draw({"lr": ()}, 0, "books", "lof", 0)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_takes_what_is_drawn_for_it(name: str) -> None:
    cls = METHODS[name]
    for protocol in PROTOCOLS:
        params = trial_params(cls, name, "books", 0, protocol, 0)
        assert set(params) <= set(cls.parameter_names())
        cls(**params, seed=1)


def test_what_is_deterministic_has_one_trial() -> None:
    assert trial_count(METHODS["degree"], "books", "bond", 20) == 1
    assert trial_count(METHODS["lof"], "books", "fixed", 20) == 1
    assert trial_count(METHODS["scan"], "books", "bond", 20) == 20  # draws eps and mu
    assert trial_count(METHODS["random"], "books", "fixed", 20) == 20


def test_an_unknown_protocol() -> None:
    with pytest.raises(ValueError, match="protocol must be one of bond, fixed; got 'best'"):
        trial_params(METHODS["lof"], "lof", "books", 0, "best", 0)
