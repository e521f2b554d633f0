"""``.npy`` files: written row by row when their length is not known beforehand, and memory-mapped."""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from graphlossy.datasets._errors import DatasetError

__all__ = ["NpyWriter", "map_npy"]

_HEADER = 128  # bytes; room for any shape


class NpyWriter:
    """Writes an array to a ``.npy`` file as its rows come; the header is written when the file is closed.

    Args:
        path: of the file.
        dtype: of the array; what is appended is converted to it.
        inner: shape of a row.
    """

    def __init__(self, path: Path, dtype: type | np.dtype, inner: tuple[int, ...] = ()) -> None:
        self.rows = 0
        self._dtype, self._inner = np.dtype(dtype), inner
        self._stream = open(path, "wb")
        self._stream.write(b"\0" * _HEADER)

    def append(self, rows: np.ndarray) -> None:
        """Adds rows [k, *inner]."""
        rows = np.ascontiguousarray(rows, self._dtype).reshape(-1, *self._inner)
        self._stream.write(rows.reshape(-1).view(np.uint8).data)
        self.rows += len(rows)

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stream:
            if kind is None:
                shape = (self.rows, *self._inner)
                text = f"{{'descr': {self._dtype.str!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
                self._stream.seek(0)
                size = (_HEADER - 10).to_bytes(2, "little")
                self._stream.write(b"\x93NUMPY\x01\x00" + size + text.ljust(_HEADER - 11) + b"\n")


def map_npy(file: Path, mode: Literal["c", "r"] = "c") -> np.ndarray:
    """Maps a file into memory: ``"c"`` copies what is written to, as torch wants, and ``"r"`` allows no writing.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    try:
        array = np.load(file, mmap_mode=mode, allow_pickle=False)
    except ValueError:
        array = np.load(file, allow_pickle=False) if _is_empty(file) else None
        if array is None:
            raise DatasetError(f"{file}: is damaged; remove its folder, and it is made again") from None
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error}); remove its folder, and it is made again") from None
    return array


def _is_empty(file: Path) -> bool:
    """An array without elements, which cannot be mapped."""
    with open(file, "rb") as stream:
        if stream.read(8) != b"\x93NUMPY\x01\x00":
            return False
        stream.seek(0)
        np.lib.format.read_magic(stream)
        shape, _, _ = np.lib.format.read_array_header_1_0(stream)
        return math.prod(shape) == 0
