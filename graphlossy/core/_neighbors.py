"""The definition of graphlossy::sample_neighbors and graphlossy::relabel in plain torch; the kernels agree bit for bit.

Which edges are chosen is decided by integers alone. Draw j for node v is word j of the SplitMix64 stream whose key is
made of (seed, v) or, with a stream number s beside the node, of (seed, v, s): it depends neither on the other nodes of
the call nor on the order in which they are worked on.

Weights become integers w' = max(1, round(w 2^(31 - e))) for the largest weight in [2^(e - 1), 2^e) of a neighbourhood,
so that the heaviest edge has about 2^31 units and no positive weight has none. W' is the sum of w' in a neighbourhood.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.core._random import _GAMMA, _MULTIPLIERS, _key, _signed

__all__ = ["LARGEST_DEGREE", "STREAM", "relabel", "sample_neighbors"]

LARGEST_DEGREE = 2**29 - 1  # edges of one node: products with units stay below 2**63
STREAM = 3  # of graphlossy.core._random: words that no other operator draws
UNIT_BITS = 31


def mix64(state: Tensor) -> Tensor:
    """SplitMix64's output function of an int64 tensor of states; all 64 bits count."""
    z = state
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        z = (z ^ ((z >> shift) & (2 ** (64 - shift) - 1))) * _signed(multiplier)
    return z ^ ((z >> 31) & (2**33 - 1))


def _advance(key: Tensor | int, counter: Tensor) -> Tensor:
    return mix64((counter + 1) * _signed(_GAMMA) + key)


def _below(words: Tensor, bound: Tensor) -> Tensor:
    """floor(word * bound / 2**64) for bounds below 2**31: uniform but for a bias under bound / 2**64."""
    high, low = (words >> 32) & 0xFFFFFFFF, words & 0xFFFFFFFF
    return (high * bound + ((low * bound) >> 32)) >> 32


def _below_wide(words: Tensor, bound: Tensor) -> Tensor:
    """floor(u * bound / 2**60) for the 60 high bits u of each word and bounds below 2**60."""
    u = (words >> 4) & (2**60 - 1)
    mask = 2**30 - 1
    u_high, u_low, high, low = u >> 30, u & mask, bound >> 30, bound & mask
    return u_high * high + ((u_high * low + u_low * high + ((u_low * low) >> 30)) >> 30)


def _power_of_two(exponent: Tensor) -> Tensor:
    """Exact 2.0**exponent for -1022 <= exponent <= 1023; pow would round."""
    return ((exponent + 1023) << 52).view(torch.float64)


class _Segments:
    """The neighbourhoods of the seeds, one after another, with their weights in units."""

    def __init__(self, begin: Tensor, degree: Tensor, weight: Tensor) -> None:
        device = begin.device
        self.end = degree.cumsum(0)
        self.start = self.end - degree
        self.of = torch.arange(degree.numel(), device=device).repeat_interleave(degree)
        self.position = torch.arange(self.of.numel(), device=device) - self.start[self.of] + begin[self.of]
        w = weight[self.position].to(torch.float64)
        w = torch.where((w > 0) & w.isfinite(), w, torch.zeros_like(w))
        largest = torch.zeros(degree.numel(), dtype=torch.float64, device=device)
        largest = largest.scatter_reduce(0, self.of, w, "amax")
        exponent = (UNIT_BITS - torch.frexp(largest)[1].to(torch.int64))[self.of]
        first = exponent >> 1  # two factors: one alone could overflow
        scaled = w * _power_of_two(first) * _power_of_two(exponent - first)
        self.units = torch.where(w > 0, scaled.round().to(torch.int64).clamp(min=1), torch.zeros_like(self.of))

    def total(self, values: Tensor) -> Tensor:
        """Sums over the neighbourhoods."""
        return torch.zeros_like(self.end).index_add(0, self.of, values)

    def running(self, values: Tensor) -> Tensor:
        """Sums within each neighbourhood, up to and with each entry."""
        total = values.cumsum(0)  # may wrap; the differences do not
        before = torch.nn.functional.pad(total, (1, 0))[self.start]
        return total - before[self.of]

    def find(self, running: Tensor, segment: Tensor, value: Tensor) -> Tensor:
        """For each value the first entry of its neighbourhood whose running sum exceeds it."""
        low, high = self.start[segment], self.end[segment] - 1
        while bool((low < high).any()):
            middle = (low + high) >> 1
            above = running[middle] > value
            low, high = torch.where(above, low, (middle + 1).minimum(high)), torch.where(above, middle, high)
        return low


