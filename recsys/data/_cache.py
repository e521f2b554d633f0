"""Encoded tables on disk, each in a folder that appears when it is whole, named by what it was made from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graphlossy.core._files import sweep
from graphlossy.recsys.data._encoder import Encoder
from graphlossy.recsys.data._errors import DataError
from graphlossy.recsys.data._partition import PARTS
from graphlossy.recsys.data._split import Split
from graphlossy.recsys.data._store import FolderStore, map_column

__all__ = ["encoded", "fingerprint", "read_folder"]

_FORMAT = 1
_MANIFEST = "manifest.json"
_ENCODER = "encoder.safetensors"
_PIECE = 1 << 22
_SETTLED = 2.0  # seconds after which a file's time of change tells every later change


def fingerprint(path: Path, folder: Path) -> str:
    """The SHA-256 checksum of a file; it is remembered in ``folder`` for a file of the same size and time of change.

    Raises:
        DataError: the file cannot be read, or changes meanwhile.
    """
    try:
        facts = path.stat()
        state = [facts.st_size, facts.st_mtime_ns, facts.st_ino]
        place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
        memory = folder / "checksums" / f"{place}.json"
        try:
            known = json.loads(memory.read_text())
            if known["state"] == state and isinstance(known["sha256"], str):
                return known["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        total = hashlib.sha256()
        with open(path, "rb") as stream:
            while piece := stream.read(_PIECE):
                total.update(piece)
        unchanged(path, facts)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    if time.time() - facts.st_mtime > _SETTLED:
        _remember(memory, {"state": state, "sha256": total.hexdigest()})
    return total.hexdigest()


def unchanged(path: Path, facts: os.stat_result) -> None:
    """Raises DataError where a file was written to since ``facts`` were taken."""
    now = path.stat()
    if (now.st_size, now.st_mtime_ns) != (facts.st_size, facts.st_mtime_ns):
        raise DataError(f"{path}: was changed while it was read; load it again when it is finished")


def encoded(
    folder: Path, name: str, paths: Sequence[Path], settings: dict[str, Any], make: Callable[[FolderStore], Encoder]
) -> tuple[Encoder, tuple[Split, Split, Split]]:
    """The encoder and memory-mapped parts of tables; they are made unless those of the same contents are there.

    Args:
        folder: of all encoded tables.
        name: begins the name of this one's folder.
        paths: the tables' files.
        settings: everything else that the result depends on, as JSON takes it.
        make: writes the columns of the three parts to a store.

    Raises:
        DataError: a file cannot be read or changes meanwhile, the folder cannot be written, or ``make`` raised it.
    """
    before = [path.stat() for path in paths]
    origin = {"format": _FORMAT, "files": [fingerprint(path, folder) for path in paths], "settings": settings}
    key = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:16]
    place = folder / f"{name}-{key}"
    if _whole(place, key):
        return read_folder(place)
    made = folder / f".{name}-{key}-{socket.gethostname()}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        encoder = make(FolderStore(made))
        for path, facts in zip(paths, before, strict=True):
            unchanged(path, facts)
        encoder.save(made / _ENCODER)
        shutil.rmtree(made / "pass", ignore_errors=True)
        files = {file.relative_to(made).as_posix(): file.stat().st_size for file in made.rglob("*") if file.is_file()}
        (made / _MANIFEST).write_text(json.dumps({"key": key, "origin": origin, "files": files}, indent=1) + "\n")
        if place.exists() and not _whole(place, key):
            shutil.rmtree(place)
        if not place.exists():
            made.rename(place)
    except OSError as error:
        if not _whole(place, key):  # else another process was faster
            raise DataError(
                f"{folder}: cannot be written ({error.strerror or error}); free space there, give another folder as "
                "root= or GRAPHLOSSY_DATA, or cache=False to keep the columns in memory"
            ) from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return read_folder(place)


def read_folder(place: Path) -> tuple[Encoder, tuple[Split, Split, Split]]:
    """What :func:`encoded` wrote, memory-mapped.

    Raises:
        DataError: a file is missing or damaged.
    """
    encoder = Encoder.load(place / _ENCODER)
    names = [column.name for column in encoder.schema.columns]
    made = []
    for part in PARTS:
        columns = {name: map_column(place / part / f"{name}.npy") for name in names}
        made.append(Split(columns, map_column(place / part / "label.npy")))
    return encoder, (made[0], made[1], made[2])


def _whole(place: Path, key: str) -> bool:
    try:
        manifest = json.loads((place / _MANIFEST).read_text())
        files = manifest["files"].items()
        return manifest["key"] == key and all((place / name).stat().st_size == size for name, size in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _remember(memory: Path, facts: dict[str, Any]) -> None:
    """Best effort: without it the file is read again the next time."""
    half = memory.with_name(f".{memory.name}.{os.getpid()}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(json.dumps(facts))
        half.replace(memory)
    except OSError:
        half.unlink(missing_ok=True)
