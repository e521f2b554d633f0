"""Which part a document belongs to: by its name, so that no other document changes it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import NamedTuple

from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._text_documents import Document

__all__ = ["Parts", "split"]


class Parts(NamedTuple):
    """Documents of the three parts, each in the order in which they were given."""

    train: list[Document]
    valid: list[Document]
    test: list[Document]


def split(documents: Iterable[Document], valid: float = 0.1, test: float = 0.1, seed: int = 0) -> Parts:
    """Assigns each document to training, validation or test by a hash of its name and the seed.

    So a document stays in its part where others are added, removed or reordered, where its text is corrected (unless it
    is named by its text: see :class:`Document`), and from one version of Python to the next; equal names are in one
    part. The shares are those of documents that one can expect, not exact ones, and not of tokens.

    Args:
        documents: of :func:`documents`.
        valid: share of the validation documents, at least 0.
        test: share of the test documents, at least 0; less than 1 together.
        seed: another seed is another split.

    Returns:
        The parts, as a tuple with names.

    Raises:
        DatasetError: a part whose share is more than 0 has no document.
        ValueError, TypeError: a share or the seed is not allowed.

    Example:
        >>> from graphlossy.datasets import text
        >>> parts = text.split([text.Document(f"page {i}", "...") for i in range(1000)])
        >>> [len(part) for part in parts]
        [782, 113, 105]
    """
    for name, share in (("valid", valid), ("test", test)):
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not math.isfinite(share) or share < 0:
            raise ValueError(f"{name} must be a share of at least 0, got {share!r}")
    if valid + test >= 1:
        raise ValueError(f"valid and test must be less than 1 together, got {valid} + {test}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    parts = Parts([], [], [])
    for document in documents:
        place = _place(document.name, seed)
        part = parts.test if place < test else parts.valid if place < test + valid else parts.train
        part.append(document)
    total = sum(map(len, parts))
    for name, part, share in zip(parts._fields, parts, (1 - valid - test, valid, test), strict=True):
        if not part and share > 0:
            raise DatasetError(
                f"none of the {total} documents is in the part {name!r}, whose share is {share:.3g}; give more or "
                "smaller documents (a text by paragraph, not by file), another share or another seed"
            )
    return parts


def _place(name: str, seed: int) -> float:
    """Uniform in [0, 1)."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
