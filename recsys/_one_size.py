"""One size for all tokens of a table, fitted to a budget of bytes for all tables together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from graphlossy.core import format_bytes, parse_bytes
from graphlossy.core._random import permutation
from graphlossy.core.multi_size import LARGEST_CODES
from graphlossy.recsys._scores import ColumnScores
from graphlossy.recsys._storage import Storage
from graphlossy.recsys.tables._budget import BudgetError

__all__ = ["Allocation", "allocate_one_size", "allowed_sizes", "check_minimum"]

_STEPS = 80


class Allocation(NamedTuple):
    """What `allocate_sizes` found.

    Attributes:
        sizes: int16 [V] for every table.
        nbytes: of all tables.
        price: score per byte at which numbers are kept.
    """

    sizes: dict[str, Tensor]
    nbytes: int
    price: float


def allowed_sizes(rounding: str, embedding_dim: int, min_size: int = 0) -> list[int]:
    """The sizes that a rounding allows, rising, the full width always among them.

    Args:
        rounding: ``"exact"`` (all), ``"pow2"`` (powers of two) or ``"multiple_of:4"`` (or another number).
        embedding_dim: full width d.
        min_size: smallest size allowed.

    Raises:
        ValueError: ``rounding`` is none of these, or ``min_size`` is not from 0 to d.

    Example:
        >>> allowed_sizes("pow2", 12), allowed_sizes("multiple_of:4", 12, min_size=1)
        ([0, 1, 2, 4, 8, 12], [4, 8, 12])
    """
    if isinstance(min_size, bool) or not isinstance(min_size, int) or not 0 <= min_size <= embedding_dim:
        raise ValueError(f"min_size must be an int from 0 to embedding_dim = {embedding_dim}, got {min_size!r}")
    name, _, number = str(rounding).partition(":")
    if rounding == "exact":
        found = range(0, embedding_dim, -(-embedding_dim // (LARGEST_CODES - 1)))
    elif rounding == "pow2":
        found = [0, *(1 << k for k in range(embedding_dim.bit_length()))]
    elif name == "multiple_of" and number.isdecimal() and int(number):
        step = max(int(number), -(-embedding_dim // (LARGEST_CODES - 1)))
        found = range(0, embedding_dim, step)
    else:
        raise ValueError(f"rounding must be 'exact', 'pow2' or 'multiple_of:4' (or another number), got {rounding!r}")
    return [s for s in found if min_size <= s < embedding_dim] + [embedding_dim]


def check_minimum(budget: int, minimum: int, min_size: int, tables: int) -> None:
    """Raises BudgetError where ``minimum`` bytes are more than the budget."""
    if minimum <= budget:
        return
    smallest = f"with rows of at least {min_size}" if min_size else "with a single row"
    raise BudgetError(
        f"budget is {budget} bytes ({format_bytes(budget)}); {tables} tables {smallest} need at least {minimum} bytes "
        f"({format_bytes(minimum)}): raise the budget, or allow smaller rows or fewer bits",
        minimum,
    )


def allocate_one_size(
    scores: Mapping[str, ColumnScores],
    budget: int | float | str,
    storage: Mapping[str, Storage],
    *,
    rounding: str = "exact",
    min_size: int = 0,
    fill: bool = False,
    seed: int = 0,
) -> Allocation:
    """One size for each table: how many of its scores are above a threshold that all tables share.

    A table has its full width where that takes no more bytes than the smaller size and its projection. What is left of
    the budget widens tables by one size, those that use most of it first.

    Args:
        scores, budget, storage, rounding, min_size: as for `allocate_sizes`.
        fill: where that leaves more than 3 % of the budget, tokens of one table get its next size, as many as can be.
        seed: of the draw of these tokens.

    Raises:
        BudgetError: the smallest tables are larger than the budget; ``minimum`` says how large they are.
        ValueError: an argument is not allowed.

    Example:
        >>> scores = {"user": ColumnScores.proportional(1.0, 5000, 16), "sex": ColumnScores.proportional(1.0, 2, 16)}
        >>> found = allocate_one_size(scores, "61kB", {name: Storage(16) for name in scores})
        >>> {name: int(sizes[0]) for name, sizes in found.sizes.items()}
        {'user': 3, 'sex': 16}
    """
    limit = parse_bytes(budget)
    tables = [_Table(found, storage[name], rounding, min_size) for name, found in scores.items()]
    least = [min(t.nbytes(s) for s in t.levels) for t in tables]
    minimum = sum(least)
    if min_size == 0 and tables:  # no row at all is no table
        minimum += min(0 if t.nbytes(0) > n else t.next_nbytes(0) - n for t, n in zip(tables, least, strict=True))
    check_minimum(limit, minimum, min_size, len(tables))
    ranges = [t.scores.range() for t in tables]
    low = min((r[0] for r in ranges if r[1]), default=0.0) / 2
    high = max((r[1] for r in ranges), default=0.0) * 2
    if _total(tables, 0.0) <= limit:
        price = 0.0
    else:
        for _ in range(_STEPS if high else 0):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if _total(tables, middle) <= limit else (middle, high)
        price = high
    sizes = [t.size(price) for t in tables]
    left = limit - _total(tables, price)
    steps = [t.next_nbytes(s) - t.nbytes(s) if t.gains(s) else limit + 1 for t, s in zip(tables, sizes, strict=True)]
    for more, at in sorted(zip(steps, range(len(tables)), strict=True), reverse=True):
        if more <= left:
            sizes[at], left = tables[at].next_size(sizes[at]), left - more
    found = {}
    for name, size in zip(scores, sizes, strict=True):
        found[name] = torch.full((scores[name].num_embeddings,), size, dtype=torch.int16)
    if fill and left > 0.03 * limit:
        parts = [t.part(s, left) if t.gains(s) else (0, 0) for t, s in zip(tables, sizes, strict=True)]
        more, count = max(parts)
        at = parts.index((more, count))
        chosen = permutation(seed, tables[at].scores.num_embeddings)[:count]
        list(found.values())[at][chosen] = tables[at].next_size(sizes[at])
        left -= more
    return Allocation(found, limit - left, price)


class _Table:
    def __init__(self, scores: ColumnScores, storage: Storage, rounding: str, min_size: int) -> None:
        self.scores, self.storage = scores, storage
        self.levels = allowed_sizes(rounding, storage.embedding_dim, min(min_size, storage.embedding_dim))

    def nbytes(self, size: int) -> int:
        return self.storage.of_one_size(self.scores.num_embeddings, size)

    def size(self, threshold: float) -> int:
        """The level nearest to the number of scores above the threshold; the full width where that is no larger."""
        kept = self.scores.kept_by_all(threshold)
        return self._not_larger(min(self.levels, key=lambda s: (abs(s - kept), -s)))

    def _not_larger(self, size: int) -> int:
        full = self.levels[-1]
        return full if self.nbytes(full) <= self.nbytes(size) else size

    def next_size(self, size: int) -> int:
        return self._not_larger(min((s for s in self.levels if s > size), default=size))

    def next_nbytes(self, size: int) -> int:
        return self.nbytes(self.next_size(size))

    def part(self, size: int, left: int) -> tuple[int, int]:
        """(bytes, how many tokens) of the most that can have the next size for ``left`` bytes."""
        tokens = [0] * (self.storage.embedding_dim + 1)
        wider, base = self.next_size(size), self.nbytes(size)

        def nbytes(count: int) -> int:
            tokens[size], tokens[wider] = self.scores.num_embeddings - count, count
            return self.storage.nbytes(tokens) - base

        low, high = 0, self.scores.num_embeddings - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if nbytes(middle) <= left else (low, middle - 1)
        return (nbytes(low), low) if low else (0, 0)

    def gains(self, size: int) -> bool:
        """Whether there is a next size, and a score for it."""
        return size < self.levels[-1] and self.scores.kept_by_all(0.0) > size


def _total(tables: list[_Table], threshold: float) -> int:
    return sum(t.nbytes(t.size(threshold)) for t in tables)
