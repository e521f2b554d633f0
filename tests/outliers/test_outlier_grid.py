"""What a grid is made of, and every request that is refused before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from graphlossy.outliers.methods import METHODS
from graphlossy.outliers.protocol import derive_seed, draw
from graphlossy.outliers.runner import BenchmarkError
from graphlossy.outliers.runner.grid import Grid, Trial, label_of, make_grid
from graphlossy.outliers.runner.methods import LEAK_ROWS, find_method


def grid(datasets: Sequence[str] = ("books",), methods: Any = ("lof", "dominant"), **given: Any) -> Grid:
    return make_grid(datasets, methods, **{"trials": 3, "protocol": "bond", "seed": 0, **given})


def test_the_order_and_the_leak_rows() -> None:
    made = grid(["books", "gen_100"])
    assert [trial.dataset for trial in made.trials] == sorted(trial.dataset for trial in made.trials)
    books = [(trial.method, trial.trial) for trial in made.trials if trial.dataset == "books"]
    rows = [*((name, 0) for name in LEAK_ROWS[:-1]), *(("random", n) for n in range(3))]
    assert books == [*rows, ("lof", 0), *(("dominant", n) for n in range(3))] and LEAK_ROWS[-1] == "random"
    assert made.titles["dominant"] == METHODS["dominant"].title
    assert {trial.method for trial in grid(methods=None).trials} == set(METHODS)


def test_a_part_of_the_grid_has_the_trials_of_the_whole() -> None:
    whole = {trial.key: trial for trial in grid(["books", "gen_100"], ["lof", "gcnae", "dominant"]).trials}
    part = grid(["gen_100"], ["dominant"], trials=2).trials
    assert part and all(whole[trial.key] == trial for trial in part)
    assert all(whole[trial.key].seed != trial.seed for trial in grid(["gen_100"], ["dominant"], seed=1).trials)


def test_the_order_is_no_part_of_seeds_and_draws() -> None:
    for trial in grid(["books", "gen_100"], ["gcnae", "dominant", "degree"], seed=7).trials:
        place = trial.dataset, trial.method, trial.trial
        assert trial.seed == derive_seed(7, *place)
        assert trial.params == draw(METHODS[trial.method].search_space(trial.dataset), 7, *place)


def test_options_of_methods_that_only_the_other_trials_have() -> None:
    made = grid(methods=["lof"], options={"*": {"epoch": 3}, "dominant": {"lr": 0.1}}, goes_on=True)
    assert {trial.method for trial in made.trials} == {"lof", *LEAK_ROWS}
    with pytest.raises(BenchmarkError, match="lof has no option epoch"):
        grid(methods=["lof"], options={"lof": {"epoch": 3}}, goes_on=True)


def test_options_overrule_the_protocol() -> None:
    made = grid(methods=["lof", "dominant", "gcnae"], options={"*": {"bits": 2}, "dominant": {"epoch": 5, "lr": 0.5}})
    params = {trial.method: trial.params for trial in made.trials}
    assert params["dominant"]["epoch"] == 5 and params["dominant"]["lr"] == 0.5 and params["dominant"]["bits"] == 2
    assert params["gcnae"]["bits"] == 2 and params["gcnae"].get("epoch") != 5 and "bits" not in params["lof"]


def test_names_in_any_case_and_titles() -> None:
    assert {trial.method for trial in grid(["Books"], ["AdONE", "IForest"]).trials} >= {"adone", "if"}
    assert {trial.dataset for trial in grid(["Books"]).trials} == {"books"}


@pytest.mark.parametrize(
    ("source", "label"),
    [("x/mine.npz", "mine"), ("mine.PT.ZIP", "mine"), ("a/b/ogb_folder/", "ogb_folder"), ("m.v2.npz#y", "m.v2")],
)
def test_labels_of_paths(source: str, label: str) -> None:
    assert label_of(source) == label


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"datasets": []}, "no data set is given"),
        ({"methods": []}, "no method is given"),
        ({"datasets": ["a/x.npz", "b/x.npz"]}, "would both be called 'x'"),
        ({"methods": ["dominnat"]}, "no method 'dominnat'; did you mean dominant"),
        ({"methods": ["nowhere_at_all:Thing"]}, "cannot import 'nowhere_at_all:Thing'"),
        ({"methods": ["json:JSONDecoder"]}, "must be a subclass of graphlossy.outliers.Detector"),
        ({"methods": ["graphlossy.outliers.methods.lof:LOF"]}, "has the name of a method of graphlossy, 'lof'"),
        ({"trials": 0}, "trials must be a whole number of at least 1, got 0"),
        ({"trials": True}, "trials must be"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"protocol": "best"}, "protocol must be one of bond, fixed; got 'best'"),
        ({"engines": ["dgld"]}, "engine must be one of native"),
        ({"engines": []}, "no engine is given"),
        ({"options": {"gaan": {"epoch": 3}}}, "options are given for gaan, which this grid does not have"),
        ({"options": {"*": {"epochs": 3}}}, "no method of this grid has the option epochs"),
        ({"options": {"lof": {"epoch": 3}}}, "lof has no option epoch; it has"),
        ({"options": {"lof": 3}}, r"options\['lof'\] must be a dictionary"),
    ],
)
def test_what_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BenchmarkError, match=said):
        grid(**given)


def test_a_module_that_fails_when_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torn_detector.py").write_text("class Torn(:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BenchmarkError, match="cannot import 'torn_detector:Torn': SyntaxError: "):
        grid(methods=["torn_detector:Torn"])


def test_an_own_class_stands_for_its_key() -> None:
    for method in ("lof", METHODS["lof"]):
        found = find_method(method)
        assert (found.name, found.target, found.cls) == ("lof", "", METHODS["lof"])
    assert grid(methods=[METHODS["dominant"]]).trials == grid(methods=["dominant"]).trials


def test_a_class_that_no_worker_could_import() -> None:
    class Mine(METHODS["lof"]):
        name = "mine"

    with pytest.raises(BenchmarkError, match="defined in a script or a function"):
        find_method(Mine)


def test_another_engine_leaves_the_leak_rows_native(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphlossy.outliers import engines

    monkeypatch.setattr(engines, "available", lambda: {"native": "1", "pyod": "3", "pygod": None})
    made = grid(methods=["dominant", "random"], engines=["native", "pyod"])
    assert {(t.method, t.engine) for t in made.trials} == {
        ("dominant", "native"), ("dominant", "pyod"), *((name, "native") for name in LEAK_ROWS)
    }  # fmt: skip
    seeds: dict[tuple[str, int], set[int]] = {}
    for trial in made.trials:
        seeds.setdefault((trial.method, trial.trial), set()).add(trial.seed)
    assert all(len(found) == 1 for found in seeds.values())  # both engines have the same draws
    with pytest.raises(BenchmarkError, match="engine pygod is not installed"):
        grid(engines=["pygod"])
    with pytest.raises(BenchmarkError, match="engine pyod has no method 'gaan'"):
        grid(methods=["gaan"], engines=["pyod"])


def test_of_several_engines_each_runs_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphlossy.outliers import engines

    monkeypatch.setattr(engines, "available", lambda: {"native": "1", "pyod": "3", "pygod": "1"})
    made = grid(methods=["dominant", "gaan", "lof", "mlpae"], engines=["pyod", "native", "pygod"])
    found = {(t.method, t.engine) for t in made.trials if t.method not in LEAK_ROWS}
    assert found == {
        *(("dominant", name) for name in ("native", "pygod", "pyod")), ("gaan", "native"), ("gaan", "pygod"),
        ("lof", "native"), ("lof", "pyod"), ("mlpae", "native"), ("mlpae", "pygod"),
    }  # fmt: skip
    with pytest.raises(BenchmarkError, match="engine pyod has no method 'lof2'; did you mean lof"):
        grid(methods=["dominant", "lof2"], engines=["pyod", "native"])
    with pytest.raises(BenchmarkError, match="a method is a key"):
        grid(methods=["dominant", []], engines=["pyod", "native"])
    with pytest.raises(BenchmarkError, match="dominant has no option epochs; it has"):
        grid(methods=["dominant"], engines=["pyod"], options={"dominant": {"epochs": 3}})


def test_of_another_engine_only_what_it_has_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphlossy.outliers import engines

    monkeypatch.setattr(engines, "available", lambda: {"native": "1", "pyod": "3"})
    made = grid(methods=["radar", "dominant"], engines=["native", "pyod"], options={"*": {"weight_decay": 0.5}})
    trials: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for trial in made.trials:
        trials.setdefault((trial.method, trial.engine), []).append(trial.params)
    assert len(trials["radar", "native"]) > 1 and {"solver", "beta", "lr"} <= set(trials["radar", "native"][0])
    assert trials["radar", "pyod"] == [{}]  # nothing that is drawn reaches it, so that one trial is all trials
    ours, theirs = trials["dominant", "native"], trials["dominant", "pyod"]
    assert all(params["weight_decay"] == 0.5 for params in ours) and all("weight_decay" not in p for p in theirs)
    assert [params["lr"] for params in theirs] == [params["lr"] for params in ours]


def test_the_key_of_a_trial() -> None:
    assert Trial("books", "x/books.pt", "lof", "native", 3, 9).key == ("books", "lof", "native", 3)


def test_options_are_found_under_any_spelling_of_a_method() -> None:
    made = grid(methods=["GCNAE"], options={"GCNAE": {"epoch": 2}})
    assert {trial.params["epoch"] for trial in made.trials if trial.method == "gcnae"} == {2}
    for value in (float("nan"), float("inf"), [1], object()):
        with pytest.raises(BenchmarkError, match="option lr must be a finite number"):
            grid(methods=["gcnae"], options={"gcnae": {"lr": value}})
    with pytest.raises(BenchmarkError, match="seed is no option of a method"):
        grid(methods=["gcnae"], options={"*": {"seed": 1}})
    with pytest.raises(BenchmarkError, match="a method is a key"):
        grid(methods=[3])
