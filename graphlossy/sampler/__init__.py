"""Mini-batch samplers on PyG's ``BaseSampler`` interface, without compiled PyG parts.

Each is used as ``torch_geometric.loader.NodeLoader(data, node_sampler=sampler, ...)``, or through :func:`make_loader`.
"""

from graphlossy.sampler._seeding import attach_weights
from graphlossy.sampler.cluster import ClusterSampler
from graphlossy.sampler.loader import KINDS, BatchLoader, make_loader
from graphlossy.sampler.neighbor import NeighborSampler
from graphlossy.sampler.saint import SaintEdgeSampler, SaintNodeSampler, SaintWalkSampler
from graphlossy.sampler.sparsified import DegreeSparsifySampler

__all__ = [
    "BatchLoader",
    "ClusterSampler",
    "DegreeSparsifySampler",
    "KINDS",
    "NeighborSampler",
    "SaintEdgeSampler",
    "SaintNodeSampler",
    "SaintWalkSampler",
    "attach_weights",
    "make_loader",
]
