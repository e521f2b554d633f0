"""Columns that are written piece by piece, in memory or as ``.npy`` files, and read back in pieces."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from graphlossy.recsys.data._errors import DataError

__all__ = ["FolderStore", "MemoryStore", "Store", "map_column"]

_HEADER = 128  # bytes; room for any shape


class Store(ABC):
    """Arrays by name, each appended to and then finished."""

    @abstractmethod
    def append(self, name: str, rows: np.ndarray) -> None:
        """Adds rows [k, ...]; the first call fixes dtype and shape of a row."""

    @abstractmethod
    def finish(self, name: str) -> int:
        """Ends an array; returns its rows."""

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of a finished array, in memory of their own."""

    @abstractmethod
    def array(self, name: str) -> np.ndarray:
        """A finished array: in memory, or memory-mapped."""

    @abstractmethod
    def drop(self, name: str) -> None:
        """Removes a finished array."""

    def close(self) -> None:  # noqa: B027  # most stores have nothing open
        """Lets go of what is open after a failure."""


class MemoryStore(Store):
    """In memory."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[np.ndarray]] = {}
        self._arrays: dict[str, np.ndarray] = {}

    def append(self, name: str, rows: np.ndarray) -> None:
        self._pieces.setdefault(name, []).append(rows)

    def finish(self, name: str) -> int:
        self._arrays[name] = np.concatenate(self._pieces.pop(name))
        return len(self._arrays[name])

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._arrays[name][start:stop]

    def array(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def drop(self, name: str) -> None:
        del self._arrays[name]


class FolderStore(Store):
    """In a folder's ``.npy`` files; a name may have folders in it, such as ``"train/user"``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, tuple[BinaryIO, np.dtype, tuple[int, ...], int]] = {}
        self._done: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}

    def append(self, name: str, rows: np.ndarray) -> None:
        rows = np.ascontiguousarray(rows)
        if name not in self._open:
            file = self._file(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            stream = open(file, "wb")
            stream.write(b"\0" * _HEADER)
            self._open[name] = stream, rows.dtype, rows.shape[1:], 0
        stream, dtype, inner, count = self._open[name]
        if rows.size:
            stream.write(rows.reshape(-1).view(np.uint8).data)
        self._open[name] = stream, dtype, inner, count + len(rows)

    def finish(self, name: str) -> int:
        stream, dtype, inner, count = self._open.pop(name)
        with stream:
            shape = (count, *inner)
            text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
            stream.seek(0)
            stream.write(b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little") + text.ljust(_HEADER - 11) + b"\n")
        self._done[name] = dtype, inner
        return count

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        dtype, inner = self._done[name]  # read, not mapped: mapped pages would count as this process's memory
        width = math.prod(inner)
        with open(self._file(name), "rb") as stream:
            stream.seek(_HEADER + start * width * dtype.itemsize)
            return np.fromfile(stream, dtype, (stop - start) * width).reshape(-1, *inner)

    def array(self, name: str) -> np.ndarray:
        return map_column(self._file(name))

    def drop(self, name: str) -> None:
        del self._done[name]
        self._file(name).unlink()

    def close(self) -> None:
        for stream, *_ in self._open.values():
            stream.close()
        self._open.clear()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


def map_column(file: Path) -> np.ndarray:
    """A memory-mapped ``.npy`` file.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)
        except ValueError:  # no rows: nothing that could be mapped
            found = np.load(file, allow_pickle=False)
            if found.size:
                raise
            return found
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file}: cannot be read ({error}); remove its folder, and it is made again") from None
