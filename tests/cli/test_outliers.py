"""``graphlossy outliers``: real small runs, tables, scores, and every mistake in one line."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from graphlossy.cli._outliers_options import jobs_of, options_of, statuses_of
from graphlossy.cli.outliers import QUICK, command

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 nodes, 30 of them with features and links of their own."""
    draw = np.random.default_rng(0)
    y = (draw.permutation(300) < 30).astype(np.int64)
    x = draw.normal(size=(300, 8)) + 2.0 * y[:, None]
    file = tmp_path_factory.mktemp("graphs") / "toy.npz"
    np.savez(file, x=x.astype(np.float32), edge_index=draw.integers(300, size=(2, 1500)), y=y)
    return file


@pytest.fixture(scope="module")
def study(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a deep method, a deterministic one and the leak rows."""
    folder = tmp_path_factory.mktemp("runs") / "study"
    arguments = ["--datasets", graph, "--methods", "lof,gcnae", "--trials", 2, "--set", "epoch=3", "--out", folder]
    done = call("run", *arguments)
    assert done.exit_code == 0, done.output
    assert "toy: 300 nodes" in done.stderr and f"report: {folder / 'report.html'}" in done.stdout
    assert "LOF" in done.stdout and "MaxRank" in done.stdout and "which needs no model" in done.stdout
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(command, [*map(str, arguments)])


def refused(*arguments: object) -> str:
    done = call(*arguments)
    assert done.exit_code == 2 and "Traceback" not in done.output and done.stdout == "", done.output
    return done.stderr


def test_records_table_report_and_compare(study: Path) -> None:
    records = [json.loads(line) for line in (study / "trials.jsonl").read_text().splitlines()]
    assert [(r["method"], r["trial"]) for r in records] == [
        ("degree", 0), ("norm", 0), ("maxrank", 0), ("copies", 0), ("random", 0), ("random", 1), ("lof", 0),
        ("gcnae", 0), ("gcnae", 1),
    ]  # fmt: skip
    for record in records:
        assert record["status"] == "done" and 0 <= record["auc"] <= 1 and 0 <= record["recall"] <= 1
        assert record["seconds"] > 0 and record["seed"] >= 0 and record["versions"]["torch"]
    deep = records[-1]
    assert deep["params"]["epoch"] == 3 and deep["params"]["lr"] in (0.1, 0.05, 0.01)
    assert deep["saved_bytes"] > 0 and deep["epoch_seconds"] > 0
    done = call("table", study, "--metric", "auc,seconds", "--format", "markdown")
    assert done.exit_code == 0 and done.stdout.count("| LOF |") == 2 and "| *MaxRank* |" in done.stdout
    lines = list(csv.reader(call("table", study, "--metric", "auc,seconds", "--format", "csv").stdout.splitlines()))
    assert [line[4] for line in lines] == ["metric"] + ["auc"] * 7 + ["seconds"] * 7  # one header, no blank line
    done = call("report", study, "--out", study / "again.html")
    assert done.exit_code == 0 and (study / "again.html").read_text() == (study / "report.html").read_text()
    assert "no cell of this run is in the paper's table" in refused("compare", study)


def test_the_same_command_again_runs_nothing_and_json_is_all_there_is(study: Path, graph: Path) -> None:
    before = (study / "trials.jsonl").read_bytes()
    arguments = ["--datasets", graph, "--methods", "lof,gcnae", "--trials", 2, "--set", "epoch=3", "--out", study]
    done = call("run", *arguments, "--json")
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert len(content["trials"]) == 9 and content["settings"]["protocol"] == "bond"
    assert content["datasets"]["toy"]["outliers"] == 30
    assert (study / "trials.jsonl").read_bytes() == before


def test_a_part_of_the_grid_leaves_the_report_of_the_whole(study: Path, graph: Path) -> None:
    """The folder's option, which LOF does not have, is that of its other methods."""
    before = (study / "report.html").read_text()
    arguments = ["--datasets", graph, "--methods", "lof", "--trials", 2, "--out", study]
    done = call("run", *arguments, "--set", "epoch=3")
    assert done.exit_code == 0 and "GCNAE" not in done.stdout, done.output
    assert "GCNAE" in before and (study / "report.html").read_text() == before
    assert "no method of this grid has the option epoch" in refused("run", *arguments, "--set", "epoch=4")


def test_scores_of_a_graph_of_ones_own(graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    done = call("score", graph, "--method", "gcnae", "--set", "epoch=3", "--contamination", 0.2, "--out", out)
    assert done.exit_code == 0 and "300 nodes, 60 above the threshold" in done.stdout, done.output
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [int(row["node"]) for row in rows] == list(range(300)) and sum(int(row["label"]) for row in rows) == 60
    for ending in ("npy", "json"):
        again = call("score", graph, "--method", "gcnae", "--set", "gcnae.epoch=3", "--out", tmp_path / f"s.{ending}")
        assert again.exit_code == 0, again.output
    scores = np.load(tmp_path / "s.npy").tolist()
    assert scores == json.loads((tmp_path / "s.json").read_text())["scores"]
    assert scores == pytest.approx([float(row["score"]) for row in rows])
    lof = call("score", graph, "--method", "LOF", "--out", out)
    assert lof.exit_code == 0 and len(out.read_text().splitlines()) == 301


def test_what_score_refuses(graph: Path, tmp_path: Path) -> None:
    assert "a file of scores ends in .csv, .npy, .json" in refused("score", graph, "--out", tmp_path / "s.txt")
    assert "did you mean gcnae" in refused("score", graph, "--method", "gcnea", "--out", tmp_path / "s.csv")
    assert "lof has no option epoch" in refused("score", graph, "--method", "lof", "--set", "epoch=3", "--out", "s.csv")
    assert "there is one method, lof" in refused("score", graph, "--method", "lof", "--set", "if.x=3", "--out", "s.csv")
    assert "cannot write" in refused("score", graph, "--method", "degree", "--out", tmp_path / "no" / "s.csv")
    assert "device must be 'cpu'" in refused("score", graph, "--set", "device=mps", "--out", tmp_path / "s.csv")
    assert "nowhere.npz" in refused("score", tmp_path / "nowhere.npz", "--out", tmp_path / "s.csv")
    np.savez(tmp_path / "nan.npz", x=np.full((5, 2), np.nan, np.float32), edge_index=np.zeros((2, 1), np.int64))
    assert "NaN" in refused("score", tmp_path / "nan.npz", "--method", "gcnae", "--out", tmp_path / "s.csv")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "dominnat"], "no method 'dominnat'; did you mean dominant?"),
        (["--datasets", ","], "expected names with commas"),
        (["--datasets", "books", "--set", "epoch"], "expected NAME=VALUE or METHOD.NAME=VALUE, got 'epoch'"),
        (["--datasets", "books", "--jobs", "many"], "expected a number of processes, auto, ray or ray:N, got 'many'"),
        (["--datasets", "books", "--memory-limit", "lots"], "memory_limit: 'lots' is not a size"),
        (["--datasets", "books", "--time-limit", "-1"], "time_limit must be a number of seconds above 0"),
        (["--datasets", "books", "--engine", "dgld"], "engine must be one of native"),
        (["--datasets", "books", "--retry", "done"], "expected some of failed, TLE, OOM, got 'done'"),
        (["--methods", "lof", "--bits", "2"], "no method of this grid has the option bits"),
        (["--methods", "dominant", "--set", "dominant.epoch=x"], "dominant: epoch must be a whole number, got 'x'"),
        (["--methods", "dominant", "--device", "gpu"], "dominant: device must be 'cpu', 'cuda' or 'cuda:0', got 'gpu'"),
    ],
)
def test_what_run_refuses(arguments: list[str], said: str, tmp_path: Path) -> None:
    assert said in refused("run", *arguments, "--out", tmp_path / "out") and not (tmp_path / "out").exists()


