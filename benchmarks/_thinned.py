"""A thinned graph as unmodified PyG layers take it: a sparse CSR matrix whose values carry the weights."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

__all__ = ["METHODS", "adjacency", "thin"]

METHODS = {
    "degree": "DSpar (Liu et al., TMLR 2023): drawn by 1/d_u + 1/d_v, weights count / (Q p)",
    "degree-unweighted": "the same edges, all of weight 1",
    "random": "uniform without replacement",
    "k-neighbor": "at most k random neighbours of every node",
    "local-degree": "every node's neighbours of highest degree (Hamann et al., 2016)",
}


def thin(edge_index: Tensor, nodes: int, method: str, share: float, seed: int) -> tuple[Tensor, Tensor | None]:
    """The edges kept and their weights (None: all 1); everything for a share of 1."""
    from graphlossy.sparsify import sparsify

    if share >= 1:
        return edge_index, None
    name, reweight = method.removesuffix("-unweighted"), not method.endswith("-unweighted")
    return sparsify(edge_index, nodes, method=name, ratio=share, reweight=reweight, seed=seed)


def adjacency(model: str, edge_index: Tensor, weight: Tensor | None, nodes: int) -> Tensor:
    """``adj_t`` [N, N]: normalised with self-loops for a GCN; for SAGE such that PyG's mean is the weighted mean."""
    from torch_geometric.nn.conv.gcn_conv import gcn_norm
    from torch_geometric.utils import to_torch_csr_tensor

    if model == "gcn":
        edge_index, weight = gcn_norm(edge_index, weight, nodes, add_self_loops=True, dtype=torch.float32)
    elif weight is not None:
        row = edge_index[1]
        # PyG divides the weighted sum by the number of edges: this makes it the sum of the weights.
        count = torch.zeros(nodes).index_add_(0, row, torch.ones_like(weight))
        total = torch.zeros(nodes).index_add_(0, row, weight)
        weight = weight * (count / total.clamp(min=1e-30))[row]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_torch_csr_tensor(edge_index.flip(0), weight, size=(nodes, nodes))
