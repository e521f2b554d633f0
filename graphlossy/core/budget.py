"""Spend a byte budget where it hurts least: widths for tensors of different sensitivity, and sizes as text.

Rounding tensor i to b bits adds a variance s_i / (2^b - 1)^2, with s_i its sensitivity. ActNN (Chen et al., ICML 2021,
section 4) minimises the sum under a budget greedily; so does :func:`allocate_bits`, and it then mends what greed left.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

__all__ = ["allocate_bits", "allocate_bits_exact", "format_bytes", "parse_bytes"]

_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "m": 1000**2, "mb": 1000**2, "g": 1000**3, "gb": 1000**3,
          "kib": 1024, "mib": 1024**2, "gib": 1024**3, "t": 1000**4, "tb": 1000**4, "tib": 1024**4}  # fmt: skip


def parse_bytes(size: int | float | str) -> int:
    """Number of bytes of ``size``: a number, or a text such as ``"512MB"``, ``"1.5GiB"`` or ``"800k"``.

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
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", size)
    if found is None or found[2].lower() not in _UNITS:
        raise ValueError(f"{size!r} is not a size; write for example '800k', '512MB', '1.5GiB' or a number of bytes")
    return int(float(found[1]) * _UNITS[found[2].lower()])


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
        if abs(size) < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def allocate_bits(
    sensitivities: Sequence[float],
    sizes: Sequence[int],
    budget: int,
    choices: Sequence[int] = (1, 2, 4, 8),
    metadata_bits: float = 32 / 256,
) -> list[int]:
    """Width of each tensor so that the summed variance is least and the bytes fit.

    Minimises sum_i s_i / (2^b_i - 1)^2 subject to sum_i ceil(n_i (b_i + metadata_bits) / 8) <= budget. Steps are taken
    along each tensor's convex hull of (bytes, variance), best gain per byte first; a dynamic program over the budget in
    4,096 units is the second candidate; the better one is mended by single raises and exchanges until none helps.

    Args:
        sensitivities: s_i, at least 0.
        sizes: elements n_i of each tensor.
        budget: bytes.
        choices: widths allowed.
        metadata_bits: bits per element of scales and offsets.

    Raises:
        ValueError: the lists do not match, a value is negative or NaN, or the budget is below the lowest widths' bytes.

    Example:
        >>> allocate_bits([100.0, 1.0], [1000, 1000], budget=700)
        [4, 1]
    """
    widths, cost, loss = _tables(sensitivities, sizes, budget, choices, metadata_bits)
    candidates = [_greedy(cost, loss, budget), _by_units(cost, loss, budget)]
    level = min(candidates, key=lambda chosen: sum(v[k] for v, k in zip(loss, chosen, strict=True)))
    _improve(level, budget - sum(c[k] for c, k in zip(cost, level, strict=True)), cost, loss)
    return [widths[k] for k in level]


def _greedy(cost: list[list[int]], loss: list[list[float]], budget: int) -> list[int]:
    level = [0] * len(cost)
    left = budget - sum(c[0] for c in cost)
    steps = sorted(_hull_steps(cost, loss), key=lambda s: (-s[0], s[1], s[2]))
    for _, i, start, end in steps:
        if level[i] == start and cost[i][end] - cost[i][start] <= left:
            left -= cost[i][end] - cost[i][start]
            level[i] = end
    return level


