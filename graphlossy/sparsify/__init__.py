"""Thin a graph: by degree (DSpar) and by the baselines it is compared with, as functions and as PyG transforms.

What every function returns is (edge_index, edge_weight), and the expected weighted adjacency matrix is that of the
input, but for the local degree method, whose choice is not random.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from graphlossy.sparsify._methods import METHODS, Method, sparsify
from graphlossy.sparsify._report import Report, report
from graphlossy.sparsify.degree import degree_sparsify
from graphlossy.sparsify.k_neighbor import k_neighbor_sparsify
from graphlossy.sparsify.local_degree import local_degree_sparsify
from graphlossy.sparsify.resistance import resistance_sparsify
from graphlossy.sparsify.uniform import random_sparsify

if TYPE_CHECKING:
    from graphlossy.sparsify._transforms import (
        DegreeSparsify,
        KNeighborSparsify,
        LocalDegreeSparsify,
        RandomSparsify,
        ResistanceSparsify,
    )

__all__ = [
    "METHODS",
    "DegreeSparsify",
    "KNeighborSparsify",
    "LocalDegreeSparsify",
    "Method",
    "RandomSparsify",
    "Report",
    "ResistanceSparsify",
    "degree_sparsify",
    "k_neighbor_sparsify",
    "local_degree_sparsify",
    "random_sparsify",
    "report",
    "resistance_sparsify",
    "sparsify",
]

_TRANSFORMS = frozenset(name for name in __all__ if name.endswith("Sparsify"))


def __getattr__(name: str) -> object:
    if name in _TRANSFORMS:  # they need PyG, whose import takes as long as torch's
        return getattr(importlib.import_module("graphlossy.sparsify._transforms"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its names are {', '.join(__all__)}")
