"""Blocks of whole records from a text table, checked for their number of fields before anything parses them."""

from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from graphlossy.recsys.data._errors import DataError

__all__ = ["BLOCK_BYTES", "Block", "Source", "open_file", "text_blocks", "text_header"]

BLOCK_BYTES = 1 << 22
_LONGEST = 1 << 26  # bytes of one record, beyond which a quote was never closed
_UNIT = b"\x1f"  # takes the place of a separator of several characters
_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclass(frozen=True)
class Source:
    """A table of text: where it is, for messages, and how it is opened and cut.

    Args:
        where: the file's name in messages.
        open: opens the bytes.
        separator: between fields.
        quote: around fields, or ``""``.
        encoding: of the text.
    """

    where: str
    open: Callable[[], BinaryIO]
    separator: str = ","
    quote: str = '"'
    encoding: str = "utf-8"

    @property
    def mark(self) -> bytes:
        """The one byte that separates fields in a :class:`Block`."""
        return self.separator.encode() if len(self.separator) == 1 else _UNIT


@dataclass(frozen=True)
class Block:
    """Whole records.

    Args:
        data: UTF-8, ends with a line's end.
        records: their number.
        first: the line of the file that the block begins with, from 1.
    """

    data: bytes
    records: int
    first: int
    source: Source

    def line(self, record: int) -> int:
        """The line of the file in which a record begins."""
        ends, _ = _structure(self.data, self.source)
        start = int(ends[record - 1]) + 1 if record else 0
        return self.first + self.data.count(b"\n", 0, start)


def open_file(path: Path) -> BinaryIO:
    """Opens a plain, .gz, .bz2 or .xz file."""
    return _OPENERS[path.suffix](path, "rb") if path.suffix in _OPENERS else open(path, "rb")


def text_header(source: Source) -> list[str]:
    """The fields of the first line.

    Raises:
        DataError: the file is missing or empty, or the line cannot be read.
    """
    lines = b""
    for piece in _pieces(source, 1 << 16):
        lines += piece
        if b"\n" in lines or len(lines) > _LONGEST:
            break
    text = _utf8(lines.partition(b"\n")[0].rstrip(b"\r"), source, 1).decode().removeprefix("\ufeff")
    if not text:
        raise DataError(f"{source.where}: line 1 is empty; it must name the columns")
    mark = source.mark.decode()
    if not source.quote:
        return text.split(mark)
    return next(csv.reader([text], delimiter=mark, quotechar=source.quote))


def text_blocks(source: Source, columns: int, header: bool, size: int | None = None) -> Iterator[Block]:
    """The records of a table, some megabytes at a time.

    Args:
        source: the table.
        columns: fields that every record must have.
        header: whether the first line is skipped.
        size: bytes of a block, about; None is 4 MiB.

    Raises:
        DataError: the file is missing, empty, truncated or no text, or a record has more or fewer fields.
    """
    line, rest, skip = 1, b"", header
    for piece in _pieces(source, size or BLOCK_BYTES):
        data = rest + piece
        if line == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        if skip:
            head, found, data = data.partition(b"\n")
            if not found:
                rest = head
                continue
            skip, line = False, 2
        ends, _ = _structure(data, source)
        cut = int(ends[-1]) + 1 if len(ends) else 0
        cut = len(data[:cut].rstrip(b"\n")) + 1 if data[:cut].strip(b"\n") else 0  # blank lines may be the file's end
        rest = data[cut:]
        if len(rest) > _LONGEST:
            raise DataError(f"{source.where}: line {line + data.count(bytes([10]), 0, cut)}: {_open(source)}")
        if cut:
            yield _block(data[:cut], columns, line, source)
            line += data.count(b"\n", 0, cut)
    if rest.strip() and not skip:
        ends, _ = _structure(rest + b"\n", source)
        if not len(ends):
            raise DataError(f"{source.where}: line {line}: {_open(source)}")
        yield _block(rest.rstrip(b"\n") + b"\n", columns, line, source)


def _block(data: bytes, columns: int, line: int, source: Source) -> Block:
    ends, marks = _structure(data, source)
    fields = np.diff(np.searchsorted(marks, ends), prepend=0) + 1
    starts = np.concatenate([[0], ends[:-1] + 1])
    wrong = (fields != columns) | (ends == starts)
    if wrong.any():
        record = int(np.argmax(wrong))
        start, end = int(starts[record]), int(ends[record])
        found = f"{fields[record]} field{'' if fields[record] == 1 else 's'}" if end > start else "nothing"
        raise DataError(
            f"{source.where}: line {line + data.count(bytes([10]), 0, start)} has {found}, expected {columns} "
            f"separated by {source.separator!r}; the file is truncated or damaged there, or has another separator"
        )
    if b"\0" in data:
        at = line + data.count(b"\n", 0, data.index(b"\0"))
        raise DataError(f"{source.where}: line {at} holds a NUL byte; the file is damaged or no text")
    return Block(data, len(ends), line, source)


def _structure(data: bytes, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Where records end and where fields are separated, outside of quotes."""
    codes = np.frombuffer(data, np.uint8)
    ends, marks = codes == 10, codes == source.mark[0]
    if source.quote and source.quote.encode() in data:
        outside = np.cumsum(codes == ord(source.quote), dtype=np.int32) % 2 == 0
        ends &= outside
        marks &= outside
    return np.flatnonzero(ends), np.flatnonzero(marks)


def _pieces(source: Source, size: int) -> Iterator[bytes]:
    """The bytes as UTF-8 with one-byte separators and newlines, cut after a line's end."""
    rest, line, empty = b"", 1, True
    try:
        with source.open() as stream:
            while piece := stream.read(size):
                empty = False
                piece = rest + piece
                cut = piece.rfind(b"\n") + 1
                rest = piece[cut:]
                if cut:
                    yield _clean(piece[:cut], source, line)
                    line += piece.count(b"\n", 0, cut)
                elif len(rest) > _LONGEST:
                    raise DataError(f"{source.where}: line {line} does not end; the file is damaged or no table")
    except FileNotFoundError:
        raise DataError(f"{source.where}: there is no such file") from None
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        place = f"after line {line - 1}" if line > 1 else "in its first lines"
        raise DataError(f"{source.where}: is truncated or damaged {place} ({error})") from None
    except OSError as error:
        raise DataError(f"{source.where}: cannot be read ({error.strerror or error})") from None
    if empty:
        raise DataError(f"{source.where}: is empty; it must hold a table")
    if rest:
        yield _clean(rest, source, line)


def _clean(data: bytes, source: Source, line: int) -> bytes:
    data = _utf8(data, source, line).replace(b"\r\n", b"\n")
    if len(source.separator) == 1:
        return data
    if _UNIT in data:
        at = line + data.count(b"\n", 0, data.index(_UNIT))
        raise DataError(f"{source.where}: line {at} holds the control character 0x1f, which no field may hold")
    return data.replace(source.separator.encode(), _UNIT)


def _utf8(data: bytes, source: Source, line: int) -> bytes:
    try:
        text = data.decode(source.encoding)
    except UnicodeDecodeError as error:
        at = line + data.count(b"\n", 0, error.start)
        raise DataError(
            f"{source.where}: line {at} is no {source.encoding} text; name the file's encoding in the schema, "
            "such as 'latin-1'"
        ) from None
    return data if source.encoding.lower() in ("utf-8", "utf8", "ascii") else text.encode()


def _open(source: Source) -> str:
    return (
        f"a quote {source.quote} is opened there and never closed; if quotes are plain text, say quote='' in the schema"
    )
