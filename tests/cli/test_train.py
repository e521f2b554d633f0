import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from graphlossy.cli import main
from graphlossy.train import load_task

SMALL = ["--layers", "2", "--hidden", "16", "--seeds", "1", "--epochs", "3", "--device", "cpu", "--threads", "1"]


def run(*arguments):
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def refused(result, *words):
    """One clear line on stderr, nothing on stdout, exit code 2, no traceback."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("graphlossy: error: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    return True


def test_a_run_ends_with_the_table_and_the_place_of_the_report(graph, tmp_path):
    result = run("--dataset", graph, "--out", tmp_path / "run", *SMALL)
    assert result.exit_code == 0, result.output
    for words in ("test accuracy", "saved for backward", "peak during the step", "seconds per epoch", "2-bit"):
        assert words in result.stdout
    assert "report.html" in result.stdout and (tmp_path / "run" / "report.html").exists()
    assert "run folder" in result.stderr


def test_json_is_all_there_is_on_stdout(graph, tmp_path):
    result = run("--dataset", graph, "--out", tmp_path / "run", *SMALL, "--hidden", "64", "--json")
    assert result.exit_code == 0 and result.stderr == ""
    summary = json.loads(result.stdout)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    baseline, low = summary["schemes"]
    assert low["saved_bytes"] < baseline["saved_bytes"] and 0 < low["ratio"]["saved_bytes"] < 1


def test_quiet_leaves_only_the_table(graph, tmp_path):
    result = run("--dataset", graph, "--out", tmp_path / "run", *SMALL, "--quiet")
    assert result.exit_code == 0 and result.stderr == "" and "test accuracy" in result.stdout


def test_the_default_folder_names_data_and_model(graph, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run("--dataset", graph, "--model", "sage", *SMALL, "--quiet").exit_code == 0
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(folders) == 2 and all(name.startswith("toy-sage-2") for name in folders)


@pytest.mark.parametrize("model", ["gcn", "sage", "gat", "gcn2", "gin"])
@pytest.mark.parametrize("adj", ["edge_index", "csr"])
def test_every_model_on_either_adjacency(model, adj, graph, tmp_path):
    options = [*SMALL, "--epochs", "30", "--model", model, "--adj", adj, "--json"]
    result = run("--dataset", graph, "--out", tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    assert all(scheme["test_mean"] > 0.5 for scheme in json.loads(result.stdout)["schemes"])


def test_a_budget_is_kept(graph, tmp_path):
    result = run("--dataset", graph, "--out", tmp_path / "run", *SMALL, "--hidden", "64", "--budget", "60KiB", "--json")
    assert result.exit_code == 0, result.output
    baseline, low = json.loads(result.stdout)["schemes"]
    assert low["run"] == "budget-60KiB" and 0 < low["saved_bytes"] <= 60 * 1024 < baseline["saved_bytes"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "wordnet-verb"], ["wordnet-verbs"]),
        (["--dataset", "no/such/file.npz"], ["no/such/file.npz"]),
        (["--model", "gnn"], ["model", "gcn"]),
        (["--bits", "5"], ["bits", "1, 2, 3, 4 or 8", "5"]),
        (["--bits", "two"], ["--bits", "two"]),
        (["--epochs", "-3"], ["epochs", "-3"]),
        (["--epochs", "many"], ["--epochs", "many"]),
        (["--hidden", "0"], ["hidden"]),
        (["--lr", "-1"], ["lr"]),
        (["--dropout", "1.5"], ["dropout"]),
        (["--budget", "plenty"], ["budget", "plenty"]),
        (["--budget", "1MiB", "--bits", "2"], ["--bits or --budget"]),
        (["--device", "tpu"], ["device", "tpu"]),
        (["--schemes", "baseline,lossy"], ["schemes", "lossy"]),
        (["--adj", "dense"], ["adj", "dense"]),
        (["--split", "first"], ["--split", "first"]),
        (["--split", "99"], ["99"]),
        (["--device", "cpu", "--amp", "--adj", "csr"], ["--amp", "--adj csr"]),
        (["--resume", "no/such/run"], ["no/such/run"]),
        (["--budget", "1MiB", "--schemes", "baseline"], ["budget", "schemes"]),
        (["--checkpoint-seconds", "nan"], ["checkpoint_seconds", "nan"]),
        (["--hidden", "16777216"], ["not enough memory"]),
        (["--out", "a\0b"], ["--out", "name of a folder"]),
        (["--out", ""], ["--out", "name of a folder"]),
        (["--colour"], ["--colour"]),
        (["surplus"], ["surplus"]),
    ],
)
def test_bad_settings(arguments, words):
    assert refused(run(*arguments), *words)


def broken(arrays, name):
    if name == "nan":
        arrays["node_features"][3, 4] = np.nan
    elif name == "label":
        arrays["node_labels"][5] = -7
    elif name == "edge":
        arrays["edges"][2, 1] = 10_000
    elif name == "negative edge":
        arrays["edges"][2, 1] = -1
    elif name == "no training nodes":
        arrays["train_masks"][:] = False
    elif name == "no test nodes":
        arrays["test_masks"][:] = False
    elif name == "rows":
        arrays["node_labels"] = arrays["node_labels"][:-1]
    elif name == "missing":
        del arrays["edges"]
    return arrays


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("nan", "NaN"),
        ("label", "label"),
        ("edge", "edge"),
        ("negative edge", "edge"),
        ("no training nodes", "train"),
        ("no test nodes", "test"),
        ("rows", "label"),
        ("missing", "edges"),
    ],
)
def test_bad_data(name, word, arrays, tmp_path):
    np.savez(tmp_path / "bad.npz", **broken(arrays, name))
    assert refused(run("--dataset", tmp_path / "bad.npz", "--out", tmp_path / "run", *SMALL), word)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [0, 10, 4000])
def test_a_truncated_file(size, graph, tmp_path):
    graph.write_bytes(graph.read_bytes()[:size])
    assert refused(run("--dataset", graph, "--out", tmp_path / "run", *SMALL), "toy.npz")


def test_a_file_that_is_no_graph(tmp_path):
    (tmp_path / "notes.npz").write_text("not a graph")
    assert refused(run("--dataset", tmp_path / "notes.npz", *SMALL), "notes.npz")


def test_an_impossible_budget_says_what_would_do(graph, tmp_path):
    result = run("--dataset", graph, "--out", tmp_path / "run", *SMALL, "--budget", "100B")
    assert refused(result, "--budget 100B cannot be met", "KiB")
    assert not (tmp_path / "run").exists()
    least = re.search(r"give at least (\d+B)", result.stderr)[1]
    again = run("--dataset", graph, "--out", tmp_path / "run", *SMALL, "--budget", least, "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["schemes"][1]["saved_bytes"] <= int(least[:-1])


def test_a_folder_that_cannot_be_written(graph, tmp_path):
    (tmp_path / "file").write_text("x")
    assert refused(run("--dataset", graph, "--out", tmp_path / "file" / "run", *SMALL), "cannot write", "--out")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(graph, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert refused(run("--dataset", graph, "--out", tmp_path / "locked" / "run", *SMALL), "Permission denied")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_file_system_without_room_for_files(graph):
    assert refused(run("--dataset", graph, "--out", "/proc/run", *SMALL), "cannot write", "/proc/run")


def test_a_folder_in_use(graph, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    assert refused(run("--dataset", graph, "--out", tmp_path / "run", *SMALL), "not empty")
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_asked_for_and_absent(graph):
    assert refused(run("--dataset", graph, "--device", "cuda"), "cuda", "--device cpu")


def test_resume_refuses_other_settings(graph, tmp_path):
    assert run("--dataset", graph, "--out", tmp_path / "run", *SMALL, "--quiet").exit_code == 0
    assert refused(run("--resume", tmp_path / "run", "--lr", "0.1", "--weight-decay", "0"), "--lr", "--weight-decay")
    again = run("--resume", tmp_path / "run", "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout) == json.loads((tmp_path / "run" / "summary.json").read_text())


def test_a_graph_without_edges(arrays, tmp_path):
    arrays["edges"] = arrays["edges"][:0]
    np.savez(tmp_path / "empty.npz", **arrays)
    for adj in ("edge_index", "csr"):
        result = run("--dataset", tmp_path / "empty.npz", "--adj", adj, "--out", tmp_path / adj, *SMALL, "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["data"]["edges"] == 0


def test_brackets_in_names_are_text(write_graph, tmp_path):
    graph = write_graph(tmp_path / "[bold]toy.npz")
    result = run("--dataset", graph, "--out", tmp_path / "[red]run", *SMALL)
    assert result.exit_code == 0, result.output
    assert "[bold]toy" in result.stdout and "[bold]toy" in result.stderr
    assert str(tmp_path / "[red]run" / "report.html") in result.stdout and str(tmp_path / "[red]run") in result.stderr


def test_hints_can_be_pasted_into_a_shell(graph, tmp_path):
    folder = tmp_path / "my run"
    assert run("--dataset", graph, "--out", folder, *SMALL, "--quiet").exit_code == 0
    assert refused(run("--dataset", graph, "--out", folder, *SMALL), f"--resume '{folder}'")


def test_no_memory_for_any_scheme_is_a_failure(graph, tmp_path, monkeypatch):
    def hungry(self, measured):
        raise torch.OutOfMemoryError("tried to allocate 8 TiB")

    monkeypatch.setattr("graphlossy.train._run.Run._train", hungry)
    result = run("--dataset", graph, "--out", tmp_path / "run", *SMALL)
    assert result.exit_code == 2 and "out of memory" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("graphlossy: error: no run was finished")


def test_no_memory_for_the_data_is_one_line(graph, tmp_path, monkeypatch):
    def hungry(self):
        raise MemoryError

    monkeypatch.setattr("graphlossy.train.Task.fingerprint", hungry)
    assert refused(run("--dataset", graph, "--out", tmp_path / "run", *SMALL), "not enough memory for the data")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("how", ["--quiet", "--json"])
def test_output_that_cannot_be_written_leaves_the_run_whole(how, graph, tmp_path):
    command = [sys.executable, "-m", "graphlossy.cli", "train", "--dataset", graph, "--out", tmp_path / "run", *SMALL]
    with open("/dev/full", "w") as full:
        done = subprocess.run([*command, how], stdout=full, stderr=subprocess.PIPE, text=True, timeout=100)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("graphlossy: error: cannot write the output: ")
    assert (tmp_path / "run" / "report.html").exists()


def test_ctrl_c_while_the_data_are_loaded(graph, tmp_path, monkeypatch):
    def load(config, device):
        os.kill(os.getpid(), signal.SIGINT)
        return load_task(config, device)

    monkeypatch.setattr("graphlossy.train._experiment.load_task", load)
    result = run("--dataset", graph, "--out", tmp_path / "run", *SMALL, "--quiet")
    assert result.exit_code == 130 and result.stdout == ""
    assert result.stderr == "stopped before training began; nothing was written\n"
    assert not (tmp_path / "run").exists()
