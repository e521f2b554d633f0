"""Random numbers by counter: number i of a stream depends on (seed, stream, i) alone.

So they are the same on every device, with any number of threads and in chunks of any size, and nothing is stored: the
backward pass makes the same numbers again from the seed. The generator is SplitMix64 (Steele, Lea and Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014, figure 16), whose state is a counter.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["permutation", "random_bits", "random_signs", "uniform"]

_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK64 = 2**64 - 1


def _signed(value: int) -> int:
    """The int64 with the 64 low bits of ``value``."""
    return (value + 2**63) % 2**64 - 2**63


def _key(seed: int, stream: int) -> int:
    """Where the counter of a stream starts; streams of one seed share no numbers in practice."""
    z = int(seed) & _MASK64
    for word in (0, stream):
        z = (z + (word + 1) * _GAMMA) & _MASK64
        z = ((z ^ (z >> 30)) * _MULTIPLIERS[0]) & _MASK64
        z = ((z ^ (z >> 27)) * _MULTIPLIERS[1]) & _MASK64
        z ^= z >> 31
    return z


def _splitmix64(key: int, start: int, count: int, device: torch.device | str) -> Tensor:
    """Outputs start .. start + count - 1 of SplitMix64 seeded with ``key``: int64 [count], all 64 bits random."""
    # int64 products wrap; >> keeps the sign, so the copies of the sign bit are cut off to make it a logical shift.
    z = torch.arange(start + 1, start + count + 1, device=device).mul_(_signed(_GAMMA)).add_(_signed(key))
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        z.bitwise_xor_((z >> shift).bitwise_and_(2 ** (64 - shift) - 1)).mul_(_signed(multiplier))
    return z.bitwise_xor_((z >> 31).bitwise_and_(2**33 - 1))


def random_bits(seed: int, count: int, start: int = 0, stream: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Words ``start`` .. ``start + count - 1`` of a stream: int64 [count], all 64 bits random."""
    return _splitmix64(_key(seed, stream), start, count, device)


def uniform(seed: int, count: int, start: int = 0, stream: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """float64 [count], multiples of 2**-53 in [0, 1)."""
    words = random_bits(seed, count, start, stream, device)
    return (words >> 11).bitwise_and_(2**53 - 1).to(torch.float64).mul_(2.0**-53)


def random_signs(seed: int, count: int, start: int = 0, stream: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """float32 [64 * count], +1 or -1 with equal probability: one for each bit of ``count`` words."""
    words = random_bits(seed, count, start, stream, device)
    bits = (words.unsqueeze(1) >> torch.arange(64, device=device)).bitwise_and_(1)
    return bits.view(-1).to(torch.float32).mul_(2).sub_(1)


def permutation(seed: int, count: int, stream: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """int64 [count], the numbers below ``count`` in random order."""
    return random_bits(seed, count, 0, stream, device).argsort(stable=True)
