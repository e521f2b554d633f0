"""What a GGUF file says of itself: architecture, and name, shape and type of each tensor; no weight is read."""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from graphlossy.datasets._errors import DatasetError

__all__ = ["GgufHeader", "read_gguf_header", "types_in_words"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# number of a type: its name, the values of a block and the bytes of a block
_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 30: ("BF16", 1, 2),
}  # fmt: skip
_ALIGNMENT = 32  # of the weights, unless the file says otherwise


@dataclass(frozen=True)
class GgufHeader:
    """The description in front of the weights.

    Attributes:
        metadata: all single values of it, such as ``metadata["llama.block_count"]``.
        tensors: for each its name, shape and type, such as ``"Q4_1"``.
        least_bytes: size that the file has at least when it is whole.
    """

    metadata: dict[str, Any]
    tensors: tuple[tuple[str, tuple[int, ...], str], ...]
    least_bytes: int

    @property
    def architecture(self) -> str:
        """Such as ``"llama"``."""
        return str(self.metadata.get("general.architecture", "?"))

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(prod(shape) for _, shape, _ in self.tensors)

    def types(self) -> dict[str, int]:
        """How many tensors have each type, the most frequent first."""
        return dict(Counter(kind for _, _, kind in self.tensors).most_common())


def read_gguf_header(file: Path) -> GgufHeader:
    """Reads the description in front of a GGUF file's weights, little-endian, of version 2 or 3.

    Raises:
        DatasetError: the file cannot be read, is none of that kind, or ends too soon.
    """
    try:
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _parsed(data, file)
            size = len(data)
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error.strerror or error})") from None
    except (struct.error, OverflowError, UnicodeDecodeError):
        raise DatasetError(f"{file}: is damaged or ends too soon; get it again") from None
    except ValueError as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{file}: is empty; get it again") from None  # what mmap says of such a file
    if size < header.least_bytes:
        raise DatasetError(f"{file}: has {size:,} bytes, expected at least {header.least_bytes:,}; get it again")
    return header


def types_in_words(types: dict[str, int]) -> str:
    """How many tensors have each type.

    Example:
        >>> types_in_words({"Q4_1": 210, "Q8_0": 1})
        '210 tensors Q4_1, 1 tensor Q8_0'
    """
    return ", ".join(f"{count:,} tensor{'s' if count > 1 else ''} {kind}" for kind, count in types.items())


class _Reader:
    """A place in the file that moves on."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self.data, self.at)
        self.at += struct.calcsize(f"<{kind}")
        return value

    def text(self) -> str:
        size = self.number("Q")
        return self.raw(size).decode("utf-8")

    def raw(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise struct.error("the file ends too soon")
        self.at += size
        return self.data[self.at - size : self.at]

    def skip(self, kind: int, count: int) -> None:
        if kind != _STRING:
            self.at += struct.calcsize(f"<{_SCALARS[kind]}") * count
            return
        for _ in range(count):
            self.at += 8 + struct.unpack_from("<Q", self.data, self.at)[0]


def _parsed(data: mmap.mmap, file: Path) -> GgufHeader:
    reader = _Reader(data)
    if reader.raw(min(4, len(data))) != _MAGIC:
        raise DatasetError(f"{file}: is no GGUF file: it does not begin with {_MAGIC.decode()}")
    version = reader.number("I")
    if version not in _VERSIONS:
        raise DatasetError(f"{file}: is a GGUF file of version {version}; versions 2 and 3, little-endian, are read")
    tensors, keys = reader.number("Q"), reader.number("Q")
    metadata = {}
    for _ in range(keys):
        key, kind = reader.text(), reader.number("I")
        if kind == _ARRAY:
            kind, count = reader.number("I"), reader.number("Q")
            _known(kind, file)
            metadata[f"{key}.length"] = count
            reader.skip(kind, count)
        else:
            _known(kind, file)
            metadata[key] = reader.text() if kind == _STRING else reader.number(_SCALARS[kind])
    found, end = [], 0
    for _ in range(tensors):
        name, dimensions = reader.text(), reader.number("I")
        shape = tuple(reader.number("Q") for _ in range(dimensions))[::-1]
        number, offset = reader.number("I"), reader.number("Q")
        kind, values, size = _TYPES.get(number, (f"type {number}", 1, 0))
        found.append((name, shape, kind))
        end = max(end, offset + prod(shape) // values * size)
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise DatasetError(f"{file}: is damaged: its general.alignment is {alignment!r}; get it again")
    start = -(-reader.at // alignment) * alignment
    return GgufHeader(metadata, tuple(found), start + end)


def _known(kind: int, file: Path) -> None:
    if kind != _STRING and kind not in _SCALARS:
        raise DatasetError(f"{file}: is damaged: it has a value of type {kind}, which GGUF does not know; get it again")
