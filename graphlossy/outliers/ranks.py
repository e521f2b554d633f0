"""Whether methods differ over several data sets: mean ranks, Friedman's test and the critical difference.

After Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006, section 3.2: on each of N
data sets the k methods are ranked by their mean figure, 1 for the best, equal ones sharing their mean rank. Two methods
differ at the 5 % level (Nemenyi's test) where their mean ranks are further apart than

    CD = q sqrt(k (k + 1) / (6 N)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graphlossy.outliers.table import Table, is_share

__all__ = ["Ranking", "critical_difference", "rank"]

# Studentized range at 5 % with infinite degrees of freedom, over sqrt 2, of k = 2, 3, ... methods.
_Q = (
    1.960, 2.344, 2.569, 2.728, 2.850, 2.948, 3.031, 3.102, 3.164, 3.219, 3.268, 3.313, 3.354, 3.391, 3.426, 3.458,
    3.489, 3.517, 3.544, 3.569, 3.593, 3.616, 3.637, 3.658, 3.678, 3.696, 3.714, 3.732, 3.749, 3.765, 3.780, 3.795,
    3.810, 3.824, 3.837, 3.850, 3.863, 3.876, 3.888,
)  # fmt: skip


@dataclass(frozen=True)
class Ranking:
    """Methods by mean rank, best first.

    Attributes:
        titles: printed names.
        ranks: mean rank of each, 1 for the best.
        datasets: those on which all of them are done.
        difference: critical difference of two mean ranks; None of more methods than the table of q has.
        p: of Friedman's test that all methods are alike, by the chi-squared approximation with k - 1 degrees.
        left_out: methods that are not done on any such data set.
        groups: runs of methods, (first, last) in the order of ranks, that do not differ.
    """

    titles: tuple[str, ...]
    ranks: tuple[float, ...]
    datasets: tuple[str, ...]
    difference: float | None
    p: float
    left_out: tuple[str, ...]
    groups: tuple[tuple[int, int], ...]


def critical_difference(methods: int, datasets: int) -> float | None:
    """CD at 5 % of ``methods`` methods on ``datasets`` data sets; None of more than 40 methods.

    Example:
        >>> round(critical_difference(4, 14), 2)  # Demšar, section 3.2.4
        1.25
    """
    if not 2 <= methods < len(_Q) + 2:
        return None
    return _Q[methods - 2] * math.sqrt(methods * (methods + 1) / (6 * datasets))


def rank(table: Table) -> Ranking | None:
    """Ranks the rows of a table, the rows without a model among them; None where fewer than two can be ranked.

    Only data sets are counted on which every ranked method has a figure: the data sets that most methods have are
    kept, and methods that lack one of them are left out.
    """
    sign = -1 if is_share(table.metric) else 1
    have = [
        [i for i, row in enumerate(table.rows) if _mean(row.cells[c]) is not None] for c in range(len(table.datasets))
    ]
    most = max((len(rows) for rows in have), default=0)
    columns = [c for c, rows in enumerate(have) if rows and len(rows) >= 0.75 * most]
    rows = [i for i in range(len(table.rows)) if all(i in have[c] for c in columns)]
    if len(rows) < 2 or not columns:
        return None
    per_dataset = [_ranks([sign * (_mean(table.rows[i].cells[c]) or 0.0) for i in rows]) for c in columns]
    means = [math.fsum(ranks[j] for ranks in per_dataset) / len(columns) for j in range(len(rows))]
    order = sorted(range(len(rows)), key=lambda j: means[j])
    sorted_means = [means[j] for j in order]
    difference = critical_difference(len(rows), len(columns))
    return Ranking(
        tuple(table.rows[rows[j]].title for j in order),
        tuple(sorted_means),
        tuple(table.datasets[c] for c in columns),
        difference,
        friedman(per_dataset),
        tuple(row.title for i, row in enumerate(table.rows) if i not in rows),
        tuple(_groups(sorted_means, difference)),
    )


def friedman(ranks: Sequence[Sequence[float]]) -> float:
    """p-value of Friedman's test, ties taken into account.

    chi^2 = (k - 1) sum_j (R_j - N (k + 1) / 2)^2 / (sum r^2 - N k (k + 1)^2 / 4), R_j the rank sum of method j
    (Conover, Practical Nonparametric Statistics, 1999, section 5.8).

    Args:
        ranks: N lists of the k ranks on one data set.

    Example:
        >>> round(friedman([[1, 2, 3], [1, 2, 3], [1, 3, 2], [1, 2, 3]]), 4)
        0.0388
    """
    n, k = len(ranks), len(ranks[0])
    spread = math.fsum(r * r for row in ranks for r in row) - n * k * (k + 1) ** 2 / 4
    if spread <= 0:
        return 1.0  # all methods equal on all data sets
    sums = [math.fsum(row[j] for row in ranks) for j in range(k)]
    statistic = (k - 1) * math.fsum((s - n * (k + 1) / 2) ** 2 for s in sums) / spread
    half = torch.tensor([(k - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def _mean(cell: object) -> float | None:
    return getattr(cell, "mean", None)


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1 for the least, equal values sharing their mean rank."""
    return [sum(v < value for v in values) + (1 + sum(v == value for v in values)) / 2 for value in values]


def _groups(means: Sequence[float], difference: float | None) -> list[tuple[int, int]]:
    """The longest runs of sorted ranks that lie within the critical difference."""
    if difference is None:
        return []
    found: list[tuple[int, int]] = []
    for first in range(len(means)):
        last = max(j for j in range(first, len(means)) if means[j] - means[first] <= difference)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
