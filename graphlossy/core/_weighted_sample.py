"""Draws with replacement from many weights: exact integers, linear time, bounded memory.

Weights become whole multiples of one unit, a power of two chosen so that they add up to about 2**59. Sums of integers
do not round, so the result does not depend on the device, the number of threads or the size of a chunk, and an entry
of weight zero can never be drawn; weights below 2**-60 of the sum count as zero.

`draw` is the definition of graphlossy::weighted_sample; csrc/weighted_sample_cpu.cpp gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from graphlossy.core import _schemas
from graphlossy.core._random import _signed, random_bits
from graphlossy.core.quantize import seed_or_draw

__all__ = [
    "BITS",
    "MOST_DRAWS",
    "buckets",
    "check_count",
    "check_weights",
    "draw",
    "unit_exponent",
    "units",
    "weighted_sample",
]

_CHUNK = 1 << 20  # weights or draws at a time
BITS = 60  # of a uniform number; the units add up to less than 2**BITS
_PER_BUCKET = 1 << 10
MOST_DRAWS = 1 << 40  # half a day


def check_count(name: str, value: object, least: int) -> int:
    """``value`` as an int that is at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def check_form(weights: Tensor) -> None:
    """Raises unless ``weights`` is a dense real tensor of one dimension."""
    if not isinstance(weights, Tensor) or weights.layout != torch.strided:
        kind = weights.layout if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"weights must be a dense torch.Tensor, got {kind}")
    unsigned = (torch.uint16, torch.uint32, torch.uint64)  # torch has hardly any operation for them
    if weights.is_complex() or weights.dtype == torch.bool or weights.dtype in unsigned:
        raise TypeError(f"weights must be real numbers, got dtype {weights.dtype}; convert with .float()")
    if weights.dim() != 1:
        raise ValueError(f"weights must have one dimension, got shape {tuple(weights.shape)}; flatten them first")


def check_weights(weights: Tensor) -> float:
    """The largest weight, after all of them were found finite and at least 0."""
    check_form(weights)
    largest = 0.0
    for start in range(0, weights.numel(), _CHUNK):
        chunk = weights[start : start + _CHUNK]
        low, high = (float(v) for v in chunk.aminmax())
        if not (low >= 0 and math.isfinite(high)):
            at = start + int((~(chunk >= 0) | ~chunk.isfinite()).nonzero()[0])
            raise ValueError(
                f"weights must be finite and at least 0; weights[{at}] is {weights[at].item()}. "
                "Replace it, for example with 0, so that this entry is never drawn"
            )
        largest = max(largest, high)
    return largest


