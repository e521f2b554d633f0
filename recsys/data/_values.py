"""From a column's values to numbers, and to the texts of tokens."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

import numpy as np

from graphlossy.recsys.data._errors import DataError, import_pandas
from graphlossy.recsys.data._schema import Column
from graphlossy.recsys.data._tables import Chunk

__all__ = ["labels", "numbers", "scaled", "sequences", "tokens"]

_MISSING = {"", "nan", "NaN", "NA", "N/A", "null", "NULL", "None", "\\N", None}
_LARGEST = float(np.finfo(np.float32).max)
_COMPARE = {
    ">=": np.greater_equal, ">": np.greater, "<=": np.less_equal, "<": np.less, "==": np.equal, "!=": np.not_equal,
}  # fmt: skip


def numbers(chunk: Chunk, column: str, missing: bool = True) -> np.ndarray:
    """A column as float64 that float32 can hold; a missing value is NaN.

    Args:
        chunk: the rows.
        column: its name in the file.
        missing: whether a value may be missing.

    Raises:
        DataError: a value is no finite number, or missing where it may not be.
    """
    values = chunk.columns[column]
    if values.dtype.kind in "biuf":
        found = values.astype(np.float64)
        absent = np.isnan(found)
        wrong = np.zeros(len(found), np.bool_)
    else:
        pandas = import_pandas()
        found = np.asarray(pandas.to_numeric(pandas.Series(values, dtype=object), errors="coerce"), np.float64)
        absent = np.isnan(found)
        absent &= values == ""  # by far the most
        for row in np.flatnonzero(np.isnan(found) & ~absent):
            absent[row] = _is_missing(values[row])
        wrong = np.isnan(found) & ~absent
    wrong |= np.abs(found) > _LARGEST
    if not missing:
        wrong |= absent
    if wrong.any():
        row = int(np.argmax(wrong))
        chunk.fail(row, column, f"must be a finite number, got {str(values[row])[:40]!r}")
    return found


def labels(chunk: Chunk, column: str, threshold: tuple[str, float] | None) -> np.ndarray:
    """The label as float32 of 0 and 1.

    Raises:
        DataError: a value is missing or no number or, without a threshold, neither 0 nor 1.
    """
    found = numbers(chunk, column, missing=False)
    if threshold is not None:
        return _COMPARE[threshold[0]](found, threshold[1]).astype(np.float32)
    wrong = (found != 0) & (found != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        chunk.fail(
            row, column, f"a label must be 0 or 1, got {found[row]:g}; or compare it: '{column}>={found[row]:g}'"
        )
    return found.astype(np.float32)


def scaled(column: Column, raw: np.ndarray, mean: float, deviation: float) -> np.ndarray:
    """A float column after its transform, float32; missing values are 0.

    ``mean`` and ``deviation`` are of the training rows, after the logarithm.
    """
    value = np.log1p(np.maximum(raw, 0)) if column.transform.startswith("log") else raw
    if column.transform.endswith("standard"):
        value = (value - mean) / deviation
    return np.nan_to_num(value, nan=0.0, posinf=np.inf, neginf=-np.inf).astype(np.float32)


def tokens(chunk: Chunk, column: Column) -> tuple[np.ndarray, list[str]]:
    """A column of tokens as texts that are looked at once each.

    Returns:
        For each row the number of its text [n], and the texts; a missing value is the text ``""``.

    Raises:
        DataError: a value that buckets or a time are made from is none.
    """
    codes, unique = _distinct(chunk.columns[column.read_from])
    if column.buckets is not None:
        return codes, _bucketed(chunk, column, codes, unique)
    texts = _texts(unique)
    if column.derive is not None:
        texts = [_derived(chunk, column, codes, place, text) for place, text in enumerate(texts)]
    return codes, texts


def sequences(chunk: Chunk, column: Column) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A column of lists of tokens: texts with separators, or lists.

    Returns:
        The lengths of the lists [n], int32; for each token of all lists in turn the number of its text; the texts.
    """
    codes, unique = _distinct(chunk.columns[column.read_from])
    known: dict[str, int] = {}
    lists: list[list[int]] = []
    for value in unique.tolist():
        if isinstance(value, tuple):
            words: Iterable[str] = _texts(value)
        else:
            words = [word for word in _texts([value])[0].split(column.separator) if word]
        lists.append([known.setdefault(word, len(known)) for word in words])
    sizes = np.array([len(words) for words in lists], np.int64)
    flat = np.array([word for words in lists for word in words], np.int64)
    starts = np.cumsum(sizes) - sizes
    lengths = sizes[codes]
    ends = np.cumsum(lengths)
    inside = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    return lengths.astype(np.int32), flat[np.repeat(starts[codes], lengths) + inside], list(known)


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if values.dtype == object and any(isinstance(value, (list, tuple, np.ndarray)) for value in values[:100]):
        known: dict[Any, int] = {}
        lists = [tuple(value) if isinstance(value, (list, np.ndarray)) else value for value in values]
        codes = np.fromiter((known.setdefault(value, len(known)) for value in lists), np.int64, len(lists))
        unique = np.empty(len(known), object)
        unique[:] = list(known)
        return codes, unique
    if values.dtype == object:
        codes, unique = import_pandas().factorize(values, use_na_sentinel=False)
        return codes, np.asarray(unique, object)
    unique, codes = np.unique(values, return_inverse=True)
    return codes, unique


def _texts(values: Iterable[Any]) -> list[str]:
    return [value if type(value) is str else _text(value) for value in values]


def _text(value: Any) -> str:
    """As a table of text has it: whole numbers without a fraction, nothing for what is missing."""
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
        return ""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _is_missing(value: Any) -> bool:
    return value.strip() in _MISSING if isinstance(value, str) else _text(value) == ""


def _bucketed(chunk: Chunk, column: Column, codes: np.ndarray, unique: np.ndarray) -> list[str]:
    def place(code: int) -> Any:
        return chunk.place(int(np.argmax(codes == code)))

    origin = chunk.origin.get(column.read_from)
    if origin is not None:
        chunk_origin = {column.read_from: (origin[0], lambda code: origin[1](int(np.argmax(codes == code))))}
    else:
        chunk_origin = {}
    distinct = Chunk({column.read_from: unique}, len(unique), chunk.where, place, chunk_origin)
    found = numbers(distinct, column.read_from)
    absent = np.isnan(found)
    if column.buckets == "log_squared":
        bucket = np.where(found > 2, np.floor(np.log(np.maximum(np.where(absent, 1, found), 1)) ** 2), found)
    else:
        bucket = np.searchsorted(np.asarray(column.buckets), np.where(absent, 0, found), side="right")
    return ["" if gone else _text(float(value)) for value, gone in zip(bucket, absent, strict=True)]


def _derived(chunk: Chunk, column: Column, codes: np.ndarray, place: int, text: str) -> str:
    try:
        if not text:
            return ""
        if column.time_format is None:
            time = datetime.fromtimestamp(float(text), timezone.utc)
        else:
            time = datetime.strptime(text, column.time_format)
    except (ValueError, OverflowError, OSError, DataError):
        written = f"a time written {column.time_format}" if column.time_format else "a time in seconds since 1970"
        chunk.fail(int(np.argmax(codes == place)), column.read_from, f"must be {written}, got {text[:40]!r}")
    return str({"hour": time.hour, "weekday": time.weekday(), "weekend": int(time.weekday() > 4)}[column.derive])
