"""Draws with replacement from the edges, and how many of them keep a given share.

Of Q draws with probabilities p_e, sum_e (1 - (1 - p_e)^Q) distinct edges are expected, and an edge that was drawn c
times stands for itself with the factor c / (Q p_e), whose expected value is 1 (Spielman and Srivastava 2008).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from graphlossy.core import weighted_sample
from graphlossy.core._weighted_sample import check_weights, unit_exponent, units
from graphlossy.sparsify._choice import Choice

__all__ = ["MOST_PER_EDGE", "Scores", "draw", "draws_for_share"]

_CHUNK = 1 << 20
_BIN_SHIFT = 16  # bits of a float32 left out: bins 2**-7 of their value wide
MOST_PER_EDGE = 64  # draws for each edge that a share may ask for


class Scores:
    """Probabilities of one draw in proportion to ``scores``, exact and the same for any number of threads.

    Args:
        scores: float32 [m], finite, at least 0, not all 0.
    """

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores
        self.exponent, self.total = unit_exponent(scores, check_weights(scores))

    def probabilities(self, index: Tensor) -> Tensor:
        """float64, of the edges ``index``."""
        return units(self.scores[index], self.exponent).to(torch.float64).div_(self.total)

    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 (edges, their mean probability) of each bin of nearly equal positive probabilities.

        As numpy arrays, whose sums do not depend on a number of threads.
        """
        device, bins = self.scores.device, 1 << (31 - _BIN_SHIFT)
        counts = torch.zeros(bins, dtype=torch.int64, device=device)
        sums = torch.zeros_like(counts)
        for part in self.scores.split(_CHUNK):
            unit = units(part, self.exponent)
            place = part.view(torch.int32) >> _BIN_SHIFT
            place = torch.where(unit > 0, place, torch.zeros_like(place)).to(torch.int64)  # no draw can reach them
            counts += torch.bincount(place[unit > 0], minlength=bins)
            sums.index_add_(0, place, unit)
        used = counts > 0
        edges = counts[used].to("cpu", torch.float64).numpy()
        return edges, sums[used].to("cpu", torch.float64).numpy() / edges / self.total


def draws_for_share(scores: Scores, ratio: float) -> int:
    """The least number of draws that are expected to reach the share ``ratio`` of the edges.

    Raises:
        ValueError: `MOST_PER_EDGE` draws for each edge do not.
    """
    count = scores.scores.numel()
    edges, p = scores.histogram()
    logs, held = np.log1p(-np.minimum(p, 1 - 2**-53)), edges

    def expected(draws: int) -> float:
        return float(-(held * np.expm1(draws * logs)).sum())

    high = MOST_PER_EDGE * max(count, 16)
    reached = expected(high) / count
    if reached < ratio:
        raise ValueError(
            f"ratio {ratio} is out of reach: edges of small probability are hardly ever drawn, and {high} draws "
            f"({MOST_PER_EDGE} for each edge) are expected to keep {reached:.4f} of the edges; give a smaller ratio, "
            "1 to keep all edges, or num_samples"
        )
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if expected(middle) >= ratio * count else (middle, high)
    return high


def draw(scores: Scores, draws: int, seed: int) -> Choice:
    """``draws`` draws with replacement; the factors are count / (draws * p)."""
    index, times = weighted_sample(scores.scores, draws, seed)
    factor = times / scores.probabilities(index).mul_(draws)
    return Choice(index, factor, True, {"draws": draws})
