"""``graphlossy plan``."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from graphlossy.cli import main


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", *arguments])


def test_what_fits() -> None:
    done = call("--dataset", "ogbn-arxiv", "--model", "sage", "--memory", "1GiB")
    assert done.exit_code == 0, done.output
    assert "ogbn-arxiv" in done.output and "compress 2 bits" in done.output and "most nodes in 1.0 GiB" in done.output
    assert "fit; float32 would need" in done.output


def test_no_arguments_plan_the_embedded_graph() -> None:
    done = call()
    assert done.exit_code == 0 and "wordnet-verbs" in done.output and "13,767 nodes" in done.output


def test_json() -> None:
    sizes = ["--nodes", "5000", "--edges", "20000", "--features", "32", "--classes", "4"]
    done = call(*sizes, "--bits", "4,1", "--memory", "1GiB", "--json")
    found = json.loads(done.output)
    assert [row["scheme"] for row in found["schemes"]] == [
        "float32", "bf16 autocast", "checkpoint", "compress 4 bits", "compress 1 bit",
    ]  # fmt: skip
    assert found["memory_bytes"] == 2**30 and all(row["fits"] for row in found["schemes"])
    assert found["schemes"][0]["largest"]["nodes"] > 5000


def test_nothing_fits() -> None:
    done = call("--dataset", "ogbn-products", "--memory", "10MiB", "--bits", "2")
    assert done.exit_code == 0 and "nothing fits; the least is" in done.output


def test_help_has_examples() -> None:
    done = call("--help")
    assert done.exit_code == 0 and "graphlossy plan --dataset ogbn-products" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "ogbn-arxif"], "no data set 'ogbn-arxif'"),
        (["--nodes", "10"], "--edges, --features, --classes"),
        (["--memory", "8 apples"], "8 apples"),
        (["--memory", "-1GiB"], "-1GiB"),
        (["--bits", "5"], "bits must be 1, 2, 3, 4 or 8, got 5"),
        (["--bits", "two"], "expected numbers such as 2"),
        (["--model", "gnc"], "gcn"),
        (["--layers", "0"], "layers"),
        (["--nodes", "0", "--edges", "1", "--features", "1", "--classes", "2"], "num_nodes must be at least 1"),
        (["--optimizer", "lion"], "lion"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = call(*arguments)
    assert done.exit_code == 2 and message in done.output
    assert "Traceback" not in done.output
