"""Spend a byte budget where it hurts least: widths for tensors of different sensitivity, and sizes as text.

Rounding tensor i to b bits adds a variance s_i / (2^b - 1)^2, with s_i its sensitivity. ActNN (Chen et al., ICML 2021,
section 4) minimises the sum under a budget greedily; so does :func:`allocate_bits`, and it then closes the gap that
greed leaves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

__all__ = ["allocate_bits", "allocate_bits_exact", "format_bytes", "parse_bytes"]

_SI = {"k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_UNITS = {"": 1, **_SI, **{f"{p}i": 1024**n for n, p in enumerate(_SI, 1)}}
_CORE = 256  # tensors whose widths the search decides; the others stay where greed left them
_STATES = 4096  # partial choices that the search keeps


def parse_bytes(size: int | float | str) -> int:
    """Number of bytes of ``size``: a number, or a text such as ``"512MB"``, ``"1.5GiB"`` or ``"800k"``.

    k, M, G, T are powers of 1000 and Ki, Mi, Gi, Ti powers of 1024, with or without B, in any case of letters.

    Raises:
        TypeError, ValueError: ``size`` is no size; the text says what is.

    Example:
        >>> parse_bytes("1.5GiB"), parse_bytes("800k"), parse_bytes(64)
        (1610612736, 800000, 64)
    """
    if isinstance(size, bool) or not isinstance(size, (int, float, str)):
        raise TypeError(f"a size is a number of bytes or a text such as '1.5GiB'; got {type(size).__name__}")
    if not isinstance(size, str):
        if not math.isfinite(size) or size < 0:
            raise ValueError(f"a size must be a finite number of bytes, at least 0; got {size!r}")
        return int(size)
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z]*)\s*", size)
    unit = None if found is None else _UNITS.get(found[2].lower().removesuffix("b"))
    if found is None or unit is None:
        raise ValueError(f"{size!r} is not a size; write for example '800k', '512MB', '1.5GiB' or a number of bytes")
    return int(Fraction(found[1]) * unit)  # exact: 2.3 * 1000 in floats is less than 2300


def format_bytes(size: float) -> str:
    """``size`` bytes as a short text in binary units.

    Example:
        >>> format_bytes(1610612736), format_bytes(12)
        ('1.5 GiB', '12 B')
    """
    if abs(size) < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if abs(round(size, 1)) < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def allocate_bits(
    sensitivities: Sequence[float],
    sizes: Sequence[int],
    budget: int | float | str,
    choices: Sequence[int] = (1, 2, 4, 8),
    metadata_bits: float = 32 / 256,
) -> list[int]:
    """Width of each tensor so that the summed variance is least and the bytes fit.

    Minimises sum_i s_i / (2^b_i - 1)^2 subject to sum_i ceil(n_i (b_i + metadata_bits) / 8) <= budget: a knapsack with
    several choices. Steps along each tensor's convex hull of (bytes, variance) are taken greedily, best gain per byte
    first. Then partial choices are extended tensor by tensor and dropped as soon as the linear bound on what they can
    still become is no better than what was found. The result is the optimum, except where more than 4,096 partial
    choices compete or there are more than 256 tensors: then it may be worse, by less than one greedy step. A tensor
    that gains nothing from more bits, such as one of sensitivity 0, gets the fewest.

    Args:
        sensitivities: s_i, finite and at least 0.
        sizes: elements n_i of each tensor.
        budget: bytes, or a text such as ``"1.5GiB"``.
        choices: widths allowed, in bits.
        metadata_bits: bits per element of scales and offsets; the default is 32 bits for a group of 256.

    Raises:
        ValueError: the lists do not match, a value is negative or NaN, or the budget is below the lowest widths' bytes
            (the text says how many they are).

    Example:
        >>> allocate_bits([100.0, 1.0], [1000, 1000], budget=700)
        [4, 1]
    """
    tensors, free = _problem(sensitivities, sizes, budget, choices, metadata_bits)
    level, left, core = _greedy(tensors, free)
    # What the core's tensors may share: what greed gave them, and what it left.
    room = left + sum(tensors[i].price[level[i]] for i in core)
    found = _search([tensors[i] for i in core], room, sum(tensors[i].loss[level[i]] for i in core))
    for i, k in zip(core, found or (), strict=bool(found)):
        level[i] = k
    return [t.bits[k] for t, k in zip(tensors, level, strict=True)]


class _Tensor(NamedTuple):
    """Widths of a tensor worth choosing: bytes rise and variances fall strictly along each list."""

    bits: list[int]
    price: list[int]  # bytes beyond those of the lowest width
    loss: list[float]  # variance, as a share of the largest sensitivity

    def hull(self) -> list[tuple[float, int, int]]:
        """(gain per byte, from level, to level) along the lower convex hull of (price, loss); gains fall."""
        steps, level = [], 0
        while level < len(self.bits) - 1:
            gain, end = max(
                ((self.loss[level] - self.loss[k]) / (self.price[k] - self.price[level]), k)
                for k in range(level + 1, len(self.bits))
            )
            steps.append((gain, level, end))
            level = end
        return steps


def _problem(
    sensitivities: Sequence[float],
    sizes: Sequence[int],
    budget: int | float | str,
    choices: Sequence[int],
    metadata_bits: float,
) -> tuple[list[_Tensor], int]:
    """The tensors, and the bytes of the budget beyond the lowest widths."""
    if len(sensitivities) != len(sizes):
        raise ValueError(f"one sensitivity for each size is needed; got {len(sensitivities)} and {len(sizes)}")
    if len(choices) == 0 or any(b != int(b) or not 1 <= b <= 64 for b in choices):
        raise ValueError(f"choices must be widths of 1 to 64 bits; got {tuple(choices)}")
    for name, values in (("sensitivities", sensitivities), ("sizes", sizes), ("metadata_bits", (metadata_bits,))):
        for i, value in enumerate(values):
            if not value >= 0 or math.isinf(value):
                raise ValueError(f"{name} must be finite and at least 0; {name}[{i}] is {value}")
    limit = parse_bytes(budget) if isinstance(budget, str) else budget
    widths = sorted({int(b) for b in choices})
    scale = max(sensitivities, default=0.0) or 1.0
    tensors, least = [], 0
    for s, n in zip(sensitivities, sizes, strict=True):
        cost = [math.ceil(int(n) * (b + metadata_bits) / 8) for b in widths]
        least += cost[0]
        tensor = _Tensor(widths[:1], [0], [s / scale / (2 ** widths[0] - 1) ** 2])
        for b, c in zip(widths[1:], cost[1:], strict=True):
            loss = s / scale / (2**b - 1) ** 2
            if loss < tensor.loss[-1]:
                if c - cost[0] == tensor.price[-1]:  # a better width for the same bytes, of a tiny tensor
                    for values in tensor:
                        values.pop()
                tensor.bits.append(b)
                tensor.price.append(c - cost[0])
                tensor.loss.append(loss)
        tensors.append(tensor)
    if not limit >= least:
        raise ValueError(
            f"budget of {limit} bytes cannot be met: the lowest width ({widths[0]} bit) needs {least} bytes; "
            "raise the budget"
        )
    return tensors, int(min(limit, least + sum(t.price[-1] for t in tensors))) - least


def _greedy(tensors: list[_Tensor], free: int) -> tuple[list[int], int, list[int]]:
    """(level of each tensor, bytes left, the tensors whose level is least certain)."""
    level = [0] * len(tensors)
    steps = [(-gain, i, start, end) for i, t in enumerate(tensors) for gain, start, end in t.hull()]
    last = None  # the gain of the first step that did not fit
    for negative, i, start, end in sorted(steps):
        price = tensors[i].price[end] - tensors[i].price[start]
        if level[i] == start and price <= free:
            free -= price
            level[i] = end
        elif last is None:
            last = -negative
    if last is None:
        return level, free, []  # every tensor has its best width
    doubt: dict[int, float] = {}
    for negative, i, _, _ in steps:
        doubt[i] = min(doubt.get(i, math.inf), abs(math.log(-negative / last)) if last and negative else math.inf)
    return level, free, sorted(doubt, key=lambda i: (doubt[i], i))[:_CORE]


def _search(tensors: list[_Tensor], room: int, best: float) -> list[int] | None:
    """Levels with a summed loss below ``best`` and prices of at most ``room``; None if there are none."""
    # Large tensors first: the bound of what remains is the tighter the smaller its steps are.
    order = sorted(range(len(tensors)), key=lambda i: -tensors[i].price[-1])
    position = {i: n for n, i in enumerate(order)}
    hull = sorted(((-g, position[i], s, e, i) for i, t in enumerate(tensors) for g, s, e in t.hull()))
    where = np.array([p for _, p, _, _, _ in hull], dtype=np.int64)
    prices = np.array([tensors[i].price[e] - tensors[i].price[s] for _, _, s, e, i in hull], dtype=np.int64)
    gains = np.array([tensors[i].loss[s] - tensors[i].loss[e] for _, _, s, e, i in hull])
    goal = best * (1 - 1e-12)
    spent, total = np.zeros(1, dtype=np.int64), np.zeros(1)
    trace: list[tuple[np.ndarray, np.ndarray]] = []
    for n, i in enumerate(order):
        t = tensors[i]
        parent = np.tile(np.arange(len(spent)), len(t.bits))
        choice = np.repeat(np.arange(len(t.bits)), len(spent))
        spent = (spent + np.array(t.price)[:, None]).ravel()
        total = (total + np.array(t.loss)[:, None]).ravel()
        # The linear relaxation of the tensors to come: steps of their hulls by gain per byte, the last one in part.
        rest = where > n
        x = np.concatenate(([0], np.cumsum(prices[rest])))
        y = np.concatenate(([0.0], np.cumsum(gains[rest])))
        bound = total + sum(tensors[j].loss[0] for j in order[n + 1 :]) - np.interp(room - spent, x, y)
        alive = np.flatnonzero((spent <= room) & (bound < goal))
        alive = alive[np.lexsort((total[alive], spent[alive]))]
        least = np.minimum.accumulate(total[alive])
        alive = alive[np.concatenate(([True], total[alive][1:] < least[:-1]))] if len(alive) else alive
        if len(alive) > _STATES:
            alive = alive[np.sort(np.argpartition(bound[alive], _STATES)[:_STATES])]
        if not len(alive):
            return None
        spent, total = spent[alive], total[alive]
        trace.append((parent[alive], choice[alive]))
    level, state = [0] * len(tensors), int(np.argmin(total))
    for i, (parent, choice) in zip(reversed(order), reversed(trace), strict=True):
        level[i], state = int(choice[state]), int(parent[state])
    return level


def allocate_bits_exact(
    sensitivities: Sequence[float],
    sizes: Sequence[int],
    budget: int | float | str,
    choices: Sequence[int] = (1, 2, 4, 8),
    metadata_bits: float = 32 / 256,
    unit: int = 1,
) -> list[int]:
    """The optimum by dynamic programming over every number of bytes: the checker of :func:`allocate_bits`.

    Time and memory grow with tensors times the free bytes / ``unit``: for small instances.

    Args:
        sensitivities, sizes, budget, choices, metadata_bits: as for :func:`allocate_bits`.
        unit: bytes at a time; above 1 every raise is rounded up to whole units, so that the result fits the budget but
            may miss the optimum.

    Raises:
        ValueError: as :func:`allocate_bits`, or the table would pass 2^28 entries.

    Example:
        >>> allocate_bits_exact([100.0, 1.0], [1000, 1000], budget=700)
        [4, 1]
    """
    if unit < 1:
        raise ValueError(f"unit must be at least 1 byte, got {unit}")
    tensors, free = _problem(sensitivities, sizes, budget, choices, metadata_bits)
    units = free // unit
    if len(tensors) * (units + 1) > 2**28:
        raise ValueError(f"{len(tensors)} tensors x {units + 1} units are too many for a table; use a larger unit")
    least = np.zeros(units + 1)  # variance of the tensors so far within so many units
    chosen = np.zeros((len(tensors), units + 1), dtype=np.int8)
    prices = [[-(-price // unit) for price in t.price] for t in tensors]
    for i, t in enumerate(tensors):
        before, least = least, least + t.loss[0]
        for k, price in enumerate(prices[i]):
            if 0 < price <= units:
                with_k = np.concatenate((np.full(price, np.inf), before[: units + 1 - price] + t.loss[k]))
                chosen[i, with_k < least] = k
                least = np.minimum(least, with_k)
    level, at = [0] * len(tensors), units
    for i in reversed(range(len(tensors))):
        level[i] = int(chosen[i, at])
        at -= prices[i][level[i]]
    return [t.bits[k] for t, k in zip(tensors, level, strict=True)]
