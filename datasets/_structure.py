"""A graph of any size as memory-mapped arrays, its structure first."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._ogb import OgbFolder
from graphlossy.datasets._ogb_raw import is_ogb_layout
from graphlossy.datasets._splits import TEST, TRAIN, VALIDATION

__all__ = ["Structure", "open_structure"]


@dataclass(frozen=True)
class Structure:
    """The edges of a graph by the node they lead to (compressed sparse columns), with labels and split.

    All arrays are maps of files: what is not looked at is not read.

    Attributes:
        name: of the data set.
        colptr: int64 [N + 1]; the edges into node i are ``colptr[i]`` to ``colptr[i + 1]``.
        row: int32 (int64 from 2^31 nodes on) [E], where each edge comes from, rising for each node.
        y: int64 [N] (0 where there is no label) or float32 [N, T].
        split: int8 [N]: 0 training, 1 validation, 2 test, -1 none.
        num_classes: classes, or tasks.
        synthetic: whether the graph is generated.
        reference: name of the leaderboard that it is on or stands in for.
    """

    name: str
    colptr: np.ndarray
    row: np.ndarray
    y: np.ndarray
    split: np.ndarray
    num_classes: int
    synthetic: bool
    reference: str | None
    _folder: OgbFolder = field(repr=False)

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.colptr) - 1

    @property
    def num_edges(self) -> int:
        """E, both directions of an undirected edge counted."""
        return len(self.row)

    @property
    def nbytes(self) -> int:
        """Bytes of ``colptr`` and ``row`` on disk."""
        return self.colptr.nbytes + self.row.nbytes

    def neighbors(self, node: int) -> np.ndarray:
        """The nodes with an edge to ``node``, in rising order."""
        return self.row[self.colptr[node] : self.colptr[node + 1]]

    def nodes(self, part: str) -> np.ndarray:
        """Numbers of the ``"train"``, ``"val"`` or ``"test"`` nodes, int64."""
        value = {"train": TRAIN, "val": VALIDATION, "test": TEST}.get(part)
        if value is None:
            raise ValueError(f"part must be 'train', 'val' or 'test', got {part!r}")
        return np.flatnonzero(self.split == value)

    def features(self) -> np.ndarray:
        """``x`` float32 [N, F], memory-mapped; the first call converts the published file."""
        return self._folder.features()[0]


def open_structure(folder: str | os.PathLike[str], *, undirected: bool = True) -> Structure:
    """Opens a graph in OGB's layout without reading its features.

    The first call sorts the edges by target, outside of memory, into files beside the published ones; it needs about
    0.5 GB and 16 bytes a node, whatever the number of edges, and half as much free disk again as ``raw/`` has bytes of
    edges. Later calls map the files.

    Args:
        folder: with ``raw/data.npz`` (as ogbn-papers100M) or ``raw/edge.csv.gz``, and ``split/``.
        undirected: takes every edge in both directions; False keeps the edges as they are stored. Either way an edge
            that is stored twice is there once, and self-loops are left out.

    Raises:
        DatasetError: the folder holds no such graph, or a file is damaged.

    Example:
        >>> from graphlossy.datasets import open_structure, write_ogb
        >>> folder = write_ogb("synth-papers100M", "data", scale=1e-5)
        >>> graph = open_structure(folder)
        >>> graph.num_nodes, graph.reference, graph.synthetic
        (1111, 'ogbn-papers100M', True)
        >>> len(graph.neighbors(5)) == graph.colptr[6] - graph.colptr[5]
        np.True_
    """
    path = Path(folder)
    if not is_ogb_layout(path):
        raise DatasetError(f"{path}: holds no graph in OGB's layout, that is raw/data.npz or raw/edge.csv.gz")
    ogb = OgbFolder(path)
    y, part, kept = ogb.labels()
    colptr, row, _ = ogb.structure(undirected)
    facts: dict[str, Any] = {"synthetic": ogb.mark is not None, "reference": ogb.reference}
    return Structure(ogb.name, colptr, row, y, part, kept["num_classes"], _folder=ogb, **facts)
