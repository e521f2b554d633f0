"""Real processes, real signals."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

TIMES = ("seconds", "evaluation_seconds", "peak_bytes")
SETTINGS = ["--layers", "2", "--hidden", "16", "--seeds", "2", "--epochs", "40", "--device", "cpu", "--threads", "1"]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


def start(*arguments):
    command = [sys.executable, "-m", "graphlossy.cli", "train", "--quiet", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def lines(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def wait_for_lines(folder, count):
    """Returns once the run has written ``count`` lines."""
    log, end = folder / "metrics.jsonl", time.monotonic() + 100
    while not log.exists() or log.read_bytes().count(b"\n") < count:
        assert time.monotonic() < end, "the run did not get that far"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, write_graph):
    """A graph and the folder of a run on it that nothing interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    graph = write_graph(folder / "toy.npz")
    code, _, err = finish(start("--dataset", graph, "--out", folder / "run", *SETTINGS))
    assert code == 0, err
    return graph, folder / "run"


def test_killed_and_resumed_gives_the_same_numbers(tmp_path, undisturbed):
    graph, whole = undisturbed
    folder = tmp_path / "killed"
    process = start("--dataset", graph, "--out", folder, *SETTINGS, "--checkpoint-seconds", "0")
    wait_for_lines(folder, 100)  # in the second seed
    process.send_signal(signal.SIGKILL)
    code, _, _ = finish(process)
    assert code == -signal.SIGKILL and not (folder / "summary.json").exists()
    cut = len(lines(folder))
    assert cut < 160
    code, out, err = finish(start("--resume", folder))
    assert code == 0, err
    assert lines(folder) == lines(whole)
    for name in ("test_mean", "test_std", "saved_bytes"):
        ours, theirs = (json.loads((path / "summary.json").read_text())["schemes"] for path in (folder, whole))
        assert [scheme[name] for scheme in ours] == [scheme[name] for scheme in theirs]


def test_ctrl_c_says_how_to_go_on(tmp_path, undisturbed):
    graph, whole = undisturbed
    folder = tmp_path / "stopped"
    process = start("--dataset", graph, "--out", folder, *SETTINGS)
    wait_for_lines(folder, 20)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130 and out == "" and f"graphlossy train --resume {folder}" in err and "Traceback" not in err
    assert len(lines(folder)) < 160
    code, _, err = finish(start("--resume", folder))
    assert code == 0, err
    assert lines(folder) == lines(whole)
