"""Two processes: the gradient and the metrics of one, through kill -9 and a start anew; errors that reach everybody."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from graphlossy.train import Experiment, TrainError
from graphlossy.train import distributed as ddp
from graphlossy.train._ddp_group import peer_error
from graphlossy.train._ddp_launch import restart_folder
from graphlossy.train._ddp_loss import loss_terms
from graphlossy.train._ddp_store import meet

SPEC = importlib.util.spec_from_file_location("torchrun_jobs", Path(__file__).with_name("torchrun_jobs.py"))
jobs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(jobs)

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not hasattr(os, "fork"), reason="needs torch.distributed and fork"),
    pytest.mark.usefixtures("one_thread"),
]
TIMES = ("seconds", "evaluation_seconds", "peak_bytes")


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """What the two ranks of the job ``checks`` found."""
    folder = tmp_path_factory.mktemp("checks")
    done = jobs.launch("checks", folder)
    assert done.returncode == 0, done.stdout
    return [{**found, "folder": folder} for found in jobs.results(folder)]


def lines_of(folder):
    """What ``metrics.jsonl`` says, without what a clock or the machine had a say in."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def near(found, expected):
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(found, expected, strict=True))


# -- the same gradient ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", jobs.SCHEMES)
@pytest.mark.parametrize("cut", jobs.CUTS)
def test_gradient_and_loss_are_those_of_one_process(checked, scheme, cut) -> None:
    """With dropout, BatchNorm and 2-bit activations; shares of 75 + 75, 110 + 40 and 150 + 0 nodes."""
    alone = jobs.shared_gradient(jobs.make_task_of_all(), jobs.one_process(), scheme, 0)
    for rank in checked:
        found = rank["shared"][scheme, cut]
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert near(found["gradient"], alone["gradient"])
        assert near(found["buffers"], alone["buffers"])
    first, second = (rank["shared"][scheme, cut]["gradient"] for rank in checked)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_plain_mean_over_unequal_shares_would_be_wrong(checked) -> None:
    alone = jobs.shared_gradient(jobs.make_task_of_all(), jobs.one_process(), "baseline", 0)
    assert not near(checked[0]["unweighted"], alone["gradient"])


@pytest.mark.parametrize(("name", "seeds"), [("sampled", range(7)), ("no seeds", [3])])
def test_gradient_of_partitioned_seeds(checked, name, seeds) -> None:
    """7 seeds are 4 and 3; 1 seed is 1 and none. Each rank sees the neighbourhood of its own seeds only."""
    alone = jobs.sampled_gradient(jobs.make_task_of_all(), jobs.one_process(), torch.tensor(list(seeds)))
    for rank in checked:
        assert near(rank[name], alone)


def test_compression_before_and_after_wrapping(checked) -> None:
    before, after = checked[0]["names"]
    assert before and {f"module.{name}" for name in before} == set(after)


def test_gradient_of_seeds_that_the_trainer_shares_out(checked) -> None:
    """150 seeds, 75 for each rank, with all their neighbours."""
    alone = jobs.drawn_gradient(jobs.one_process())
    for rank in checked:
        assert rank["drawn"]["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert near(rank["drawn"]["gradient"], alone["gradient"])


def test_the_whole_experiment_is_that_of_one_process(checked, tmp_path) -> None:
    summary = Experiment(jobs.PLAIN, tmp_path / "run").run(task=jobs.make_task_of_all())
    alone, together = lines_of(tmp_path / "run"), lines_of(checked[0]["folder"] / "plain")
    assert [(line["run"], line["epoch"]) for line in together] == [(line["run"], line["epoch"]) for line in alone]
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], rel=1e-4)
    for name in ("valid", "test"):
        assert [line[name] for line in together] == pytest.approx([line[name] for line in alone], abs=0.02)
    assert checked[0]["plain"] == checked[1]["plain"]
    assert (summary["world_size"], checked[0]["plain"]["world_size"]) == (1, 2)
    # Of the loss a process keeps its share; of the model all that one process would keep.
    for ours, theirs in zip(checked[0]["plain"]["schemes"], summary["schemes"], strict=True):
        assert 0.8 * theirs["saved_bytes"] < ours["saved_bytes"] < theirs["saved_bytes"]