def unit_factors(exponent: int) -> tuple[float, float]:
    """Two factors whose product is 2**exponent, which alone overflows for the smallest weights."""
    return 2.0 ** (exponent // 2), 2.0 ** (exponent - exponent // 2)


def units(weights: Tensor, exponent: int) -> Tensor:
    """Weights in units of 2**-exponent, rounded to the nearest integer: int64, same shape."""
    first, second = unit_factors(exponent)
    return weights.to(torch.float64).mul(first).mul_(second).round_().to(torch.int64)


def unit_exponent(weights: Tensor, largest: float) -> tuple[int, int]:
    """(exponent, total): ``units(weights, exponent)`` adds up to ``total``, between 2**57 and 2**60."""

    def total(exponent: int) -> int:
        return sum(int(units(part, exponent).sum()) for part in weights.split(_CHUNK))

    return exponent_for(weights.numel(), largest, total)


def exponent_for(count: int, largest: float, total: Callable[[int], int]) -> tuple[int, int]:
    """`unit_exponent` for ``count`` weights, where ``total(exponent)`` adds up the units."""
    # First from the bound count * largest, then from the sum in those units; both are exact on every device.
    exponent = BITS - 1 - (count - 1).bit_length() - math.frexp(largest)[1]
    exponent += BITS - 1 - (total(exponent) + count).bit_length()
    return exponent, total(exponent)


def weighted_sample(weights: Tensor, num_samples: int, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """Draw indices with replacement with probabilities proportional to the weights, for as many as 10**8 weights.

    What torch.multinomial does, without its limit of 2**24 weights, and in time linear in weights plus draws: uniform
    numbers are made in rising blocks and merged with the running sum of the weights. Beside the result and a copy
    of it, some 100 MB are needed.

    Args:
        weights: [n] finite, at least 0, any real dtype; they need not add up to 1.
        num_samples: draws, at most 2**40.
        seed: of the draws; None takes one from torch's global generator. One seed gives the same result on every
            device and with any number of threads.

    Returns:
        (index, counts): int64 [m] the distinct indices drawn, rising; int64 [m] how often each was drawn, in all
        ``num_samples``.

    Raises:
        TypeError: ``weights`` is no dense real tensor, ``num_samples`` no int.
        ValueError: a weight is negative, NaN or infinite, or all are zero (or none is given) and a draw is wanted;
            ``num_samples`` is negative or above 2**40.

    Example:
        >>> index, counts = weighted_sample(torch.tensor([1.0, 0.0, 3.0]), 1000, seed=0)
        >>> index.tolist(), int(counts.sum()), bool(counts[1] > 2 * counts[0])
        ([0, 2], 1000, True)
    """
    check_draw_count(check_count("num_samples", num_samples, 0))
    check_form(weights)
    seed = _signed(seed_or_draw(seed))
    index, counts = torch.ops.graphlossy.weighted_sample(weights.detach(), num_samples, seed)
    return index, counts


def check_draw_count(num_samples: int) -> None:
    """Raises for so many draws that they would never end."""
    if num_samples > MOST_DRAWS:
        raise ValueError(f"num_samples must be at most 2**40, about {MOST_DRAWS:.1e} draws; got {num_samples}")


def check_draws(weights: Tensor, num_samples: int) -> float:
    """The largest weight, after the arguments were found fit for drawing; 0 if there is nothing to draw."""
    largest = check_weights(weights)
    if num_samples == 0:
        return 0.0
    if num_samples < 0:
        raise ValueError(f"num_samples must be at least 0, got {num_samples}")
    check_draw_count(num_samples)
    if largest == 0:
        raise ValueError(
            f"weights must have a positive entry to draw {num_samples} samples from; "
            f"got {weights.numel()} weights, all zero"
        )
    return largest


def draw(weights: Tensor, num_samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Definition of graphlossy::weighted_sample."""
    largest = check_draws(weights, num_samples)
    if largest == 0:
        empty = torch.empty(0, dtype=torch.int64, device=weights.device)
        return empty, empty.clone()
    exponent, total = unit_exponent(weights, largest)
    groups = _rising_draws(num_samples, total, seed, weights.device)
    draws, bound = next(groups)
    found: list[tuple[Tensor, Tensor]] = []
    low = 0
    for start in range(0, weights.numel(), _CHUNK):
        running = units(weights[start : start + _CHUNK], exponent).cumsum(0).add_(low)
        high = int(running[-1])
        counts = torch.zeros_like(running)
        while True:
            inside = draws < high
            # running[i - 1] <= draw < running[i], so that the weight of i is positive
            at = torch.searchsorted(running, draws[inside], right=True)
            counts += torch.bincount(at, minlength=counts.numel())
            draws = draws[~inside]
            if high <= bound:  # the next group draws nothing below ``bound``
                break
            draws, bound = next(groups)
        at = counts.nonzero().squeeze(1)
        found.append((at + start, counts[at]))
        low = high
        if low == total:
            break
    return torch.cat([index for index, _ in found]), torch.cat([times for _, times in found])


def buckets(count: int) -> int:
    """How many of the high bits of ``count`` uniform numbers are drawn first."""
    return min(20, max(0, (count // _PER_BUCKET).bit_length()))


def _rising_draws(count: int, total: int, seed: int, device: torch.device) -> Iterator[tuple[Tensor, int]]:
    """``count`` uniform integers below ``total`` in groups: (draws, b), draws <= b <= every draw of later groups.

    The high bits of every number are drawn first and only counted, which says how many numbers fall into each of
    2**high buckets; the low bits are then drawn bucket by bucket.
    """
    high = buckets(count)
    rest = BITS - high
    in_bucket = torch.zeros(2**high, dtype=torch.int64, device=device)
    for start in range(0, count, _CHUNK):
        words = random_bits(seed, min(_CHUNK, count - start), start, 1, device)
        in_bucket += torch.bincount((words >> rest) & (2**high - 1), minlength=2**high)
    ends = in_bucket.cumsum(0)
    first = drawn = 0
    while first < 2**high:
        # As many buckets as fit, and at least one: a bucket holds count / 2**high numbers, give or take.
        last = max(first + 1, int(torch.searchsorted(ends, drawn + _CHUNK, right=True)))
        end = int(ends[last - 1])
        bucket = torch.arange(first, last, device=device).repeat_interleave(in_bucket[first:last])
        words = random_bits(seed, end - drawn, drawn, 2, device).bitwise_and_(2**rest - 1)
        yield _scale(words.bitwise_or_(bucket << rest), total), last * 2**rest * total >> BITS
        first, drawn = last, end


def _scale(u: Tensor, total: int) -> Tensor:
    """floor(u * total / 2**60) of 60-bit u and total, from 30-bit halves that do not overflow."""
    half = BITS // 2
    mask = 2**half - 1
    u_high, u_low = u >> half, u & mask
    high, low = total >> half, total & mask
    return u_high * high + ((u_high * low + u_low * high + ((u_low * low) >> half)) >> half)


_schemas.LIBRARY.impl("weighted_sample", draw, "CompositeExplicitAutograd")
