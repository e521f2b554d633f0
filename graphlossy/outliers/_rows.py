"""Feature rows: norms, copies, and how injected outliers get others' rows."""

from __future__ import annotations

import numpy as np

__all__ = ["exchange_rows", "other_copies", "replace_rows", "row_norms", "spread_draw"]

_CHUNK = 1 << 20  # elements looked at together


def _chunks(x: np.ndarray) -> list[np.ndarray]:
    rows = max(1, _CHUNK // max(1, x.shape[1]))
    return [x[first : first + rows] for first in range(0, len(x), rows)]


def row_norms(x: np.ndarray) -> np.ndarray:
    """||x_i||_2 of each row, float64 [N], from float32 [N, F] without a copy of it."""
    return np.concatenate([np.linalg.norm(part.astype(np.float64), axis=1) for part in _chunks(x)])


def other_copies(x: np.ndarray) -> np.ndarray:
    """How many other rows are the same, int64 [N]; rows are compared by a random hash of 64 bits.

    Example:
        >>> other_copies(np.array([[1, 2], [0, 0], [1, 2], [-0.0, 0]], np.float32)).tolist()
        [1, 1, 1, 1]
    """
    factor = np.random.default_rng(0).integers(2**62, size=x.shape[1], dtype=np.int64) * 2 + 1
    # Adding 0 makes one zero of the two; products wrap.
    parts = [
        (part + np.float32(0)).view(np.int32).astype(np.int64) @ factor for part in _chunks(np.ascontiguousarray(x))
    ]
    _, which, count = np.unique(np.concatenate(parts), return_inverse=True, return_counts=True)
    return count[which] - 1


def replace_rows(x: np.ndarray, nodes: np.ndarray, k: int, rng: np.random.Generator) -> None:
    """Gives each node, in turn and in place, the most distant row of k different random nodes."""
    for node in nodes.tolist():
        candidates = rng.choice(len(x), k, replace=False)
        difference = x[candidates].astype(np.float64) - x[node]
        x[node] = x[candidates[np.einsum("kf,kf->k", difference, difference).argmax()]]


def exchange_rows(x: np.ndarray, n: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Exchanges the rows of pairs of nodes in place: near in norm, the farthest apart of k candidates.

    One node of each pair is drawn from each of n / 2 runs of equal length in the order of the norms.

    Args:
        x: [N, F] float32.
        n: nodes to find, even.
        k: candidates for a pair.
        rng: of all choices.

    Returns:
        The nodes, one pair after the other, int64; fewer than n where no more pairs of different rows are near.
    """
    nodes, norm = len(x), row_norms(x)
    # Rounded, as sums of the same numbers in another order differ.
    order = shuffled_order(norm.astype(np.float32), rng)
    rank = np.empty(nodes, np.int64)
    rank[order] = np.arange(nodes)
    taken = np.zeros(nodes, np.bool_)
    found: list[int] = []

    def exchange(node: int) -> bool:
        if taken[node]:
            return False
        first = max(0, min(int(rank[node]) - k // 2, nodes - k - 1))
        near = rng.permutation(order[first : first + k + 1])  # shuffled: argmin takes the first of equals
        near = near[~taken[near] & (x[near] != x[node]).any(1)]
        if not len(near):
            return False
        cosine = x[near].astype(np.float64) @ x[node].astype(np.float64)
        cosine /= np.maximum(norm[near] * norm[node], np.finfo(np.float64).tiny)
        partner = int(near[cosine.argmin()])
        x[[node, partner]] = x[[partner, node]]
        taken[[node, partner]] = True
        found.extend((node, partner))
        return True

    strata = np.array_split(order, n // 2)
    failed = sum(not any(exchange(node) for node in rng.permutation(stratum).tolist()) for stratum in strata)
    for node in rng.permutation(nodes).tolist() if failed else ():  # rows of zeros have no norm but their own
        failed -= exchange(node)
        if not failed:
            break
    return np.array(found, np.int64)


def shuffled_order(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The positions of the values in rising order, those of equal values in random order."""
    return np.lexsort((rng.random(len(values)), values))


def spread_draw(candidates: np.ndarray, values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws ``count`` candidates, one from each of as many runs of equal length in the order of their values.

    Their values are distributed as those of all candidates, more closely than those of a plain random draw.

    Example:
        >>> drawn = spread_draw(np.arange(9), np.arange(9.0), 3, np.random.default_rng(0))
        >>> (drawn // 3).tolist()
        [0, 1, 2]
    """
    runs = np.array_split(candidates[shuffled_order(values, rng)], count)
    return np.array([rng.choice(run) for run in runs], np.int64)
