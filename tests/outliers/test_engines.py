"""Engines: which methods they have, names of arguments, seeds, and what is said where a package is missing."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch

from graphlossy.outliers import engines
from graphlossy.outliers.engines import _adapter, pygod, pyod
from graphlossy.outliers.methods import METHODS

SPECS = {"pygod": pygod.SPECS, "pyod": pyod.SPECS}
BOTH = [(engine, method) for engine, specs in SPECS.items() for method in specs]


def test_every_engine_has_known_methods_only() -> None:
    assert list(engines.METHODS) == ["native", "pygod", "pyod"] == list(engines.available())
    assert engines.METHODS["native"] == tuple(METHODS)
    assert len(engines.METHODS["pygod"]) == 14 and len(engines.METHODS["pyod"]) == 10
    assert all(set(names) <= set(METHODS) for names in engines.METHODS.values())


@pytest.mark.parametrize(("engine", "method"), BOTH)
def test_arguments_bear_the_names_of_our_own(engine: str, method: str) -> None:
    assert set(SPECS[engine][method].names) <= _adapter.native_arguments(method)


@pytest.mark.parametrize(("engine", "method"), BOTH)
def test_the_search_space_can_be_handed_over(engine: str, method: str) -> None:
    space = METHODS[method].search_space("inj_cora")
    kept, dropped = _adapter.translate(SPECS[engine][method], method, {name: v[0] for name, v in space.items()})
    assert len(kept) + len(dropped) == len(space)
    if engine == "pygod":
        assert set(dropped) <= {"solver"}  # PyGOD's Radar has one


def test_names_and_meanings_are_translated() -> None:
    kept, dropped = _adapter.translate(
        pyod.SPECS["dominant"], "dominant", {"hid_dim": 32, "num_layers": 4, "weight": 0.8, "weight_decay": 0.01}
    )
    assert kept == {"hidden_dim": 32, "num_layers": 2, "alpha": pytest.approx(0.2)} and dropped == ("weight_decay",)
    kept, dropped = _adapter.translate(pygod.SPECS["mlpae"], "mlpae", {"dropout": 0, "device": "cpu", "bits": 2})
    assert kept == {"dropout": 0.0, "gpu": -1} and type(kept["dropout"]) is float and dropped == ("bits",)
    assert pygod._gpu("cuda:1") == 1 and pygod._gpu("cuda") == 0


def test_an_unknown_argument_is_named_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match=r"DOMINANT has no argument hid; it takes .*hid_dim"):
        _adapter.translate(pygod.SPECS["dominant"], "dominant", {"hid": 3})


def test_wrong_names_are_refused() -> None:
    with pytest.raises(ValueError, match="engine is 'pygods'; allowed: native, pygod, pyod"):
        engines.make("pygods", "dominant")
    with pytest.raises(
        ValueError, match=r"engine 'pyod' has no method 'gaan'; it has .*'gaan' is in engine native, pygod"
    ):
        engines.make("pyod", "gaan")
    with pytest.raises(ValueError, match="engine 'pygod' has no method 'dominent'"):
        engines.make("pygod", "dominent")


@pytest.mark.parametrize("engine", ["pygod", "pyod"])
def test_a_missing_package_is_named_with_what_to_install(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == engine]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{engine}.*graphlossy\[outlier-engines\].*engine='native'"):
        engines.make(engine, "dominant")


def test_what_is_installed_is_known_without_importing_it() -> None:
    assert engines.available()["native"]
    assert _adapter.installed("graphlossy-has-no-such-package") is None


def test_the_native_engine_is_the_method_itself() -> None:
    detector = engines.make("native", "degree", {"contamination": 0.2}, seed=5)
    assert type(detector) is METHODS["degree"] and detector.seed == 5 and detector.contamination == 0.2


def test_seeds_reach_every_generator_and_leave_them_as_they_were() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()

    def draws(seed: int) -> list[float]:
        with _adapter.seeded_globally(seed):
            return [float(torch.rand(())), float(np.random.rand()), random.random()]

    assert draws(2**40 + 1) == draws(2**40 + 1)
    assert all(a != b for a, b in zip(draws(1), draws(2), strict=True))
    with pytest.raises(KeyError), _adapter.seeded_globally(0):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[2]
    assert (np.random.get_state()[1] == before[1]).all()


def test_another_global_for_one_copy_of_a_function() -> None:
    copy = pygod._with_global(_uses_a_global, "LENGTH", 7)
    assert copy() == (7, 3) and _uses_a_global() == (4, 3)
    with pytest.raises(RuntimeError, match="another version"):
        pygod._with_global(_uses_a_global, "NeighborLoader", 7)


LENGTH = 4


def _uses_a_global(other: int = 3) -> tuple[int, int]:
    return LENGTH, other


def test_the_last_node_trades_places_with_one_that_has_an_edge() -> None:
    edges = torch.tensor([[0, 3], [3, 1]])
    moved, places = pygod._last_has_an_edge(edges, 6)
    assert moved.tolist() == [[0, 5], [5, 1]] and places.tolist() == [0, 1, 2, 5, 4, 3]
    assert torch.equal(places[places], torch.arange(6))
    same, places = pygod._last_has_an_edge(edges, 4)
    assert torch.equal(same, edges) and torch.equal(places, torch.arange(4))
    assert pygod._last_has_an_edge(edges[:, :0], 4)[0].shape == (2, 0)


def test_motifs_are_counted_without_self_loops_but_of_every_node() -> None:
    edges = torch.tensor([[0, 1, 1, 2, 3], [1, 0, 1, 2, 2]])
    assert pygod._for_motifs(edges, 5).tolist() == [[0, 1, 3, 4], [1, 0, 2, 4]]
