"""Integer hashes of ids: 64 bits in, 64 bits out and no floating point, so that ids past 2**24 stay different."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.core._neighbors import mix64
from graphlossy.core._random import _key, _signed

__all__ = ["MOST", "below", "hash_key", "hash_words"]

MOST = 2**31 - 1  # the largest range of `below`
_GAMMA = _signed(0x9E3779B97F4A7C15)
_STREAM = 12


def hash_key(seed: int, device: torch.device | str | None = None) -> Tensor:
    """int64 [1], kept in a state_dict: a table that was loaded hashes as the one that was saved."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    return torch.tensor([_signed(_key(seed, _STREAM))], dtype=torch.int64, device=device)


def hash_words(ids: Tensor, key: Tensor, count: int) -> Tensor:
    """int64 [N, count]: ``count`` independent hashes of every id of int64 ``ids`` [N], all 64 bits random (SplitMix64).

    >>> words = hash_words(torch.tensor([1, 2**40 + 1]), hash_key(0), 3)
    >>> words.unique().numel()
    6
    """
    keys = mix64(key + torch.arange(1, count + 1, device=ids.device) * _GAMMA)
    return mix64(ids.unsqueeze(1) * _GAMMA + keys)


def below(words: Tensor, bound: int) -> Tensor:
    """The high 32 bits of ``words`` as uniform integers from 0 to ``bound`` - 1; ``bound`` is at most 2**31 - 1."""
    return ((words >> 32) & 0xFFFFFFFF) * bound >> 32
