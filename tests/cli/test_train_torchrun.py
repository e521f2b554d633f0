"""`graphlossy train` under torchrun: two processes, one voice, one run folder."""

import contextlib
import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from click.testing import CliRunner

from graphlossy.cli import main

SPEC = importlib.util.spec_from_file_location("torchrun_jobs", Path(__file__).parents[1] / "train" / "torchrun_jobs.py")
jobs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(jobs)

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not hasattr(os, "fork"), reason="needs torch.distributed and fork"),
    pytest.mark.usefixtures("one_thread"),
]
SMALL = ["--layers", "2", "--hidden", "32", "--seeds", "2", "--epochs", "3", "--device", "cpu", "--threads", "1"]
SMALL += ["--no-norm"]  # with it, biases follow rounding errors: see PLAIN in torchrun_jobs.py
TIMES = ("seconds", "evaluation_seconds", "peak_bytes")
SAMPLERS = {
    "neighbor": ["--sampler", "neighbor", "--batch-size", "50", "--num-neighbors", "4,4", "--gradient-bits", "4"],
    "saint": ["--sampler", "saint-edge", "--batch-size", "60", "--model", "sage"],
    "cluster": ["--sampler", "cluster", "--num-parts", "6", "--batch-size", "1", "--budget", "2MiB"],
    "sparsify": ["--sampler", "sparsify", "--sparsify", "degree:0.5", "--model", "gin"],
}


def chain(commands):
    """The arguments of the job ``cli`` for several commands."""
    return [word for command in commands for word in ("then", "train", *map(str, command))][1:]


def lines_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def tracebacks(text):
    """Those of the workers; torchrun's own stand behind its log's prefix."""
    return [line for line in text.splitlines() if line.startswith("Traceback")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, write_graph):
    """The run folders of two processes, and all they said."""
    folder = tmp_path_factory.mktemp("torchrun")
    graph = write_graph(folder / "toy.npz")
    commands = [["--dataset", graph, *SMALL, "--out", "full"]]
    for name, arguments in SAMPLERS.items():
        short = ["--dataset", graph, *SMALL, "--seeds", 1, "--epochs", 2, *arguments, "--quiet"]
        commands += [[*short, "--out", out] for out in (name, f"{name}-again")]
    done = jobs.launch("cli", folder, arguments=chain(commands))
    assert done.returncode == 0, done.stdout
    return folder, graph, done.stdout


def test_the_metrics_are_those_of_one_process(trained, tmp_path) -> None:
    folder, graph, _ = trained
    result = CliRunner().invoke(main, ["train", "--dataset", str(graph), *SMALL, "--out", str(tmp_path / "one")])
    assert result.exit_code == 0, result.output
    together, alone = lines_of(folder / "full"), lines_of(tmp_path / "one")
    assert len(together) == 2 * 2 * 3
    for ours, theirs in zip(together, alone, strict=True):
        assert ours["saved_bytes"] < theirs["saved_bytes"]  # of the loss, a process keeps its share
        assert [ours[name] for name in ("run", "seed", "epoch")] == [theirs[name] for name in ("run", "seed", "epoch")]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        for name in ("train", "valid", "test"):
            assert ours[name] == pytest.approx(theirs[name], abs=0.02)  # one node of 60


def test_one_process_speaks(trained) -> None:
    folder, _, said = trained
    for words in ("2 processes: the loss is shared", "run folder: full", "report: full/report.html"):
        assert said.count(words) == 1, words
    summary = json.loads((folder / "full" / "summary.json").read_text())
    assert summary["world_size"] == 2 and "exits" not in said.replace("exits with 0", "")


@pytest.mark.parametrize("name", SAMPLERS)
def test_shared_mini_batches_are_reproducible(trained, name) -> None:
    folder = trained[0]
    lines = lines_of(folder / name)
    assert lines == lines_of(folder / f"{name}-again")
    for scheme in json.loads((folder / name / "summary.json").read_text())["schemes"]:
        assert scheme["status"] == "done" and 0 < scheme["test_mean"] < 1
    assert all(("bytes_sent" in line) == (name == "neighbor") for line in lines)


