"""Checks of sizes, the hash of tokens that share rows, and the best projection of given rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from graphlossy.core._neighbors import mix64
from graphlossy.core._random import _GAMMA, _key, _signed
from graphlossy.core.multi_size import LARGEST_CODES
from graphlossy.recsys.tables._mixing import below

__all__ = ["check_sizes", "hash_rows", "leading_vectors"]

_HASH_STREAM = 11


def check_sizes(sizes: int | Sequence[int] | Tensor, num_embeddings: int, embedding_dim: int) -> Tensor:
    """Widths of the tokens, int64 [V]; raises unless all are from 0 to d and of at most 255 kinds."""
    if isinstance(sizes, int) and not isinstance(sizes, bool):
        sizes = torch.full((num_embeddings,), sizes, dtype=torch.int64)
    found = torch.as_tensor(sizes)
    found = found if found.numel() else found.to(torch.int64)  # of an empty list it is float
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"sizes must be integers, got {str(found.dtype).removeprefix('torch.')}")
    found = found.to(torch.int64)
    if tuple(found.shape) != (num_embeddings,):
        raise ValueError(f"sizes must have one entry for each of {num_embeddings} tokens, got {tuple(found.shape)}")
    if found.numel():
        low, high = (int(v) for v in found.aminmax())
        if low < 0 or high > embedding_dim:
            at = int(((found < 0) | (found > embedding_dim)).nonzero()[0])
            raise ValueError(
                f"sizes must be from 0 to embedding_dim = {embedding_dim}; sizes[{at}] is {int(found[at])}"
            )
        if found.unique().numel() > LARGEST_CODES:
            raise ValueError(
                f"sizes must be of at most {LARGEST_CODES} kinds, got {found.unique().numel()}; round them"
            )
    return found


def hash_rows(ids: Tensor, rows: int) -> Tensor:
    """A row below ``rows`` for every id: SplitMix64's mixing, then the high bits times ``rows``."""
    return below(mix64(ids * _signed(_GAMMA) + _signed(_key(0, _HASH_STREAM))), rows)


def leading_vectors(rows: Tensor, count: int) -> Tensor:
    """[count, d] orthogonal vectors of length sqrt(d), the leading right singular ones of ``rows`` first."""
    gram = rows.T @ rows
    vectors = torch.linalg.eigh(gram).eigenvectors.flip(1).T
    return vectors[:count] * math.sqrt(rows.shape[1])
