"""Splits into training, validation and test nodes, drawn from a seed.

The draws use ``numpy.random.RandomState``, whose stream numpy keeps the same in every version, so that the same seed
means the same split everywhere.
"""

from __future__ import annotations

import numpy as np

__all__ = ["DRAWN_SPLITS", "TEST", "TRAIN", "UNUSED", "VALIDATION", "per_class_split", "random_split"]

UNUSED, TRAIN, VALIDATION, TEST = -1, 0, 1, 2
DRAWN_SPLITS = 10  # as many as the heterophilous graphs publish


def random_split(nodes: int, seed: int, number: int, shares: tuple[float, float] = (0.6, 0.2)) -> np.ndarray:
    """A random split, 60 % training, 20 % validation and 20 % test nodes.

    Args:
        nodes: number of nodes N.
        seed: of the draw.
        number: which of the splits under this seed.
        shares: of training and validation nodes.

    Returns:
        int8 array [N]: 0 training, 1 validation, 2 test.

    Example:
        >>> np.bincount(random_split(10, seed=0, number=0)).tolist()
        [6, 2, 2]
    """
    order = np.random.RandomState([seed, number]).permutation(nodes)
    train = max(1, round(shares[0] * nodes))
    ends = [train, min(nodes, train + round(shares[1] * nodes))]
    part = np.empty(nodes, np.int8)
    for value, rows in zip((TRAIN, VALIDATION, TEST), np.split(order, ends), strict=True):
        part[rows] = value
    return part


def per_class_split(y: np.ndarray, seed: int, number: int, train: int = 20, validation: int = 30) -> np.ndarray:
    """20 training and 30 validation nodes of every class, the rest test nodes (Shchur et al. 2018, section 4).

    A class of fewer than 80 nodes gives at most two fifths of them (but one at least) to training and at most half of
    the rest to validation.

    Args:
        y: labels [N].
        seed: of the draw.
        number: which of the splits under this seed.
        train: training nodes of each class.
        validation: validation nodes of each class.

    Returns:
        int8 array [N]: 0 training, 1 validation, 2 test.

    Example:
        >>> y = np.repeat([0, 1], [100, 10])
        >>> part = per_class_split(y, seed=0, number=0)
        >>> np.bincount(part[y == 0]).tolist(), np.bincount(part[y == 1]).tolist()
        ([20, 30, 50], [4, 3, 3])
    """
    order = np.random.RandomState([seed, number]).permutation(len(y))
    part = np.full(len(y), TEST, np.int8)
    for label in np.unique(y):
        rows = order[y[order] == label]
        first = min(train, max(1, 2 * len(rows) // 5))
        second = min(validation, (len(rows) - first) // 2)
        part[rows[:first]] = TRAIN
        part[rows[first : first + second]] = VALIDATION
    return part
