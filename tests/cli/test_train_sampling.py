"""Mini-batches, thinned graphs and presets on the command line."""

import json

import pytest
from click.testing import CliRunner

from graphlossy.cli import main

SMALL = ["--layers", "2", "--hidden", "128", "--seeds", "1", "--epochs", "3", "--device", "cpu", "--threads", "1"]


def run(*arguments):
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def summary_of(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sampler", "neighbor", "--batch-size", "50", "--num-neighbors", "4,-1"],
        ["--sampler", "saint-walk", "--batch-size", "60", "--walk-length", "2", "--model", "sage"],
        ["--sampler", "cluster", "--num-parts", "4", "--batch-size", "2"],
        ["--sampler", "sparsify", "--sparsify", "degree:0.5", "--model", "gin"],
        ["--sparsify", "random:0.5", "--sparsify-eval", "--adj", "csr"],
        ["--sparsify", "k-neighbor:0.5", "--no-reweight", "--model", "sage", "--eval-batch", "100"],
    ],
    ids=lambda arguments: "-".join(arguments[1:3]),
)
def test_every_way_to_train_on_less(arguments, graph, tmp_path):
    summary = summary_of(run("--dataset", graph, "--out", tmp_path / "run", *SMALL, *arguments, "--json"))
    baseline, low = summary["schemes"]
    assert baseline["status"] == low["status"] == "done" and low["saved_bytes"] < baseline["saved_bytes"]
    again = run("--resume", tmp_path / "run", "--json")
    assert summary_of(again) == summary


def test_what_is_trained_on_is_said(graph, tmp_path):
    result = run("--dataset", graph, "--out", tmp_path / "run", *SMALL, "--sparsify", "degree:0.5", "--sampler",
                 "neighbor", "--batch-size", "60")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "degree:0.5: " in result.stderr and "edges kept" in result.stderr
    assert "neighbor: 2 batches an epoch" in result.stderr


def test_a_preset_and_what_is_given_instead(tmp_path):
    arguments = ["--dataset", "synth-arxiv", "--scale", "0.004", "--preset", "ogb", "--epochs", "2", "--seeds", "1"]
    result = run(*arguments, "--out", tmp_path / "run", "--root", tmp_path, "--device", "cpu", "--json")
    summary = summary_of(result)
    settings = summary["settings"]
    assert (settings["hidden"], settings["epochs"], settings["adj"], settings["seeds"]) == (256, 2, "csr", 1)
    assert summary["data"]["synthetic"] and summary["data"]["reference"] == "ogbn-arxiv"
    assert summary["reference"]["test"] == 0.7174 and not summary["reference"]["comparable"]
    result = run("--resume", tmp_path / "run")
    assert result.exit_code == 0 and "(synthetic stand-in), gcn" in result.stdout
    assert "synthetic stand-in: not comparable" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "ogb"], ["preset ogb is for", "wordnet-verbs"]),
        (["--preset", "dgl", "--dataset", "ogbn-arxiv"], ["preset", "dgl"]),
        (["--sampler", "neighbour"], ["sampler", "neighbor"]),
        (["--sampler", "neighbor", "--num-neighbors", "5,x"], ["--num-neighbors", "5,x"]),
        (["--batch-size", "9"], ["batch_size is for sampler"]),
        (["--sparsify", "degree:2"], ["sparsify", "degree:2"]),
        (["--sparsify", "half"], ["sparsify", "half"]),
        (["--sparsify", "degree:0.5", "--amp", "--device", "cpu"], ["--amp", "--sparsify"]),
        (["--scale", "-1", "--dataset", "synth-arxiv"], ["scale", "-1"]),
        (["--scale", "0.5"], ["scale"]),
        (["--eval-every", "0"], ["eval_every"]),
    ],
)
def test_bad_settings(arguments, words, tmp_path):
    result = run(*arguments, "--out", tmp_path / "run")
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert result.stderr.startswith("graphlossy: error: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert not (tmp_path / "run").exists()
