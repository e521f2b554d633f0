"""What was once read from a data set's published files, kept beside them as ``.npy`` files for the next time.

Each part is a folder that is written under another name and renamed when it is whole, with a manifest of the sizes and
checksums of the files that it was made from. So neither a half-written part nor one of other files is ever used.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphlossy.core._files import sweep
from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._npz_stream import members
from graphlossy.datasets._planetoid import default_root

__all__ = ["converted", "signature"]

_FORMAT = 1
_FOLDER = "graphlossy"
_MANIFEST = "manifest.json"
_ATTEMPTS = 5


def signature(file: Path, keys: list[str] | None = None) -> list[Any]:
    """What tells a file's contents from others' without reading it: its size and the checksum it carries.

    Args:
        file: a ``.gz`` file, which ends in the CRC-32 and the length of the text; or an ``.npz`` archive, whose table
            of contents has the CRC-32 of each array.
        keys: the arrays of the archive that count.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    if file.suffix == ".npz":
        return [[key, *size_and_sum] for key, size_and_sum in sorted(members(file).items()) if key in (keys or [key])]
    try:
        with open(file, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(-min(8, size), os.SEEK_END)
            return [size, stream.read(8).hex()]
    except FileNotFoundError:
        raise DatasetError(f"{file}: there is no such file; download or write the data set again") from None
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error.strerror or error})") from None


def converted(
    folder: Path, part: str, sources: dict[str, list[Any]], write: Callable[[Path], dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """The folder of one converted part; it is made where there is none, or one of other files.

    Args:
        folder: of the data set.
        part: name, such as ``"structure"``.
        sources: file name -> :func:`signature` of what the part is made from.
        write: makes the part in the folder it is given, and returns what to keep in the manifest.

    Returns:
        The part's folder and what ``write`` returned when it was made.

    Raises:
        DatasetError: the part cannot be written, or ``write`` raised it.
    """
    places = [folder / _FOLDER, _elsewhere(folder)]
    for place in places:
        if (kept := _kept(place / part, sources)) is not None:
            return place / part, kept
    writable = next(filter(_writable, places), None)  # the second is made only where the first is closed
    if writable is None:
        raise DatasetError(f"{folder}: neither {places[0]} nor {places[1]} can be written to, which reading it needs")
    place = writable
    sweep(place)
    made = place / f".{part}-{socket.gethostname()}-{os.getpid()}"
    shutil.rmtree(made, ignore_errors=True)
    try:
        made.mkdir()
        kept = write(made)
        files = {file.name: file.stat().st_size for file in made.iterdir()}
        manifest = {"format": _FORMAT, "sources": sources, "files": files, "kept": kept}
        (made / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        _replace(place / part, made, sources)
    except OSError as error:
        raise DatasetError(f"{place}: cannot be written ({error.strerror or error}); free space there") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return place / part, kept


def _replace(part: Path, made: Path, sources: dict[str, list[Any]]) -> None:
    """Puts a finished part into its place, unless another process was faster and has put an equal one there."""
    old = part.with_name(f".{part.name}.old-{socket.gethostname()}-{os.getpid()}")
    for _ in range(_ATTEMPTS):
        if _kept(part, sources) is not None:
            return
        shutil.rmtree(old, ignore_errors=True)
        try:
            if part.exists():
                part.rename(old)  # not removed in its place, where by now there may be what another process made
            (made if _kept(old, sources) is None else old).rename(part)
            shutil.rmtree(old, ignore_errors=True)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
    raise OSError(errno.EBUSY, f"other processes keep replacing {part.name}")


def _kept(part: Path, sources: dict[str, list[Any]]) -> dict[str, Any] | None:
    """What the manifest of a whole and current part keeps."""
    try:
        manifest = json.loads((part / _MANIFEST).read_text())
        current = manifest["format"] == _FORMAT and manifest["sources"] == json.loads(json.dumps(sources))
        whole = all((part / name).stat().st_size == size for name, size in manifest["files"].items())
        return manifest["kept"] if current and whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _writable(place: Path) -> bool:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(place, os.W_OK | os.X_OK)


def _elsewhere(folder: Path) -> Path:
    """Where parts go when the data set's own folder is read-only."""
    path = str(folder.resolve())
    return default_root() / "converted" / f"{folder.resolve().name}-{zlib.crc32(path.encode()):08x}"
