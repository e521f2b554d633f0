"""Criteo's, Avazu's and RecBole's layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pandas")

from graphlossy.recsys.data import CTRData, DataError, criteo_schema, load
from graphlossy.recsys.data import _text as text_module

CRITEO = [
    "1\t1\t-3\t\t7" + "\t" * 9 + "\t68fd1e64" + "\t" * 24 + "\t3a171ecb",
    "0\t\t2\t5\t" + "\t" * 9 + "\t68fd1e64" + "\t" * 24 + "\t",
    "0\t8\t0\t5\t7" + "\t" * 9 + "\tb1252a9d" + "\t" * 24 + "\t3a171ecb",
]
AVAZU_HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,device_ip,"
    "device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)


def everything(path: Path, schema: Any = None, **options: Any) -> CTRData:
    return load(path, schema, fractions=(1, 0, 0), cache=False, **options)


def test_criteo(tmp_path: Path) -> None:
    assert all(line.count("\t") == 39 for line in CRITEO)
    path = tmp_path / "train.txt"
    path.write_text("\n".join(CRITEO) + "\n")
    data = everything(path, "criteo", min_count=2)
    assert [field.name for field in data.fields] == [f"I{n}" for n in range(1, 14)] + [f"C{n}" for n in range(1, 27)]
    assert [field.kind for field in data.fields] == ["float"] * 13 + ["token"] * 26
    columns = data.train.columns
    np.testing.assert_allclose(columns["I1"], np.log([2, 1, 9]), rtol=1e-6)  # what is missing is 0
    np.testing.assert_allclose(columns["I2"], np.log([1, 3, 1]), rtol=1e-6)  # as is what is negative
    assert columns["label"].tolist() == [1, 0, 0]
    assert columns["C1"].tolist() == [1, 1, 0] and columns["C26"].tolist() == [1, 0, 1]
    assert columns["C2"].tolist() == [1, 1, 1]  # the empty category is a token
    assert everything(path, "criteo").num_tokens == 26  # at the default of 10 all are rare
    buckets = everything(path, criteo_schema("buckets", min_count=1))
    assert buckets.encoder.vocabularies["I1"].tokens == ["1", "", "4"]
    standard = everything(path, criteo_schema("log_standard")).train.columns["I2"]
    assert abs(standard.mean()) < 1e-6 and standard.std() == pytest.approx(1, abs=1e-6)
    with pytest.raises(DataError, match="numbers must be 'log'"):
        criteo_schema("sqrt")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (CRITEO[0][:-20], "line 4 has 28 fields, expected 40"),
        (CRITEO[0].replace("1\t1\t", "?\t1\t"), "line 4, column 'label'"),
        (CRITEO[0].replace("1\t1\t", "1\tone\t"), "line 4, column 'I1'"),
    ],
)
def test_damaged_criteo(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "train.txt"
    path.write_text("\n".join([*CRITEO, line]) + "\n")
    with pytest.raises(DataError, match=f"train.txt: {message}"):
        everything(path, "criteo")


def test_avazu(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    rest = ",".join(f"v{n}" for n in range(21))
    lines = [f"1e{n},{n % 2},141021{n:02d},{rest}" for n in range(20)]
    lines.append(f"9,1,14102523,{rest}")  # a Saturday
    path.write_text("\n".join([AVAZU_HEADER, *lines]) + "\n")
    data = everything(path, "avazu", min_count=1)
    words = data.encoder.vocabularies
    assert len(data.fields) == 24 and "id" not in words
    assert words["hour"].tokens == [str(n) for n in range(20)] + ["23"]
    assert words["weekday"].tokens == ["1", "5"] and words["weekend"].tokens == ["0", "1"]
    assert data.train.columns["label"].tolist() == [n % 2 for n in range(20)] + [1]
    by_time = load(path, "avazu", split="time", fractions=(0.5, 0.25, 0.25), cache=False, min_count=1)
    assert by_time.encoder.vocabularies["hour"].tokens == [str(n) for n in range(10)]  # the day's first ones
    path.write_text("\n".join([AVAZU_HEADER, *lines, lines[0].replace("14102100", "14102199")]) + "\n")
    with pytest.raises(DataError, match="train.csv: line 23, column 'hour': must be a time written %y%m%d%H"):
        everything(path, "avazu")


INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\ta\t5\t3\n2\tb\t1\t1\n1\tb\t4\t2\n3\tc\t2\t4\n"
USER = "user_id:token\tage:token\tweight:float\n2\t30\t1.5\n1\t20\t\n"
ITEM = 'item_id:token\ttitle:token_seq\nb\tThe "B" film\na\tA film\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, text in (("inter", INTER), ("user", USER), ("item", ITEM)):
        (tmp_path / f"toy.{part}").write_text(text)
    return tmp_path


@pytest.mark.parametrize("size", [8, 1 << 22])
def test_atomic_files_are_joined(folder: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "BLOCK_BYTES", size)
    data = everything(folder, {"label": "rating>=4"})
    assert data.name == "toy"
    assert [(field.name, field.kind) for field in data.fields] == [
        ("user_id", "token"), ("item_id", "token"), ("age", "token"), ("weight", "float"), ("title", "token_seq"),
    ]  # fmt: skip
    columns, words = data.train.columns, data.encoder.vocabularies
    assert columns["label"].tolist() == [1, 0, 1, 0]
    assert columns["weight"].tolist() == [0, 1.5, 0, 0]
    assert [words["age"].token(number) for number in columns["age"]] == ["20", "30", "20", ""]  # user 3 has no line
    assert [words["title"].token(number) for number in columns["title"][1]] == ["The", '"B"', "film"]
    assert columns["title"][3].tolist() == [1, 1, 1]
    by_time = load(folder / "toy.inter", {"label": "rating>=4"}, split="time", fractions=(0.5, 0.5, 0), cache=False)
    assert sorted(by_time.encoder.vocabularies["user_id"].tokens) == ["1", "2"]
    assert by_time.train.columns["label"].tolist() == [0, 1]  # of the times 1 and 2, in the file's order


def test_atomic_columns_may_be_chosen(folder: Path) -> None:
    columns = [
        {"name": "user", "source": "user_id"},
        {"name": "age", "buckets": [25], "min_count": 1},
        {"name": "title", "length": 2},
    ]
    data = everything(folder, {"label": "rating>=4", "min_count": 2, "columns": columns})
    assert [(field.name, field.kind, field.length) for field in data.fields] == [
        ("user", "token", 1), ("age", "token", 1), ("title", "token_seq", 2),
    ]  # fmt: skip
    assert data.encoder.vocabularies["age"].tokens == ["0", "1", ""]
    assert data.encoder.vocabularies["user"].tokens == ["1"]


@pytest.mark.parametrize(
    ("part", "old", "new", "message"),
    [
        ("inter", "rating:float", "rating", "toy.inter: line 1, column 'rating': must be a name and one of token"),
        ("inter", "rating:float", "rating:number", "toy.inter: line 1, column 'rating:number'"),
        ("inter", "\t5\t3", "\tfive\t3", "toy.inter: line 2, column 'rating': must be a finite number, got 'five'"),
        ("inter", "\t4\t2", "\t4", "toy.inter: line 4 has 3 fields, expected 4"),
        ("user", "1.5", "heavy", "toy.user: line 2, column 'weight': must be a finite number, got 'heavy'"),
        ("user", "1\t20", "2\t20", "toy.user: line 3, column 'user_id': '2' has a line already"),
        ("user", "user_id:", "uid:", "toy.user: its first column 'uid' is none of the interactions' columns"),
        ("user", "age:", "rating:", "toy.user: column 'rating' is in another file too"),
        ("item", "token_seq", "float_seq", "toy.item: column 'title' is of kind float_seq, which is not read"),
        ("item", "b\tThe", "b\t\tThe", "toy.item: line 2 has 3 fields, expected 2"),
    ],
)
def test_damaged_atomic_files(folder: Path, part: str, old: str, new: str, message: str) -> None:
    path = folder / f"toy.{part}"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        everything(folder, {"label": "rating>=4"})


def test_what_atomic_files_need(folder: Path) -> None:
    with pytest.raises(DataError, match="there is no column 'label'; give schema={'label': 'rating>=4'}"):
        everything(folder)
    with pytest.raises(DataError, match="no file has a column 'stars'; they are user_id, item_id"):
        everything(folder, {"label": "stars>=4"})
    with pytest.raises(DataError, match="no file has a column 'sex'"):
        everything(folder, {"label": "rating>=4", "columns": ["sex"]})
    with pytest.raises(DataError, match="column has no option 'bucket'"):
        everything(folder, {"label": "rating>=4", "columns": {"age": {"bucket": [3]}}})
    (folder / "other.inter").write_text(INTER)
    with pytest.raises(DataError, match="holds 2 .inter files; give the path of one"):
        everything(folder, {"label": "rating>=4"})
    (folder / "toy.json").write_text('{"label": "rating>=4"}')
    assert len(everything(folder / "toy.inter", folder / "toy.json").train) == 4
    (folder / "toy.inter").write_text(INTER.partition("\n")[0] + "\n")
    with pytest.raises(DataError, match="toy.inter: has no rows"):
        everything(folder / "toy.inter", {"label": "rating>=4"})
