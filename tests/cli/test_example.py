import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_trains_and_prints_what_it_saved(graph):
    command = [sys.executable, str(EXAMPLES / "train_graph.py"), "--dataset", str(graph), "--epochs", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    last = next(line for line in done.stdout.splitlines() if line.startswith("epoch  20"))
    assert float(last.split()[-1]) > 0.5
    assert "conv1.lin_l" in done.stdout and "relu" in done.stdout and "total" in done.stdout


def run(name, monkeypatch, tmp_path, *arguments):
    """The script in this process, as ``python examples/NAME`` would run it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


SHORT = ["--epochs", "2", "--runs", "1", "--device", "cpu", "--root", "data"]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("ogbn_arxiv.py", ["0.005"], ["ogbn-arxiv, gcn, full batch, 71.74 ± 0.29", "2-bit", "epoch    2"]),
        ("ogbn_products.py", ["0.001", "--sampler", "neighbor", "--batch-size", "64", "--schemes", "compressed"],
         ["ogbn-products, sage, neighbour sampling, 78.70 ± 0.36", "test accuracy"]),
        ("ogbn_proteins.py", ["0.004", "--sparsify", "degree:0.25", "--budget", "2MiB"],
         ["ogbn-proteins, sage, full batch, 77.68 ± 0.20", "test ROC-AUC", "of them to train on"]),
    ],
)  # fmt: skip
def test_an_ogb_script_trains_on_a_stand_in(name, arguments, words, monkeypatch, tmp_path, capsys, one_thread):
    run(name, monkeypatch, tmp_path, "--synthetic", *arguments, *SHORT, "--out", "run")
    out = capsys.readouterr().out
    for word in (*words, "synthetic stand-in: not comparable", "saved for backward", "report.html"):
        assert word in out
    assert "synthetic stand-in" in (tmp_path / "run" / "report.html").read_text()


def test_an_ogb_script_without_data_says_what_to_do(monkeypatch, tmp_path):
    def nothing(*args, **kwargs):
        from graphlossy.datasets import DatasetError

        raise DatasetError("ogbn-arxiv is not there: get it with ...")

    monkeypatch.setattr("graphlossy.datasets.load", nothing)
    with pytest.raises(SystemExit) as caught:
        run("ogbn_arxiv.py", monkeypatch, tmp_path, *SHORT)
    message = str(caught.value)
    assert "get it with" in message and "--synthetic" in message and "Traceback" not in message
    assert not (tmp_path / "runs").exists()


def test_an_ogb_script_names_a_wrong_setting(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="error: batch_size is for sampler"):
        run("ogbn_products.py", monkeypatch, tmp_path, "--batch-size", "7", *SHORT)