def test_gradients_in_few_bits_are_fewer_bytes(checked) -> None:
    for run in checked[0]["full"]["runs"]:
        assert 0 < run["bytes_sent"] < run["bytes_plain"] / 3
    assert all("bytes_sent" not in run for run in checked[0]["plain"]["runs"])


def test_an_experiment_fails_in_all_processes_with_one_reason(checked) -> None:
    for rank in checked:
        assert "TrainError: rank 1 was started with other settings than rank 0 (epochs)" in rank["alike"]
        assert "TrainError: the loss of baseline, seed 0, became" in rank["diverged"]
    assert not (checked[0]["folder"] / "alike").exists()


# -- started anew -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["agent", "torchrun"])
def test_workers_killed_with_9_end_with_the_same_metrics(checked, tmp_path, command) -> None:
    done = jobs.launch("dies", tmp_path, restarts=3, command=command)
    assert done.returncode == 0, done.stdout
    first, second = jobs.results(tmp_path)
    assert first["rank"].restarts == second["rank"].restarts == 3
    for name in ("full", "batches"):
        found = lines_of(tmp_path / name)
        assert found == lines_of(checked[0]["folder"] / name)
        assert [line["epoch"] for line in found] == [epoch for epoch in range(1, 7) for _ in range(2)]
        assert first[name] == second[name]
        go_on_with_one_process(tmp_path / name, checked[0][name])


def go_on_with_one_process(folder, summary) -> None:
    """The folder of two ranks, resumed by one: another number of machines after a failure."""
    experiment = Experiment.resume(folder)
    task = jobs.drawn_task(experiment.config) if experiment.config.sampler else jobs.make_task_of_all()
    tests = [scheme["test_mean"] for scheme in experiment.run(task=task)["schemes"]]
    assert tests == [scheme["test_mean"] for scheme in summary["schemes"]]


def test_a_checkpoint_of_two_processes_goes_on_in_one(checked) -> None:
    for config, name in ((jobs.FEEDBACK, "full"), (jobs.SAMPLED, "batches")):
        state = checked[0]["states"][name]
        assert len(state["ranks"]) == 2
        task = jobs.drawn_task(config) if config.sampler else jobs.make_task_of_all()
        run = jobs.Run(jobs.SCHEMES["2-bit"], 0, task, config)
        run.load_state_dict(state)
        assert run.step()["epoch"] == state["epoch"] + 1


def test_a_new_launch_does_not_go_on_with_another_ones_folder(tmp_path, monkeypatch) -> None:
    task, variables = jobs.make_task_of_all(), {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "one"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = jobs.replace(jobs.CONFIG, epochs=2)
    whole = Experiment(config, tmp_path / "run").run(task=task)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert Experiment(config, tmp_path / "run").run(task=task) == whole
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    with pytest.raises(TrainError, match="exists and is not empty"):
        Experiment(config, tmp_path / "run").run(task=task)


def test_the_default_folder_is_found_again_by_processes_that_are_started_anew(monkeypatch) -> None:
    assert restart_folder(jobs.CONFIG) is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "my job/7")
    assert restart_folder(jobs.CONFIG) == Path("runs/toy-gcn-my_job_7")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(TrainError, match="give --out"):
        restart_folder(jobs.CONFIG)


# -- what the processes tell each other -------------------------------------------------------------------------------


def test_collectives(checked) -> None:
    for number, rank in enumerate(checked):
        assert (rank["rank"].rank, rank["rank"].world_size, rank["is_main"]) == (number, 2, number == 0)
        assert rank["sum"][0] == 2.0 and rank["sum"][1].tolist() == [2, 1]
        assert rank["mean"][0] == 0.5 and rank["mean"][1].tolist() == [1.0, 0.5]
        assert rank["objects"] == [{"from": 0}, [0, 1]]
        assert rank["on_main"][0] == "from 0" and rank["on_all"][0] == 5
        assert rank["running_mean"].tolist() == [0.5] * 3
    assert checked[0]["epoch_seed"] != checked[1]["epoch_seed"]


def test_an_error_of_one_rank_is_the_error_of_all(checked) -> None:
    assert [rank["on_main"][1] for rank in checked] == ["TrainError: no such file", "TrainError: rank 0: no such file"]
    assert [rank["on_all"][1] for rank in checked] == ["TrainError: rank 1: no such file", "TrainError: no such file"]


