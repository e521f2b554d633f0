"""The pool that Ray drives: with a stand-in for Ray that runs at once, and with Ray itself where it is installed."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphlossy.outliers.runner import BenchmarkError, Observer, benchmark, ray_pool
from graphlossy.outliers.runner.grid import Trial
from graphlossy.outliers.runner.limits import Limits
from graphlossy.outliers.runner.trial import new_record

SETTINGS = {"limits": Limits(), "threads": 1, "root": None, "seed": 0}


class RayError(Exception):
    """As ray.exceptions.RayError."""


class Host:
    """As the real one, without processes; the machine of trial 1 is lost."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def probe(self, label: str, source: str) -> tuple[str, Any]:
        return ("refused", f"{label}: no such thing") if label == "missing" else ("facts", {"nodes": 5})

    def run(self, trial: Trial) -> tuple[dict[str, Any], Any]:
        if trial.trial == 1:
            raise RayError("The actor died.\nAnd more.")
        return new_record(trial, "done", auc=0.5), None


class Actor:
    def __init__(self, host: Host) -> None:
        for name in ("probe", "run"):
            setattr(self, name, types.SimpleNamespace(remote=self._call(getattr(host, name))))

    def _call(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def remote(*arguments: Any) -> Any:
            promise = types.SimpleNamespace(error=None, value=None)
            try:
                promise.value = method(*arguments)
            except RayError as error:
                promise.error = error
            return _Promise(promise)

        return remote


class _Promise:
    def __init__(self, content: types.SimpleNamespace) -> None:
        self.content = content


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that does what the pool asks of Ray."""
    fake: Any = types.ModuleType("ray")
    fake.made, fake.killed, fake.up = [], [], False
    fake.machines = [{"CPU": 3.0}]

    def make(settings: dict[str, Any]) -> Actor:
        fake.made.append(Actor(Host(settings)))
        return fake.made[-1]

    def get(promise: _Promise) -> Any:
        if promise.content.error is not None:
            raise promise.content.error
        return promise.content.value

    fake.is_initialized = lambda: fake.up
    fake.init = lambda **options: setattr(fake, "up", True)
    fake.shutdown = lambda: setattr(fake, "up", False)
    fake.nodes = lambda: [{"Alive": bool(free), "Resources": free} for free in fake.machines]
    fake.remote = lambda **options: lambda cls: types.SimpleNamespace(remote=make)
    fake.wait = lambda promises, num_returns: (promises[:1], promises[1:])
    fake.get, fake.kill, fake.exceptions = get, fake.killed.append, types.SimpleNamespace(RayError=RayError)
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def test_trials_are_handed_out_and_a_lost_machine_is_recorded(ray: Any) -> None:
    trials = [Trial("toy", "toy", "random", "native", n, n) for n in range(5)]
    with ray_pool.RayPool(SETTINGS) as pool:
        assert pool.jobs == 3 and ray.up
        records = [record for record, _ in pool.run(trials, Observer())]
    assert sorted(record["trial"] for record in records) == list(range(5))
    lost = next(record for record in records if record["trial"] == 1)
    assert (lost["status"], lost["reason"]) == ("failed", "its machine was lost: The actor died.")
    assert {record["status"] for record in records if record["trial"] != 1} == {"done"}
    assert len(ray.made) == 4 and len(ray.killed) == 3 and not ray.up  # one was replaced; all are ended, and Ray too


def test_data_sets_that_cannot_be_had(ray: Any) -> None:
    with ray_pool.RayPool(SETTINGS, jobs=1) as pool:
        assert pool.probe({"toy": "toy.npz"}) == {"toy": {"nodes": 5}}
        with pytest.raises(BenchmarkError, match="missing: no such thing"):
            pool.probe({"missing": "missing.npz"})


def test_a_cluster_that_was_there_before_stays(ray: Any) -> None:
    ray.up = True
    ray_pool.RayPool(SETTINGS).close()
    assert ray.up


def test_no_more_actors_than_the_machines_have_room_for(ray: Any) -> None:
    ray.machines = [{"CPU": 3.0}, {"CPU": 3.0, "GPU": 1.0}, {"CPU": 3.0}, {}]
    two = {**SETTINGS, "threads": 2}
    assert ray_pool.RayPool(SETTINGS).jobs == 9
    assert ray_pool.RayPool(two).jobs == 3  # not 9 // 2
    assert ray_pool.RayPool(two, gpu=True).jobs == 1
    ray.up = False
    for arguments, text in (
        ((two, 4), "room for 3 actors of 2 CPU each on one machine, 4 asked for"),
        (({**SETTINGS, "threads": 4},), "room for 0 actors of 4 CPU each on one machine, at least 1 asked for"),
        ((two, 2, True), "room for 1 actors of 2 CPU and 1 GPU each on one machine, 2 asked for"),
    ):
        with pytest.raises(BenchmarkError, match=text):
            ray_pool.RayPool(*arguments)
        assert not ray.up


def test_the_last_machine_is_lost(ray: Any) -> None:
    trials = [Trial("toy", "toy", "random", "native", n, n) for n in range(3)]
    ray.machines = [{"CPU": 1.0}]
    with ray_pool.RayPool(SETTINGS) as pool:
        ran = pool.run(trials, Observer())
        assert [next(ran)[0]["status"] for _ in range(2)] == ["done", "failed"]
        ray.machines = [{}]
        with pytest.raises(BenchmarkError, match="no machine of the cluster is left"):
            next(ran)


def test_a_cluster_that_does_not_answer(ray: Any) -> None:
    def init(**options: Any) -> None:
        raise ConnectionError("no node at 10.0.0.1:6379\nmore")

    ray.init = init
    with pytest.raises(BenchmarkError, match="Ray cannot be reached: no node at 10.0.0.1:6379$"):
        ray_pool.RayPool(SETTINGS)


@pytest.mark.slow
def test_ray_itself_gives_the_scores_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    draw = np.random.default_rng(0)
    y = (draw.random(60) < 0.2).astype(np.int64)
    file = tmp_path / "toy.npz"
    np.savez(file, x=draw.random((60, 4), np.float32), edge_index=draw.integers(60, size=(2, 200)), y=y)
    found = [benchmark([str(file)], ["random"], 2, jobs=jobs, progress=False) for jobs in (1, "ray:1")]
    one, other = ({(r["method"], r["trial"]): r["scores_sha256"] for r in f.records} for f in found)
    assert one == other and len(one) == 6
