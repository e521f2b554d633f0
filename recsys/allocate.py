"""Sizes for the tokens of all tables together under one budget of bytes, counted as the finished modules count them.

A price per byte decides, the same for all tables: a number of a row is kept where its score is above what it costs, as
one global threshold does. The price is found by bisection. Beside the rows a table pays for its map and projections, so
for every table the set of sizes is chosen too, by what it keeps less what it costs at that price: fewer sizes, one
size, all rows at the full width where a projection would cost more than it saves, or none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from graphlossy.core import parse_bytes
from graphlossy.core._random import permutation
from graphlossy.recsys._one_size import Allocation, allocate_one_size, allowed_sizes, check_minimum
from graphlossy.recsys._scores import ColumnScores, EntryScores, PowerScores, TokenScores
from graphlossy.recsys._storage import BITS_WHEN, Storage, multi_size_bytes

__all__ = ["Allocation", "BITS_WHEN", "ColumnScores", "EntryScores", "PowerScores", "Storage", "TokenScores",
           "allocate_one_size", "allocate_sizes", "allowed_sizes", "multi_size_bytes"]  # fmt: skip

_STRUCTURE_STEPS, _PRICE_STEPS = 24, 40
_CLOSE = 1e-9  # two prices with nothing between them


def allocate_sizes(
    scores: Mapping[str, TokenScores],
    budget: int | float | str,
    storage: Mapping[str, Storage],
    *,
    rounding: str = "pow2",
    min_size: int = 0,
    seed: int = 0,
) -> Allocation:
    """Sizes whose tables keep the highest scores that ``budget`` bytes can hold.

    Tokens without a positive score get the smallest size that is allowed. Among tokens that tie where the budget ends,
    those that get the larger size are drawn by ``seed``.

    Args:
        scores: of the tokens of every table, by the table's name.
        budget: bytes of all tables together, or a text such as ``"16MiB"``.
        storage: how each table stores its rows.
        rounding, min_size: see `allowed_sizes`.
        seed: of the draw among ties.

    Raises:
        BudgetError: the smallest tables are larger than the budget; ``minimum`` says how large they are.
        ValueError: an argument is not allowed.

    Example:
        >>> scores = {"user": PowerScores(torch.tensor([100.0] * 10 + [1.0] * 500), 16)}
        >>> found = allocate_sizes(scores, "4KiB", {"user": Storage(16)})
        >>> found.sizes["user"].unique().tolist(), 0.97 * 4096 < found.nbytes <= 4096
        ([1, 2, 16], True)
    """
    limit = parse_bytes(budget)
    tables = [_Table(name, found, storage[name], rounding, min_size) for name, found in scores.items()]
    minimum = sum(table.minimum() for table in tables)
    if min_size == 0:  # no row at all is no table
        minimum += min((table.first_row() for table in tables), default=0)
    check_minimum(limit, minimum, min_size, len(tables))
    answers, dearer, price = _find_structure(tables, limit)
    found = _best(tables, [answers, dearer], limit, price, seed)
    total = sum(t.storage.of(sizes) for t, sizes in zip(tables, found, strict=True))
    return Allocation({t.name: sizes for t, sizes in zip(tables, found, strict=True)}, total, price)


class _Answer(NamedTuple):
    """What a table does at a price."""

    sizes: np.ndarray  # [d + 1] the size of a token of which so many scores are above the threshold
    nbytes: int


class _Table:
    def __init__(self, name: str, scores: TokenScores, storage: Storage, rounding: str, min_size: int) -> None:
        self.name, self.scores, self.storage = name, scores, storage
        self.levels = allowed_sizes(rounding, storage.embedding_dim, min(min_size, storage.embedding_dim))
        self.sets = _sets_of_sizes(self.levels)
        self.cost = np.array([storage.row_cost(s) for s in range(storage.embedding_dim + 1)])
        self.unit = float(self.cost[-1]) / storage.embedding_dim  # bytes of a number in a wide row

    def minimum(self) -> int:
        return min(self.nbytes_of_one_size(s) for s in self.levels)

    def first_row(self) -> int:
        """Bytes of the cheapest row where there was none."""
        if min(self.levels, key=self.nbytes_of_one_size) or not self.scores.num_embeddings:
            return 0
        return min(self._nbytes_of_one_row(s) for s in self.levels if s) - self.nbytes_of_one_size(0)

    def map_of_first_row(self) -> np.ndarray:
        """Sizes where every token with a score gets the cheapest row."""
        size = min((s for s in self.levels if s), key=self._nbytes_of_one_row)
        sizes = np.full(len(self.cost), size)
        sizes[0] = self.levels[0]
        return sizes

    def _nbytes_of_one_row(self, size: int) -> int:
        tokens = [0] * len(self.cost)
        tokens[0], tokens[size] = self.scores.num_embeddings - 1, 1
        return self.storage.nbytes(tokens)

    def nbytes_of_one_size(self, size: int) -> int:
        return self.storage.of_one_size(self.scores.num_embeddings, size)

    def numbers(self, price: float) -> tuple[Tensor, np.ndarray]:
        """(how many scores of each token are above the threshold, how many tokens have so many)."""
        kept = self.scores.kept(price * self.unit)
        return kept, torch.bincount(kept.to(torch.int64), minlength=len(self.cost)).cpu().numpy()

    def answer(self, price: float) -> _Answer:
        """The set of sizes, and the size of each token, that keep most for their bytes."""
        kept, tokens = self.numbers(price)
        worth = self.scores.sums(kept).numpy()
        gain = worth - price * tokens[:, None] * self.cost
        empty, every = tokens == 0, np.arange(len(tokens))
        best: tuple[float, int, np.ndarray] | None = None
        for allowed in self.sets:
            levels = np.array(allowed)
            sizes = levels[gain[:, levels].argmax(1)]
            sizes[empty] = levels[(np.searchsorted(levels, every[empty], side="right") - 1).clip(0)]
            nbytes = self.storage.nbytes(self.after(sizes, tokens))
            value = float(worth[every, sizes].sum()) - price * nbytes
            if best is None or (value, -nbytes) > (best[0], -best[1]):
                best = value, nbytes, sizes
        if best is None:  # there is at least the set of the full width
            raise RuntimeError(f"no sizes for {self.name}")
        return _Answer(best[2], best[1])

    @staticmethod
    def after(sizes: np.ndarray, tokens: np.ndarray) -> list[int]:
        """How many tokens have each size."""
        return np.bincount(sizes, weights=tokens, minlength=len(tokens)).astype(np.int64).tolist()


def _sets_of_sizes(levels: list[int]) -> list[list[int]]:
    """Sets worth considering: up to a cap, with and without the full width and size 0, all sizes or powers of two."""
    *narrow, full = levels
    found: dict[tuple[int, ...], None] = {(s,): None for s in levels}
    coarse = [s for s in narrow if s & (s - 1) == 0]
    for chosen in (narrow, coarse):
        for cap in coarse or narrow:
            below = [s for s in chosen if s <= cap]
            for rows in (below, [s for s in below if s]):
                found |= {tuple(rows): None, (*rows, full): None}
        found |= {(*chosen, full): None}
    return [list(chosen) for chosen in found if chosen]


def _find_structure(tables: list[_Table], budget: int) -> tuple[list[_Answer], list[_Answer], float]:
    """(answers within the budget, answers at the next lower price, which are too large, the price of the first)."""

    def answers(price: float) -> tuple[list[_Answer], int]:
        found = [table.answer(price) for table in tables]
        return found, sum(a.nbytes for a in found)

    low, high = _prices(tables)
    free, total = answers(0.0)
    if total <= budget or not high:
        return _cheapest(tables) if total > budget else free, free, 0.0
    within, total = answers(high)
    while total > budget:
        high *= 4
        within, total = answers(high)
    beyond = free
    for _ in range(_STRUCTURE_STEPS):
        if high <= low * (1 + 1e-6) or total >= 0.9995 * budget:
            break
        middle = math.sqrt(low * high)
        found, size = answers(middle)
        if size <= budget:
            high, within, total = middle, found, size
        else:
            low, beyond = middle, found
    return within, beyond, high


def _prices(tables: list[_Table]) -> tuple[float, float]:
    """Below the first price every positive score is kept, above the second none; (0, 0) without any."""
    found = [(low / t.unit, high / t.unit) for t in tables for low, high in (t.scores.range(),) if high]
    return (min(low for low, _ in found) / 2, max(high for _, high in found) * 2) if found else (0.0, 0.0)


def _cheapest(tables: list[_Table]) -> list[_Answer]:
    """Of tables without any positive score: one size, the one of the fewest bytes."""
    found = []
    for table in tables:
        size = min(table.levels, key=table.nbytes_of_one_size)
        found.append(_Answer(np.full(len(table.cost), size), table.nbytes_of_one_size(size)))
    return found


def _best(tables: list[_Table], options: list[list[_Answer]], budget: int, price: float, seed: int) -> list[Tensor]:
    """Sizes of the structure that keeps most when the price is fitted to it."""
    best, most = [], -1.0
    for answers in options:
        sizes = _fit_price(tables, [a.sizes for a in answers], budget, price, seed)
        value = -1.0 if sizes is None else sum(t.scores.value(s) for t, s in zip(tables, sizes, strict=True))
        if sizes is not None and value > most:
            best, most = sizes, value
    if most > 0:
        return best
    for k, table in enumerate(tables):  # no structure leaves a row: the best token of one table
        maps = [table.map_of_first_row() if k == at else a.sizes for at, a in enumerate(options[0])]
        sizes = _fit_price(tables, maps, budget, price, seed)
        if sizes is not None and (value := table.scores.value(sizes[k])) > most:
            best, most = sizes, value
    return best


def _fit_price(
    tables: list[_Table], maps: list[np.ndarray], budget: int, price: float, seed: int
) -> list[Tensor] | None:
    """Sizes of all tokens, of the most bytes within the budget; None if no price gets there."""

    def total(at: float) -> int:
        return sum(t.storage.nbytes(t.after(sizes, t.numbers(at)[1])) for t, sizes in zip(tables, maps, strict=True))

    def sizes(at: float) -> list[Tensor]:
        kept = (t.numbers(at)[0].to(device="cpu", dtype=torch.int64) for t in tables)
        return [torch.from_numpy(m).to(torch.int16)[k] for m, k in zip(maps, kept, strict=True)]

    low, high = _bracket(total, budget, price, _prices(tables))
    if high is None:
        return None
    if low is None:
        return sizes(high)
    for _ in range(_PRICE_STEPS):
        if high <= low * (1 + _CLOSE):
            break
        middle = math.sqrt(low * high)
        if total(middle) <= budget:
            high = middle
        else:
            low = middle
    return _split(tables, sizes(high), sizes(low), budget, seed)


def _bracket(
    total: Callable[[float], int], budget: int, price: float, prices: tuple[float, float]
) -> tuple[float | None, float | None]:
    """(a price at which the tables are too large, one at which they fit); None where there is none.

    Args:
        total: bytes of all tables at a price.
        budget: bytes.
        price: to begin with.
        prices: below the first one every positive score is kept, above the second none.
    """
    if total(0.0) <= budget:
        return None, 0.0
    if total(prices[1]) > budget:
        return None, None
    low = high = min(max(price, prices[0]), prices[1])
    factor = 1.01
    while total(high) > budget:
        low, high, factor = high, min(high * factor, prices[1]), factor**2
    if low < high:
        return low, high
    factor = 1.01
    while low > prices[0]:
        low, high, factor = max(low / factor, prices[0]), low, factor**2
        if total(low) > budget:
            return low, high
    return prices[0], high  # every positive score is kept at the first, and at 0


def _split(tables: list[_Table], within: list[Tensor], beyond: list[Tensor], budget: int, seed: int) -> list[Tensor]:
    """``within``, of which as many tokens as the budget pays for get their size in ``beyond``."""
    tokens = [(b > w).nonzero().squeeze(1) for w, b in zip(within, beyond, strict=True)]
    owner = torch.cat([torch.full_like(at, k) for k, at in enumerate(tokens)])
    order = permutation(seed, owner.shape[0])
    owner, token = owner[order], torch.cat(tokens)[order]

    def first(count: int) -> list[Tensor]:
        out = []
        for k, (w, b) in enumerate(zip(within, beyond, strict=True)):
            at = token[:count][owner[:count] == k]
            out.append(w.index_copy(0, at, b[at]) if at.numel() else w)
        return out

    low, high = 0, owner.shape[0]
    while low < high:
        middle = (low + high + 1) // 2
        if sum(t.storage.of(s) for t, s in zip(tables, first(middle), strict=True)) <= budget:
            low = middle
        else:
            high = middle - 1
    return first(low)
