"""RecBole's atomic files: interactions joined with what is known of their users and items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from graphlossy.recsys.data._errors import DataError, import_pandas
from graphlossy.recsys.data._schema import Column, Schema, column_items, made_column, read_json, read_schema
from graphlossy.recsys.data._tables import Chunk, text_chunks
from graphlossy.recsys.data._text import Source, open_file, text_header

__all__ = ["AtomicFiles", "atomic_chunks", "find_atomic"]

_KINDS = ("token", "token_seq", "float", "float_seq")
_SIDES = ("user", "item")


@dataclass
class AtomicFiles:
    """A data set's ``.inter`` file and, where they are there, its ``.user`` and ``.item`` files.

    The first line of each names its columns and their kinds: ``user_id:token<tab>rating:float``. A side file's first
    column is the one that it is joined by.

    Args:
        sources: ``"inter"``, ``"user"``, ``"item"`` -> file.

    Raises:
        DataError: a header is none of that form, or a side file is joined by a column that interactions do not have.
    """

    sources: Mapping[str, Source]
    kinds: dict[str, str] = field(init=False)  # of every column, in the order of the files
    home: dict[str, str] = field(init=False)  # the file each is in
    keys: dict[str, str] = field(init=False)  # side -> the column it is joined by

    def __post_init__(self) -> None:
        self.kinds, self.home, self.keys = {}, {}, {}
        for part in ("inter", *_SIDES):
            if part not in self.sources:
                continue
            columns = _header(self.sources[part])
            if part != "inter":
                key = next(iter(columns))
                if self.home.get(key) != "inter":
                    raise DataError(
                        f"{self.sources[part].where}: its first column {key!r} is none of the interactions' columns"
                    )
                self.keys[part] = key
            for name, kind in columns.items():
                if name not in self.home:
                    self.kinds[name], self.home[name] = kind, part
                elif part != "inter" and name != self.keys[part]:
                    raise DataError(
                        f"{self.sources[part].where}: column {name!r} is in another file too; rename one of them"
                    )

    def schema(self, value: Schema | Mapping[str, Any] | str | Path | None) -> Schema:
        """A whole schema from a part of one.

        What is left out is filled in: ``columns`` with every column but label and time, kinds from the headers,
        ``time`` with ``timestamp`` if there is one, ``label`` with the column ``label`` if there is one.

        Raises:
            DataError: there is no label, or a column is of a kind that is not read.
        """
        if isinstance(value, Schema):
            return value
        options: dict[str, Any] = dict(read_json(value) if isinstance(value, (str, Path)) else value or {})
        where = self.sources["inter"].where
        if "label" not in options:
            if "label" not in self.kinds:
                ratings = next((name for name, kind in self.kinds.items() if kind == "float"), "rating")
                raise DataError(f"{where}: there is no column 'label'; give schema={{'label': '{ratings}>=4'}} or such")
            options["label"] = "label"
        if "time" not in options and "timestamp" in self.kinds:
            options["time"] = "timestamp"
        made = read_schema({**options, "columns": [Column("any", source="\0")]})  # the real ones need its label
        others = [name for name in self.kinds if name not in (made.label, made.time)]
        columns = tuple(self._column(item) for item in column_items(options.get("columns", others)))
        return replace(made, columns=columns)

    def _column(self, item: Column | dict[str, Any]) -> Column:
        if isinstance(item, Column):
            return item
        source = item.get("source") or item.get("name")
        if source not in self.kinds:
            raise DataError(
                f"{self.sources['inter'].where}: no file has a column {source!r}; they are {', '.join(self.kinds)}"
            )
        kind = item.get("kind", self.kinds[source])
        if kind == "float_seq":
            raise DataError(
                f"{self.sources[self.home[source]].where}: column {source!r} is of kind float_seq, which is not read; "
                "name the columns to use in the schema"
            )
        return made_column({**item, "kind": kind})


def find_atomic(path: Path) -> AtomicFiles | None:
    """The files of a folder with one ``.inter`` file, or of such a file; None for anything else.

    Raises:
        DataError: the folder has several ``.inter`` files.
    """
    if path.is_dir():
        found = sorted(path.glob("*.inter"))
        if len(found) > 1:
            raise DataError(f"{path}: holds {len(found)} .inter files; give the path of one")
        if not found:
            return None
        path = found[0]
    if path.suffix != ".inter":
        return None
    sides = {part: path.with_suffix(f".{part}") for part in _SIDES}
    files = {"inter": path, **{part: file for part, file in sides.items() if file.exists()}}
    return AtomicFiles({part: _source(file) for part, file in files.items()})


def atomic_chunks(files: AtomicFiles, schema: Schema, size: int | None = None) -> Iterator[Chunk]:
    """The interactions, with the columns of their users and items; these are kept in memory.

    A user or item without a line of its own has missing values.

    Raises:
        DataError: a file is damaged, a column is missing, or an id has two lines in a side file.
    """
    wanted = schema.sources()
    if unknown := [name for name in wanted if name not in files.kinds]:
        where = files.sources["inter"].where
        raise DataError(f"{where}: no file has a column {unknown[0]!r}; they are {', '.join(files.kinds)}")
    inter = [name for name in wanted if files.home[name] == "inter"]
    sides = {}
    for part, key in files.keys.items():
        names = [name for name in wanted if files.home[name] == part]
        if names:
            sides[part] = _Side(files.sources[part], key, names)
            inter += [key] if key not in inter else []
    names = list(_header(files.sources["inter"]))
    blocks = text_chunks(files.sources["inter"], inter, names, size)
    first = True
    for chunk in blocks:
        if first:  # the header's line, which is no row here because its names are written another way
            chunk, first = _without_first(chunk), False
        for side in sides.values():
            side.join(chunk)
        yield chunk


class _Side:
    """A user or item file in memory."""

    def __init__(self, source: Source, key: str, wanted: list[str]) -> None:
        names = list(_header(source))
        self.key, self.source = key, source
        chunks = list(text_chunks(source, [key, *wanted], names))
        columns = {name: np.concatenate([chunk.columns[name] for chunk in chunks])[1:] for name in [key, *wanted]}
        self.index = import_pandas().Index(columns.pop(key))
        self.columns = columns
        if not self.index.is_unique:
            row = int(np.argmax(self.index.duplicated()))
            raise DataError(f"{source.where}: line {row + 2}, column {key!r}: {self.index[row]!r} has a line already")

    def join(self, chunk: Chunk) -> None:
        rows = self.index.get_indexer(chunk.columns[self.key])
        for name, values in self.columns.items():
            if len(values):
                joined = values[rows]
                joined[rows < 0] = ""
            else:
                joined = np.full(chunk.rows, "", object)
            chunk.columns[name] = joined
            chunk.origin[name] = self.source.where, lambda row: f"line {int(rows[row]) + 2}"


def _without_first(chunk: Chunk) -> Chunk:
    columns = {name: values[1:] for name, values in chunk.columns.items()}
    return Chunk(columns, chunk.rows - 1, chunk.where, lambda row: chunk.place(row + 1))


def _header(source: Source) -> dict[str, str]:
    columns: dict[str, str] = {}
    for text in text_header(source):
        name, found, kind = text.rpartition(":")
        if not found or not name or kind not in _KINDS:
            raise DataError(
                f"{source.where}: line 1, column {text[:40]!r}: must be a name and one of {', '.join(_KINDS)}, such as "
                "'user_id:token'"
            )
        if name in columns:
            raise DataError(f"{source.where}: line 1, column {name!r}: is there twice")
        columns[name] = kind
    return columns


def _source(path: Path) -> Source:
    return Source(str(path), lambda: open_file(path), "\t", "")
