"""Negatives for pairs of which only the positive ones are known."""

from __future__ import annotations

import numpy as np

from graphlossy.recsys.data._errors import DataError
from graphlossy.recsys.data._hashing import hashed

__all__ = ["distinct", "sample_negatives"]

_STREAM = 3  # of the random numbers
_ROUNDS = 1_000


def sample_negatives(
    users: np.ndarray, items: np.ndarray, num_items: int, per_positive: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """For each positive pair, items drawn uniformly for the same user that are no positive pair and not drawn yet.

    Args:
        users: int64 [P], of all positive pairs, whichever split they will be in.
        items: int64 [P], from 0 to ``num_items - 1``.
        num_items: to draw from.
        per_positive: negatives of each positive.
        seed: of the draws.

    Returns:
        Users and items of the negatives, int64 [P * per_positive], those of a positive next to each other.

    Raises:
        DataError: a user has fewer items left than negatives are wanted.

    Example:
        >>> import numpy as np
        >>> users, items = np.array([0, 0, 1]), np.array([1, 2, 0])
        >>> negative_users, negative_items = sample_negatives(users, items, 5, seed=1)
        >>> negative_users.tolist(), bool((negative_items[:2] == 1).any() or (negative_items[:2] == 2).any())
        ([0, 0, 1], False)
    """
    users, items = np.asarray(users, np.int64), np.asarray(items, np.int64)
    if per_positive < 1:
        raise DataError(f"per_positive must be at least 1, got {per_positive}")
    if len(items) and (items.min() < 0 or items.max() >= num_items):
        raise DataError(f"items must be from 0 to num_items - 1 = {num_items - 1}, got {items.min()} to {items.max()}")
    taken = distinct(users * num_items + items)
    owners, positives = np.unique(taken // num_items, return_counts=True)
    wanted = np.bincount(np.searchsorted(owners, users), minlength=len(owners)) * per_positive
    short = positives + wanted > num_items
    if short.any():
        place = int(np.argmax(short))
        raise DataError(
            f"user {owners[place]} has {positives[place]:,} of {num_items:,} items, which leaves fewer than the "
            f"{wanted[place]:,} negatives wanted; lower per_positive = {per_positive}"
        )
    owner = np.repeat(users, per_positive)
    drawn = np.full(len(owner), -1, np.int64)
    pending = np.arange(len(owner))
    for attempt in range(_ROUNDS):
        if not len(pending):
            return owner, drawn
        item = (hashed(pending, seed, _STREAM, attempt) % np.uint64(num_items)).astype(np.int64)
        key = owner[pending] * num_items + item
        free = taken[np.minimum(np.searchsorted(taken, key), len(taken) - 1)] != key
        first = np.zeros(len(key), np.bool_)
        first[np.unique(key, return_index=True)[1]] = True
        good = free & first
        drawn[pending[good]] = item[good]
        taken = np.sort(np.concatenate([taken, key[good]]))
        pending = pending[~good]
    for row in pending:  # users with nearly every item: what is left is listed
        mine = taken[(taken >= owner[row] * num_items) & (taken < (owner[row] + 1) * num_items)] % num_items
        left = np.setdiff1d(np.arange(num_items), mine)
        drawn[row] = left[int(hashed(np.array([row]), seed, _STREAM, _ROUNDS)[0] % np.uint64(len(left)))]
        taken = np.sort(np.append(taken, owner[row] * num_items + drawn[row]))
    return owner, drawn


def distinct(values: np.ndarray) -> np.ndarray:
    """The values in ascending order, each once; by sorting, which for large integers is faster than a hash table."""
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values
