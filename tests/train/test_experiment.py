import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from graphlossy.core import _memory
from graphlossy.train import Experiment, Interrupted, Observer, TrainConfig, TrainError
from graphlossy.train import _run as run_module

CONFIG = TrainConfig(dataset="toy", layers=2, hidden=16, epochs=6, seeds=2, device="cpu", threads=1)
TIMES = ("seconds", "evaluation_seconds", "peak_bytes")


class Crash(Observer):
    """Stands for a power cut after some epochs."""

    def __init__(self, after):
        self.left = after

    def epoch(self, line):
        self.left -= 1
        if not self.left:
            raise SystemExit("power cut")


def lines(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def weights(folder):
    return {
        path.name: torch.load(path, weights_only=True)
        for path in sorted((folder / "checkpoints").iterdir())
        if path.name != "last.pt"
    }


def garble(file):
    """Damages the middle of a file and leaves its length."""
    content = bytearray(file.read_bytes())
    content[100:110] = b"\xff" * 10
    file.write_bytes(content)


def same(a, b):
    return all(torch.equal(a[file]["model"][name], b[file]["model"][name]) for file in a for name in a[file]["model"])


@pytest.fixture
def whole(tmp_path, task):
    folder = tmp_path / "whole"
    return folder, Experiment(CONFIG, folder).run(task=task)


def test_without_proc_the_bytes_that_were_alive_stand_for_the_peak(monkeypatch, tmp_path, task):
    monkeypatch.setattr(_memory, "_CLEAR", tmp_path / "no" / "clear_refs")
    summary = Experiment(replace(CONFIG, epochs=2, seeds=1), tmp_path / "run").run(task=task)
    assert "saved" in summary["peak_measured_as"]
    assert all(scheme["peak_bytes"] >= scheme["saved_bytes"] > 0 for scheme in summary["schemes"])


def test_every_scheme_learns_and_the_folder_is_complete(whole):
    folder, summary = whole
    assert sorted(p.name for p in folder.iterdir()) == [
        "checkpoints", "config.json", "metrics.jsonl", "report.html", "summary.json",
    ]  # fmt: skip
    assert [(row["run"], row["seed"]) for row in lines(folder)[:2]] == [("baseline", 0), ("2-bit", 0)]
    assert len(lines(folder)) == 2 * 2 * 6
    assert sorted(weights(folder)) == [
        "2-bit-seed0.pt", "2-bit-seed1.pt", "baseline-seed0.pt", "baseline-seed1.pt",
    ]  # fmt: skip
    for scheme in summary["schemes"]:
        assert scheme["seeds"] == 2 and scheme["test_mean"] > 0.5 and scheme["seconds_per_epoch"] > 0
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_the_summary_follows_from_the_metrics(whole):
    folder, summary = whole
    for scheme in summary["schemes"]:
        tests = []
        for seed in (0, 1):
            rows = [row for row in lines(folder) if row["run"] == scheme["run"] and row["seed"] == seed]
            best = max(rows, key=lambda row: row["valid"])  # the first of equals
            tests.append(best["test"])
        mean = sum(tests) / 2
        assert scheme["test_mean"] == pytest.approx(mean)
        assert scheme["test_std"] == pytest.approx(((tests[0] - mean) ** 2 + (tests[1] - mean) ** 2) ** 0.5)
    baseline, low = summary["schemes"]
    assert low["ratio"]["saved_bytes"] == pytest.approx(low["saved_bytes"] / baseline["saved_bytes"])
    assert low["saved_bytes"] < baseline["saved_bytes"] / 3


def test_runs_of_one_seed_start_from_the_same_weights_and_masks(whole):
    first = [row for row in lines(whole[0]) if row["epoch"] == 1]
    for seed in (0, 1):
        losses = [row["loss"] for row in first if row["seed"] == seed]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # the forward pass is exact
    assert first[0]["loss"] != first[2]["loss"]


@pytest.mark.parametrize("after", [1, 5, 11, 12, 17])
def test_a_crashed_experiment_resumes_bit_for_bit(after, whole, tmp_path, task):
    folder = tmp_path / "cut"
    with pytest.raises(SystemExit):
        Experiment(CONFIG, folder, checkpoint_seconds=0).run(Crash(after), task=task)
    assert len(lines(folder)) == after
    summary = Experiment.resume(folder, checkpoint_seconds=0).run(task=task)
    assert lines(folder) == lines(whole[0])
    assert same(weights(folder), weights(whole[0]))
    for ours, theirs in zip(summary["schemes"], whole[1]["schemes"], strict=True):
        assert ours["test_mean"] == theirs["test_mean"] and ours["saved_bytes"] == theirs["saved_bytes"]


def test_lines_after_the_last_checkpoint_are_cut_off(whole, tmp_path, task):
    folder = tmp_path / "cut"
    with pytest.raises(SystemExit):
        Experiment(CONFIG, folder, checkpoint_seconds=1e9).run(Crash(16), task=task)  # one checkpoint: after seed 0
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"run": "half a li')
    Experiment.resume(folder).run(task=task)
    assert lines(folder) == lines(whole[0])


def test_a_crash_before_the_first_checkpoint_starts_over(whole, tmp_path, task):
    folder = tmp_path / "cut"
    with pytest.raises(SystemExit):
        Experiment(CONFIG, folder, checkpoint_seconds=1e9).run(Crash(3), task=task)
    assert not (folder / "checkpoints" / "last.pt").exists()
    Experiment.resume(folder).run(task=task)
    assert lines(folder) == lines(whole[0])


def test_a_finished_experiment_resumes_to_the_same_summary(whole, task):
    folder, summary = whole
    before = (folder / "metrics.jsonl").read_text()
    assert Experiment.resume(folder).run(task=task) == summary
    assert (folder / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_epoch_with_a_checkpoint(number, whole, tmp_path, task):
    class Press(Observer):
        heard = 0

        def epoch(self, line):
            if line["epoch"] == 3 and line["run"] == "baseline":
                os.kill(os.getpid(), number)

        def stopping(self):
            self.heard += 1

    folder, press = tmp_path / "cut", Press()
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        Experiment(CONFIG, folder, checkpoint_seconds=1e9).run(press, task=task)
    assert caught.value.signal_number == number and str(folder) in str(caught.value) and press.heard == 1
    assert signal.getsignal(number) is handler
    assert len(lines(folder)) == 5
    Experiment.resume(folder).run(task=task)
    assert lines(folder) == lines(whole[0])


def test_the_callers_random_numbers_and_settings_are_left_alone(tmp_path, task):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    threads = torch.get_num_threads()
    Experiment(replace(CONFIG, epochs=1, seeds=1), tmp_path / "run").run(task=task)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("model", ["sage", "gat", "gcn2", "gin"])
def test_other_models_resume_bit_for_bit_too(model, tmp_path, task):
    config = replace(CONFIG, model=model, seeds=1, epochs=4)
    Experiment(config, tmp_path / "a").run(task=task)
    with pytest.raises(SystemExit):
        Experiment(config, tmp_path / "b", checkpoint_seconds=0).run(Crash(5), task=task)
    Experiment.resume(tmp_path / "b").run(task=task)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_a_budget_resumes_bit_for_bit_too(tmp_path, task):
    config = replace(CONFIG, hidden=64, budget="100KiB", seeds=1, schemes=("compressed",))
    Experiment(config, tmp_path / "a").run(task=task)
    for after in (1, 2, 4):
        with pytest.raises(SystemExit):
            Experiment(config, tmp_path / f"b{after}", checkpoint_seconds=0).run(Crash(after), task=task)
        Experiment.resume(tmp_path / f"b{after}").run(task=task)
        assert lines(tmp_path / "a") == lines(tmp_path / f"b{after}")
    assert all(row["saved_bytes"] <= 100 * 1024 for row in lines(tmp_path / "a"))


def test_amp_trains(tmp_path, task):
    summary = Experiment(replace(CONFIG, amp=True, seeds=1), tmp_path / "run").run(task=task)
    assert all(scheme["test_mean"] > 0.5 for scheme in summary["schemes"])


def test_several_widths_are_compared(tmp_path, task):
    summary = Experiment(replace(CONFIG, bits=(8, 2), seeds=1, epochs=2), tmp_path / "run").run(task=task)
    plain, eight, two = (scheme["saved_bytes"] for scheme in summary["schemes"])
    assert plain > eight > two


def test_out_of_memory_in_the_baseline_is_a_result(tmp_path, task, monkeypatch):
    train = run_module.Run._train

    def hungry(self, measured):
        if not self.scheme.compressed and self.epoch == 1:
            raise torch.OutOfMemoryError("tried to allocate 8 GiB")
        return train(self, measured)

    monkeypatch.setattr(run_module.Run, "_train", hungry)
    summary = Experiment(CONFIG, tmp_path / "run").run(task=task)
    baseline, low = summary["schemes"]
    assert baseline["status"] == "out of memory" and baseline["test_mean"] is None
    assert low["status"] == "done" and low["seeds"] == 2 and low["ratio"]["test_mean"] is None
    assert "out of memory" in (tmp_path / "run" / "report.html").read_text()


def test_other_runtime_errors_are_not_hidden(tmp_path, task, monkeypatch):
    def broken(self, measured):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(run_module.Run, "_train", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        Experiment(CONFIG, tmp_path / "run").run(task=task)


def test_a_diverged_loss_says_what_to_do(tmp_path, task):
    with pytest.raises(TrainError, match="lower --lr"):
        Experiment(replace(CONFIG, norm=False, lr=1e30), tmp_path / "run").run(task=task)


def test_changed_data_are_noticed(tmp_path, task):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit):
        Experiment(CONFIG, folder, checkpoint_seconds=0).run(Crash(2), task=task)
    task.x[0, 0] += 1
    with pytest.raises(TrainError, match="changed since"):
        Experiment.resume(folder).run(task=task)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "not a run folder"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot read"),
        (lambda folder: (folder / "config.json").write_text('{"settings": {"epochs": -1}}'), "epochs"),
        (lambda folder: (folder / "metrics.jsonl").write_text(""), "shorter than its checkpoint"),
        (lambda folder: (folder / "checkpoints" / "last.pt").write_bytes(b"\x80"), "cannot read checkpoint"),
        (
            lambda folder: shutil.copy(folder / "checkpoints" / "2-bit-seed0.pt", folder / "checkpoints" / "last.pt"),
            "no checkpoint to resume",
        ),
        (lambda folder: garble(folder / "metrics.jsonl"), "metrics.jsonl is damaged"),
    ],
)
def test_a_damaged_run_folder_is_one_line(damage, words, whole, task):
    damage(whole[0])
    with pytest.raises(TrainError) as caught:
        Experiment.resume(whole[0]).run(task=task)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path, task):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit):
        Experiment(CONFIG, folder, checkpoint_seconds=0).run(Crash(2), task=task)
    text = (folder / "config.json").read_text()
    for old, new in (('"hidden": 16', '"hidden": 32'), ('"model": "gcn"', '"model": "gin"')):
        (folder / "config.json").write_text(text.replace(old, new))
        with pytest.raises(TrainError, match=r"config.json was changed since the run was begun \((hidden|model)\)"):
            Experiment.resume(folder).run(task=task)
    assert not (folder / "summary.json").exists()


def test_a_finished_run_is_not_published_under_other_settings(whole, task):
    folder = whole[0]
    before = (folder / "summary.json").read_bytes()
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"model": "gcn"', '"model": "gin"'))
    with pytest.raises(TrainError, match=r"\(model\)"):
        Experiment.resume(folder).run(task=task)
    assert (folder / "summary.json").read_bytes() == before


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path, whole, task):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TrainError, match="choose another --out"):
        Experiment(CONFIG, tmp_path).run(task=task)
    with pytest.raises(TrainError, match="--resume"):
        Experiment(CONFIG, whole[0]).run(task=task)
    assert (tmp_path / "notes.txt").read_text() == "mine"
