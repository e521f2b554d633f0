"""Tables of text and parquet: read as they are, in pieces of any size, and refused where they are damaged."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pandas")
import pandas

from graphlossy.recsys.data import CTRData, DataError, load
from graphlossy.recsys.data import _text as text_module

SCHEMA = {"columns": {"user": "token", "price": "float", "tags": "token_seq"}, "label": "click"}
HEADER = "user,price,tags,click\n"
GOOD = HEADER + "ann,1.5,x y,1\nbob,,y,0\nann,2,,1\n"


def read(path: Path, schema: Any = SCHEMA, **options: Any) -> CTRData:
    options = {"fractions": (1, 0, 0), "cache": False, **options}
    return load(path, schema, **options)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def plain(data: CTRData) -> dict[str, list[Any]]:
    """The training rows with tokens instead of ids."""
    words = {field.name: field.vocabulary for field in data.fields}
    found: dict[str, list[Any]] = {}
    for name, values in data.train.columns.items():
        vocabulary = words.get(name)
        if vocabulary is None:
            found[name] = values.tolist()
        elif values.ndim == 1:
            found[name] = [vocabulary.token(number) for number in values.tolist()]
        else:
            found[name] = [[vocabulary.token(n) for n in row if n != 1] for row in values.tolist()]
    return found


WANTED = {"user": ["ann", "bob", "ann"], "price": [1.5, 0.0, 2.0], "tags": [["x", "y"], ["y"], []], "label": [1, 0, 1]}


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.removesuffix("\n"),
        GOOD + "\n\n",
        "\ufeff" + GOOD,
        GOOD.replace("bob", '"bob"').replace("x y", '"x y"'),
        "click,tags,extra,user,price\n1,x y,,ann,1.5\n0,y,,bob,\n1,,7,ann,2\n",
    ],
)
def test_text_is_read(tmp_path: Path, text: str) -> None:
    assert plain(read(write(tmp_path / "a.csv", text))) == WANTED


@pytest.mark.parametrize(
    ("name", "packed"),
    [("a.csv.gz", gzip.compress), ("a.csv.bz2", bz2.compress), ("a.csv.xz", lzma.compress), ("a.csv", bytes)],
)
def test_packed_text_is_read(tmp_path: Path, name: str, packed: Any) -> None:
    path = write(tmp_path / name, packed(GOOD.encode()))
    assert plain(read(path)) == WANTED
    if packed is not bytes:
        write(path, packed(GOOD.encode() * 2000)[:-30])
        with pytest.raises(DataError, match=f"{name}: is truncated or damaged (in its first lines|after line [1-9])"):
            read(path)


@pytest.mark.parametrize(("separator", "name"), [("\t", "a.tsv"), (";", "a.txt"), ("::", "a.dat"), ("|", "a.csv")])
def test_separators(tmp_path: Path, separator: str, name: str) -> None:
    text = GOOD.replace(",", separator).replace("bob", 'b"b')  # a quote is plain text except between commas
    schema = {**SCHEMA, **({} if name == "a.tsv" else {"separator": separator})}
    assert plain(read(write(tmp_path / name, text), schema))["user"] == ["ann", 'b"b', "ann"]


def test_quotes_hold_separators_and_line_ends(tmp_path: Path) -> None:
    text = HEADER + '"a,b",1,"x\ny",1\n"say ""hi""",2,,0\nplain,x,,1\n'
    path = write(tmp_path / "a.csv", text)
    with pytest.raises(DataError, match=r"a.csv: line 5, column 'price': must be a finite number, got 'x'"):
        read(path)
    found = plain(read(write(path, text.replace(",x,,", ",3,,")), {**SCHEMA, "columns": ["user", "tags"]}))
    assert found["user"] == ["a,b", 'say "hi"', "plain"] and found["tags"][0] == "x\ny"


def test_a_file_without_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", GOOD.removeprefix(HEADER))
    assert plain(read(path, {**SCHEMA, "header": HEADER.strip().split(",")})) == WANTED


