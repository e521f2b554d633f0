"""From small sizes to the real ones: every saved tensor and every moment's memory is affine in the sizes.

A tensor of a graph network has rows for the nodes, the edges or neither, so its bytes are a + b N + c E. The widths
never change between probes, so as many probes as there are unknowns give a, b and c of every tensor exactly, whatever
the model does with its shapes. The peak is then the largest over all moments, each evaluated at the real size: which
moment is the peak need not be the same as in the probes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphlossy._plan._measure import Trace

__all__ = ["Forecast", "fit", "size_row", "solve"]


@dataclass(frozen=True)
class Forecast:
    """Bytes as functions of the sizes.

    Attributes:
        varied: names of the sizes that they depend on.
        saved: coefficients [1 + len(varied), tensors].
        live: coefficients [1 + len(varied), moments].
        cached: coefficients [1 + len(varied), 1].
        gradient: kind of the gradient.
    """

    varied: tuple[str, ...]
    saved: NDArray[np.float64]
    live: NDArray[np.float64]
    cached: NDArray[np.float64]
    gradient: str

    def saved_bytes(self, sizes: Mapping[str, int]) -> int:
        """Bytes saved for the backward pass at ``sizes``."""
        return round(float((size_row(sizes, self.varied) @ self.saved).sum()))

    def peak_bytes(self, sizes: Mapping[str, int]) -> int:
        """Most bytes alive at one time at ``sizes``."""
        return round(float((size_row(sizes, self.varied) @ self.live).max(initial=0.0)))

    def cached_bytes(self, sizes: Mapping[str, int]) -> int:
        """Bytes that stay from one step to the next at ``sizes``."""
        return max(0, round(float((size_row(sizes, self.varied) @ self.cached).sum())))


def size_row(sizes: Mapping[str, int], varied: Sequence[str]) -> NDArray[np.float64]:
    """(1, size, size, ...), by which coefficients are multiplied."""
    return np.array([1.0, *(sizes[name] for name in varied)])


def fit(traces: Sequence[Trace], sizes: Sequence[Mapping[str, int]], varied: Sequence[str]) -> Forecast:
    """Solves for the coefficients from one trace more than there are ``varied`` sizes.

    Where the probes did not run the same operations (a loop over blocks, a choice that depends on the data), only the
    totals are fitted: good as long as the same moment stays the peak.
    """
    same_saved = len({t.record_keys for t in traces}) == 1
    same_events = len({t.event_keys for t in traces}) == 1
    return Forecast(
        varied=tuple(varied),
        saved=solve(sizes, varied, [t.saved if same_saved else (t.saved_bytes,) for t in traces]),
        live=solve(sizes, varied, [t.live if same_events else (t.peak_bytes,) for t in traces]),
        cached=solve(sizes, varied, [(t.cached,) for t in traces]),
        gradient=traces[-1].gradient,
    )


def solve(
    sizes: Sequence[Mapping[str, int]], varied: Sequence[str], values: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """Coefficients [1 + len(varied), n] of the n ``values`` of each probe."""
    matrix = np.stack([size_row(s, varied) for s in sizes])
    scale = np.abs(matrix).max(axis=0)
    coefficients = np.linalg.solve(matrix / scale, np.array(values, dtype=np.float64))
    solved: NDArray[np.float64] = coefficients / scale[:, None]
    return solved
