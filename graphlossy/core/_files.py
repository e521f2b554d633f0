"""Files that are whole or absent, and what killed processes left of them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["allowed_globals", "replace_file", "sweep", "write_json", "write_text", "written"]


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path to write to, in a folder beside ``path``; what is written there moves to its place when the block is done.

    Files beside it, as external data, move along, before the file itself. All have the permissions of a new file.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == temporary):
            with open(file, "rb") as complete:
                os.fsync(complete.fileno())
            os.chmod(file, 0o666 & ~mask)  # some writers give their files to the owner alone
            os.replace(file, path.parent / file.name)


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Writes ``content`` beside ``path``, to the disk, then gives it that name; raises OSError and leaves nothing."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` so that a crash leaves the old file or the new one."""
    replace_file(path, text.encode("utf-8"))


def write_json(path: Path, values: Any) -> None:
    """Writes ``values`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


@contextmanager
def allowed_globals(kinds: Iterable[Any]) -> Iterator[None]:
    """``torch.load(..., weights_only=True)`` reads these kinds of objects inside.

    ``torch.serialization.safe_globals`` takes away what it was given when it ends, also what a library had allowed
    before for good, as PyTorch Geometric does with its ``Data``.
    """
    import torch

    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([kind for kind in kinds if kind not in before]):
        yield


def sweep(place: Path) -> None:
    """Removes what processes of this machine left unfinished when they were killed: ``.NAME-HOST-PROCESS``."""
    for left in place.glob(f".*-{socket.gethostname()}-*"):
        number = left.name.rpartition("-")[2]
        if number.isdigit() and int(number) != os.getpid() and not _alive(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
