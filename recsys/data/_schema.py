"""What a table's columns are: features of three kinds, a label and a time."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from graphlossy.recsys.data._errors import DataError

__all__ = ["KINDS", "Column", "Schema", "column_items", "made_column", "read_json", "read_schema"]

KINDS = ("token", "token_seq", "float")
TRANSFORMS = ("none", "log", "standard", "log_standard")
DERIVED = ("hour", "weekday", "weekend")
_LABEL = re.compile(r"^(.+?)\s*(>=|<=|==|!=|>|<)\s*([-+]?[0-9.]+(?:[eE][-+]?\d+)?)$")


@dataclass(frozen=True)
class Column:
    """One feature.

    Args:
        name: of the field.
        kind: ``"token"`` (one categorical value), ``"token_seq"`` (a list of them) or ``"float"``.
        source: the column of the file that it is read from; None is ``name``.
        buckets: of a token made from a number: ascending edges (value x gets the number of edges <= x), or
            ``"log_squared"``, floor(ln(x) ** 2) above 2, as it is usual for Criteo's counts.
        derive: of a token made from a time: ``"hour"`` of the day, ``"weekday"`` (0 is Monday) or ``"weekend"``.
        time_format: how that time is written, as ``datetime.strptime`` reads it; None is seconds since 1970.
        transform: of a float: ``"none"``, ``"log"`` (ln(1 + max(x, 0))), ``"standard"`` (mean 0 and deviation 1 in the
            training rows) or ``"log_standard"``. A value that is missing becomes 0 after it.
        separator: between the tokens of a token_seq.
        length: of a token_seq, padded or cut to it; None is the longest in the training rows.
        keep: which end of a longer token_seq stays, ``"first"`` or ``"last"``.
        min_count: rarer tokens are unseen ones; None is the schema's.
        catalogue: tokens that are known beforehand and get an id even where no training row has them.

    Raises:
        DataError: an option is unknown or does not go with the kind.
    """

    name: str
    kind: str = "token"
    source: str | None = None
    buckets: tuple[float, ...] | str | None = None
    derive: str | None = None
    time_format: str | None = None
    transform: str = "none"
    separator: str = " "
    length: int | None = None
    keep: str = "first"
    min_count: int | None = None
    catalogue: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        here = f"column {self.name!r}"
        if not isinstance(self.name, str) or not self.name or self.name == "label" or "/" in self.name:
            raise DataError(f"{here}: a field's name must be a text other than 'label' and without '/'")
        for option, allowed in (("kind", KINDS), ("transform", TRANSFORMS), ("keep", ("first", "last"))):
            if getattr(self, option) not in allowed:
                raise DataError(f"{here}: {option} must be {_either(allowed)}, got {getattr(self, option)!r}")
        if self.derive not in (None, *DERIVED):
            raise DataError(f"{here}: derive must be {_either(DERIVED)}, got {self.derive!r}")
        made = [option for option in ("buckets", "derive") if getattr(self, option) is not None]
        if made and (self.kind != "token" or len(made) > 1):
            raise DataError(f"{here}: buckets or derive make a token from a number or a time; kind is {self.kind!r}")
        if self.transform != "none" and self.kind != "float":
            raise DataError(f"{here}: transform is for kind 'float', kind is {self.kind!r}")
        for option in ("length", "min_count"):
            value = getattr(self, option)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise DataError(f"{here}: {option} must be an integer of at least 1, got {value!r}")
        if not isinstance(self.separator, str) or not self.separator:
            raise DataError(f"{here}: separator must be a text of at least one character, got {self.separator!r}")
        object.__setattr__(self, "buckets", _edges(here, self.buckets))
        object.__setattr__(self, "catalogue", tuple(map(str, self.catalogue)))

    @property
    def read_from(self) -> str:
        """The file's column."""
        return self.source or self.name


