"""Reads a Debian package index (``Packages``, compressed or not) into one record a package."""

from __future__ import annotations

import bz2
import gzip
import importlib
import lzma
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from graphlossy.datasets._errors import DatasetError

__all__ = ["LISTS", "Index", "Package", "find_index", "is_index_name", "read_index", "version_key"]

LISTS = Path("/var/lib/apt/lists")  # where every Debian machine keeps the indexes that `apt-get update` fetches
_APT_HELPER = Path("/usr/lib/apt/apt-helper")
_RELATIONS = ("depends", "pre-depends", "recommends")
_WANTED = {"package", "version", "source", "section", "description", "provides", *_RELATIONS}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.\-_]*$")
_LOOKS_LIKE = re.compile(r"(?:.*_)?Packages(?:\.(?:gz|xz|bz2|lz4))?$")
_SIDE_SUITES = re.compile(r"-(?:security|updates|backports|proposed)(?:[-_]|$)")
_LOOK = 100  # paragraphs after which a file of another kind is given up
_UPDATE = "run `apt-get update`, or give the path of an index"


@dataclass(frozen=True)
class Package:
    """What the graph needs of a binary package.

    Attributes:
        name: of the binary package, such as ``"libc6"``.
        version: such as ``"1:2.36-9+deb12u10"``.
        source: the source package it is built from; its own name where the index gives none.
        section: such as ``"libs"`` or ``"contrib/net"``; empty where the index gives none.
        description: the one-line synopsis.
        clauses: of Depends, Pre-Depends and Recommends: the names of the alternatives that satisfy each.
        provides: virtual packages it stands for.
    """

    name: str
    version: str
    source: str
    section: str
    description: str
    clauses: tuple[tuple[str, ...], ...]
    provides: tuple[str, ...]


@dataclass(frozen=True)
class Index:
    """An index read.

    Attributes:
        packages: one for each name, the one of the highest version, sorted by name.
        stanzas: paragraphs in the file.
        malformed: paragraphs left out, as they hold no package name or a line that is no field.
    """

    packages: tuple[Package, ...]
    stanzas: int
    malformed: int


def is_index_name(path: Path) -> bool:
    """Whether a file is named as indexes are: ``Packages``, ``Packages.xz``, ``..._binary-amd64_Packages.lz4``."""
    return bool(_LOOKS_LIKE.match(path.name))


def find_index(lists: Path = LISTS) -> Path | None:
    """The main index of this machine's Debian release among apt's lists, or None.

    Security, update and backport suites are left out; of several indexes that remain, the largest is taken.
    """
    try:
        found = [path for path in lists.iterdir() if is_index_name(path) and "_main_binary-" in path.name]
    except OSError:  # no Debian machine, or its lists are closed to this user
        return None
    found = [path for path in found if not _SIDE_SUITES.search(path.name.partition("_dists_")[2])]
    return max(found, key=lambda path: (path.stat().st_size, path.name), default=None)


def read_index(path: Path) -> Index:
    """Reads an index; gzip, xz, bzip2 and lz4 are told by the file's first bytes, whatever its name.

    A paragraph that cannot be understood is left out and counted, as one bad package must not cost the graph.

    Raises:
        DatasetError: the file is absent, truncated, damaged, or no package index; or it is compressed by lz4 and
            neither the Python package lz4, nor apt, nor the program lz4 is there.
    """
    chosen: dict[str, Package] = {}
    stanzas = malformed = 0
    with _opened(path) as stream:
        for fields in _stanzas(stream):
            stanzas += 1
            package = _package(fields) if fields is not None else None
            if package is None:
                malformed += 1
            elif (other := chosen.get(package.name)) is None or newer(package.version, other.version):
                chosen[package.name] = package
            if stanzas == _LOOK and 2 * malformed > stanzas:
                break  # the rest need not be read
    if 2 * malformed > stanzas or not stanzas:
        found = f"{malformed} of its first {stanzas} paragraphs name no package" if stanzas else "it is empty"
        raise DatasetError(f"{path}: is no Debian package index ({found}); it must hold paragraphs with Package: NAME")
    return Index(tuple(chosen[name] for name in sorted(chosen)), stanzas, malformed)


def newer(version: str, other: str) -> bool:
    """Whether a version is higher than another."""
    return version != other and version_key(version) > version_key(other)


def version_key(version: str) -> tuple[Any, ...]:
    """A key that sorts Debian versions as ``dpkg --compare-versions`` does (Debian Policy, section 5.6.12).

    Example:
        >>> sorted(["1.10-1", "1:0.1", "1.9-2", "1.10~rc1-1", "1.10-1+b1"], key=version_key)
        ['1.9-2', '1.10~rc1-1', '1.10-1', '1.10-1+b1', '1:0.1']
    """
    head, colon, rest = version.strip().partition(":")
    epoch, rest = (int(head), rest) if colon and head.isdecimal() else (0, version.strip())
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return epoch, _part_key(upstream), _part_key(revision)


