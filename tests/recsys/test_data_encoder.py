"""The encoder: what it learns, and that serving gives what training had."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pandas")
from safetensors.numpy import save_file

from graphlossy.recsys.data import Column, DataError, Encoder, Schema, read_schema

TOKENS = st.text(max_size=3)  # the empty token and any character among them


def fit(values: list[Any], labels: list[int] | None = None, **options: Any) -> Encoder:
    rows = {"x": values, "click": labels or [0, 1] * len(values)}
    rows["click"] = rows["click"][: len(values)]
    schema = {name: options.pop(name) for name in ("min_count", "order") if name in options}
    return Encoder.fit(rows, {"columns": {"x": options}, "label": "click", **schema})


@given(st.lists(TOKENS, min_size=1, max_size=30), st.integers(1, 3), st.lists(TOKENS, max_size=10))
def test_ids_are_by_popularity_and_rare_or_new_tokens_are_0(values: list[str], least: int, new: list[str]) -> None:
    encoder = fit(values, min_count=least)
    (field,) = encoder.fields
    count = {token: values.count(token) for token in values}
    kept = sorted((token for token in count if count[token] >= least), key=lambda token: -count[token])
    assert field.num_tokens == len(kept) + 1
    assert field.vocabulary.tokens == kept
    assert field.counts.tolist() == [len(values) - sum(count[t] for t in kept), *(count[t] for t in kept)]
    wanted = [kept.index(token) + 1 if token in kept else 0 for token in values + new]
    assert encoder.encode({"x": values + new})["x"].tolist() == wanted


@given(st.lists(st.lists(st.sampled_from("abcde"), max_size=5), min_size=1, max_size=12), st.integers(1, 4),
       st.sampled_from(["first", "last"]))  # fmt: skip
def test_sequences_are_padded_with_1(lists: list[list[str]], width: int, keep: str) -> None:
    encoder = fit([" ".join(words) for words in lists], kind="token_seq", length=width, keep=keep)
    (field,) = encoder.fields
    flat = [word for words in lists for word in words]
    assert (field.num_tokens, field.length) == (len(set(flat)) + 2, width)
    assert field.counts.sum() == len(flat) and field.counts[:2].tolist() == [0, 0]
    got = encoder.encode({"x": lists})["x"]  # lists are taken as well as texts
    assert got.equal(encoder.encode({"x": [" ".join(words) for words in lists]})["x"])
    for row, words in zip(got.tolist(), lists, strict=True):
        end = words[:width] if keep == "first" else words[-width:]
        assert row == [*field.vocabulary.ids(end).tolist(), *[1] * (width - len(end))]
    assert 1 not in field.vocabulary.ids(set(flat))
    assert encoder.encode({"x": ["zz"]})["x"].tolist() == [[0] + [1] * (width - 1)]


def test_the_length_is_the_longest_list_by_default() -> None:
    encoder = fit(["a b", "", "a  c b"], kind="token_seq")  # two separators hold no token between them
    assert encoder.fields[0].length == 3
    assert encoder.encode({"x": ["", "c"]})["x"].tolist() == [[1, 1, 1], [4, 1, 1]]


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20), st.sampled_from(["none", "log", "standard"]))
def test_numbers_are_transformed(values: list[float], transform: str) -> None:
    got = fit(values, kind="float", transform=transform).encode({"x": values})["x"].double().numpy()
    wanted = np.array(values)
    if transform == "log":
        wanted = np.log1p(np.maximum(wanted, 0))
    elif transform == "standard":
        spread = wanted.std()
        wanted = (wanted - wanted.mean()) / (spread if spread > 1e-12 * abs(wanted.mean()) else 1)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("missing", ["", "NA", "null", None, math.nan, " "])
def test_missing_numbers_are_0_after_the_transform(missing: Any) -> None:
    encoder = fit(["1", "3", missing], kind="float", transform="log_standard")
    got = encoder.encode({"x": ["1", "3", missing]})["x"]
    assert got[2] == 0 and got[:2].sum().abs() < 1e-6 and got[1] == pytest.approx(1, abs=1e-6)


def test_equal_numbers_are_0_when_standardised() -> None:
    assert fit([7.3] * 5, kind="float", transform="standard").encode({"x": [7.3, 8.3]})["x"].tolist() == [
        0.0,
        pytest.approx(1.0),
    ]


def test_buckets() -> None:
    encoder = fit(["17", "18", "24", "25", "60", ""], buckets=[18, 25])
    assert encoder.vocabularies["x"].tokens == ["1", "2", "0", ""]
    assert encoder.encode({"x": [18.5, 99, -3, None]})["x"].tolist() == [1, 2, 3, 4]
    log = fit(["1", "2", "3", "100", "101", "-1"], buckets="log_squared")
    assert sorted(log.vocabularies["x"].tokens) == ["-1", "1", "2", "21"]  # 3 is floor(1.2) = 1, 100 and 101 are 21


def test_tokens_of_numbers_are_as_in_text() -> None:
    encoder = fit(["1", "2", "", "1.5", "True"])
    new = encoder.encode({"x": np.array([1.0, 2.0, np.nan, 1.5, 3.0])})["x"]
    assert new.tolist() == encoder.encode({"x": ["1", "2", None, "1.5", "3"]})["x"].tolist() == [1, 2, 3, 4, 0]
    assert encoder.encode({"x": torch.tensor([2, 1])})["x"].tolist() == [2, 1]
    assert encoder.encode({"x": np.array([True])})["x"].tolist() == [5]


def test_times_become_hours_and_days() -> None:
    columns = [Column(name, source="t", derive=name, time_format="%y%m%d%H") for name in ("hour", "weekday", "weekend")]
    rows = {"t": ["14102100", "14102505"], "click": [0, 1]}  # a Tuesday and a Saturday
    encoder = Encoder.fit(rows, Schema(tuple(columns), "click"))
    assert [encoder.vocabularies[column.name].tokens for column in columns] == [["0", "5"], ["1", "5"], ["0", "1"]]
    seconds = fit(["0", "3600"], derive="hour")
    assert seconds.vocabularies["x"].tokens == ["0", "1"]
    with pytest.raises(DataError, match="row 1, column 't': must be a time written %y%m%d%H, got '14109999'"):
        encoder.encode({"t": ["14102100", "14109999"]})


def test_a_catalogue_has_ids_without_rows() -> None:
    encoder = fit(["b", "b", "a", "c"], catalogue=["a", "z"], min_count=2)
    assert encoder.vocabularies["x"].tokens == ["b", "a", "z"]
    assert encoder.fields[0].counts.tolist() == [1, 2, 1, 0]


def test_ids_may_be_in_the_order_of_appearance() -> None:
    assert fit(["c", "a", "b", "a"], order="appearance").vocabularies["x"].tokens == ["c", "a", "b"]


def everything() -> tuple[Encoder, dict[str, list[Any]]]:
    rows = {"u": ["ann", "b\u00f6b", "", "ann"], "tags": ["x y", "", "y", "x x"], "n": ["1", "", "2.5", "9"],
            "rating": [1, 5, 4, 2]}  # fmt: skip
    columns = {"u": {"min_count": 2}, "tags": "token_seq", "n": {"kind": "float", "transform": "log_standard"},
               "age": {"source": "n", "buckets": [2, 5]}}  # fmt: skip
    return Encoder.fit(rows, {"columns": columns, "label": "rating>=4"}), rows


def test_saved_and_loaded_it_encodes_the_same(tmp_path: Path) -> None:
    encoder, rows = everything()
    encoder.save(tmp_path / "encoder.safetensors")
    again = Encoder.load(tmp_path / "encoder.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.safetensors"]
    new = {"u": ["eve", "ann"], "tags": ["q y", ""], "n": [3, None]}
    for values in (rows, new):
        for name, found in encoder.encode(values).items():
            assert again.encode(values)[name].equal(found), name
    assert again.schema == encoder.schema
    for before, after in zip(encoder.fields, again.fields, strict=True):
        assert (before.name, before.kind, before.num_tokens, before.length) == (
            after.name, after.kind, after.num_tokens, after.length,
        )  # fmt: skip
        assert before.counts.equal(after.counts)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    everything()[0].save(path)
    whole = path.read_bytes()
    for length in (0, 4, 200, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="encoder.safetensors: is no whole encoder"):
            Encoder.load(path)
    path.write_bytes(whole.replace(b'\\"format\\": 1', b'\\"format\\": 9'))
    with pytest.raises(DataError, match="is of format 9, this version reads 1"):
        Encoder.load(path)
    save_file({"a": np.zeros(1)}, path)
    with pytest.raises(DataError, match="no encoder's"):
        Encoder.load(path)
    with pytest.raises(DataError, match="there is no such file"):
        Encoder.load(tmp_path / "absent")
    with pytest.raises(DataError, match="cannot be written"):
        everything()[0].save(tmp_path / "absent" / "file")


def test_serving_names_what_is_wrong() -> None:
    encoder = everything()[0]
    with pytest.raises(DataError, match="there is no column 'tags'; the columns are 'u', 'n'"):
        encoder.encode({"u": ["a"], "n": [1]})
    with pytest.raises(DataError, match="row 1, column 'n': must be a finite number, got 'many'"):
        encoder.encode({"u": ["a", "b"], "tags": ["", ""], "n": ["1", "many"]})
    for value in (math.inf, 1e39):
        with pytest.raises(DataError, match="row 0, column 'n': must be a finite number"):
            encoder.encode({"u": ["a"], "tags": [""], "n": [value]})
    with pytest.raises(DataError, match="columns must be of one length"):
        encoder.encode({"u": ["a"], "tags": ["", ""], "n": [1, 2]})
    with pytest.raises(TypeError, match="mapping of columns or a data frame, got list"):
        encoder.encode([1])


def test_data_frames_are_taken() -> None:
    pandas = pytest.importorskip("pandas")
    encoder, rows = everything()
    for name, found in encoder.encode(pandas.DataFrame(rows)).items():
        assert found.equal(encoder.encode(rows)[name]), name
    missing = pandas.DataFrame({"u": ["ann", pandas.NA], "tags": ["x", None], "n": [1.0, None]})
    assert encoder.encode(missing)["u"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], "row 2, column 'click': a label must be 0 or 1, got 2; or compare it: 'click>=2'"),
        ([0, 1, "yes"], "row 2, column 'click': must be a finite number, got 'yes'"),
        ([0, 1, None], "row 2, column 'click'"),
        ([0, "", 1], "row 1, column 'click'"),
        ([0, math.inf, 1], "row 1, column 'click'"),
    ],
)
def test_labels_are_checked(labels: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Encoder.fit({"x": ["a", "b", "c"], "click": labels}, read_schema({"columns": ["x"], "label": "click"}))


def test_rows_are_needed() -> None:
    with pytest.raises(DataError, match="rows: has no rows"):
        Encoder.fit({"x": [], "click": []}, {"columns": ["x"], "label": "click"})


def test_ids_of_a_vocabulary_are_bounded() -> None:
    words = fit(["a", "b"]).vocabularies["x"]
    assert [words.token(number) for number in range(3)] == [None, "a", "b"]
    assert "a" in words and "q" not in words
    for number in (-1, 3):
        with pytest.raises(IndexError, match=f"ids are from 0 to 2, got {number}"):
            words.token(number)


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
def test_the_file_is_as_readable_as_the_others_of_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    before = os.umask(0o022)
    try:
        everything()[0].save(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644