def sample_neighbors(
    indptr: Tensor, seeds: Tensor, weight: Tensor | None, stream: Tensor | None, k: int, replace: bool, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Definition of graphlossy::sample_neighbors, see `graphlossy.core.neighbors.sample_neighbors`."""
    begin = indptr[seeds].to(torch.int64)
    degree = indptr[seeds + 1].to(torch.int64) - begin
    key = _advance(_signed(_key(seed, STREAM)), seeds)
    if stream is not None:
        key = _advance(key, stream)
    none = torch.empty(0, dtype=torch.float64, device=seeds.device)
    if weight is None:
        counts, position = _uniform(begin, degree, key, k, replace)
        return position, counts, none
    if k < 0:
        counts, position = _everything(begin, degree)
        return position, counts, torch.ones_like(position, dtype=torch.float64)
    segments = _Segments(begin, degree, weight)
    return (_weighted_with if replace else _weighted_without)(segments, key, k)


def _everything(begin: Tensor, degree: Tensor) -> tuple[Tensor, Tensor]:
    of = torch.arange(degree.numel(), device=degree.device).repeat_interleave(degree)
    start = degree.cumsum(0) - degree
    return degree, torch.arange(of.numel(), device=degree.device) - start[of] + begin[of]


def _uniform(begin: Tensor, degree: Tensor, key: Tensor, k: int, replace: bool) -> tuple[Tensor, Tensor]:
    """All edges, draws one by one, or Floyd's subset (Bentley and Floyd, CACM 30(9), 1987, algorithm F2)."""
    if k < 0:
        return _everything(begin, degree)
    draws = torch.empty((degree.numel(), k), dtype=torch.int64, device=degree.device)
    for j in range(k):
        word = _advance(key, torch.full_like(key, j))
        if replace:
            draws[:, j] = _below(word, degree)
            continue
        last = degree - k + j  # the new element if the one drawn was chosen before
        drawn = _below(word, (last + 1).clamp(min=0))
        draws[:, j] = torch.where((draws[:, :j] == drawn.unsqueeze(1)).any(dim=1), last, drawn)
    slots = torch.arange(k, device=degree.device)
    if replace:
        counts = torch.where(degree > 0, k, 0)
    else:
        counts = degree.clamp(max=k)
        draws = torch.where(degree.unsqueeze(1) > k, draws, slots)
    return counts, (begin.unsqueeze(1) + draws)[slots < counts.unsqueeze(1)]


def _weighted_with(segments: _Segments, key: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """k draws, each of edge e with probability w'_e / W' to within 2^-60: e is expected k w'_e / W' times."""
    total = segments.total(segments.units)
    counts = torch.where(total > 0, k, 0)
    segment = torch.arange(total.numel(), device=total.device).repeat_interleave(counts)
    draw = torch.arange(segment.numel(), device=total.device) - (counts.cumsum(0) - counts)[segment]
    value = _below_wide(_advance(key[segment], draw), total[segment])
    at = segments.find(segments.running(segments.units), segment, value)
    expected = segments.units[at].to(torch.float64) * float(k) / total[segment].to(torch.float64)
    return segments.position[at], counts, expected


def _weighted_without(segments: _Segments, key: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Systematic sampling with probabilities min(1, k' w'_e / W') (Madow, Ann. Math. Stat. 20, 1949), rising positions.

    Edges with k' w'_e >= W' are certain; k' and W' are what is left of k and W' without them.
    """
    units = segments.units
    positive = units > 0
    left, total = torch.full_like(segments.end, k), segments.total(units)
    certain = torch.zeros_like(positive)
    while True:
        sure = positive & ~certain & (left[segments.of] > 0)
        sure &= units * left[segments.of] >= total[segments.of]
        if not bool(sure.any()):
            break
        certain |= sure
        left = left - segments.total(sure.to(torch.int64))
        total = total - segments.total(torch.where(sure, units, torch.zeros_like(units)))
    left = torch.where(total > 0, left, torch.zeros_like(left))
    open_units = torch.where(certain, torch.zeros_like(units), units)
    segment = torch.arange(left.numel(), device=left.device).repeat_interleave(left)
    step = torch.arange(segment.numel(), device=left.device) - (left.cumsum(0) - left)[segment]
    first = _below_wide(_advance(key, torch.zeros_like(key)), total)[segment]
    # floor((first + step * total / left)) of the points first / left + step * total / left, without overflow
    part, rest = total[segment] // left[segment], total[segment] % left[segment]
    value = step * part + (first + step * rest) // left[segment]
    chosen = certain.clone()
    chosen[segments.find(segments.running(open_units), segment, value)] = True
    at = chosen.nonzero().squeeze(1)
    of = segments.of[at]
    share = units[at].to(torch.float64) * left[of].to(torch.float64) / total[of].to(torch.float64)
    expected = torch.where(certain[at], torch.ones_like(share), share)
    return segments.position[at], segments.total(chosen.to(torch.int64)), expected


def relabel(known: Tensor, found: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Definition of graphlossy::relabel, see `graphlossy.core.neighbors.relabel`."""
    both = torch.cat([known, found])
    distinct, inverse = both.unique(return_inverse=True)
    order = torch.arange(both.numel(), device=both.device)
    first = torch.full_like(distinct, both.numel()).scatter_reduce(0, inverse, order, "amin")
    fresh = first[first >= known.numel()].sort().values  # where in ``both`` an id appears that was not known
    local = torch.where(first < known.numel(), first, known.numel() + torch.searchsorted(fresh, first))
    return both[fresh], local[inverse[known.numel() :]]
