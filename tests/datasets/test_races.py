"""Processes that make the same thing at the same time, and what none of them may break."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from graphlossy.datasets import DatasetError, load, prepare, write_ogb
from graphlossy.datasets import _converted as converted_module
from graphlossy.datasets import _write_ogb as write_module
from graphlossy.datasets._converted import converted
from graphlossy.datasets._manifest import MANIFEST, read_manifest, write_manifest


def test_another_process_writes_the_stand_in_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, seen = write_module._write, []

    def overtaken(made: Path, *arguments):
        monkeypatch.setattr(write_module, "_write", write)
        monkeypatch.setattr(os, "getpid", lambda: 1)  # another process, which is alive
        seen.append(write_ogb("synth-arxiv", tmp_path, 0.003))
        monkeypatch.undo()
        return write(made, *arguments)

    monkeypatch.setattr(write_module, "_write", overtaken)
    folder = prepare("synth-arxiv", tmp_path, scale=0.003)
    assert [folder] == seen and load(folder).num_nodes == 508
    assert os.listdir(tmp_path) == [folder.name]
    monkeypatch.setattr(write_module, "_there", lambda folder: "it is there")
    with pytest.raises(DatasetError, match="it is there"):
        write_ogb("synth-arxiv", tmp_path, 0.003)


def writer(text: str):
    def write(made: Path) -> dict[str, str]:
        (made / "file").write_text(text)
        return {"text": text}

    return write


@pytest.mark.parametrize("old", [None, "stale", "half"])
def test_another_process_converts_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str | None) -> None:
    now, place = {"source": [1]}, tmp_path / "graphlossy" / "part"
    if old:
        converted(tmp_path, "part", {"source": [0]} if old == "stale" else now, writer(old))
    if old == "half":
        (place / "file").write_text("")
    check, calls = converted_module._kept, []

    def kept(part: Path, sources: dict) -> dict | None:
        found = check(part, sources)
        calls.append(part)
        if len(calls) == 3:  # the last look before the finished part is put into its place
            monkeypatch.setattr(converted_module, "_kept", check)
            monkeypatch.setattr(os, "getpid", lambda: 1)
            inode.append(converted(tmp_path, "part", now, writer("first"))[0].stat().st_ino)
            monkeypatch.undo()
        return found

    inode: list[int] = []
    monkeypatch.setattr(converted_module, "_kept", kept)
    folder, _ = converted(tmp_path, "part", now, writer("second"))
    assert folder == place and check(place, now) is not None and os.listdir(place.parent) == ["part"]
    # What the other process may have opened by now is still there, and not what came second.
    assert [place.stat().st_ino] == inode and (place / "file").read_text() == "first"


def test_the_place_beside_a_read_only_folder_is_made_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHLOSSY_DATA", str(tmp_path / "data"))
    converted(tmp_path / "graph", "part", {}, writer("text"))
    assert not (tmp_path / "data").exists()


def test_a_half_written_manifest_of_another_process_is_none_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / f".{MANIFEST}.part{os.getpid() + 1}").write_text("{")
    write_manifest(tmp_path, "name", {})
    assert list(read_manifest(tmp_path)["files"]) == ["file"]