@dataclass(frozen=True)
class Schema:
    """What the columns of a table are.

    Args:
        columns: the features; or names alone, or a mapping of names to kinds or options: ``{"user": "token", "price":
            {"kind": "float", "transform": "log"}}``. Columns of the file that are not named are not used.
        label: the column with 0 and 1, or a comparison that makes them: ``"rating>=4"``.
        time: a column of numbers that orders the rows, for a split by time; None is the order in the file.
        separator: between fields; None is a comma, and a tab where the file's name ends in .tsv.
        header: the names of the file's columns where its first line does not have them.
        quote: around fields that hold the separator; None is ``"`` for commas and nothing (``""``) for all others.
        encoding: of the text; any in which ASCII is ASCII.
        min_count: tokens that occur less often in the training rows are unseen ones (id 0).
        order: of ids: ``"popularity"``, the most frequent first, or ``"appearance"``.

    Raises:
        DataError: an option is unknown or has another value.

    Example:
        >>> schema = read_schema({"label": "rating>=4", "columns": {"user": "token", "genres": "token_seq"}})
        >>> schema.label, schema.threshold, [column.kind for column in schema.columns]
        ('rating', ('>=', 4.0), ['token', 'token_seq'])
    """

    columns: tuple[Column, ...]
    label: str
    threshold: tuple[str, float] | None = None
    time: str | None = None
    separator: str | None = None
    header: tuple[str, ...] | None = None
    quote: str | None = None
    encoding: str = "utf-8"
    min_count: int = 1
    order: str = "popularity"

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(_columns(self.columns)))
        if not isinstance(self.label, str) or not self.label:
            raise DataError(f"label must be a column or a comparison such as 'rating>=4', got {self.label!r}")
        if self.threshold is None and (found := _LABEL.match(self.label.strip())):
            if found[1][-1] in "=<>!":
                raise DataError(f"label {self.label!r} is no comparison; there are >=, <=, ==, !=, > and <")
            object.__setattr__(self, "label", found[1])
            object.__setattr__(self, "threshold", (found[2], float(found[3])))
        elif self.threshold is not None:
            object.__setattr__(self, "threshold", (str(self.threshold[0]), float(self.threshold[1])))
        if told := next((column for column in self.columns if column.read_from == self.label), None):
            raise DataError(
                f"column {told.name!r} is read from the label's column {self.label!r}: it gives the answer away"
            )
        if self.header is not None:
            object.__setattr__(self, "header", tuple(map(str, self.header)))
        names = [column.name for column in self.columns]
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f"column {twice[0]!r} is named twice in the schema")
        if not isinstance(self.min_count, int) or isinstance(self.min_count, bool) or self.min_count < 1:
            raise DataError(f"min_count must be an integer of at least 1, got {self.min_count!r}")
        if self.order not in ("popularity", "appearance"):
            raise DataError(f"order must be 'popularity' or 'appearance', got {self.order!r}")
        if self.separator is not None and (not isinstance(self.separator, str) or not self.separator.isascii()):
            raise DataError(f"separator must be ASCII characters, got {self.separator!r}")
        if self.separator == "":
            raise DataError("separator must be at least one character, got ''")
        if self.quote is not None and (len(self.quote) > 1 or not self.quote.isascii()):
            raise DataError(f"quote must be one ASCII character, or '' for none, got {self.quote!r}")
        try:
            plain = ',\t"\n09azAZ'.encode(codecs.lookup(self.encoding).name) == b',\t"\n09azAZ'
        except (LookupError, TypeError, UnicodeError):
            plain = False
        if not plain:
            raise DataError(f"encoding must be a known one in which ASCII is ASCII, got {self.encoding!r}")

    def least(self, column: Column) -> int:
        """The ``min_count`` that counts for a column."""
        return self.min_count if column.min_count is None else column.min_count

    def sources(self) -> list[str]:
        """The file's columns that are read."""
        read = [column.read_from for column in self.columns]
        return list(dict.fromkeys([*read, self.label, *([self.time] if self.time else [])]))

    def with_min_count(self, min_count: int | None) -> Schema:
        """The schema with another default for ``min_count``; None leaves it."""
        return self if min_count is None else replace(self, min_count=min_count)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, such as JSON takes, that :func:`read_schema` reads."""
        return json.loads(json.dumps(asdict(self)))


def read_schema(value: Schema | Mapping[str, Any] | str | os.PathLike[str]) -> Schema:
    """A schema from a mapping or from a JSON file that holds one.

    Raises:
        DataError: the file cannot be read, or an option is unknown, missing or wrong.
    """
    if isinstance(value, Schema):
        return value
    if isinstance(value, (str, os.PathLike)):
        return _made(Schema, read_json(value), str(value))
    if not isinstance(value, Mapping):
        raise DataError(f"schema must be a mapping with 'columns' and 'label', got {type(value).__name__}")
    return _made(Schema, value, "schema")


def read_json(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The mapping in a schema's file.

    Raises:
        DataError: the file cannot be read or holds something else.
    """
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: the schema cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise DataError(f"{path}: the schema is no JSON ({error})") from None
    if not isinstance(found, Mapping):
        raise DataError(f"{path}: a schema must be a mapping with 'columns' and 'label', got {type(found).__name__}")
    return found


