"""Writing files that are either whole or absent, and reading checkpoints without running code from them."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from graphlossy.core._files import replace_file
from graphlossy.train._errors import TrainError

__all__ = ["load_checkpoint", "save_checkpoint"]

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Saves ``state`` (tensors and plain values) so that a crash at any moment leaves the old file or the new one.

    Args:
        path: the file; a neighbour with the ending ``.tmp`` is written first, flushed to disk and renamed.
        state: nested dicts and lists of tensors, numbers, strings, None.

    Example:
        >>> import tempfile, pathlib, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(pathlib.Path(folder) / "last.pt", {"epoch": 3, "w": torch.ones(2)})
        ...     load_checkpoint(pathlib.Path(folder) / "last.pt")["epoch"]
        3
    """
    buffer = io.BytesIO()  # torch.save to a file on a full disk does not raise an OSError
    torch.save({"format": FORMAT, **state}, buffer)
    replace_file(path, buffer.getbuffer())
    _sync_folder(path.parent)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what :func:`save_checkpoint` wrote, tensors on the CPU, with ``weights_only=True``.

    Raises:
        TrainError: the file is missing, damaged or of another format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainError(f"no checkpoint at {path}; start again without --resume") from None
    except Exception as error:  # a damaged file makes torch.load raise almost anything
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise TrainError(f"cannot read checkpoint {path}: {reason}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TrainError(f"checkpoint {path} is not of format {FORMAT}; it was made by another version or program")
    return state


def _sync_folder(folder: Path) -> None:
    # The rename itself must reach the disk, or a power cut may bring the old file back.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
