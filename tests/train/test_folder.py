"""The run folder under trouble: two processes, full disks, a folder taken in the same second, other directories."""

import errno
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from graphlossy.train import Experiment, Observer, TrainConfig, TrainError
from graphlossy.train import _checkpoint as checkpoint_module
from graphlossy.train import _experiment as experiment_module
from graphlossy.train import _folder as folder_module
from graphlossy.train._folder import RunFolder

CONFIG = TrainConfig(dataset="toy", layers=1, hidden=8, epochs=3, seeds=1, device="cpu", threads=1)


@pytest.mark.skipif(folder_module.fcntl is None, reason="no file locks here")
def test_a_folder_in_use_cannot_be_resumed(tmp_path, task):
    class Intruder(Observer):
        said = ""

        def epoch(self, line):
            if line["epoch"] == 2 and not self.said:
                before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
                with pytest.raises(TrainError) as caught:
                    Experiment.resume(tmp_path / "run").run(task=task)
                self.said = str(caught.value)
                assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before

    intruder = Intruder()
    summary = Experiment(CONFIG, tmp_path / "run", checkpoint_seconds=0).run(intruder, task=task)
    assert "in use by another process" in intruder.said
    assert all(run["status"] == "done" for run in summary["runs"])
    assert Experiment.resume(tmp_path / "run").run(task=task) == summary  # the lock is gone


@pytest.mark.parametrize("place", ["checkpoint", "log"])
def test_a_full_disk_is_one_line_and_loses_nothing(place, tmp_path, task, monkeypatch):
    folder = tmp_path / "run"

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Fill(Observer):
        def epoch(self, line):
            if line["epoch"] == 2:
                if place == "checkpoint":
                    monkeypatch.setattr(checkpoint_module.os, "fsync", full)
                else:
                    monkeypatch.setattr(RunFolder, "log", full)

    with pytest.raises(TrainError, match="cannot write run folder .*: No space left on device"):
        Experiment(CONFIG, folder, checkpoint_seconds=0).run(Fill(), task=task)
    monkeypatch.undo()
    assert not list(folder.rglob("*.tmp"))
    summary = Experiment.resume(folder).run(task=task)
    assert all(run["status"] == "done" for run in summary["runs"])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_closing_the_log_on_a_full_disk_hides_no_other_error(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder._metrics = open("/dev/full", "w", encoding="utf-8")
    with pytest.raises(OSError, match="No space left"):
        folder.log({"run": "baseline", "seed": 0})
    folder.close()


def test_default_folders_of_the_same_second_differ(tmp_path, task, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = Experiment(CONFIG), Experiment(CONFIG)  # neither has made its folder yet
    second.folder = RunFolder(first.folder.path)
    first.run(task=task)
    second.run(task=task)
    assert first.folder.path != second.folder.path
    assert all(experiment.folder.report_file.exists() for experiment in (first, second))


def test_a_folder_of_data_given_by_its_plain_name_is_found_from_elsewhere(tmp_path, monkeypatch):
    data = tmp_path / "mygraph"
    data.mkdir()
    rng = np.random.default_rng(0)
    np.save(data / "x.npy", rng.normal(size=(60, 5)).astype(np.float32))
    np.save(data / "y.npy", np.arange(60) % 3)
    np.save(data / "edge_index.npy", rng.integers(60, size=(2, 200)))
    monkeypatch.chdir(tmp_path)
    summary = Experiment(replace(CONFIG, dataset="mygraph"), tmp_path / "run").run()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Experiment.resume(tmp_path / "run").run() == summary


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_training_writes_nothing(number, tmp_path, task, monkeypatch):
    def load(config, device):
        os.kill(os.getpid(), number)
        return task

    monkeypatch.setattr(experiment_module, "load_task", load)
    with pytest.raises(KeyboardInterrupt):
        Experiment(CONFIG, tmp_path / "run").run()
    assert not (tmp_path / "run").exists()


def test_checkpoint_seconds_must_be_a_number(tmp_path):
    with pytest.raises(TrainError, match="checkpoint_seconds must be 0 or a positive number, got nan"):
        Experiment(CONFIG, tmp_path / "run", float("nan"))