def test_what_the_others_refuse(tmp_path: Path, study: Path) -> None:
    for name in ("table", "report", "compare"):
        assert "is not the folder of a run" in refused(name, tmp_path)
    assert "metric must be one of auc" in refused("table", study, "--metric", "f1")
    assert "did you mean table?" in refused("tabel", study)
    assert "cannot write" in refused("report", study, "--out", tmp_path / "no" / "report.html")


def test_lists() -> None:
    done = call("methods", "--json")
    methods = {row["name"]: row for row in json.loads(done.stdout)["methods"]}
    assert methods["lof"]["seeded"] is False and "native" in methods["dominant"]["engines"] and len(methods) == 21
    assert (methods["scan"]["needs"], methods["lof"]["needs"], methods["random"]["needs"]) == (["edges"], ["x"], [])
    assert "AnomalyDAE" in call("methods").stdout and "needs" in call("methods").stdout
    rows = {row["name"]: row for row in json.loads(call("datasets", "--root", "nowhere", "--json").stdout)}
    assert rows["inj_wordnet"]["here"] == "embedded" and "books" in rows and "synth_N" in rows
    assert "inj_cora" in call("datasets", "--root", "nowhere").stdout


def test_help_has_examples() -> None:
    for name in ("", "run", "table", "report", "compare", "score", "datasets", "methods"):
        done = call(*([name] if name else []), "--help")
        assert done.exit_code == 0 and "Example" in done.stdout and "graphlossy outliers" in done.stdout


def test_help_says_what_a_run_without_arguments_does() -> None:
    text = " ".join(call("run", "--help").stdout.split())
    assert "files or folders. [default: inj_wordnet]" in text
    methods = f"{', '.join(QUICK['methods'][:-1])} and {QUICK['methods'][-1]}"
    assert methods in text and f"--trials {QUICK['trials']}, --set epoch={QUICK['options']['*']['epoch']}" in text
    assert "--jobs auto and --out runs/outliers-quick" in text


