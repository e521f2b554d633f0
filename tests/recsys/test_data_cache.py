"""What is kept of encoded tables, and that memory does not grow with the rows."""

from __future__ import annotations

import gc
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pandas")

from graphlossy.recsys.data import CTRData, DataError, load
from graphlossy.recsys.data import _build as build_module
from graphlossy.recsys.data import _cache as cache_module
from graphlossy.recsys.data import _partition as partition_module
from graphlossy.recsys.data import _store as store_module
from graphlossy.recsys.data import _text as text_module

SCHEMA = {
    "columns": {"user": "token", "tags": "token_seq", "price": {"kind": "float", "transform": "log_standard"}},
    "label": "rating>=4",
    "time": "t",
}


def write(path: Path, rows: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    columns = rng.integers(0, 500, rows), rng.integers(0, 9, (rows, 2)), rng.random(rows), rng.integers(1, 6, rows)
    with open(path, "w") as stream:
        stream.write("user,tags,price,rating,t\n")
        for number, (user, tags, price, rating) in enumerate(zip(*columns, strict=True)):
            stream.write(f"u{user},a{tags[0]} a{tags[1]},{price:.3f},{rating},{number * 7919 % rows}\n")
    return path


def folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in (root / "recsys").iterdir() if entry.name != "checksums")


def same(first: CTRData, second: CTRData) -> bool:
    return all(
        np.array_equal(getattr(first, part).columns[name], getattr(second, part).columns[name])
        for part in ("train", "valid", "test")
        for name in ("user", "tags", "price", "label")
    )


@pytest.mark.parametrize("split", ["random", "time"])
def test_on_disk_and_in_memory_are_the_same(tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.csv", 700)
    in_memory = load(path, SCHEMA, split=split, cache=False)
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(build_module, "_ROWS", 33)
    on_disk = load(path, SCHEMA, split=split, root=tmp_path)
    assert same(in_memory, on_disk) and isinstance(on_disk.train.columns["user"], np.memmap)
    assert not isinstance(in_memory.train.columns["user"], np.memmap)
    for before, after in zip(in_memory.fields, on_disk.fields, strict=True):
        assert before.counts.equal(after.counts) and before.num_tokens == after.num_tokens
        if before.kind != "float":
            assert before.vocabulary.tokens == after.vocabulary.tokens
    assert list(in_memory.train.batches(50))[3]["user"].equal(list(on_disk.train.batches(50))[3]["user"])
    names = ["label.npy", "price.npy", "tags.npy", "user.npy"]
    (place,) = (tmp_path / "recsys" / name for name in folders(tmp_path))
    assert sorted(entry.name for entry in place.iterdir()) == [
        "encoder.safetensors", "manifest.json", "test", "train", "valid",
    ]  # fmt: skip
    assert sorted(entry.name for entry in (place / "train").iterdir()) == names


def test_what_was_encoded_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.csv", 200)
    first = load(path, SCHEMA, root=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("graphlossy.recsys.data._load.build", None)  # cannot be called
        assert same(load(path, SCHEMA, root=tmp_path), first)
        monkeypatch.setenv("GRAPHLOSSY_DATA", str(tmp_path))
        assert same(load(path, SCHEMA), first)
    assert len(folders(tmp_path)) == 1
    for change in ({"seed": 1}, {"split": "time"}, {"fractions": (0.5, 0.25, 0.25)}, {"min_count": 3}):
        before = folders(tmp_path)
        load(path, SCHEMA, root=tmp_path, **change)
        assert len(folders(tmp_path)) == len(before) + 1, change
    load(path, {**SCHEMA, "label": "rating>=3"}, root=tmp_path)
    assert len(folders(tmp_path)) == 6


def test_another_content_is_encoded_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 200)
    os.utime(path, (1e9, 1e9))  # long settled: its checksum is remembered
    first = load(path, SCHEMA, root=tmp_path)
    text = path.read_text()
    path.write_text(text.replace("u1,", "u2,"))
    assert path.stat().st_size == len(text)
    second = load(path, SCHEMA, root=tmp_path)
    assert not same(first, second) and len(folders(tmp_path)) == 2
    path.write_text(text)
    assert same(load(path, SCHEMA, root=tmp_path), first) and len(folders(tmp_path)) == 2
    (copy := tmp_path / "b" / "a.csv").parent.mkdir()
    copy.write_text(text)
    load(copy, SCHEMA, root=tmp_path)
    assert len(folders(tmp_path)) == 2  # by its contents, wherever it lies


def test_a_checksum_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.csv", 20)
    os.utime(path, (1e9, 1e9))
    found = cache_module.fingerprint(path, tmp_path / "c")
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_PIECE", "no reading")
        assert cache_module.fingerprint(path, tmp_path / "c") == found
    (memory,) = (tmp_path / "c" / "checksums").iterdir()
    memory.write_text("damaged")
    assert cache_module.fingerprint(path, tmp_path / "c") == found
    path.touch()  # just written: the next change could have the same time
    memory.unlink()
    assert cache_module.fingerprint(path, tmp_path / "c") == found and not memory.exists()


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest"])
def test_a_damaged_folder_is_made_again(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "a.csv", 200)
    first = load(path, SCHEMA, root=tmp_path)
    wanted = {name: values.copy() for name, values in first.train.columns.items()}
    place = tmp_path / "recsys" / folders(tmp_path)[0]
    file = place / "train" / "user.npy"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "remove":
        file.unlink()
    else:
        (place / "manifest.json").write_text(json.dumps({"key": "other"}))
    again = load(path, SCHEMA, root=tmp_path)
    assert all(np.array_equal(again.train.columns[name], values) for name, values in wanted.items())
    assert len(folders(tmp_path)) == 1


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 200)
    with open(path, "a") as stream:
        stream.write("u1,a1,0.5\n")
    with pytest.raises(DataError, match="line 202 has 3 fields"):
        load(path, SCHEMA, root=tmp_path)
    assert folders(tmp_path) == []