def test_a_failed_rank_does_not_leave_the_others_waiting(tmp_path) -> None:
    start = time.monotonic()
    done = jobs.launch("fails", tmp_path)
    assert done.returncode == 1 and time.monotonic() - start < 30
    assert "PeerError: another process of this job stopped: rank 1 of 2: this disk is full" in done.stdout


def test_a_barrier_names_who_is_missing(tmp_path) -> None:
    assert jobs.launch("is_late", tmp_path).returncode == 1
    message = (tmp_path / "rank0").read_text()
    assert message.startswith("PeerError: another process of this job stopped or does not answer")
    assert "Ranks 1 failed" in message


# -- one process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "world_size"), [(10, 3), (2, 4), (0, 2), (8, 1)])
def test_partition_takes_every_row_once(rows, world_size) -> None:
    numbers = torch.arange(rows)
    parts = [ddp.partition(numbers, rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat(parts).sort().values, numbers)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [part.tolist() for part in parts] == [
        ddp.partition(list(range(rows)), r, world_size) for r in range(len(parts))
    ]


def test_wrong_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="rank must be from 0 to below world_size, got 2 of 2"):
        ddp.partition([1, 2], 2, 2)
    out, labels = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    for total in (0, 2):
        with pytest.raises(ValueError, match=f"got {total} with 3 here"):
            ddp.share_of_loss(torch.nn.functional.cross_entropy, out, labels, total, 2)


def test_labels_that_are_not_known_carry_no_weight() -> None:
    labels = torch.tensor([[1.0, float("nan")], [float("nan"), float("nan")]])
    assert loss_terms(labels) == 1 and loss_terms(torch.tensor([0, 1, 1])) == 3
    out = torch.full((2, 2), float("nan"), requires_grad=True)
    part = ddp.share_of_loss(lambda *_: out.sum(), out, labels[1:], total=1, world_size=2, count=0)
    part.backward()
    assert part == 0 and not out.grad.any()


def test_without_torchrun_there_is_one_rank() -> None:
    with ddp.session("cpu") as rank:
        assert (rank.rank, rank.world_size, rank.restarts, str(rank.device)) == (0, 1, 0, "cpu")
        assert ddp.gather_objects("a") == ["a"] and ddp.on_all(lambda: 2) == 2
        model = torch.nn.BatchNorm1d(2)
        ddp.average_buffers(model)
        ddp.barrier()
        assert ddp.wrap(model) is model is ddp.unwrap(model)
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0"}, "not WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start with torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be an integer, got 'two'"),
        ({"RANK": "2"}, "RANK must be from 0 to below WORLD_SIZE, and LOCAL_RANK from 0; got 2, 2, 0"),
        ({"MASTER_PORT": "1"}, "rank 1 of 2 cannot join the others at 127.0.0.1:1 within 0.5 s"),
    ],
)
def test_a_wrong_environment_is_one_line(monkeypatch, variables, message) -> None:
    whole = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (variables if message.startswith("not") else {**whole, **variables}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainError, match=message) as caught:
        ddp.setup("cpu", timeout=0.5)
    assert "\n" not in str(caught.value)
    assert not dist.is_initialized()


def test_a_timeout_must_be_positive() -> None:
    with pytest.raises(TrainError, match="timeout must be a positive number of seconds, got 0"):
        ddp.setup("cpu", timeout=0)


def test_ranks_that_do_not_come_are_named() -> None:
    with pytest.raises(TimeoutError, match="rank 1, 2 has not come"):
        meet(dist.HashStore(), 0, 3, 0.1)
    store = dist.HashStore()
    store.set("graphlossy/name", "of an attempt that died")
    store.set("graphlossy/list/of an attempt that died", "somebody else")
    with pytest.raises(TimeoutError, match="rank 0 has not come"):
        meet(store, 1, 2, 0.1)


def test_the_living_agree_on_a_name_among_the_keys_of_the_dead() -> None:
    store, names = dist.HashStore(), []
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            met = list(pool.map(lambda rank: meet(store, rank, 3, 20.0), (2, 1, 0)))
        assert len(set(met)) == 1
        names.append(met[0])
    assert len(set(names)) == 3


def test_errors_of_others_are_told_from_our_own() -> None:
    theirs = RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:80\nmore")
    assert ddp.is_peer_failure(theirs)
    assert "(Connection closed by peer [127.0.0.1]:80)" in str(peer_error(theirs))
    assert not ddp.is_peer_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not ddp.is_peer_failure(ValueError("timeout"))