def test_values_of_options() -> None:
    context, option = click.Context(command), click.Option(["--x"])
    values = ("epoch=5", "dominant.lr=0.5", "lof.metric=cosine", "gaan.deep=true", "x=[1]")
    assert options_of(context, option, values) == {
        "*": {"epoch": 5, "x": "[1]"}, "dominant": {"lr": 0.5}, "lof": {"metric": "cosine"}, "gaan": {"deep": True}
    }  # fmt: skip
    assert jobs_of(context, option, "auto") == "auto" and jobs_of(context, option, "ray:3") == "ray:3"
    assert jobs_of(context, option, "4") == 4 and statuses_of(context, option, "tle,Failed") == ["TLE", "failed"]


def start(*arguments: object) -> subprocess.Popen[str]:
    # A process that is started in the background would ignore the signal.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listen}; from graphlossy.cli.outliers import command; command()"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, **pipes)


def wait_for_lines(file: Path, count: int) -> None:
    end = time.monotonic() + 200
    while not file.exists() or file.read_bytes().count(b"\n") < count:
        assert time.monotonic() < end, "the run did not get that far"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_and_taken_up_again(how: signal.Signals, graph: Path, tmp_path: Path) -> None:
    arguments = ["run", "--datasets", graph, "--methods", "gcnae", "--trials", 40, "--protocol", "fixed"]
    arguments += ["--set", "epoch=20", "--out", tmp_path / "run", "--quiet"]
    process = start(*arguments)
    file = tmp_path / "run" / "trials.jsonl"
    wait_for_lines(file, 3)
    process.send_signal(how)
    _, said = process.communicate(timeout=200)
    lines = file.read_bytes().split(b"\n")[:-1]
    assert len(lines) < 84
    if how == signal.SIGINT:
        assert process.returncode == 130 and "the same command goes on from there" in said and "Traceback" not in said
    else:
        assert process.returncode == -signal.SIGKILL
    again = start(*arguments)
    _, said = again.communicate(timeout=400)
    assert again.returncode == 0, said
    found = file.read_bytes().split(b"\n")[:-1]
    assert found[: len(lines)] == lines and len(found) == 84  # 40, 40 of random, 4 of what is deterministic
    keys = [tuple(json.loads(line)[name] for name in ("method", "trial")) for line in found]
    assert len(set(keys)) == 84


def test_what_a_user_may_get_wrong_is_one_line(graph: Path, tmp_path: Path) -> None:
    run = ["run", "--datasets", graph, "--methods", "gcnae", "--trials", 1, "--out", tmp_path / "run", "--quiet"]
    assert "seed is no option of a method; give the seed of the run" in refused(*run, "--set", "seed=3")
    assert "option lr must be a finite number" in refused(*run, "--set", "lr=NaN")
    assert not (tmp_path / "run" / "trials.jsonl").exists()
    score = ["score", graph, "--out", tmp_path / "a.csv"]
    assert "seed is no option" in refused(*score, "--set", "seed=3")
    assert "engine must be one of native" in refused(*score, "--engine", "nope")
    assert "there is no folder" in refused("score", graph, "--out", tmp_path / "no" / "a.csv")
    assert "needs more memory than there is" in refused(
        *score, "--set", "hid_dim=100000000000", "--method", "mlpae", "--set", "epoch=1"
    )
    done = call(*score, "--method", "GCNAE", "--set", "GCNAE.epoch=2")
    assert done.exit_code == 0 and (tmp_path / "a.csv").exists(), done.output


def test_a_method_that_fails_in_its_own_way_is_one_line(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, graph: object) -> None:
        raise KeyError("of another\nlibrary")

    monkeypatch.setattr("graphlossy.outliers.methods.degree.Degree._score", broken)
    said = refused("score", graph, "--method", "degree", "--out", tmp_path / "a.csv")
    assert "degree on" in said and "failed: KeyError: 'of another" in said and not (tmp_path / "a.csv").exists()


@pytest.mark.slow
def test_the_bare_command_runs_a_small_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("run")
    assert done.exit_code == 0 and "a quick look" in done.stderr, done.output
    folder = tmp_path / "runs" / "outliers-quick"
    records = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    assert {r["method"] for r in records} >= {*QUICK["methods"], "maxrank"}
    assert {r["status"] for r in records} == {"done"} and (folder / "report.html").stat().st_size > 10_000
    assert "DOMINANT" in done.stdout and "which needs no model" in done.stdout


@pytest.mark.slow
def test_nothing_done_ends_with_one(graph: Path, tmp_path: Path) -> None:
    run = ["run", "--datasets", graph, "--methods", "gcnae", "--trials", 1, "--set", "epoch=2", "--quiet"]
    assert call(*run, "--out", tmp_path / "well").exit_code == 0
    assert (
        call("run", "--datasets", graph, "--methods", "degree", "--quiet", "--out", tmp_path / "plain").exit_code == 0
    )
    done = call(*run, "--set", "gcnae.lr=1e30", "--out", tmp_path / "ill")
    assert done.exit_code == 1 and "none of the methods that were asked for was done" in done.stderr