def column_items(value: Any) -> list[Column | dict[str, Any]]:
    """The columns of a schema in any of the forms that :class:`Schema` takes, those that are none yet as options.

    Raises:
        DataError: the form is another, or there are none.
    """
    if isinstance(value, Mapping):
        for name, options in value.items():
            if not isinstance(options, (str, Mapping)):
                raise DataError(f"column {name!r}: must be a kind, {_either(KINDS)}, or options, got {options!r}")
        value = [
            {"name": name, **({"kind": options} if isinstance(options, str) else options)}
            for name, options in value.items()
        ]
    if isinstance(value, str) or not isinstance(value, (list, tuple)) or not value:
        raise DataError(f"columns must name at least one feature, got {value!r}")
    found: list[Column | dict[str, Any]] = []
    for item in value:
        if not isinstance(item, (str, Column, Mapping)):
            raise DataError(f"columns must be names, mappings of options or Columns, got {item!r}")
        found.append(item if isinstance(item, Column) else {"name": item} if isinstance(item, str) else dict(item))
    return found


def _columns(value: Any) -> list[Column]:
    return [item if isinstance(item, Column) else made_column(item) for item in column_items(value)]


def made_column(options: Mapping[str, Any]) -> Column:
    """A column from its options.

    Raises:
        DataError: an option is unknown or wrong.
    """
    return _made(Column, options, "schema")


def _made(kind: type, options: Mapping[str, Any], where: str) -> Any:
    known = [entry.name for entry in fields(kind)]
    if unknown := [name for name in options if name not in known]:
        raise DataError(f"{where}: {kind.__name__.lower()} has no option {unknown[0]!r}; they are {', '.join(known)}")
    needed = [entry.name for entry in fields(kind) if entry.default is MISSING and entry.default_factory is MISSING]
    if absent := [name for name in needed if name not in options]:
        raise DataError(f"{where}: {kind.__name__.lower()} needs {absent[0]!r}, got {', '.join(options) or 'nothing'}")
    try:
        return kind(**options)
    except TypeError as error:
        raise DataError(f"{where}: {str(error).replace('__init__() ', '')}") from None
    except DataError as error:
        raise DataError(f"{where}: {error}" if not str(error).startswith(where) else str(error)) from None


def _edges(here: str, value: Any) -> tuple[float, ...] | str | None:
    if value is None or value == "log_squared":
        return value
    try:
        edges = tuple(float(edge) for edge in value) if not isinstance(value, str) else ()
    except (TypeError, ValueError):
        edges = ()
    if not edges or not all(map(math.isfinite, edges)) or list(edges) != sorted(set(edges)):
        raise DataError(f"{here}: buckets must be ascending numbers or 'log_squared', got {value!r}")
    return edges


def _either(allowed: tuple[str, ...]) -> str:
    return " or ".join(map(repr, allowed))
