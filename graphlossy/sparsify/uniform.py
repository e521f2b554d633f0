"""Uniform random sparsification: the baseline that every other method has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.core._random import random_bits
from graphlossy.core.quantize import seed_or_draw
from graphlossy.sparsify._choice import Choice, check_ratio, everything, graph_of
from graphlossy.sparsify._edges import EdgeList, read_edges

__all__ = ["choose", "random_sparsify"]

_CHUNK = 1 << 20


def random_sparsify(
    edge_index: Tensor,
    num_nodes: int | tuple[int, int] | None = None,
    *,
    ratio: float,
    reweight: bool = True,
    edge_weight: Tensor | None = None,
    undirected: bool | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Keep a uniformly random share of the edges, without replacement; an undirected pair stays or goes as a whole.

    Exactly round(ratio m) of m edges are kept (at least one), each with the weight m / round(ratio m) times its own, so
    that the expected weighted adjacency matrix is the input's. Self-loops are kept and not counted.

    Args, returns and errors are those of `degree_sparsify`, with ``ratio`` alone.

    Example:
        >>> ring = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
        >>> edge_index, edge_weight = random_sparsify(ring, ratio=0.5, seed=0)
        >>> edge_index.shape, edge_weight.tolist()
        (torch.Size([2, 2]), [2.0, 2.0])
    """
    edges = read_edges(edge_index, num_nodes, edge_weight, undirected)
    return graph_of(edges, choose(edges, seed, ratio=ratio), reweight)


def choose(edges: EdgeList, seed: int | None, *, ratio: float) -> Choice:
    """The edges that `random_sparsify` keeps."""
    ratio, seed = check_ratio(ratio), seed_or_draw(seed)
    kept = min(edges.count, max(1, round(ratio * edges.count)))
    if kept == edges.count:
        return everything(edges)
    index = smallest_words(seed, edges.count, kept, edges.device)
    factor = torch.full((kept,), edges.count / kept, dtype=torch.float64, device=edges.device)
    return Choice(index, factor, True)


def smallest_words(seed: int, count: int, kept: int, device: torch.device) -> Tensor:
    """The places of the ``kept`` smallest of ``count`` random words, rising: a uniform subset, in linear time."""
    shift = 63 - max(1, min(20, count.bit_length()))  # the high bits are counted first
    buckets = 1 << (63 - shift)
    counts = torch.zeros(buckets, dtype=torch.int64, device=device)
    for start in range(0, count, _CHUNK):
        counts += torch.bincount(_words(seed, start, count, device) >> shift, minlength=buckets)
    ends = counts.cumsum(0)
    last = int(torch.searchsorted(ends, kept))  # its bucket is taken in part
    found, border, words = [], [], []
    for start in range(0, count, _CHUNK):
        word = _words(seed, start, count, device)
        high = word >> shift
        found.append((high < last).nonzero().squeeze(1) + start)
        at = (high == last).nonzero().squeeze(1)
        border.append(at + start)
        words.append(word[at])
    missing = kept - (int(ends[last - 1]) if last else 0)
    order = torch.cat(words).argsort(stable=True)[:missing]
    return torch.cat([*found, torch.cat(border)[order]]).sort().values


def _words(seed: int, start: int, count: int, device: torch.device) -> Tensor:
    """63 random bits for each of the places from ``start`` on."""
    return random_bits(seed, min(_CHUNK, count - start), start, 3, device).bitwise_and_(2**63 - 1)