def _by_units(cost: list[list[int]], loss: list[list[float]], budget: int, units: int = 4096) -> list[int]:
    """The optimum when every raise costs whole units of the free budget, rounded up: it always fits."""
    free = budget - sum(c[0] for c in cost)
    if free <= 0:
        return [0] * len(cost)
    least = np.zeros(units + 1)
    choices = np.zeros((len(cost), units + 1), dtype=np.int8)
    prices = [[-(-(p - c[0]) * units // free) for p in c] for c in cost]
    for i, (price, v) in enumerate(zip(prices, loss, strict=True)):
        grown = least + v[0]
        for k in range(1, len(price)):
            if price[k] > units:
                break
            candidate = np.full(units + 1, np.inf)
            candidate[price[k] :] = least[: units + 1 - price[k]] + v[k]
            better = candidate < grown
            grown[better] = candidate[better]
            choices[i, better] = k
        least = grown
    level, at = [0] * len(cost), units
    for i in reversed(range(len(cost))):
        level[i] = int(choices[i, at])
        at -= prices[i][level[i]]
    return level


def _tables(
    sensitivities: Sequence[float], sizes: Sequence[int], budget: int, choices: Sequence[int], metadata_bits: float
) -> tuple[list[int], list[list[int]], list[list[float]]]:
    if len(sensitivities) != len(sizes):
        raise ValueError(f"one sensitivity for each size is needed; got {len(sensitivities)} and {len(sizes)}")
    if not choices or any(b < 1 for b in choices):
        raise ValueError(f"choices must be widths of at least 1 bit; got {tuple(choices)}")
    for name, values in (("sensitivities", sensitivities), ("sizes", sizes)):
        for i, value in enumerate(values):
            if not value >= 0 or math.isinf(value):
                raise ValueError(f"{name} must be finite and at least 0; {name}[{i}] is {value}")
    widths = sorted(set(choices))
    cost = [[math.ceil(n * (b + metadata_bits) / 8) for b in widths] for n in sizes]
    loss = [[s / (2**b - 1) ** 2 for b in widths] for s in sensitivities]
    least = sum(c[0] for c in cost)
    if least > budget:
        raise ValueError(
            f"budget of {budget} bytes cannot be met: the lowest width ({widths[0]} bit) needs {least} bytes; "
            "raise the budget"
        )
    return widths, cost, loss


def _hull_steps(cost: list[list[int]], loss: list[list[float]]) -> list[tuple[float, int, int, int]]:
    """(gain per byte, tensor, from level, to level) along the lower convex hull of every tensor."""
    steps = []
    for i, (c, v) in enumerate(zip(cost, loss, strict=True)):
        level = 0
        while level < len(c) - 1:
            gain, end = max(((v[level] - v[k]) / max(1, c[k] - c[level]), k) for k in range(level + 1, len(c)))
            if gain <= 0:
                break
            steps.append((gain, i, level, end))
            level = end
    return steps


def _improve(level: list[int], left: int, cost: list[list[int]], loss: list[list[float]]) -> None:
    """Raises one tensor, or raises one and lowers another, while that lowers the sum and fits."""
    count = len(level)
    levels = range(len(cost[0])) if count else range(0)
    while True:
        best, move = 0.0, None
        for i in range(count):
            for up in levels:
                if up <= level[i]:
                    continue
                gain = loss[i][level[i]] - loss[i][up]
                price = cost[i][up] - cost[i][level[i]]
                if price <= left and gain > best * (1 + 1e-12):
                    best, move = gain, ((i, up),)
                for j in range(count) if count <= 32 else ():
                    for down in levels:
                        if j == i or down >= level[j]:
                            continue
                        net = gain - (loss[j][down] - loss[j][level[j]])
                        if price - (cost[j][level[j]] - cost[j][down]) <= left and net > best * (1 + 1e-12):
                            best, move = net, ((i, up), (j, down))
        if move is None:
            return
        for i, k in move:
            left -= cost[i][k] - cost[i][level[i]]
            level[i] = k


def allocate_bits_exact(
    sensitivities: Sequence[float],
    sizes: Sequence[int],
    budget: int,
    choices: Sequence[int] = (1, 2, 4, 8),
    metadata_bits: float = 32 / 256,
) -> list[int]:
    """The optimum by dynamic programming over bytes: the checker of :func:`allocate_bits`, for small instances.

    Keeps, tensor by tensor, every (bytes, variance) that no other combination beats in both.
    """
    widths, cost, loss = _tables(sensitivities, sizes, budget, choices, metadata_bits)
    front: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]
    rest = [sum(c[0] for c in cost[i + 1 :]) for i in range(len(cost))]
    for i, (c, v) in enumerate(zip(cost, loss, strict=True)):
        grown = sorted(
            (spent + c[k], total + v[k], (*chosen, k))
            for spent, total, chosen in front
            for k in range(len(widths))
            if spent + c[k] + rest[i] <= budget
        )
        front, least = [], math.inf
        for state in grown:
            if state[1] < least:
                front.append(state)
                least = state[1]
    return [widths[k] for k in front[-1][2]]
