"""Files that are either whole or absent, and checkpoints that are read without running code from them."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

from graphlossy.core._files import replace_file
from graphlossy.recsys.train.config import TrainingError

__all__ = ["alone_in", "load_checkpoint", "read_json", "save_checkpoint"]

FORMAT = 1


@contextlib.contextmanager
def alone_in(folder: Path | None) -> Iterator[None]:
    """Inside this context no other process gets into this context with the same folder, which is made if need be.

    Raises:
        TrainingError: another process is in it.
    """
    if folder is not None and not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
    if folder is None or not folder.is_dir() or fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
    except BlockingIOError:
        os.close(handle)
        raise TrainingError(f"{folder}: another process computes there; wait for it, or give another --out") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Saves tensors and plain values; a crash at any moment leaves the old file or the new one.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(Path(folder) / "last.pt", {"epoch": 3})
        ...     load_checkpoint(Path(folder) / "last.pt")["epoch"]
        3
    """
    buffer = io.BytesIO()  # torch.save to a file on a full disk raises no OSError
    torch.save({"format": FORMAT, **state}, buffer)
    replace_file(path, buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, tensors on the CPU.

    Raises:
        TrainingError: the file cannot be read, is damaged or of another format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch.load raise almost anything
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise TrainingError(f"cannot read checkpoint {path}: {reason}; remove it to train anew") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TrainingError(f"checkpoint {path} is not of format {FORMAT}; remove it to train anew")
    return state


def read_json(path: Path) -> Any:
    """What `graphlossy.core._files.write_json` wrote.

    Raises:
        TrainingError: the file cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrainingError(f"cannot read {path}: {reason}; give --fresh to begin anew") from None
