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
        with pytest.raises(BenchmarkError, match="line 2 is no record of a trial; take that line out"):
            use()
    assert file.read_bytes() == content


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("protocol", "fixed"), ("options", {"*": {"bits": 2}})])
def test_a_run_of_other_settings_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    RunFolder(tmp_path, SETTINGS).close()
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
