"""One array of an ``.npz`` archive, read from its beginning in chunks, so that it need not fit into memory."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from graphlossy.datasets._errors import DatasetError

__all__ = ["Stream", "members", "open_stream"]


def members(path: Path) -> dict[str, tuple[int, int]]:
    """The arrays of an archive: name -> (size in bytes, CRC-32), from its table of contents alone.

    Raises:
        DatasetError: the file is missing or no whole archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {info.filename.removesuffix(".npy"): (info.file_size, info.CRC) for info in archive.infolist()}
    except FileNotFoundError:
        raise DatasetError(f"{path}: there is no such file; download or write the data set again") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path}: is no whole .npz archive ({error}); download or write it again") from None


@dataclass
class Stream:
    """An array that is being read: its ``shape`` and ``dtype``, and :meth:`take` for the next values."""

    shape: tuple[int, ...]
    dtype: np.dtype
    where: str
    source: IO[bytes]

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` values, in the order they are stored (row after row)."""
        size = count * self.dtype.itemsize
        data = bytearray(size)
        view, done = memoryview(data), 0
        while done < size:
            try:
                got = self.source.readinto(view[done:])  # type: ignore[attr-defined]
            except Exception as error:  # damaged bytes raise whatever zlib or the checksum stumbles over
                raise DatasetError(f"{self.where} is damaged ({error}); download or write it again") from None
            if not got:
                raise DatasetError(f"{self.where} is truncated; download or write it again")
            done += got
        return np.frombuffer(data, self.dtype)

    def skip(self, count: int, step: int = 1 << 22) -> None:
        """Passes over ``count`` values."""
        while count:
            self.take(min(step, count))
            count -= min(step, count)

    def rows(self, step: int = 1 << 22) -> Iterator[np.ndarray]:
        """All rows, about ``step`` values at a time."""
        width = math.prod(self.shape[1:])
        for first in range(0, self.shape[0], most := max(1, step // max(1, width))):
            count = min(most, self.shape[0] - first)
            yield self.take(count * width).reshape(count, *self.shape[1:])


@contextmanager
def open_stream(path: Path, key: str) -> Iterator[Stream]:
    """Opens one array of an archive for the length of a ``with`` block.

    Raises:
        DatasetError: there is no such array, or it is not of plain numbers in rows.
    """
    where = f"{path}: {key}"
    if key not in (known := members(path)):
        raise DatasetError(f"{path}: has no array {key!r}; it has {', '.join(known) or 'none'}")
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as source:
        try:
            version = np.lib.format.read_magic(source)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, columns_first, dtype = read(source)
        except Exception as error:
            raise DatasetError(f"{where} is no readable array ({error}); download or write it again") from None
        if dtype.kind not in "fiub" or (columns_first and len(shape) > 1):
            raise DatasetError(f"{where} is an array of {dtype}; it must hold numbers, stored row by row")
        yield Stream(shape, dtype, where, source)
