"""What ``compress(budget=...)`` will save: the widths that its own rule chooses at the real sizes."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence

import numpy as np

from graphlossy._compress._bits import WIDTHS
from graphlossy._plan._fit import Forecast, size_row, solve
from graphlossy._plan._measure import Trace
from graphlossy.core.budget import allocate_bits, format_bytes

__all__ = ["BudgetForecast"]

_ROOM = 64  # bytes a tensor that ``compress`` keeps in reserve


class BudgetForecast:
    """Like :class:`Forecast`, under a budget.

    How many elements each tensor has at the real size is solved for as bytes are; how sensitive each is, the largest
    probe told; ``allocate_bits`` then chooses the widths as in training. The peak lies between those of the uniform
    widths that save next more and next less, in proportion to the saved bytes.

    Args:
        budget: bytes.
        uniform: the forecast for each of the widths 8, 4, 2 and 1.
        traces: probes under an ample budget.
        sizes: of the probes.
        varied: names of the sizes that differ between them.

    Raises:
        ValueError: the probes did not save the same tensors; from the methods, if the budget cannot be met.
    """

    def __init__(self, budget: int, uniform: Mapping[int, Forecast], traces: Sequence[Trace],
                 sizes: Sequence[Mapping[str, int]], varied: Sequence[str]) -> None:  # fmt: skip
        if len({len(trace.rounded) for trace in traces}) != 1:
            raise ValueError("the model does not save the same tensors in every probe, so no widths can be predicted")
        self._budget, self._uniform, self._varied = budget, uniform, varied
        self._elements = solve(sizes, varied, [[r.elements for r in trace.rounded] for trace in traces])
        self._bytes = solve(sizes, varied, [[r.bytes for r in trace.rounded] for trace in traces])
        self._last = traces[-1].rounded
        self.gradient = uniform[WIDTHS[0]].gradient

    def saved_bytes(self, sizes: Mapping[str, int]) -> int:
        """Bytes saved for the backward pass at ``sizes``."""
        total = self._uniform[WIDTHS[0]].saved_bytes(sizes)
        if total <= self._budget:
            return total
        row = size_row(sizes, self._varied)
        free = [i for i, tensor in enumerate(self._last) if tensor.least_bits == 1]
        elements = [max(1, round(float(n))) for n in (row @ self._elements)[free]]
        room = self._budget - (total - float((row @ self._bytes)[free].sum())) - _ROOM * len(free)
        try:
            bits = allocate_bits([self._last[i].sensitivity for i in free], elements, int(room))
        except ValueError:
            bits = [WIDTHS[-1]] * len(free)
        saved = total - sum(n * (WIDTHS[0] - b) // 8 for n, b in zip(elements, bits, strict=True))
        if saved > self._budget:
            raise ValueError(f"cannot be met: at least {saved} bytes ({format_bytes(saved)}) are saved at 1 bit")
        return saved

    def peak_bytes(self, sizes: Mapping[str, int]) -> int:
        """Most bytes alive at one time at ``sizes``."""
        known = sorted((f.saved_bytes(sizes), f.peak_bytes(sizes)) for f in self._uniform.values())
        saved = self.saved_bytes(sizes)
        at = min(max(bisect.bisect(known, (saved,)), 1), len(known) - 1)
        pair = known[at - 1 : at + 1]
        return round(float(np.interp(saved, [s for s, _ in pair], [p for _, p in pair])))

    def cached_bytes(self, sizes: Mapping[str, int]) -> int:
        """Bytes that stay from one step to the next at ``sizes``."""
        return self._uniform[WIDTHS[0]].cached_bytes(sizes)
