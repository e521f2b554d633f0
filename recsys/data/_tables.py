"""Tables of any format as chunks of columns, each with the way to say where a row is."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from graphlossy.recsys.data._errors import DataError, import_pandas
from graphlossy.recsys.data._schema import Schema
from graphlossy.recsys.data._text import Source, open_file, text_blocks, text_header

__all__ = ["Chunk", "file_chunks", "frame_chunk", "source_of", "text_chunks"]

_PARQUET_ROWS = 1 << 16


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table.

    Args:
        columns: name -> values [n], text (object) or numbers.
        rows: n.
        where: the file.
        place: says where a row is: ``"line 17"``.
        origin: of columns that come from another file, the file and the way to say where a row is.
    """

    columns: dict[str, np.ndarray]
    rows: int
    where: str
    place: Callable[[int], str]
    origin: dict[str, tuple[str, Callable[[int], str]]] = field(default_factory=dict)

    def fail(self, row: int, column: str, problem: str) -> NoReturn:
        """Raises the error that names the file, the line and the column."""
        where, place = self.origin.get(column, (self.where, self.place))
        raise DataError(f"{where}: {place(row)}, column {column!r}: {problem}")


def file_chunks(paths: Sequence[Path], schema: Schema) -> Iterator[Chunk]:
    """The rows of CSV, TSV and parquet files, one after another.

    Raises:
        DataError: a file is missing, damaged, or lacks a column.
    """
    for path in paths:
        if path.suffix in (".parquet", ".pq"):
            yield from _parquet_chunks(path, schema)
        else:
            yield from text_chunks(source_of(path, schema), schema.sources(), schema.header)


def source_of(path: Path, schema: Schema) -> Source:
    """A text file with the separator that its schema or its name says."""
    tabs = any(suffix in (".tsv", ".tab") for suffix in path.suffixes)
    separator = schema.separator or ("\t" if tabs else ",")
    quote = schema.quote if schema.quote is not None else ('"' if separator == "," else "")
    return Source(str(path), lambda: open_file(path), separator, quote, schema.encoding)


def text_chunks(
    source: Source, wanted: Sequence[str], header: Sequence[str] | None = None, size: int | None = None
) -> Iterator[Chunk]:
    """The rows of a text table.

    Args:
        source: the table.
        wanted: names of the columns that are read.
        header: all names, where the first line is a row already.
        size: bytes of a chunk, about; None is 4 MiB.
    """
    pandas = import_pandas()
    names = list(header) if header is not None else text_header(source)
    check_names(source.where, names, wanted)
    picked = [names.index(name) for name in wanted]
    for block in text_blocks(source, len(names), header is None, size):
        frame = pandas.read_csv(
            io.BytesIO(block.data), sep=source.mark.decode(), header=None, usecols=picked, dtype=object,
            na_filter=False, skip_blank_lines=False, index_col=False, encoding="utf-8", engine="c",
            quoting=csv.QUOTE_MINIMAL if source.quote else csv.QUOTE_NONE, quotechar=source.quote or '"',
            lineterminator="\n",
        )  # fmt: skip
        if len(frame) != block.records:  # a quote in the middle of a field
            raise DataError(
                f"{source.where}: lines from {block.first} on: quotes {source.quote} stand inside of fields; if they "
                "are plain text, say quote='' in the schema"
            )
        columns = {name: frame[place].to_numpy(object) for name, place in zip(wanted, picked, strict=True)}
        yield Chunk(columns, block.records, source.where, lambda row, block=block: f"line {block.line(row)}")


def frame_chunk(rows: Any, wanted: Sequence[str], where: str = "rows") -> Chunk:
    """Rows at hand, a data frame or a mapping of columns, as one chunk.

    Raises:
        DataError: a column is missing, or columns have different lengths.
    """
    try:
        names = list(map(str, rows.keys()))
    except AttributeError:
        raise TypeError(f"{where} must be a mapping of columns or a data frame, got {type(rows).__name__}") from None
    check_names(where, names, wanted)
    columns = {name: _array(rows[name]) for name in wanted}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{where}: columns must be of one length, got {lengths}")
    return Chunk(columns, next(iter(lengths.values()), 0), where, lambda row: f"row {row}")


def check_names(where: str, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises DataError where a column is missing or there twice."""
    if missing := [name for name in wanted if name not in names]:
        shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
        raise DataError(f"{where}: there is no column {missing[0]!r}; the columns are {shown}")
    if twice := [name for name in wanted if list(names).count(name) > 1]:
        raise DataError(f"{where}: column {twice[0]!r} is there twice; rename one in the header")


def _parquet_chunks(path: Path, schema: Schema) -> Iterator[Chunk]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError(
            f"{path}: reading parquet needs pyarrow, which is not installed: pip install pyarrow; or write a CSV file"
        ) from None
    if not path.stat().st_size:
        raise DataError(f"{path}: is empty; it must hold a table")
    wanted = schema.sources()
    try:
        with parquet.ParquetFile(path) as file:
            check_names(str(path), file.schema_arrow.names, wanted)
            first = 0
            for batch in file.iter_batches(_PARQUET_ROWS, columns=wanted):
                columns = {
                    name: _array(batch.column(batch.schema.get_field_index(name)).to_pandas()) for name in wanted
                }
                yield Chunk(columns, batch.num_rows, str(path), lambda row, first=first: f"row {first + row}")
                first += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no whole parquet file ({str(error).splitlines()[0]})") from None


def _array(values: Any) -> np.ndarray:
    """One-dimensional, with lists kept as objects."""
    if hasattr(values, "to_numpy"):
        array = values.to_numpy()
    elif hasattr(values, "detach"):
        array = values.detach().cpu().numpy()
    elif isinstance(values, np.ndarray):
        array = values
    else:
        values = list(values)
        nested = any(isinstance(value, (list, tuple, np.ndarray)) for value in values)
        mixed = len({type(value) for value in values}) > 1
        array = np.empty(len(values), object) if nested or mixed else np.asarray(values)
        if nested or mixed:
            array[:] = values
    if array.ndim == 2:  # one list of the same length for each row
        rows, array = array, np.empty(len(array), object)
        array[:] = list(rows)
    if array.ndim != 1:
        raise DataError(f"a column must be one- or, as lists, two-dimensional, got shape {list(array.shape)}")
    return array if array.dtype.kind in "biuf" else array.astype(object)
