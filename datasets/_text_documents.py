"""Documents of text: of this Python's documentation, of text files, or of the lines of a JSONL file."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphlossy.datasets._errors import DatasetError

__all__ = ["Document", "documents"]

PYDOC = "pydoc"
_WAYS = ("paragraph", "line", "file")
_TEXTS = (".txt", ".md", ".rst")
_LINES = (".jsonl", ".ndjson")
_BLANK = re.compile(r"\n(?:[^\S\n]*\n)+")  # at least one line without a word
_BROKEN = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """A text that is not torn apart: training, validation or test, but in one of them alone.

    Attributes:
        name: by which it is assigned to a part (see :func:`split`): a topic or module of Python's documentation, a
            file's path in its folder, or, for a paragraph or a line, a checksum of its text.
        text: of it.
        label: of it, where it has one.
    """

    name: str
    text: str
    label: int | str | None = None


def documents(
    source: str | os.PathLike[str] = PYDOC,
    *,
    by: str | None = None,
    text_field: str = "text",
    label_field: str | None = None,
) -> list[Document]:
    """Reads documents; nothing is downloaded.

    ============================  =====================================================================================
    ``"pydoc"``                   the documentation that every CPython brings along: the language reference's topics
                                  (``pydoc_data.topics``) and the docstrings of the standard library, which is parsed,
                                  not imported; a topic or a module is a document, 0.5 and 1.4 MB in Python 3.11
    a text file                   of any ending but those below: each paragraph, up to a blank line, is a document
    a folder                      its ``.txt``, ``.md`` and ``.rst`` files, also in folders in it: each is a document
    a file ending in ``.jsonl``   one JSON object a line: its fields ``text_field`` and, if it is given,
    or ``.ndjson``                ``label_field`` make a document
    ============================  =====================================================================================

    Texts are UTF-8. Blank lines around a document do not count, and what is empty in a text file or a folder is no
    document. Documents are in the order of the file, or of the sorted names.

    Args:
        source: as above; ``./pydoc`` is a path.
        by: ``"paragraph"``, ``"line"`` or ``"file"``: what of a text file is a document; None is ``"paragraph"`` for
            one file and ``"file"`` for a folder.
        text_field: of a JSONL file, the field of the text.
        label_field: of a JSONL file, the field of the label, a whole number or a text; None reads no labels.

    Raises:
        DatasetError: there is no such file or folder, or no text in it; a file is no UTF-8; a line is no JSON object,
            lacks a field, has an empty text or a label of another kind (the text names file and line).

    Example:
        >>> from pathlib import Path
        >>> _ = Path("notes.txt").write_text("One paragraph\\nof two lines.\\n\\n\\nAnother one.\\n")
        >>> [document.text for document in documents("notes.txt")]
        ['One paragraph\\nof two lines.', 'Another one.']
        >>> _ = Path("mail.jsonl").write_text('{"text": "Dear all", "kind": "ham"}\\n')
        >>> documents("mail.jsonl", label_field="kind")[0].label
        'ham'
        >>> documents("mail.jsonl", label_field="label")
        Traceback (most recent call last):
        ...
        graphlossy.datasets._errors.DatasetError: mail.jsonl: line 1: has no field 'label'; its fields are text, kind
    """
    if by not in (None, *_WAYS):
        raise ValueError(f"by must be {', '.join(map(repr, _WAYS))} or None, got {by!r}")
    if os.fspath(source) == PYDOC:
        _only_jsonl(PYDOC, label_field)
        from graphlossy.datasets._pydoc import pydoc_documents

        return [Document(name, text) for name, text in pydoc_documents()]
    path = Path(source)
    if path.is_dir():
        _only_jsonl(path, label_field)
        found = list(_folder(path, by or "file"))
    elif not path.is_file():
        raise DatasetError(f"{path}: there is no such file or folder; give a text file, a .jsonl file or a folder")
    elif path.suffix in _LINES:
        if by is not None:
            raise DatasetError(f"{path}: each line of a JSONL file is a document; leave by={by!r} out")
        found = list(_jsonl(path, text_field, label_field))
    else:
        if path.suffix == ".json":
            raise DatasetError(f"{path}: a .json file is not read; write one object a line to a .jsonl file")
        _only_jsonl(path, label_field)
        found = list(_pieces(_read(path), by or "paragraph", path.name))
    if not found:
        raise DatasetError(f"{path}: holds no text")
    return found


def text_name(text: str) -> str:
    """The name of a document that has none: equal texts have equal names, so they are not torn apart."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _folder(path: Path, by: str) -> Iterator[Document]:
    files = sorted(
        (file.relative_to(path).as_posix(), file)
        for file in path.rglob("*")
        if file.suffix in _TEXTS and file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
    )
    if not files:
        lines = sorted(file.name for file in path.iterdir() if file.suffix in _LINES)
        hint = f"; give {path / lines[0]} itself" if lines else ""
        raise DatasetError(f"{path}: holds no {', '.join(_TEXTS)} file{hint}")
    for name, file in files:
        yield from _pieces(_read(file), by, name)


def _pieces(text: str, by: str, name: str) -> Iterator[Document]:
    if by == "file":
        if text := text.strip("\n"):
            yield Document(name, text)
        return
    for piece in _BLANK.split(text) if by == "paragraph" else text.split("\n"):
        if piece.strip():
            piece = piece.strip("\n").rstrip()  # the indentation of its first line is part of it
            yield Document(text_name(piece), piece)


def _read(file: Path) -> str:
    text = _decoded(_bytes(file), str(file)).replace("\r\n", "\n").replace("\r", "\n")
    return text if text.strip() else ""


def _jsonl(file: Path, text_field: str, label_field: str | None) -> Iterator[Document]:
    for number, line in enumerate(_bytes(file).split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{file}: line {number}"
        try:
            row = json.loads(_decoded(line, where))
        except RecursionError:
            raise DatasetError(f"{where}: is nested too deeply") from None
        except ValueError as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{where}: is no JSON ({error}); write one object a line") from None
        if not isinstance(row, dict):
            raise DatasetError(f'{where}: is a JSON {_kind(row)}, expected an object such as {{"{text_field}": ...}}')
        text = _field(row, text_field, where)
        if not isinstance(text, str) or not text.strip():
            what = "empty" if isinstance(text, str) else f"a JSON {_kind(text)}, expected a text"
            raise DatasetError(f"{where}: field {text_field!r} is {what}; correct the line or remove it")
        if _BROKEN.search(text):
            raise DatasetError(
                f"{where}: field {text_field!r} has half a character (a lone surrogate); correct the line"
            )
        label = None if label_field is None else _label(_field(row, label_field, where), label_field, where)
        yield Document(text_name(text), text, label)


def _field(row: dict[str, Any], name: str, where: str) -> Any:
    if name not in row:
        raise DatasetError(f"{where}: has no field {name!r}; its fields are {', '.join(row) or 'none'}")
    return row[name]


def _label(value: Any, field: str, where: str) -> int | str:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise DatasetError(f"{where}: label {field!r} is {json.dumps(value)[:40]}; it must be a whole number or a text")
    return value


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error.strerror or error})") from None


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")  # the mark that some editors write first
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where}: is no UTF-8 text (byte {error.start + 1}); save it as UTF-8") from None


def _only_jsonl(source: object, label_field: str | None) -> None:
    if label_field is not None:
        raise DatasetError(f"{source}: has no labels; label_field={label_field!r} is for .jsonl files")
