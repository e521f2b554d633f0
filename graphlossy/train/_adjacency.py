"""From edges to what a model is given: an edge_index, or a sparse CSR matrix whose values make sums come out right.

PyG's layers stay as they are; edge weights reach them as the values of the matrix. With w_e the weight of an edge (an
estimate of 1: the expected weighted graph is the full one), d_i the degree of node i in the full graph and n_i the
number of edges into i that are left:

==========  ===========================  ==================================================================
model       layer                        value of the edge j -> i
==========  ===========================  ==================================================================
gcn, gcn2   ``normalize=False``          w_e / sqrt((d_i + 1) (d_j + 1)); self-loops 1 / (d_i + 1), exact
sage        mean over n_i edges          w_e n_i / d_i, so that the mean is sum(w_e x_j) / d_i
gin         sum                          w_e
gat         attention                    none: takes no weights
==========  ===========================  ==================================================================

Each estimates the full graph's sum or mean without bias, layer by layer, because degrees are the full graph's and thus
constants. (The nonlinearity between two layers is not linear: a network of several is not unbiased, as for every
sampled graph.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphlossy.autograd.graph import compress_index, sparse_csr

__all__ = ["build_adjacency", "csr_adjacency", "in_degree", "is_symmetric", "model_graph"]

_CHUNK = 1 << 24  # edges at a time where a temporary is several times as large as the edges


def model_graph(
    model: str,
    edge_index: Tensor,
    nodes: int,
    kind: str,
    weight: Tensor | None = None,
    degree: Tensor | None = None,
    normalized_outside: bool = False,
) -> Tensor:
    """The graph as ``model`` is given it: edge_index ``[2, E]`` or a sparse CSR matrix ``[N, N]``, rows receiving.

    Args:
        model: key of :data:`graphlossy.train.MODELS`.
        edge_index: ``[2, E]``, sources first.
        nodes: N.
        kind: ``"edge_index"`` or ``"csr"``, followed where the edges need no values.
        weight: ``[E]``; None for ones.
        degree: ``[N]`` edges into each node in the full graph; None: counted in ``edge_index``.
        normalized_outside: whether GCN's normalisation is to be in the values.
    """
    if model == "gat" or (weight is None and not (normalized_outside and model in ("gcn", "gcn2"))):
        return build_adjacency(edge_index, nodes, kind)
    if model in ("gcn", "gcn2"):
        loops = edge_index[0] == edge_index[1]
        if bool(loops.any()):  # every node gets one of weight 1, as in gcn_norm
            edge_index = edge_index[:, ~loops]
            weight = None if weight is None else weight[~loops]
        return _normalized(csr_adjacency(edge_index, nodes, weight), degree)
    adj = csr_adjacency(edge_index, nodes, weight)
    if model == "sage":
        counts = adj.crow_indices().diff()
        full = counts if degree is None else degree
        factor = counts / full.clamp(min=1).to(adj.values().dtype)
        adj.values().mul_(factor.repeat_interleave(counts))
    return adj


def build_adjacency(edge_index: Tensor, nodes: int, kind: str) -> Tensor:
    """``edge_index`` itself, or the sparse CSR ``adj_t`` of it, for ``kind`` ``"csr"``."""
    return edge_index if kind == "edge_index" else csr_adjacency(edge_index, nodes)


def csr_adjacency(edge_index: Tensor, nodes: int, weight: Tensor | None = None) -> Tensor:
    """The sparse CSR matrix ``[N, N]`` whose row i holds the edges into node i, with 32-bit indices where they fit.

    A graph whose edges are sorted by source and the same in both directions, as data sets are loaded, is taken over
    without sorting it again.

    Args:
        edge_index: ``[2, E]``, sources first.
        nodes: N.
        weight: float ``[E]``; None for ones.

    Example:
        >>> csr_adjacency(torch.tensor([[0, 1, 2], [1, 2, 1]]), 3).to_dense()
        tensor([[0., 0., 0.],
                [1., 0., 1.],
                [0., 1., 0.]])
    """
    source, target = edge_index
    dtype = torch.int32 if max(edge_index.shape[1], nodes + 1) < 2**31 else torch.int64
    if weight is None and is_symmetric(edge_index):
        source, target = target, source  # the matrix is its own transpose, and sorted already
    crow, order = compress_index(target.contiguous(), nodes, dtype)
    if order is not None:
        source = source[order]
        weight = None if weight is None else weight[order]
    if weight is None:
        values = torch.ones(source.numel(), device=source.device)
    else:
        values = weight.float() if order is not None else weight.float().clone()
    return sparse_csr(crow, source.to(dtype), values, (nodes, nodes))


def is_symmetric(edge_index: Tensor) -> bool:
    """Whether the edges are sorted by source and every edge has its reverse, by a 64-bit checksum in linear time."""
    source, target = edge_index
    total = 0
    for start in range(0, source.numel(), _CHUNK):
        a, b = source[start : start + _CHUNK].long(), target[start : start + _CHUNK].long()
        after = source[start + 1 : start + _CHUNK + 1]
        if bool((after < a[: len(after)]).any()):
            return False
        total += int(_mix(a, b).sum()) - int(_mix(b, a).sum())
    return total % 2**64 == 0


def _mix(a: Tensor, b: Tensor) -> Tensor:
    """A number for each ordered pair that looks random (multiply and shift, wrapping at 64 bits)."""
    mixed = a * -7046029254386353131 + b
    for factor in (-4658895280553007687, -7723592293110705685):
        mixed = (mixed ^ (mixed >> 31)) * factor
    return mixed ^ (mixed >> 32)


def in_degree(edge_index: Tensor, nodes: int) -> Tensor:
    """Number of edges into each node, float32 ``[N]``.

    Example:
        >>> in_degree(torch.tensor([[0, 1, 2], [1, 2, 1]]), 3)
        tensor([0., 2., 1.])
    """
    counts = torch.zeros(nodes, dtype=torch.int64, device=edge_index.device)
    for part in edge_index[1].split(_CHUNK):
        counts += torch.bincount(part, minlength=nodes)
    return counts.float()


def _normalized(adj: Tensor, degree: Tensor | None) -> Tensor:
    """GCN's normalisation of a matrix without self-loops, which are put in."""
    crow, col, values = adj.crow_indices(), adj.col_indices(), adj.values()
    nodes, counts = adj.shape[0], crow.diff()
    row_sums = torch.zeros(nodes, device=values.device)
    if degree is None:
        row_sums.index_add_(0, torch.arange(nodes, device=col.device).repeat_interleave(counts), values)
    scale = ((row_sums if degree is None else degree).to(values.dtype) + 1).rsqrt()
    out_col = torch.empty(col.numel() + nodes, dtype=col.dtype, device=col.device)
    out_values = torch.empty(col.numel() + nodes, dtype=values.dtype, device=values.device)
    # Rows whose edges make up about a chunk: positions are 64-bit numbers, one an edge.
    bounds = torch.searchsorted(crow, torch.arange(0, col.numel() + _CHUNK, _CHUNK, device=crow.device)).tolist()
    edges = sorted({0, nodes, *(min(bound, nodes) for bound in bounds)})
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        begin, end = int(crow[first]), int(crow[last])
        row = torch.arange(first, last, device=col.device).repeat_interleave(counts[first:last])
        place = torch.arange(begin + 1, end + 1, device=col.device) + row  # every row begins with its self-loop
        out_col[place] = col[begin:end]
        out_values[place] = values[begin:end] * scale[row] * scale[col[begin:end]]
    place = crow[:-1].long() + torch.arange(nodes, device=col.device)
    out_col[place] = torch.arange(nodes, dtype=col.dtype, device=col.device)
    out_values[place] = scale * scale
    out_crow = crow + torch.arange(nodes + 1, dtype=crow.dtype, device=crow.device)
    return sparse_csr(out_crow, out_col, out_values, (nodes, nodes))
