"""The folder of a run: appended, locked, repaired where it was torn, refused where it is damaged or another's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphlossy.outliers.runner import BenchmarkError, Results
from graphlossy.outliers.runner.grid import Trial
from graphlossy.outliers.runner.records import RunFolder, latest, read_records
from graphlossy.outliers.runner.trial import new_record

SETTINGS = {"seed": 0, "protocol": "bond", "threads": 1, "options": {}, "titles": {"lof": "LOF"}, "versions": {}}
FACTS = {"nodes": 5, "edges": 4, "features": 2, "outliers": 1, "types": {}, "note": None, "fingerprint": "a"}


def record(trial: int = 0, **figures: Any) -> dict[str, Any]:
    return new_record(Trial("toy", "toy", "lof", "native", trial, 1), figures.pop("status", "done"), **figures)


def test_what_is_added_is_there_again(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "deep" / "run", SETTINGS) as folder:
        folder.learn("toy", FACTS)
        folder.add(record(0, auc=0.5), np.arange(5.0))
        folder.add(record(1, status="failed", reason="no"))
    with RunFolder(tmp_path / "deep" / "run", {**SETTINGS, "titles": {"if": "IF"}}) as folder:
        assert [r["trial"] for r in folder.records] == [0, 1] and folder.facts == {"toy": FACTS}
        folder.add(record(1, auc=0.7))
    results = Results.read(tmp_path / "deep" / "run")
    assert [(r["trial"], r["auc"]) for r in results.records] == [(0, 0.5), (1, 0.7)]  # the later one counts
    assert results.titles == {"lof": "LOF", "if": "IF"} and results.datasets == {"toy": FACTS}
    assert repr(results) == "Results(2 trials: 2 done)"
    assert np.load(tmp_path / "deep" / "run" / "scores" / "toy-lof-native-0.npy").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_last_line_is_dropped_and_nothing_else(tmp_path: Path, cut: int) -> None:
    with RunFolder(tmp_path, SETTINGS) as folder:
        folder.learn("toy", FACTS)
        folder.add(record(0))
        folder.add(record(1))
    file = tmp_path / "trials.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    assert len(read_records(tmp_path)) == 1 and file.read_bytes() == whole[:-cut]  # reading changes nothing
    with RunFolder(tmp_path, SETTINGS) as folder:
        assert [r["trial"] for r in folder.records] == [0]
        folder.add(record(1))
    assert file.read_bytes() == whole


@pytest.mark.parametrize("line", [b"nonsense\n", b"{}\n", b"[1]\n", b'{"dataset": "toy"}\n', b"\xff\xfe\n"])
def test_a_damaged_line_is_named_and_left_alone(tmp_path: Path, line: bytes) -> None:
    with RunFolder(tmp_path, SETTINGS) as folder:
        folder.add(record(0))
    file = tmp_path / "trials.jsonl"
    content = file.read_bytes() + line + json.dumps(record(1)).encode() + b"\n"
    file.write_bytes(content)
    for use in (lambda: RunFolder(tmp_path, SETTINGS), lambda: Results.read(tmp_path)):
        with pytest.raises(BenchmarkError, match="line 2 is no record of a trial: .*; take that line out"):
            use()
    assert file.read_bytes() == content


WRONG = [
    *((name, value) for name in ("dataset", "method", "engine") for value in (["x"], None, 3)),
    *(("trial", value) for value in ("0", -1, 0.0, True, None)),
    *(("status", value) for value in ("ready", ["done"], None)),
    *(("auc", value) for value in ("x", float("nan"), True, [0.5])),
    *((name, float("inf")) for name in ("ap", "recall", "seconds", "epoch_seconds")),
    *((name, "1") for name in ("peak_bytes", "saved_bytes", "plain_bytes")),
    *(("by_type", value) for value in (None, [], {"structural": 0.5}, {"structural": {"auc": "x"}})),
    ("params", None),
    ("reason", ["x"]),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_record_of_wrong_content_is_named(tmp_path: Path, name: str, value: Any) -> None:
    with RunFolder(tmp_path, SETTINGS) as folder:
        folder.add(record(0, by_type={"structural": {"auc": 0.5, "ap": None, "recall": 1}}))
        with pytest.raises(BenchmarkError, match=f"the record of .* cannot be kept: its {name} is "):
            folder.add({**record(1), name: value})
    file = tmp_path / "trials.jsonl"
    whole = file.read_text()
    file.write_text(whole + json.dumps({**record(1), name: value}) + "\n")
    with pytest.raises(BenchmarkError, match=f"line 2 is no record of a trial: its {name} is "):
        Results.read(tmp_path)
    file.write_text(whole + json.dumps({k: v for k, v in record(1).items() if k != name}) + "\n")
    with pytest.raises(BenchmarkError, match=f"line 2 is no record of a trial: it has no {name};"):
        Results.read(tmp_path)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"auc": 1' + "0" * 5000 + "}", "\r"])
def test_lines_that_no_parser_takes(tmp_path: Path, line: str) -> None:
    RunFolder(tmp_path, SETTINGS).close()
    (tmp_path / "trials.jsonl").write_bytes(f"{line}\n{json.dumps(record(0))}\n".encode())
    with pytest.raises(BenchmarkError, match="line 1 is no record of a trial: it is no JSON"):
        RunFolder(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"protocol": None}, "its protocol is None"),
        ({"protocol": "x"}, "its protocol is 'x'"),
        ({"protocol": ["bond"]}, "its protocol is"),
        ({"seed": "0"}, "its seed is '0'"),
        ({"threads": 0}, "its threads is 0"),
        ({"options": {"*": 3}}, "its options is"),
        ({"titles": {"lof": 3}}, "its titles is"),
        ({"datasets": 5}, "its datasets is 5"),
        ({"datasets": {"a": {}}}, "of data set a: it has no nodes"),
        ({"datasets": {"a": 5}}, "its datasets is"),
        ({"datasets": {"a": {**FACTS, "outliers": "x"}}}, "of data set a: its outliers is 'x'"),
        ({"datasets": {"a": {**FACTS, "types": {"x": None}}}}, "of data set a: its types is"),
        ({"datasets": {"a": {**FACTS, "fingerprint": None}}}, "of data set a: its fingerprint is None"),
        ({"datasets": {}}, None),
    ],
)
def test_damaged_settings_are_told(tmp_path: Path, wrong: dict[str, Any], said: str | None) -> None:
    with RunFolder(tmp_path, SETTINGS) as folder:
        folder.learn("toy", FACTS)
        folder.add(record(0))
    file = tmp_path / "run.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({**whole, **wrong}))
    with pytest.raises(BenchmarkError, match=f"run.json is damaged: {said or 'it does not say which graph toy is'}"):
        RunFolder(tmp_path, SETTINGS)
    if said is not None:
        with pytest.raises(BenchmarkError, match="run.json is damaged"):
            Results.read(tmp_path)
        for name in wrong:
            file.write_text(json.dumps({k: v for k, v in whole.items() if k != name}))
            with pytest.raises(BenchmarkError, match=f"run.json is damaged: it has no {name}"):
                Results.read(tmp_path)


def test_records_whose_settings_are_lost_are_left_alone(tmp_path: Path) -> None:
    with RunFolder(tmp_path, SETTINGS) as folder:
        folder.learn("toy", FACTS)
        folder.add(record(0))
    (tmp_path / "run.json").unlink()
    with (tmp_path / "trials.jsonl").open("ab") as file:
        file.write(b"torn")
    before = (tmp_path / "trials.jsonl").read_bytes()
    with pytest.raises(BenchmarkError, match="holds records of trials .1. and no run.json, .*give another --out"):
        RunFolder(tmp_path, {**SETTINGS, "seed": 5})
    assert (tmp_path / "trials.jsonl").read_bytes() == before and not (tmp_path / "run.json").exists()


def test_settings_without_a_record_do_not_bind(tmp_path: Path) -> None:
    with RunFolder(tmp_path, {**SETTINGS, "seed": 5, "options": {"*": {"bits": 2}}}) as folder:
        folder.learn("toy", FACTS)
    (tmp_path / "trials.jsonl").write_bytes(b"torn")
    with RunFolder(tmp_path, SETTINGS) as folder:
        assert folder.facts == {} and folder.records == []
        folder.learn("toy", {**FACTS, "fingerprint": "b"})
        folder.learn("other", FACTS)
        folder.add(record(0))
    assert Results.read(tmp_path).settings["seed"] == 0
    with RunFolder(tmp_path, SETTINGS) as folder:
        folder.learn("other", {**FACTS, "fingerprint": "c"})  # no result is of the one that was called so
    with pytest.raises(BenchmarkError, match="holds a run with seed 0, not 5"):
        RunFolder(tmp_path, {**SETTINGS, "seed": 5})


def test_options_that_json_does_not_have(tmp_path: Path) -> None:
    tuples, lists = {"*": {"hidden": (8, 4)}}, {"*": {"hidden": [8, 4]}}
    with RunFolder(tmp_path, {**SETTINGS, "options": tuples}) as folder:
        folder.learn("toy", FACTS)
        folder.add(record(0))
    for same in (tuples, lists):
        RunFolder(tmp_path, {**SETTINGS, "options": same}).close()
    for value in (float("nan"), object(), np.arange(3)):
        with pytest.raises(BenchmarkError, match="options cannot be kept in .*give finite numbers, texts"):
            RunFolder(tmp_path / "new", {**SETTINGS, "options": {"*": {"x": value}}})


@pytest.mark.parametrize("value", [np.float32(0.5), object(), np.arange(2), float("-inf")])
def test_a_record_that_json_does_not_have_is_refused_and_the_rest_is_kept(tmp_path: Path, value: Any) -> None:
    with RunFolder(tmp_path, SETTINGS) as folder:
        folder.learn("toy", FACTS)
        folder.add(record(0))
        for figures in ({"auc": value}, {"params": {"x": value}}):
            with pytest.raises(BenchmarkError, match="the record of toy lof 1 cannot be kept: "):
                folder.add({**record(1), **figures})
        folder.add(record(2))
    assert [r["trial"] for r in read_records(tmp_path)] == [0, 2]


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("protocol", "fixed"), ("options", {"*": {"bits": 2}})])
def test_a_run_of_other_settings_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    with RunFolder(tmp_path, SETTINGS) as folder:
        folder.learn("toy", FACTS)
        folder.add(record(0))
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(BenchmarkError, match=f"holds a run with {name} .*give another --out"):
        RunFolder(tmp_path, {**SETTINGS, name: value})
    assert (tmp_path / "run.json").read_bytes() == before
    RunFolder(tmp_path, SETTINGS).close()  # the refusal has let go of the lock


def test_another_graph_of_the_same_name_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path, SETTINGS) as folder:
        folder.learn("toy", FACTS)
        with pytest.raises(BenchmarkError, match="results on toy are of another graph of 5 nodes"):
            folder.learn("toy", {**FACTS, "nodes": 6, "fingerprint": "b"})


def test_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from graphlossy.outliers.runner.records import RunFolder\n"
        f"try:\n    RunFolder(Path(sys.argv[1]), {SETTINGS!r})\nexcept ValueError as error:\n    print(error)"
    )
    with RunFolder(tmp_path, SETTINGS):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert "is in use by another process; wait until it is done" in done.stdout, done.stderr


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchmarkError, match="cannot write folder .*file.*: (Not a directory|File exists)"):
        RunFolder(tmp_path / "file", SETTINGS)
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(BenchmarkError, match="cannot write folder .*: Permission denied"):
            RunFolder(tmp_path / "locked" / "run", SETTINGS)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with RunFolder(tmp_path, SETTINGS) as folder:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(BenchmarkError, match="cannot write folder .*: No space left on device"):
            folder.add(record(0))


def test_what_is_no_folder_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="is not the folder of a run"):
        Results.read(tmp_path / "nowhere")
    RunFolder(tmp_path, SETTINGS).close()
    for text, said in (("{", "cannot read"), ("[]", "not of format 1"), ('{"format": 1}', "is damaged")):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(BenchmarkError, match=said):
            Results.read(tmp_path)


def test_without_a_folder_records_are_kept_in_memory() -> None:
    with RunFolder(None, SETTINGS) as folder:
        folder.learn("toy", FACTS)
        folder.add(record(0), np.arange(3))
        assert len(folder.records) == 1


def test_the_latest_of_each_trial_stays_in_its_place() -> None:
    found = latest([record(0, auc=0.1), record(1), record(0, auc=0.2)])
    assert [(r["trial"], r["auc"]) for r in found] == [(0, 0.2), (1, None)]
