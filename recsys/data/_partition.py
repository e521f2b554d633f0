"""Which rows are for training, validation and test: at random, or by time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from graphlossy.recsys.data._errors import DataError
from graphlossy.recsys.data._hashing import uniform

__all__ = ["PARTS", "Partition", "check_split", "time_partition"]

PARTS = ("train", "valid", "test")
_STREAM = 1  # of the random numbers
_DIGIT = 16  # bits that one pass over the times settles


def check_split(split: str, fractions: Sequence[float]) -> tuple[float, float, float]:
    """The three fractions.

    Raises:
        DataError: the split is no known one, or the fractions are not three from 0 to 1 that sum to 1, the first > 0.
    """
    if split not in ("random", "time"):
        raise DataError(f"split must be 'random' or 'time', got {split!r}")
    try:
        train, valid, test = map(float, fractions)
    except (TypeError, ValueError):
        raise DataError(f"fractions must be three numbers, of train, valid and test, got {fractions!r}") from None
    if not (train > 0 and valid >= 0 and test >= 0 and math.isclose(train + valid + test, 1, abs_tol=1e-6)):
        raise DataError(f"fractions must sum to 1 with the first above 0, got {tuple(fractions)}")
    return train, valid, test


class Partition:
    """The part of each row: 0 training, 1 validation, 2 test.

    ``random``: row r is in a part by a hash of the seed and r, so it stays there when rows are appended, and the parts'
    sizes are the fractions up to chance. ``time``: the first rows are for training, and the parts have these sizes.

    Args:
        split: ``"random"`` or ``"time"``.
        fractions: of the parts.
        seed: of the random split.
        rows: how many there are; only a split by time needs it.
    """

    def __init__(self, split: str, fractions: tuple[float, float, float], seed: int, rows: int) -> None:
        self._random, self._seed = split == "random", seed
        self._shares = np.array([fractions[0], fractions[0] + fractions[1]])
        if fractions[2] == 0:
            self._shares[1] = 1.0  # nothing is lost to rounding
        if fractions[1] == 0 == fractions[2]:
            self._shares[0] = 1.0
        self.first = [round(share * rows) for share in self._shares.tolist()]  # rows before each boundary in time

    def part(self, start: int, stop: int) -> np.ndarray:
        """The parts of rows ``start`` to ``stop`` in the file's order, int8."""
        rows = np.arange(start, stop)
        if self._random:
            return np.searchsorted(self._shares, uniform(rows, self._seed, _STREAM), side="right").astype(np.int8)
        return np.searchsorted(np.array(self.first), rows, side="right").astype(np.int8)


def time_partition(partition: Partition, times: Callable[[], Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """The parts of rows in the order of time; rows of one time are split in the file's order.

    Memory does not grow with the rows: the times at the boundaries are found digit by digit.

    Args:
        partition: with the sizes of the parts.
        times: gives the times, float64 without NaN, from the beginning, some rows at a time.

    Returns:
        For each piece of times the parts, int8.
    """
    found = [_select(times, place) for place in partition.first]
    seen = [0] * len(found)
    for piece in times():
        keys = _ordered(piece)
        part = np.zeros(len(keys), np.int8)
        for boundary, (key, ties) in enumerate(found):
            same = keys == key
            number = seen[boundary] + np.cumsum(same) - 1
            part += (keys > key) | same & (number >= ties)
            seen[boundary] += int(same.sum())
        yield part


def _select(times: Callable[[], Iterator[np.ndarray]], place: int) -> tuple[np.uint64, int]:
    """The key of the row that is ``place``-th in order, and how many rows with this key come before it."""
    prefix, left = 0, place
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        histogram = np.zeros(1 << _DIGIT, np.int64)
        for piece in times():
            keys = _ordered(piece)
            if shift + _DIGIT < 64:
                keys = keys[keys >> np.uint64(shift + _DIGIT) == np.uint64(prefix)]
            digits = (keys >> np.uint64(shift)).astype(np.int64) & ((1 << _DIGIT) - 1)
            histogram += np.bincount(digits, minlength=1 << _DIGIT)
        below = np.cumsum(histogram)
        digit = min(int(np.searchsorted(below, left, side="right")), (1 << _DIGIT) - 1)
        left -= int(below[digit] - histogram[digit])
        prefix = prefix << _DIGIT | digit
    return np.uint64(prefix), left


def _ordered(values: np.ndarray) -> np.ndarray:
    """Unsigned integers in the order of the numbers."""
    bits = (values.astype(np.float64) + 0.0).view(np.uint64)  # -0.0 becomes 0.0
    negative = bits >> np.uint64(63) == 1
    return np.where(negative, ~bits, bits | np.uint64(1 << 63))
