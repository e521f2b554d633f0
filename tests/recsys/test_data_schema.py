"""What a schema may say, and what it says about mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graphlossy.recsys.data import Column, DataError, Schema, avazu_schema, criteo_schema, read_schema

GOOD = {"columns": {"user": "token"}, "label": "click"}


@pytest.mark.parametrize(
    ("label", "column", "threshold"),
    [
        ("click", "click", None),
        ("rating>=4", "rating", (">=", 4.0)),
        ("rating > 3.5", "rating", (">", 3.5)),
        ("my rating<-1e2", "my rating", ("<", -100.0)),
        ("a==1", "a", ("==", 1.0)),
    ],
)
def test_a_label_may_be_a_comparison(label: str, column: str, threshold: tuple[str, float] | None) -> None:
    schema = read_schema({**GOOD, "label": label})
    assert (schema.label, schema.threshold) == (column, threshold)


@pytest.mark.parametrize("columns", [["user"], {"user": "token"}, {"user": {}}, [{"name": "user"}], [Column("user")]])
def test_columns_are_written_in_several_ways(columns: Any) -> None:
    assert read_schema({"columns": columns, "label": "click"}).columns == (Column("user"),)


def test_plain_data_make_the_same_schema_again() -> None:
    for schema in (criteo_schema("log_standard"), criteo_schema("buckets"), avazu_schema(), read_schema(GOOD)):
        assert read_schema(json.loads(json.dumps(schema.to_dict()))) == schema
    with_all = Schema(
        (Column("age", buckets=(18, 25)), Column("tags", "token_seq", length=3, keep="last", separator="|")),
        "rating>=4", time="t", separator=";", header=("a", "b"), quote="'", encoding="latin-1", min_count=3,
        order="appearance",
    )  # fmt: skip
    assert read_schema(with_all.to_dict()) == with_all


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": {}}, "at least one feature"),
        ({"columns": "user"}, "at least one feature"),
        ({"columns": {"user": None}}, "'user': must be a kind, 'token' or .*, or options, got None"),
        ({"columns": ["user", "click"]}, "'click' is read from the label's column 'click': it gives the answer away"),
        ({"columns": {"seen": {"source": "n"}}, "label": "n>=1"}, "'seen' is read from the label's column 'n'"),
        ({"columns": [{"kind": "token"}]}, "column needs 'name', got kind"),
        ({"columns": [3]}, "columns must be names, .* got 3"),
        ({"columns": {"user": "number"}}, "'user': kind must be 'token' or 'token_seq' or 'float', got 'number'"),
        ({"columns": {"user": {"size": 3}}}, "column has no option 'size'"),
        ({"columns": {"label": "token"}}, "other than 'label'"),
        ({"columns": ["user", "user"]}, "'user' is named twice"),
        ({"columns": {"age": {"buckets": [3, 1]}}}, "'age': buckets must be ascending"),
        ({"columns": {"age": {"buckets": "all"}}}, "'age': buckets must be ascending"),
        ({"columns": {"age": {"kind": "float", "buckets": [3]}}}, "kind is 'float'"),
        ({"columns": {"age": {"transform": "log"}}}, "transform is for kind 'float'"),
        ({"columns": {"age": {"kind": "float", "transform": "sqrt"}}}, "got 'sqrt'"),
        ({"columns": {"t": {"derive": "month"}}}, "derive must be"),
        ({"columns": {"t": {"kind": "token_seq", "length": 0}}}, "length must be an integer of at least 1, got 0"),
        ({"columns": {"t": {"kind": "token_seq", "separator": ""}}}, "separator must be a text"),
        ({"label": ""}, "label must be a column"),
        ({"label": "rating=>4"}, "label 'rating=>4' is no comparison; there are >=, "),
        ({"min_count": 0}, "min_count must be an integer of at least 1, got 0"),
        ({"order": "random"}, "order must be"),
        ({"quote": '""'}, "quote must be one"),
        ({"encoding": "utf-16"}, "encoding must be"),
        ({"encoding": "klingon"}, "encoding must be"),
        ({"separator": "§"}, "separator must be ASCII"),
        ({"colums": []}, "schema has no option 'colums'; they are columns, label"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_schema({**GOOD, **change})


def test_a_label_is_needed() -> None:
    with pytest.raises(DataError, match="schema: schema needs 'label', got columns"):
        read_schema({"columns": ["user"]})
    with pytest.raises(DataError, match="schema needs 'columns', got nothing"):
        read_schema({})


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(GOOD))
    assert read_schema(path) == read_schema(GOOD)
    path.write_text(json.dumps({**GOOD, "min_count": -1}))
    with pytest.raises(DataError, match="schema.json: min_count"):
        read_schema(path)
    path.write_text("{")
    with pytest.raises(DataError, match="schema.json: the schema is no JSON"):
        read_schema(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="schema.json: a schema must be a mapping"):
        read_schema(path)
    with pytest.raises(DataError, match="absent.json: the schema cannot be read"):
        read_schema(tmp_path / "absent.json")
