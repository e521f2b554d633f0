"""Real worker processes: the same scores on any number of them, limits, broken methods, and taking up again."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch_geometric.data import Data

from graphlossy.core._memory import is_out_of_memory
from graphlossy.outliers._labels import LEFT_OUT
from graphlossy.outliers.data import save_npz
from graphlossy.outliers.runner import BenchmarkError, Observer, Results, benchmark
from graphlossy.outliers.runner.bars import GridBars
from graphlossy.outliers.runner.benchmark import _pool
from graphlossy.outliers.runner.errors import one_line
from graphlossy.outliers.runner.grid import Trial, label_of, make_grid
from graphlossy.outliers.runner.limits import Limits
from graphlossy.outliers.runner.pool import LocalPool
from graphlossy.outliers.runner.trial import Loaded, new_record, run_trial

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX processes")

DETECTORS = '''
import os, time
import torch
from graphlossy.outliers._base import Detector

class Base(Detector):
    title, paper, seeded, memory = "Test", "none", True, "O(n)"

class Drawn(Base):
    """Scores from its own seed and a drawn parameter."""
    name = "drawn"
    def __init__(self, *, scale=0, **base):
        super().__init__(**base)
        self.scale = scale
    def _score(self, graph):
        noise = torch.rand(graph.num_nodes, generator=torch.Generator().manual_seed(self.seed_))
        return noise + self.scale * graph.degrees
    @classmethod
    def search_space(cls, dataset):
        return {"scale": (1, 2, 3, 4, 5)}

class Careless(Base):
    """Draws from the global generators, which none of the rules allows."""
    name = "careless"
    def _score(self, graph):
        import random
        import numpy
        return torch.rand(graph.num_nodes) + random.random() * numpy.random.rand(1)[0]

class Broken(Base):
    name = "broken"
    def _score(self, graph):
        raise RuntimeError("it does not work\\nand this is a second line")

class NotANumber(Base):
    name = "nan"
    def _score(self, graph):
        return torch.full((graph.num_nodes,), float("nan"))

class Dies(Base):
    name = "dies"
    def _score(self, graph):
        os.write(2, b"something is rotten\\n")
        os._exit(3) if graph.num_nodes > 32 else None
        return graph.degrees

class Sleeps(Base):
    name = "sleeps"
    def _score(self, graph):
        time.sleep(60 if graph.num_nodes > 32 else 0)
        return graph.degrees

class Hoards(Base):
    name = "hoards"
    def _score(self, graph):
        held = [torch.ones(4_000_000) for _ in range(30 if graph.num_nodes > 32 else 0)]  # 480 MB, bit by bit
        return graph.degrees + len(held)

class Odd(Base):
    """Says of its training what no record can hold; a number of torch or numpy can be."""
    name = "odd"
    def __init__(self, *, said="good", **base):
        super().__init__(**base)
        self.said = said
    def _score(self, graph):
        import numpy
        good = torch.tensor(7), numpy.float32(8), (torch.tensor(0.5), 1.0, 2)
        bad = {"nan": float("nan"), "tensor": torch.ones(3), "text": "much"}.get(self.said)
        self.saved_bytes_, self.plain_bytes_, self.epoch_seconds_ = good if bad is None else (bad, None, None)
        if self.said == "seconds":
            self.epoch_seconds_ = [1.0, float("inf")]
        return graph.degrees

class Warms(Base):
    """Takes what a library takes when it is first used, and keeps it; its fit takes next to nothing."""
    name = "warms"
    kept = []
    def _score(self, graph):
        if graph.num_nodes <= 32:
            self.kept.append(torch.ones(50_000_000))  # 200 MB
            time.sleep(0.5)
        time.sleep(0.2)
        return graph.degrees

class Dense(Base):
    name = "dense"
    def _score(self, graph):
        return torch.zeros(graph.num_nodes, 10**11 if graph.num_nodes > 32 else 1).sum(1)  # refused at once
'''


EDGE = torch.tensor([[0], [1]])


def small_graph(nodes: int = 60, seed: int = 0, labels: bool = True) -> Data:
    draw = torch.Generator().manual_seed(seed)
    edges = torch.randint(nodes, (2, 4 * nodes), generator=draw)
    y = (torch.rand(nodes, generator=draw) < 0.2).long() if labels else None
    return Data(x=torch.rand(nodes, 5, generator=draw), edge_index=edges, y=y)


@pytest.fixture(autouse=True)
def detectors(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module above, importable here and in the worker processes."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "some_detectors.py").write_text(DETECTORS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "some_detectors", raising=False)
    return "some_detectors"


def scores_of(found: Results) -> dict[tuple[str, str, int], tuple[Any, ...]]:
    return {(r["dataset"], r["method"], r["trial"]): (r["scores_sha256"], r["params"], r["auc"]) for r in found.records}


class Log(Observer):
    def __init__(self, stop_after: int | None = None) -> None:
        self.records: list[Any] = []
        self.left: list[Any] = []
        self.stop_after = stop_after

    def started(self, trials: Any, done: int, facts: Any) -> None:
        self.left, self.done = list(trials), done

    def finished(self, record: Any) -> None:
        self.records.append(record)
        if len(self.records) == self.stop_after:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_the_same_scores_whatever_the_jobs_and_whatever_interrupted(tmp_path: Path, detectors: str) -> None:
    methods = [f"{detectors}:Drawn", f"{detectors}:Careless"]
    data = {"one": small_graph(), "two": small_graph(80, 1)}
    given: dict[str, Any] = {"trials": 3, "seed": 5}
    alone = benchmark(data, methods, jobs=1, progress=False, **given)
    assert len(alone.records) == 2 * (2 * 3 + 4 + 3) and {r["status"] for r in alone.records} == {"done"}
    assert {facts["note"] for facts in alone.datasets.values()} == {"given in memory"} and "note" not in data["one"]
    assert len({r["scores_sha256"] for r in alone.records if r["method"] == "careless"}) == 6
    with pytest.raises(KeyboardInterrupt):
        benchmark(data, methods, out=tmp_path / "run", jobs=2, progress=Log(stop_after=7), save_scores=True, **given)
    lines = (tmp_path / "run" / "trials.jsonl").read_text()
    assert lines.count("\n") == 7
    with (tmp_path / "run" / "trials.jsonl").open("a") as file:
        file.write(lines.splitlines()[3][:50])  # torn
    log = Log()
    two = benchmark(data, methods, out=tmp_path / "run", jobs=1, progress=log, save_scores=True, **given)
    assert log.done == 7 and len(log.left) == len(log.records) == 26 - 7
    assert scores_of(two) == scores_of(alone)
    assert (tmp_path / "run" / "trials.jsonl").read_text().startswith(lines)  # nothing was rewritten
    assert scores_of(Results.read(tmp_path / "run")) == scores_of(alone)
    assert len(list((tmp_path / "run" / "scores").glob("*.npy"))) == 26
    drawn = np.load(tmp_path / "run" / "scores" / "one-drawn-native-0.npy")
    assert drawn.shape == (60,) and drawn.dtype == np.float64
    third = Log()
    benchmark(data, methods, out=tmp_path / "run", progress=third, **given)
    assert third.left == [] and third.done == 26  # nothing is run again
    file = tmp_path / "run" / "trials.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    benchmark(data, methods, out=tmp_path / "run", progress=third, **given)
    assert third.left == [] and third.done == 26  # in whatever order they were run


@pytest.mark.slow
def test_what_breaks_is_recorded_and_the_grid_goes_on(tmp_path: Path, detectors: str) -> None:
    methods = [f"{detectors}:{name}" for name in ("Broken", "NotANumber", "Dense", "Dies", "Sleeps", "Hoards", "Drawn")]
    data = {"one": small_graph()}
    limits: dict[str, Any] = {"time_limit": 2, "memory_limit": "100MiB"}
    found = benchmark(data, methods, trials=1, out=tmp_path, progress=False, **limits)
    told = {r["method"]: (r["status"], r["reason"]) for r in found.records}
    assert told["broken"][0] == "failed" and told["broken"][1].startswith("RuntimeError: it does not work (some_detect")
    assert told["nan"][0] == "failed" and "60 of 60 nodes a score that is not finite" in told["nan"][1]
    assert told["dies"] == ("failed", "its process ended with exit code 3: something is rotten")
    assert told["sleeps"] == ("TLE", "not done after 2 s")
    assert told["hoards"][0] == "OOM" and "the limit is 100.0 MiB" in told["hoards"][1]
    assert told["dense"][0] == "OOM" and "RuntimeError" in told["dense"][1]
    assert {told[name][0] for name in ("drawn", "degree", "norm", "maxrank", "copies", "random")} == {"done"}
    sleeper = next(r for r in found.records if r["method"] == "sleeps")
    assert sleeper["seconds"] >= 2 and sleeper["auc"] is None
    assert "* Test on one: 0 done, 1 TLE: not done after 2 s" in found.table()
    again = Log()
    benchmark(data, methods, trials=1, out=tmp_path, progress=again, retry=["failed"], **limits)
    assert {trial.method for trial in again.left} == {"broken", "nan", "dies"}
    lines = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert len(lines) == 12 + 3


def test_the_warm_up_is_none_of_a_trials_memory(detectors: str) -> None:
    found = benchmark({"one": small_graph()}, [f"{detectors}:Warms"], 2, progress=False, memory_limit="100MiB")
    warm = [record for record in found.records if record["method"] == "warms"]
    assert [(record["status"], record["reason"]) for record in warm] == [("done", None)] * 2
    assert all(record["seconds"] >= 0.2 and record["peak_bytes"] < 100 * 2**20 for record in warm)


@pytest.mark.slow
def test_a_complete_grid_is_of_the_graphs_that_are_asked_for(tmp_path: Path) -> None:
    mine, other = tmp_path / "a" / "mine.npz", tmp_path / "b" / "mine.npz"
    for place, seed in ((mine, 0), (other, 1)):
        place.parent.mkdir()
        save_npz(small_graph(seed=seed), place)
    save_npz(small_graph(80, 2), tmp_path / "second.npz")
    second, given = str(tmp_path / "second.npz"), {"trials": 1, "progress": False, "out": tmp_path / "run"}
    first = benchmark([str(mine), second], ["degree"], **given)
    assert list(first.datasets) == ["mine", "second"]
    again = benchmark([second, str(mine)], ["degree"], **given)  # nothing is left to run
    assert list(again.datasets) == ["second", "mine"] and scores_of(again) == scores_of(first)
    with pytest.raises(BenchmarkError, match="results on mine are of another graph of 60 nodes"):
        benchmark([str(other), second], ["degree"], **given)
    kinds = small_graph(seed=0)
    kinds.y, kinds.typed = kinds.y * 2, True  # the same outliers, of another type
    save_npz(kinds, other)
    with pytest.raises(BenchmarkError, match="results on mine are of another graph of 60 nodes"):
        benchmark([str(other), second], ["degree"], **given)
    other.unlink()
    with pytest.raises(BenchmarkError, match="mine.npz"):
        benchmark([second, str(other)], ["degree"], **given)


def test_a_mistyped_command_does_not_block_the_right_one(tmp_path: Path) -> None:
    given: dict[str, Any] = {"methods": ["degree"], "trials": 1, "progress": False, "out": tmp_path / "run"}
    with pytest.raises(BenchmarkError, match="nosuch"):
        benchmark(["nosuch"], seed=5, protocol="fixed", **given)
    assert benchmark({"one": small_graph()}, **given).settings["seed"] == 0
    with pytest.raises(BenchmarkError, match="holds a run with seed 0, not 5"):
        benchmark({"one": small_graph()}, seed=5, **given)


def test_graphs_that_cannot_be_judged(tmp_path: Path) -> None:
    """One worker survives all of them."""
    equal, lone = small_graph(), small_graph(labels=False)
    np.savez(tmp_path / "equal.npz", x=equal.x, edge_index=equal.edge_index, y=np.ones(60, dtype=np.int64))
    np.savez(tmp_path / "lone.npz", x=lone.x, edge_index=np.zeros((2, 0), dtype=np.int64))
    with LocalPool(1, {"limits": Limits(), "threads": 1, "root": None, "seed": 0}) as pool:
        for source, said in (
            (str(tmp_path / "equal.npz"), "equal.*60"),
            ("inj_wordnett", "did you mean 'inj_wordnet'"),
        ):
            with pytest.raises(BenchmarkError, match=said):
                pool.probe({label_of(source): source})
        source = str(tmp_path / "lone.npz")
        assert pool.probe({"lone": source})["lone"]["outliers"] is None
        trials = make_grid([source], ["scan"], 1, "fixed", 0).trials
        records = [record for record, _ in pool.run(trials)]
    assert {r["status"] for r in records} == {"done"} and {r["auc"] for r in records} == {None}
    assert all(r["scores_sha256"] for r in records)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"jobs": 0}, "jobs must be a number of processes"),
        ({"jobs": "slurm"}, "jobs must be a number of processes, 'auto', 'ray' or 'ray:N'; got 'slurm'"),
        ({"time_limit": 0}, "time_limit must be a number of seconds above 0, got 0"),
        ({"memory_limit": "many"}, "memory_limit: 'many' is not a size"),
        ({"memory_limit": 5}, "memory_limit must be at least 1 MiB, got 5"),
        ({"threads": 0}, "threads must be a whole number of at least 1, got 0"),
        ({"retry": ["done"]}, "retry may hold failed, TLE, OOM; got 'done'"),
        ({"datasets": {"a": None}, "jobs": "ray"}, "graphs in memory are on this machine only"),
        ({"datasets": {"a": None}, "jobs": "auto"}, "a: data must be a torch_geometric.data.Data"),
        ({"datasets": {"a/b": None}}, "a data set cannot be called 'a/b'"),
        ({"datasets": {1: small_graph()}}, "a data set cannot be called 1; use letters"),
        ({"datasets": {"good": small_graph(), "bad": Data(edge_index=EDGE, num_nodes=2)}}, "bad: data.x is missing"),
        (
            {"datasets": {"bits": Data(x=torch.ones(4, 1), edge_index=EDGE, y=torch.arange(4))}},
            "bits: .* set data.typed = True where they are a bit field",
        ),
        ({"methods": ["gcnae"], "options": {"*": {"epoch": "x"}}}, "gcnae: epoch must be a whole number, got 'x'"),
        ({"methods": ["gcnae"], "options": {"gcnae": {"device": "mps"}}}, "gcnae: device must be 'cpu', 'cuda'"),
        ({"datasets": small_graph()}, r"or a dictionary that names each graph, .*; got Data"),
        ({"datasets": [small_graph()]}, r"datasets must be names or paths, .*; got list"),
        ({"datasets": []}, "no data set is given"),
    ],
)
def test_requests_that_are_refused(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=said):
        benchmark(**{"datasets": ["inj_wordnet"], "methods": ["degree"], "progress": False, "out": tmp_path / "run",
                     **given})  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_without_ray_a_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BenchmarkError, match=r"jobs='ray' needs Ray: pip install 'graphlossy\[ray\]'"):
        benchmark(["inj_wordnet"], ["gcnae"], jobs="ray", progress=False, options={"*": {"device": "cuda"}})


def test_as_many_processes_as_there_are_cores() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with _pool("auto", {}) as pool:
        assert pool.jobs == cores


def test_labels_that_were_left_out_are_told_when_a_run_starts() -> None:
    fact = {"nodes": 4, "edges": 1, "features": 1, "outliers": None, "note": f"mine.pt; {LEFT_OUT}; name it: mine.pt#y"}
    out = io.StringIO()
    with GridBars(Console(file=out)) as bars:
        bars.started([], 0, {"mine": fact, "other": {**fact, "note": "other.pt"}})
    assert out.getvalue().splitlines() == [
        "mine: 4 nodes, 1 edges, 1 features, no labels (its y holds class numbers and was left out; name it: "
        "mine.pt#y), scores only",
        "other: 4 nodes, 1 edges, 1 features, no labels, scores only",
    ]


def test_a_trial_never_sees_the_labels(detectors: str) -> None:
    data = small_graph()
    data.name, data.typed = "toy", False
    loaded = Loaded(data)
    assert loaded.graph.y is None and loaded.labels is not None and loaded.facts["outliers"] == int(data.y.sum())
    said: list[str] = []
    trial = Trial("toy", "toy", "drawn", "native", 0, 3, {"scale": 2}, f"{detectors}:Drawn")
    record, scores = run_trial(trial, loaded, Limits(), lambda: said.append("started"), lambda *news: None)
    assert said == ["started"] and record["status"] == "done" and scores.shape == (60,)
    assert record["distinct_scores"] == len(set(scores.tolist())) > 50
    assert record["params"] == {"scale": 2} and record["seconds"] > 0 and record["versions"]["torch"]
    late, _ = run_trial(trial, loaded, Limits(seconds=1e-9), lambda: None, lambda *news: None)
    assert late["status"] == "TLE" and late["auc"] is None and late["seconds"] > 0


@pytest.mark.parametrize("said", ["nan", "tensor", "text", "seconds"])
def test_figures_that_no_record_can_hold(detectors: str, said: str) -> None:
    def run(params: dict[str, Any]) -> dict[str, Any]:
        trial = Trial("toy", "toy", "odd", "native", 0, 3, params, f"{detectors}:Odd")
        return run_trial(trial, Loaded(small_graph()), Limits(), lambda: None, lambda *news: None)[0]

    failed, good = run({"said": said}), run({"said": "good"})
    name = "epoch_seconds_" if said == "seconds" else "saved_bytes_"
    assert failed["status"] == "failed" and f"ValueError: {name} must be a finite number" in failed["reason"]
    assert (good["status"], good["saved_bytes"], good["plain_bytes"], good["epoch_seconds"]) == ("done", 7, 8.0, 1.0)
    assert json.dumps([failed, good], allow_nan=False)
    unheard = new_record(Trial("toy", "toy", "odd", "native", 0, 3, {"a": float("nan"), "b": torch.ones(1)}), "failed")
    assert unheard["params"] == {"a": "nan", "b": "tensor([1.])"}


def test_limits_and_what_counts_as_no_memory() -> None:
    done = {"status": "done", "auc": 0.5, "seconds": 1.0, "peak_bytes": 2**21}
    assert Limits(2, 2**22).applied(done) is done
    assert Limits(2, 2**20).applied(done)["reason"] == "took 2.0 MiB, the limit is 1.0 MiB"
    assert Limits(memory=1).applied({**done, "peak_bytes": None})["status"] == "done"
    assert is_out_of_memory(MemoryError()) and is_out_of_memory("std::bad_alloc")
    assert not is_out_of_memory(ValueError("no memory of that"))
    assert (
        one_line(ValueError("first\nsecond")) == "ValueError: first" and one_line(KeyError()) == "KeyError: no message"
    )


def test_workers_ask_for_large_pages_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphlossy.outliers.runner import process

    asked: list[str] = []

    def popen(*arguments: object, env: dict[str, str], **options: object) -> None:
        asked.append(env["THP_MEM_ALLOC_ENABLE"])
        raise OSError("no more processes")

    monkeypatch.setattr(process.subprocess, "Popen", popen)
    for mine in (None, "0"):
        if mine is not None:
            monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", mine)
        with pytest.raises(BenchmarkError, match="no more processes"):
            process.Worker({"threads": 1, "limits": Limits(), "root": None, "seed": 0})
    assert asked == ["1", "0"]
