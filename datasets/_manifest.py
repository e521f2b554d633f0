"""A list of a folder's files with sizes and SHA-256 checksums, written last, so that it marks a finished folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from graphlossy.datasets._errors import DatasetError

__all__ = ["MANIFEST", "compare", "read_manifest", "sha256", "whole", "write_manifest"]

MANIFEST = "manifest.json"
_PART = f".{MANIFEST}.part"  # begins the name of one that is being written
_CHUNK = 1 << 22


def sha256(file: Path) -> str:
    """The SHA-256 checksum of a file in hexadecimal; the file is read in pieces.

    Raises:
        DatasetError: the file cannot be read.
    """
    total = hashlib.sha256()
    try:
        with open(file, "rb") as stream:
            while piece := stream.read(_CHUNK):
                total.update(piece)
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error.strerror or error})") from None
    return total.hexdigest()


def write_manifest(folder: Path, name: str, origin: dict[str, Any], parts: tuple[str, ...] = (".",)) -> Path:
    """Lists the files under ``folder`` in ``manifest.json`` there.

    Args:
        folder: whose files are complete.
        name: of the data set.
        origin: what it was made from (checksums, seeds, versions), as JSON takes it.
        parts: the folders in it that are listed, by default all.

    Raises:
        DatasetError: a file cannot be read, or the manifest cannot be written.
    """
    files = {
        relative: {"bytes": (folder / relative).stat().st_size, "sha256": sha256(folder / relative)}
        for relative in _files(folder, parts)
    }
    text = json.dumps({"name": name, "origin": origin, "files": files}, indent=1) + "\n"
    half = folder / f"{_PART}{os.getpid()}"
    try:
        with open(half, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        half.replace(folder / MANIFEST)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be written ({error.strerror or error}); give another path") from None
    return folder / MANIFEST


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None where it has none, or one that is no manifest."""
    try:
        found = json.loads((folder / MANIFEST).read_text())
        sound = isinstance(found["name"], str) and isinstance(found["origin"], dict)
        for name, file in found["files"].items():
            sound = sound and isinstance(file["bytes"], int) and isinstance(file["sha256"], str) and _inside(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if sound else None


def whole(folder: Path) -> bool:
    """Whether a folder has a manifest and every file in it has its size; quick, as no contents are read."""
    found = read_manifest(folder)
    return found is not None and not any(_size_problem(folder / name, file) for name, file in found["files"].items())


def compare(folder: Path, expected: dict[str, dict[str, Any]]) -> list[tuple[str, str | None]]:
    """Compares files with their sizes and checksums.

    Args:
        folder: where they lie.
        expected: for each file its ``"sha256"`` or its ``"git"`` (the id that git gives its contents) and, where known,
            its ``"bytes"``.

    Returns:
        For each file its name and what is wrong with it, None where all is right.
    """
    found: list[tuple[str, str | None]] = []
    for name, file in expected.items():
        problem = _size_problem(folder / name, file)
        if problem is None:
            kind = "sha256" if "sha256" in file else "git"
            real = sha256(folder / name) if kind == "sha256" else _git_id(folder / name)
            if real != file[kind]:
                problem = f"has other contents than it should ({kind} {real[:12]}..., expected {file[kind][:12]}...)"
        found.append((name, problem))
    return found


def _git_id(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _size_problem(path: Path, file: dict[str, Any]) -> str | None:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    return f"has {size:,} bytes, expected {file['bytes']:,}" if size != file.get("bytes", size) else None


def _inside(name: str) -> bool:
    """A manifest must not lead out of its folder."""
    path = Path(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts


def _files(folder: Path, parts: tuple[str, ...]) -> list[str]:
    found = {path.relative_to(folder) for part in parts for path in (folder / part).rglob("*") if path.is_file()}
    return sorted(path.as_posix() for path in found if path.name != MANIFEST and not path.name.startswith(_PART))