def _part_key(text: str) -> tuple[Any, ...]:
    """Turns of text and number; in the text, "~" sorts before its end, and letters before all else."""
    key: list[Any] = []
    for letters, digits in re.findall(r"(\D*)(\d*)", text):
        rank = [-1 if sign == "~" else ord(sign) + (0 if sign.isalpha() else 256) for sign in letters]
        key += [(*rank, 0), int(digits or 0)]
    return (*key, (0,), 0)


def _package(fields: dict[str, str]) -> Package | None:
    name = fields.get("package", "").strip()
    if not _NAME.match(name):
        return None
    source = fields.get("source", "").partition("(")[0].strip()  # "glibc (2.36-9)": another version than the binary's
    clauses = [
        alternatives
        for field in _RELATIONS
        for clause in fields.get(field, "").split(",")
        if (alternatives := tuple(filter(None, map(_bare, clause.split("|")))))
    ]
    return Package(
        name=name,
        version=fields.get("version", ""),
        source=source or name,
        section=fields.get("section", "").strip(),
        description=fields.get("description", "").partition("\n")[0].strip(),
        clauses=tuple(clauses),
        provides=tuple(filter(None, map(_bare, fields.get("provides", "").split(",")))),
    )


def _bare(relation: str) -> str:
    """``" python3:any (>= 3.9) [amd64] <!nocheck>"`` -> ``"python3"``; empty where no name is there."""
    name = re.split(r"[\s(\[<:]", relation.strip(), maxsplit=1)[0]
    return name if _NAME.match(name) else ""


def _stanzas(stream: Iterable[bytes]) -> Iterator[dict[str, str] | None]:
    """The wanted fields of each paragraph by their names in lower case; None for one that breaks the format."""
    fields: dict[str, str] = {}
    last, begun, broken = "", False, False
    for raw in stream:
        line = raw.rstrip(b"\r\n")
        if not line.strip():
            if begun:
                yield None if broken else fields
            fields, last, begun, broken = {}, "", False, False
            continue
        if line[:1] in b" \t":
            if last in _WANTED:
                fields[last] += "\n" + line.strip().decode("utf-8", "replace")
            broken |= not last
        else:
            key, colon, value = line.partition(b":")
            last = key.decode("utf-8", "replace").lower()
            broken |= not colon or not last or " " in last
            if last in _WANTED:
                fields[last] = value.strip().decode("utf-8", "replace")
        begun = True
    if begun:
        yield None if broken else fields


@contextmanager
def _opened(path: Path) -> Iterator[Iterable[bytes]]:
    """The file's lines, unpacked; what goes wrong while they are read becomes one clear error."""
    try:
        with open(path, "rb") as raw:
            start = raw.read(6)
            raw.seek(0)
            unpack: Callable[[BinaryIO], Any]
            if start.startswith(b"\x1f\x8b"):
                unpack = gzip.open
            elif start.startswith(b"\xfd7zXZ"):
                unpack = lzma.open
            elif start.startswith(b"BZh"):
                unpack = bz2.open
            elif start.startswith(b"\x04\x22\x4d\x18"):
                unpack = _open_lz4
            else:
                yield raw
                return
            with unpack(raw) as stream:
                yield stream
    except IsADirectoryError:
        raise DatasetError(f"{path}: is a folder; give the path of an index file in it") from None
    except FileNotFoundError:
        raise DatasetError(f"{path}: there is no such index; {_UPDATE}") from None
    except (EOFError, lzma.LZMAError, zlib.error, RuntimeError) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if error.errno is None:  # gzip's and bz2's words for bad bytes
            raise _damaged(path, error) from None
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from None


def _damaged(path: Path, error: Exception) -> DatasetError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return DatasetError(f"{path}: is truncated or damaged ({reason}); download it again or {_UPDATE}")


@contextmanager
def _open_lz4(raw: BinaryIO) -> Iterator[BinaryIO]:
    """By the Python package where it is installed, else by apt's own helper or the program lz4."""
    try:
        frame: Any = importlib.import_module("lz4.frame")
    except ImportError:
        pass
    else:
        with frame.open(raw, "rb") as stream:
            yield stream
        return
    path = raw.name
    program = shutil.which("lz4")
    if _APT_HELPER.exists():
        command = [str(_APT_HELPER), "cat-file", str(Path(path).absolute())]
    elif program:
        command = [program, "-dc", "--", path]
    else:
        raise DatasetError(f"{path}: is compressed by lz4, which needs `pip install lz4` (or the program lz4)")
    with tempfile.TemporaryFile() as unpacked, tempfile.TemporaryFile() as complaints:
        # To a file, not a pipe: nothing is read from an index before all of it proved sound.
        done = subprocess.run(command, stdout=unpacked, stderr=complaints, check=False)
        complaints.seek(0)
        if done.returncode:
            words = complaints.read(300).decode("utf-8", "replace").strip().splitlines()
            raise RuntimeError(words[-1].strip() if words else f"{command[0]} ended with code {done.returncode}")
        unpacked.seek(0)
        yield unpacked
