"""Reading ``.csv.gz`` tables of numbers: in chunks of bounded memory, fast, and with errors that name the line."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from graphlossy.datasets._errors import DatasetError

__all__ = ["csv_chunks", "read_csv"]

_CHUNK = 1 << 23  # bytes of text taken together
_DIGITS = b"0123456789.+-eE"


def read_csv(path: Path, dtype: type, columns: int | None = None, rows: int | None = None) -> np.ndarray:
    """A whole table [rows, columns].

    Args:
        path: of a ``.csv.gz`` file without a header.
        dtype: of the result, an integer or real type.
        columns: that every line must have; None takes the first line's.
        rows: that there must be; None takes any number.

    Raises:
        DatasetError: the file is missing or truncated, a line is not of that shape, or there are more or fewer rows.
    """
    chunks = list(csv_chunks(path, dtype, columns))
    found = sum(map(len, chunks))
    if rows is not None and found != rows:
        raise DatasetError(f"{path}: has {found:,} rows; there must be {rows:,}, one for each node, edge or graph")
    return np.concatenate(chunks) if chunks else np.empty((0, columns or 1), dtype)


def csv_chunks(path: Path, dtype: type, columns: int | None = None) -> Iterator[np.ndarray]:
    """The table's rows, some hundred thousand at a time, as arrays [k, columns]; arguments as :func:`read_csv`.

    An empty field, like ``nan``, is NaN in a real table. Fields of an integer table may be written ``3.0``.
    """
    line = 1
    for text in _whole_lines(path):
        if columns is None:
            columns = text[: text.index(b"\n")].count(b",") + 1
        lines = text.count(b"\n")
        yield _parse(text, lines, columns, np.dtype(dtype), path, line)
        line += lines


def _parse(text: bytes, lines: int, columns: int, dtype: np.dtype, path: Path, line: int) -> np.ndarray:
    # What is left without the digits must be the separators, in their places.
    if text.translate(None, _DIGITS) == (b"," * (columns - 1) + b"\n") * lines:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                values = np.fromstring(text.replace(b"\n", b","), dtype, sep=",")
            except (DeprecationWarning, ValueError):  # a field such as "" or "1-2"; found line by line below
                values = np.empty(0, dtype)
        if len(values) == lines * columns:
            return values.reshape(lines, columns)
    return _parse_lines(text, columns, dtype, path, line)


def _parse_lines(text: bytes, columns: int, dtype: np.dtype, path: Path, first: int) -> np.ndarray:
    """Slow and exact: for the rare chunk that holds NaN, whole numbers written as real ones, or a fault."""
    rows = []
    for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), first):
        fields = line.split(",")
        if len(fields) != columns:
            raise DatasetError(
                f"{path}: line {number} has {len(fields)} fields, the others have {columns}; the file is damaged"
            )
        try:
            rows.append([_number(field, dtype) for field in fields])
        except ValueError:
            kind = "whole numbers" if dtype.kind in "iu" else "numbers"
            raise DatasetError(
                f"{path}: line {number} is {line[:60]!r}; it must hold {kind}: correct it or download the file again"
            ) from None
    return np.array(rows, dtype).reshape(len(rows), columns)


def _number(field: str, dtype: np.dtype) -> float:
    if dtype.kind == "f":
        return float(field) if field.strip() else math.nan
    try:
        value = int(field)
    except ValueError:
        if not float(field).is_integer():
            raise
        value = int(float(field))
    if not -(2**63) <= value < 2**63:
        raise ValueError
    return value


def _whole_lines(path: Path) -> Iterator[bytes]:
    """The decompressed text, cut after a line's end; the last line gets one where it has none."""
    rest = b""
    for piece in _decompressed(path):
        piece = rest + piece if rest else piece
        end = piece.rfind(b"\n") + 1
        rest = piece[end:]
        if end:
            yield piece[:end].replace(b"\r", b"")
    if rest:
        yield rest.replace(b"\r", b"") + b"\n"


def _decompressed(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as stream:
            if not stream.read(1):
                raise DatasetError(f"{path}: is empty; download or write it again")
            stream.seek(0)
            while head := stream.read(1):  # a file may hold several members, one after another
                inflate = zlib.decompressobj(wbits=31)
                data = head
                while not inflate.eof:
                    if not data:
                        raise DatasetError(f"{path}: is truncated; download or write it again")
                    if text := inflate.decompress(data, _CHUNK):
                        yield text
                    if not inflate.eof:
                        data = inflate.unconsumed_tail or stream.read(_CHUNK // 4)
                stream.seek(-len(inflate.unused_data), 1)
    except FileNotFoundError:
        raise DatasetError(f"{path}: there is no such file; download or write the data set again") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from None
    except zlib.error as error:
        raise DatasetError(f"{path}: is no readable gzip file ({error}); download or write it again") from None
