"""``graphlossy sparsify``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from graphlossy.cli import main
from graphlossy.datasets import load
from graphlossy.sparsify import METHODS, degree_sparsify


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["sparsify", *map(str, arguments)])


def test_the_embedded_graph() -> None:
    done = call("--ratio", 0.5)
    assert done.exit_code == 0, done.output
    assert "wordnet-verbs, degree, ratio 0.5, draws " in done.stdout and "unbiased" in done.stdout
    assert "13,767 nodes" in done.stdout and "degree      nodes before -> after" in done.stdout


def test_json_is_what_the_function_gives(graph: Path) -> None:
    found = json.loads(call("--dataset", graph, "--ratio", 0.4, "--seed", 3, "--json").stdout)
    data = load(graph)
    edges, weight = degree_sparsify(data.edge_index, data.num_nodes, ratio=0.4, seed=3)
    assert found["report"]["edges_after"] == edges.shape[1] and found["facts"]["draws"] > 0
    assert found["report"]["weight_total_after"] == pytest.approx(float(weight.sum()))
    assert found["unbiased"] and found["target"] == {"ratio": 0.4} and found["report"]["spectral_epsilon"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method(graph: Path, method: str) -> None:
    found = json.loads(call("--dataset", graph, "--method", method, "--ratio", 0.6, "--json", "--no-spectral").stdout)
    assert abs(found["report"]["share"] - 0.6) < 0.05 and found["unbiased"] == METHODS[method].unbiased
    assert found["report"]["eigenvalues"] is None
    assert not json.loads(
        call("--dataset", graph, "--method", method, "--ratio", 0.6, "--no-reweight", "--json").stdout
    )["unbiased"]


def test_the_folder_is_read_again(graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "thin"
    done = call("--dataset", graph, "--ratio", 0.5, "--out", out, "--picture", tmp_path / "degrees.png")
    assert done.exit_code == 0, done.output
    assert str(out) in done.stdout and (tmp_path / "degrees.png").stat().st_size > 1000
    data, thin = load(graph, split=None), load(out, split=None)
    edges, weight = degree_sparsify(data.edge_index, data.num_nodes, ratio=0.5, seed=0)
    expected = torch.sparse_coo_tensor(edges, weight, (240, 240)).to_dense()
    assert torch.equal(torch.sparse_coo_tensor(thin.edge_index, thin.edge_weight, (240, 240)).to_dense(), expected)
    for name in ("x", "y", "train_mask", "val_mask", "test_mask"):
        assert torch.equal(thin[name], data[name])
    again = call("--dataset", out, "--ratio", 0.5, "--json")  # thinning what has weights
    assert again.exit_code == 0 and json.loads(again.stdout)["report"]["weight_total_before"] == pytest.approx(
        float(thin.edge_weight.sum())
    )
    plain = tmp_path / "plain"
    assert call("--dataset", graph, "--ratio", 0.5, "--no-reweight", "--out", plain).exit_code == 0
    assert "edge_weight" not in load(plain) and torch.equal(load(plain).edge_index, thin.edge_index)
    assert not (plain / "edge_weight.npy").exists()


def test_a_failed_write_leaves_nothing(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    done = call("--dataset", graph, "--ratio", 0.5, "--out", tmp_path / "deep" / "thin")
    assert done.exit_code == 2 and "No space left on device" in done.stderr
    assert not (tmp_path / "deep" / "thin").exists() and not list((tmp_path / "deep").iterdir())


def test_help_has_examples() -> None:
    done = call("--help")
    assert done.exit_code == 0 and "graphlossy sparsify --ratio 0.5" in done.stdout
    assert all(method in done.stdout for method in METHODS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give exactly one of ratio, epsilon, num_samples; got none"),
        (["--ratio", 0.5, "--epsilon", 1], "got ratio, epsilon"),
        (["--ratio", 1.5], "at most 1; got 1.5"),
        (["--ratio", 0], "above 0"),
        (["--epsilon", 0], "epsilon must be above 0"),
        (["--num-samples", -3], "at least 1; got -3"),
        (["--ratio", "half"], "half"),
        (["--method", "dspar", "--ratio", 0.5], "method must be one of 'degree'"),
        (["--method", "random", "--k", 3], "'random' takes ratio, got k=3.0"),
        (["--method", "local-degree", "--ratio", 0.01], "out of reach"),
        (["--method", "resistance", "--ratio", 0.5], "at most 5000"),
        (["--dataset", "wordnet", "--ratio", 0.5], "wordnet-verbs"),
        (["--dataset", "no/such.npz", "--ratio", 0.5], "no/such.npz"),
        (["--ratio", 0.5, "--picture", "degrees.txt"], "a picture's name ends in one of"),
        (["--ratio", 0.5, "--out", ""], "expected a path"),
        (["--ratio", 0.5, "--seed", "x"], "x"),
        (["--num-samples", 10**20], "num_samples must be at most"),
        (["--epsilon", 1e-5], "draws from 13767 nodes"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[object], message: str) -> None:
    done = call(*arguments)
    assert done.exit_code == 2 and not done.stdout
    assert message in done.stderr and done.stderr.count("\n") == 1 and done.stderr.startswith("graphlossy: error: ")


def test_a_folder_with_files_is_not_touched(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("words")
    done = call("--dataset", graph, "--ratio", 0.5, "--out", tmp_path / "full")
    assert done.exit_code == 2 and "no empty folder" in done.stderr
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["thesis.txt"]