def test_a_mistake_is_one_line_and_every_process_fails(trained, tmp_path) -> None:
    _, graph, _ = trained
    wrong = {
        "'x' is not a valid integer": ["--epochs", "x"],
        "sampler must be one of": ["--sampler", "nonsense"],
        "gradient_feedback needs gradient_bits": ["--gradient-feedback"],
        "every rank needs a seed: batch_size must be at least world_size = 2, got 1": [
            "--dataset", graph, "--sampler", "neighbor", "--batch-size", "1"],
        "nowhere.npz": ["--dataset", tmp_path / "nowhere.npz"],
        "cannot be met": ["--dataset", graph, "--budget", "100B"],
        "the loss of baseline, seed 0, became": ["--dataset", graph, "--lr", "1e20", "--out", "diverged"],
        "exists and is not empty": ["--dataset", graph, "--out", tmp_path],
    }  # fmt: skip
    commands = [[*arguments, "--device", "cpu", *([] if "--out" in arguments else ["--out", "run"]), "--quiet"]
                for arguments in wrong.values()]  # fmt: skip
    (tmp_path / "mine.txt").write_text("mine")
    done = jobs.launch("cli", tmp_path, arguments=chain(commands))
    assert done.returncode == 1 and not tracebacks(done.stdout), done.stdout
    errors = [line for line in done.stdout.splitlines() if line.startswith("graphlossy: error: ")]
    assert len(errors) == len(wrong), done.stdout
    for words, line in zip(wrong, errors, strict=True):
        assert words in line
    for rank in range(2):
        assert done.stdout.count(f"rank {rank} exits with 2") == len(wrong), done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_to_torchrun_stops_all_with_a_checkpoint(number, trained, tmp_path) -> None:
    """And one process goes on from there."""
    folder, epochs = tmp_path / "run", 120
    command = ["--dataset", trained[1], *SMALL, "--seeds", 1, "--epochs", epochs, "--out", folder, "--quiet"]

    def stop(process):
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            if (folder / "metrics.jsonl").exists() and len((folder / "metrics.jsonl").read_text().splitlines()) > 3:
                break
            time.sleep(0.02)
        process.send_signal(number)

    done = jobs.launch("cli", tmp_path, arguments=chain([command]), meanwhile=stop)
    assert done.returncode == 128 + number, done.stdout
    assert done.stdout.count("interrupted; continue with: graphlossy train --resume") == 1
    assert not tracebacks(done.stdout)
    done_so_far = len(lines_of(folder))
    assert 3 < done_so_far < 2 * epochs
    result = CliRunner().invoke(main, ["train", "--resume", str(folder), "--quiet"])
    assert result.exit_code == 0, result.output
    lines = lines_of(folder)
    for scheme in ("baseline", "2-bit"):
        assert [line["epoch"] for line in lines if line["run"] == scheme] == list(range(1, epochs + 1))


def children(pid):
    """The processes that this one has started, by their numbers."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
    return sorted(child for child, parent in parents.items() if parent == pid)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_worker_killed_with_9_under_the_command_torchrun(trained, tmp_path) -> None:
    """Without --out: the run folder has torchrun's run id in its name, so that new workers find it."""
    command = ["--dataset", trained[1], *SMALL, "--seeds", 1, "--epochs", 60, "--quiet", "--checkpoint-seconds", 0]

    def kill(process):
        end = time.monotonic() + 90
        while time.monotonic() < end and process.poll() is None:
            found = list(tmp_path.glob("runs/*/metrics.jsonl"))
            if found and len(found[0].read_text().splitlines()) > 9:
                break
            time.sleep(0.02)
        os.kill(children(process.pid)[-1], signal.SIGKILL)

    done = jobs.launch("cli", tmp_path, restarts=1, command=True, arguments=chain([command]), meanwhile=kill)
    assert done.returncode == 0, done.stdout
    assert jobs.launch("cli", tmp_path, arguments=chain([[*command, "--out", "whole"]])).returncode == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert lines_of(folder) == lines_of(tmp_path / "whole")
