"""``graphlossy plan``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import graphlossy
from graphlossy.cli import main
from graphlossy.train import build_model

SIZES = ["--nodes", "5000", "--edges", "20000", "--features", "32", "--classes", "4"]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", *arguments])


def test_what_fits() -> None:
    done = call("--dataset", "ogbn-arxiv", "--model", "sage", "--bits", "2", "--memory", "1GiB")
    assert done.exit_code == 0, done.output
    assert "ogbn-arxiv, 3-layer sage" in done.stdout and "most nodes in 1.0 GiB" in done.stdout
    assert "1.0 GiB: bf16 autocast, compress 2 bits fit; float32 would need 1.6 GiB" in done.stdout


def test_no_arguments_plan_the_embedded_graph() -> None:
    done = call()
    assert done.exit_code == 0 and "wordnet-verbs" in done.stdout and "13,767 nodes" in done.stdout
    assert all(scheme in done.stdout for scheme in ("float32", "checkpoint", "compress 8 bits", "compress 1 bit"))


def test_json_is_the_plan_of_the_same_model() -> None:
    options = ["--bits", "4,1", "--budget", "4MiB", "--memory", "1GiB", "--norm", "--hidden", "64", "--json"]
    found = json.loads(call(*SIZES, *options).stdout)
    names = ["float32", "bf16 autocast", "checkpoint", "compress 4 bits", "compress 1 bit", "budget 4.0 MiB"]
    assert [row["scheme"] for row in found["schemes"]] == names
    assert found["memory_bytes"] == 2**30 and all(row["fits"] for row in found["schemes"])
    assert found["schemes"][0]["largest"]["nodes"] > 5000 and found["schemes"][-1]["saved_bytes"] <= 4 * 2**20
    same = graphlossy.plan(
        build_model("gcn", 32, 64, 4, 3, 0.5), num_nodes=5000, num_edges=20000, num_features=32, num_classes=4,
        schemes=["compress 4 bits"],
    )  # fmt: skip
    for name in ("float32", "compress 4 bits"):
        row = next(row for row in found["schemes"] if row["scheme"] == name)
        assert row["saved_bytes"] == pytest.approx(same[name].saved_bytes, rel=0.01)
        assert row["total_bytes"] == pytest.approx(same[name].total_bytes, rel=0.01)


def test_a_file_and_autocast(graph: Path) -> None:
    done = call("--dataset", str(graph), "--model", "gat", "--hidden", "16", "--bits", "2", "--amp")
    assert done.exit_code == 0 and "240 nodes" in done.stdout and "bf16 autocast + compress 2 bits" in done.stdout


def test_sizes_take_the_place_of_the_data_sets() -> None:
    done = call("--dataset", "OGBN-proteins", "--nodes", "3000", "--edges", "20000", "--bits", "2", "--memory", "8GiB")
    assert "3,000 nodes, 20,000 edges" in done.stdout and "float32 fits, nothing has to be given up" in done.stdout


def test_nothing_fits_and_what_cannot_be_used_is_said() -> None:
    done = call("--dataset", "ogbn-products", "--adj", "csr", "--memory", "10MiB", "--bits", "2")
    assert done.exit_code == 0 and "nothing fits; the least is" in done.stdout
    assert "bf16 autocast left out: " in done.stdout
    assert not done.stderr


def test_help_has_examples() -> None:
    done = call("--help")
    assert done.exit_code == 0 and "graphlossy plan --dataset ogbn-products" in done.stdout
    assert all(f"--{word}" in done.stdout for word in ("dataset", "model", "memory", "bits", "budget", "json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "ogbn-arxif"], "no data set 'ogbn-arxif'; did you mean 'ogbn-arxiv'?"),
        (["--dataset", "wordnet"], "wordnet-verbs"),
        (["--dataset", "no/such/file.npz"], "no/such/file.npz"),
        (["--nodes", "10"], "--edges, --features, --classes"),
        (["--memory", "8 apples"], "8 apples"),
        (["--memory", "-1GiB"], "-1GiB"),
        (["--memory", "0"], "--memory must be"),
        (["--budget", "lots"], "lots"),
        (["--budget", "0"], "--budget must be a positive size"),
        ([*SIZES, "--hidden", "16777216"], "not enough memory"),
        (["--bits", "5"], "bits must be 1, 2, 3, 4 or 8, got 5"),
        (["--bits", "two"], "expected numbers such as 2"),
        (["--model", "gnc"], "gcn"),
        (["--model", "gat", "--hidden", "30"], "heads"),
        (["--layers", "0"], "layers"),
        (["--nodes", "0", "--edges", "1", "--features", "1", "--classes", "2"], "'--nodes': 0"),
        ([*SIZES, "--train-nodes", "5001"], "--train-nodes is 5001, but there are only 5000 nodes"),
        (["--optimizer", "lion"], "lion"),
        (["--nodes", "many"], "many"),
        (["extra"], "extra"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = call(*arguments)
    assert done.exit_code == 2 and not done.stdout
    assert message in done.stderr and done.stderr.count("\n") == 1 and done.stderr.startswith("graphlossy: error: ")


def test_a_budget_that_is_too_small_says_what_would_do() -> None:
    done = call(*SIZES, "--budget", "10", "--bits", "2")
    assert done.exit_code == 2 and not done.stdout and done.stderr.count("\n") == 1
    need = re.search(r"--budget 10 cannot be met: at least (\d+) bytes", done.stderr)
    assert need is not None, done.stderr
    done = call(*SIZES, "--budget", need[1], "--bits", "2", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["schemes"][-1]["saved_bytes"] <= int(need[1])


def test_brackets_in_a_name_are_text(tmp_path: Path, write_graph: Callable[[Path], Path]) -> None:
    graph = write_graph(tmp_path / "[bold]toy.npz")
    done = call("--dataset", str(graph), "--hidden", "8", "--bits", "2")
    assert done.exit_code == 0, done.output
    assert "[bold]toy.npz" in "".join(done.stdout.split())