def test_a_min_count_above_every_count_is_named(tmp_path: Path) -> None:
    """Every token would be an unseen one, every prediction the same and the AUC .5 without a word."""
    path = write(tmp_path / "a.csv", 200)
    tokens = {**SCHEMA, "columns": {"user": "token", "tags": "token_seq"}}
    with pytest.raises(DataError, match="no token of any field occurs min_count times .*; lower min_count"):
        load(path, tokens, root=tmp_path, min_count=1000)
    assert folders(tmp_path) == []
    assert load(path, SCHEMA, cache=False, min_count=1000).num_tokens == 3  # the price is left, and two reserved ids
    rare_users = load(path, tokens, cache=False, min_count=10)  # nine tags are often enough, no user is
    assert [field.num_tokens for field in rare_users.fields if field.name == "user"] == [1]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 20)
    left = tmp_path / "recsys" / f".a-0123-{cache_module.socket.gethostname()}-4194399"
    left.mkdir(parents=True)
    load(path, SCHEMA, root=tmp_path)
    assert not left.exists()


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.csv", 20)
    make = build_module.build

    def slow(*arguments: Any) -> Any:
        with open(path, "a") as stream:
            stream.write("u1,a1,0.5,3,9\n")
        return make(*arguments)

    monkeypatch.setattr("graphlossy.recsys.data._load.build", slow)
    with pytest.raises(DataError, match="a.csv: was changed while it was read"):
        load(path, SCHEMA, root=tmp_path)


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 20)
    with pytest.raises(DataError, match="a.csv/recsys: cannot be written .* or cache=False"):
        load(path, SCHEMA, root=path)


def test_a_damaged_column_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    for content in (b"", b"\x93NUMPY", b"nothing"):
        file.write_bytes(content)
        with pytest.raises(DataError, match="a.npy: cannot be read"):
            store_module.map_column(file)


def peak(path: Path, root: Path | None) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        data = load(path, SCHEMA, split="time", root=root, cache=root is not None)
        assert len(data.train) > 1
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 1 << 15)
    monkeypatch.setattr(build_module, "_ROWS", 1 << 10)
    monkeypatch.setattr(cache_module, "_PIECE", 1 << 15)
    monkeypatch.setattr(partition_module, "_DIGIT", 8)  # a smaller histogram
    short, long = write(tmp_path / "short.csv", 3_000), write(tmp_path / "long.csv", 24_000)
    load(write(tmp_path / "first.csv", 100), SCHEMA, root=tmp_path)  # what is imported at first use
    small, large = peak(short, tmp_path), peak(long, tmp_path)
    assert large < 1.1 * small + 50_000
    assert peak(long, None) > 1.7 * large  # the measure does see columns that are kept in memory