def test_other_encodings(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", GOOD.replace("bob", "b\u00f6b").encode("latin-1"))
    assert plain(read(path, {**SCHEMA, "encoding": "latin-1"}))["user"][1] == "b\u00f6b"
    with pytest.raises(DataError, match="a.csv: line 3 is no utf-8 text"):
        read(path)


def test_several_files_are_one_table(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.csv", GOOD), write(tmp_path / "b.csv", GOOD.replace("bob", "eve"))
    data = load([first, second], SCHEMA, fractions=(1, 0, 0), cache=False)
    assert plain(data)["user"] == ["ann", "bob", "ann", "ann", "eve", "ann"]
    write(second, GOOD + "eve,?,,1\n")
    with pytest.raises(DataError, match="b.csv: line 5, column 'price'"):
        load([first, second], SCHEMA, cache=False)


rows = st.lists(
    st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=4), st.integers(0, 1)),
    min_size=1, max_size=12,
)  # fmt: skip


@given(rows, st.integers(1, 40))
def test_what_is_written_is_read_in_pieces_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]], size: int
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    pandas.DataFrame(rows, columns=["user", "click"]).to_csv(path, index=False, lineterminator="\n", quoting=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "BLOCK_BYTES", size)
        found = plain(read(path, {"columns": ["user"], "label": "click"}))
    assert found == {"user": [user for user, _ in rows], "label": [click for _, click in rows]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.csv: is empty"),
        ("\n", "a.csv: line 1 is empty"),
        (HEADER, "a.csv: has no rows"),
        (HEADER + "\n\n", "a.csv: has no rows"),
        (GOOD + "eve,2\n", "line 5 has 2 fields, expected 4 separated by ','"),
        (GOOD + "eve,2", "line 5 has 2 fields, expected 4"),
        (GOOD + "eve,2,,1,\n", "line 5 has 5 fields, expected 4"),
        (GOOD + "\n" + "eve,1,,1\n", "line 5 has nothing, expected 4"),
        (GOOD + "eve,2,,yes\n", "line 5, column 'click': must be a finite number, got 'yes'"),
        (GOOD + "eve,2,,\n", "line 5, column 'click': must be a finite number, got ''"),
        (GOOD + "eve,2,,3\n", "line 5, column 'click': a label must be 0 or 1, got 3; or compare it: 'click>=3'"),
        (GOOD + "eve,cheap,,1\n", "line 5, column 'price': must be a finite number, got 'cheap'"),
        (GOOD + "eve,inf,,1\n", "line 5, column 'price': must be a finite number, got 'inf'"),
        (GOOD + "e\0e,1,,1\n", "line 5 holds a NUL byte"),
        (GOOD + '"eve,1,,1\n', "line 5: a quote \" is opened there and never closed"),
        (GOOD + 'e"v"e,1,,1\n' + 'e"v,1,,1\n' + 'x"e,1,,1\n', "quotes \" stand inside of fields|line 6 has"),
        (GOOD.replace("price", "cost"), "there is no column 'price'; the columns are 'user', 'cost', 'tags', 'click'"),
        (GOOD.replace("tags", "user"), "there is no column 'tags'"),
        ("user,user,price,tags,click\na,b,1,,1\n", "column 'user' is there twice"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [16, 1 << 22])
def test_damage_is_named(tmp_path: Path, text: str, message: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "BLOCK_BYTES", size)
    path = write(tmp_path / "a.csv", text)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_comparison_makes_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user,rating\na,5\nb,3.5\nc,4\nd,-1\n")
    data = read(path, {"columns": ["user"], "label": "rating>=4"})
    assert plain(data)["label"] == [1, 0, 1, 0]


def test_a_schema_beside_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv.gz", gzip.compress(GOOD.encode()))
    with pytest.raises(DataError, match="a.csv.gz: needs a schema: .* write it to .*a.schema.json"):
        read(path, None)
    write(tmp_path / "a.schema.json", '{"columns": ["user"], "label": "click"}')
    assert plain(read(path, None))["user"] == ["ann", "bob", "ann"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a.csv: there is no such file"):
        read(tmp_path / "a.csv")
    with pytest.raises(DataError, match="there are no data 'movilens-100k'; did you mean 'movielens-100k'"):
        load("movilens-100k")
    with pytest.raises(DataError, match="is a folder without a .inter file"):
        read(tmp_path)
    with pytest.raises(DataError, match="at least one path"):
        load([], SCHEMA)
    with pytest.raises(DataError, match="there is no option 'rows' for files"):
        load(write(tmp_path / "a.csv", GOOD), SCHEMA, rows=3)


def test_parts_by_time(tmp_path: Path) -> None:
    times = np.random.default_rng(0).permutation(50)
    text = "user,t,click\n" + "".join(f"u{t},{t},1\n" for t in times)
    path = write(tmp_path / "a.csv", text)
    schema = {"columns": ["user"], "label": "click", "time": "t"}
    data = read(path, schema, split="time", fractions=(0.6, 0.2, 0.2))
    assert {word for word in plain(data)["user"]} == {f"u{t}" for t in range(30)}
    assert len(data.valid) == len(data.test) == 10
    assert not data.valid.columns["user"].any() and not data.test.columns["user"].any()  # all of them unseen
    in_order = read(path, {**schema, "time": None}, split="time", fractions=(0.6, 0.2, 0.2))
    assert plain(in_order)["user"] == [f"u{t}" for t in times[:30]]
    write(path, text.replace("u7,7,", "u7,,"))
    with pytest.raises(DataError, match="column 't': must be a finite number, got ''"):
        read(path, schema, split="time")
    assert len(read(path, schema).train) == 50  # a random split needs no time


def test_nothing_for_training_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HEADER + "ann,1,,1\n")
    seeds = [seed for seed in range(40) if _refused(path, seed)]
    assert 0 < len(seeds) < 40
    with pytest.raises(DataError, match="none of its 1 rows is for training"):
        read(path, fractions=(0.5, 0.5, 0), seed=seeds[0])


def _refused(path: Path, seed: int) -> bool:
    try:
        read(path, fractions=(0.5, 0.5, 0), seed=seed)
    except DataError:
        return True
    return False


def test_no_vocabulary_of_other_parts(tmp_path: Path) -> None:
    """Tokens, counts, scales and lengths are those of the training rows."""
    lines = [f"u{n},{n},{' '.join(['w'] * (n % 7))},{n % 2}\n" for n in range(200)]
    columns = {**SCHEMA["columns"], "price": {"kind": "float", "transform": "standard"}}
    path = write(tmp_path / "a.csv", HEADER + "".join(lines))
    data = read(path, {**SCHEMA, "columns": columns}, fractions=(0.5, 0.2, 0.3))
    assert data.fields[0].num_tokens == len(data.train) + 1
    assert not data.valid.columns["user"].any() and not data.test.columns["user"].any()
    assert data.train.columns["user"].all()
    assert abs(data.train.columns["price"].mean()) < 1e-6 and abs(data.train.columns["price"].std() - 1) < 1e-5
    assert len(data.train) + len(data.valid) + len(data.test) == 200


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(
        {"user": ["ann", "bob", None], "price": [1.5, None, 2], "tags": [["x", "y"], ["y"], []], "item": [1, 2, None],
         "click": [1, 0, 1]}
    )  # fmt: skip
    path = tmp_path / "a.parquet"
    frame.to_parquet(path)
    schema = {**SCHEMA, "columns": {**SCHEMA["columns"], "item": "token"}}
    found = plain(read(path, schema))
    assert found == {**WANTED, "user": ["ann", "bob", ""], "item": ["1", "2", ""]}
    frame["click"] = [1, 0, 7]
    frame.to_parquet(path)
    with pytest.raises(DataError, match="a.parquet: row 2, column 'click': a label must be 0 or 1, got 7"):
        read(path)
    with pytest.raises(DataError, match="there is no column 'cost'"):
        read(path, {**SCHEMA, "columns": ["cost"]})
    for content in (path.read_bytes()[:-20], b"PAR1", b"nothing"):
        write(path, content)
        with pytest.raises(DataError, match="a.parquet: is no whole parquet file"):
            read(path)
    write(path, "")
    with pytest.raises(DataError, match="a.parquet: is empty"):
        read(path)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match="a.parquet: reading parquet needs pyarrow, which is not installed"):
        read(write(tmp_path / "a.parquet", "PAR1"))


def test_without_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "graphlossy\[recsys\]"'):
        read(write(tmp_path / "a.csv", GOOD))
    assert len(load("zipf", rows=100).train) > 50
