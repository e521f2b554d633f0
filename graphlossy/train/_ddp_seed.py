"""Seeds that follow from what they are for: a step, a rank, a parameter."""

from __future__ import annotations

import hashlib

__all__ = ["epoch_seed", "mix_seed"]


def mix_seed(*words: int) -> int:
    """A 63-bit seed that depends on every word and on their order; other words give unrelated seeds.

    Example:
        >>> mix_seed(0, 1) == mix_seed(0, 1), mix_seed(0, 1) == mix_seed(1, 0)
        (True, False)
    """
    content = b"".join((word % 2**64).to_bytes(8, "little") for word in words)
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


def epoch_seed(seed: int, rank: int, epoch: int) -> int:
    """The seed of torch's generator for one epoch of one rank, where ranks must draw different numbers.

    In sampled training every process has other nodes, so its dropout and its rounding noise should be its own; being a
    function of (seed, rank, epoch) they need no place in a checkpoint, and a run repeats exactly on as many processes.
    Full-batch replicas use one stream for all ranks instead: then they do together what one process would have done.

    Example:
        >>> epoch_seed(0, rank=1, epoch=5) == epoch_seed(0, rank=0, epoch=5)
        False
    """
    return mix_seed(seed, rank, epoch)
