"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["safetensors_library", "written"]


def safetensors_library() -> Any:
    """safetensors with its torch functions."""
    try:
        import safetensors.torch
    except ImportError as error:
        message = "tables are safetensors files: pip install safetensors, or pip install 'graphlossy[recsys]'"
        raise ImportError(message) from error
    return safetensors


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path to write to, in a folder beside ``path``; what is written there moves to its place when the block is done.

    Files beside it, as external data, move along, before the file itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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
