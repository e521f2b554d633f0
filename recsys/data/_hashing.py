"""Random numbers that depend on a seed and a row's number alone: the same in any order and any chunk.

A hash of the counter (splitmix64's finaliser, Steele, Lea and Flood, OOPSLA 2014, applied twice) takes the place of a
generator's state, so neither a version of numpy nor the size of a chunk changes a split or a generated row.
"""

from __future__ import annotations

import numpy as np

__all__ = ["check_seed", "hashed", "normal", "permutation", "uniform"]

_STEP = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def check_seed(seed: object) -> int:
    """The seed as an int.

    Raises:
        TypeError: it is no integer.
        ValueError: it is negative or needs more than 63 bits.
    """
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed must be from 0 to 2**63 - 1, got {seed}")
    return int(seed)


def hashed(index: np.ndarray, *key: int) -> np.ndarray:
    """64 random bits for each counter; one key never gives two counters the same bits.

    Args:
        index: counters, integers of any shape, at least 0.
        key: seed and stream numbers.

    Returns:
        uint64 array of the shape of ``index``.

    Example:
        >>> import numpy as np
        >>> whole = hashed(np.arange(10), 7)
        >>> np.array_equal(whole[4:], hashed(np.arange(4, 10), 7))
        True
    """
    start = 0
    for number in key:
        start = _mix_int((start ^ (number & _MASK)) + _STEP & _MASK)
    offset = np.uint64(start)
    value = index.astype(np.uint64) * np.uint64(_STEP) + offset  # wraps around, as it is meant to
    return _mix(_mix(value) + offset)


def uniform(index: np.ndarray, *key: int) -> np.ndarray:
    """Numbers in [0, 1) with 53 random bits, float64."""
    return (hashed(index, *key) >> np.uint64(11)) * 2.0**-53


def normal(index: np.ndarray, *key: int) -> np.ndarray:
    """Two independent standard normal numbers for each counter (Box and Muller 1958), float32 [..., 2]."""
    bits = hashed(index, *key)
    radius = np.sqrt(-2 * np.log(((bits >> np.uint64(32)).astype(np.float32) + 1) * np.float32(2.0**-32)))
    angle = (bits & np.uint64(0xFFFFFFFF)).astype(np.float32) * np.float32(2 * np.pi * 2.0**-32)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def permutation(count: int, *key: int) -> np.ndarray:
    """A random order of ``range(count)``, int64; the bits it sorts by have no ties, so any way of sorting agrees.

    Example:
        >>> sorted(permutation(5, 0).tolist())
        [0, 1, 2, 3, 4]
    """
    return np.argsort(hashed(np.arange(count), *key))


def _mix(value: np.ndarray) -> np.ndarray:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _mix_int(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
