"""Tables of numbers in ``.csv.gz``: read exactly, in chunks, and refused with the line that is wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from graphlossy.datasets import DatasetError, _csv
from graphlossy.datasets._csv import csv_chunks, read_csv


def write(path: Path, text: str, members: int = 1) -> Path:
    raw = text.encode()
    cuts = [len(raw) * part // members for part in range(members + 1)]
    path.write_bytes(b"".join(gzip.compress(raw[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)))
    return path


def table(values: np.ndarray, pattern: str) -> str:
    return "".join(",".join(pattern % value for value in row) + "\n" for row in values.tolist())


@given(
    values=arrays.arrays(np.int64, st.tuples(st.integers(1, 30), st.integers(1, 4))),
    chunk=st.sampled_from([40, 1000, 1 << 20]),
    members=st.integers(1, 3),
    last=st.sampled_from(["", "\n"]),
)
def test_integers(tmp_path: Path, values: np.ndarray, chunk: int, members: int, last: str) -> None:
    file = write(tmp_path / "a.csv.gz", table(values, "%d").rstrip("\n") + last, members)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_csv, "_CHUNK", max(chunk, 25 * values.shape[1]))
        np.testing.assert_array_equal(read_csv(file, np.int64), values)
        np.testing.assert_array_equal(read_csv(file, np.int64, values.shape[1], len(values)), values)


@given(
    values=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 20), st.integers(1, 4)),
        elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
    )
)
def test_nine_digits_are_a_float32(tmp_path: Path, values: np.ndarray) -> None:
    file = write(tmp_path / "a.csv.gz", table(values, "%.9g"))
    np.testing.assert_array_equal(read_csv(file, np.float32), values)


def test_chunks_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_csv, "_CHUNK", 1 << 10)
    values = np.arange(6000).reshape(-1, 2)
    file = write(tmp_path / "a.csv.gz", table(values, "%d"))
    chunks = list(csv_chunks(file, np.int64, 2))
    assert len(chunks) > 10 and max(map(len, chunks)) < 600
    np.testing.assert_array_equal(np.concatenate(chunks), values)


def test_rare_ways_to_write_a_number(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv.gz", "3.0,-1e1\r\n 7 ,+5\r\n")
    assert read_csv(file, np.int64).tolist() == [[3, -10], [7, 5]]
    found = read_csv(write(file, "nan,1\n,-inf\n"), np.float32)
    np.testing.assert_array_equal(found, np.array([[np.nan, 1], [np.nan, -np.inf]], np.float32))
    assert read_csv(write(file, ""), np.int64, 2).shape == (0, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3\n4,5\n", "line 2 has 1 fields, the others have 2; the file is damaged"),
        ("1,2\n3\n4,5,6\n", "line 2 has 1 fields"),  # as many values as there should be
        ("1,2\n3,4,5\n", "line 2 has 3 fields"),
        ("1,2\n3,4\nfive,6\n", "line 3 is 'five,6'; it must hold whole numbers"),
        ("1,2\n3,\n", "line 2 is '3,'; it must hold whole numbers"),
        ("1,2\n3,4.5\n", "line 2 is '3,4.5'; it must hold whole numbers"),
        ("1,2\n3,1-2\n", "line 2 is '3,1-2'; it must hold whole numbers"),
        ("1,2\n3,99999999999999999999.0\n", "line 2 is '3,9999"),
        ("1,2\nnan,4\n", "line 2 is 'nan,4'"),
    ],
)
def test_faults_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path / "edge.csv.gz", text)
    with pytest.raises(DatasetError, match=f"edge.csv.gz: {message}") as caught:
        read_csv(file, np.int64)
    assert "\n" not in str(caught.value)


def test_line_numbers_count_on_through_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_csv, "_CHUNK", 64)
    file = write(tmp_path / "a.csv.gz", "12,34\n" * 100 + "12;34\n" + "12,34\n" * 50)
    with pytest.raises(DatasetError, match="line 101 has 1 fields"):
        read_csv(file, np.int64)


def test_damaged_files(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv.gz", "1,2\n" * 1000)
    content = file.read_bytes()
    for kept in (len(content) - 3, len(content) // 2, 5):
        file.write_bytes(content[:kept])
        with pytest.raises(DatasetError, match="a.csv.gz: is truncated; download"):
            read_csv(file, np.int64)
    file.write_bytes(content[:-8] + b"\0" * 8)
    with pytest.raises(DatasetError, match="no readable gzip file"):
        read_csv(file, np.int64)
    file.write_text("1,2\n")
    with pytest.raises(DatasetError, match="no readable gzip file"):
        read_csv(file, np.int64)
    with pytest.raises(DatasetError, match="there is no such file"):
        read_csv(tmp_path / "b.csv.gz", np.int64)
    with pytest.raises(DatasetError, match="has 1,000 rows; there must be 7"):
        read_csv(write(file, "1,2\n" * 1000), np.int64, rows=7)
