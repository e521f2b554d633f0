"""The graph a sampler works on: the edges that arrive at each node, one node after another (CSC)."""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.index import index2ptr

from graphlossy.core.neighbors import can_read_elements, read_elements
from graphlossy.sampler._checks import node_ids

__all__ = ["Graph", "as_graph", "as_tensor", "edge_graph"]

_CHUNK = 1 << 22


class Graph:
    """Edges sorted by the node at which they arrive.

    Attributes:
        indptr: int64 or int32 [N + 1]; entries indptr[v] to indptr[v + 1] - 1 of ``indices`` are the edges that arrive
            at node v.
        indices: int64 or int32 [E], the nodes from which they come. Neither array is copied: both may be memory-mapped.
        perm: int64 [E], the number of each edge in the order the user gave them, or None if that is the same.
        value: [E] the graph's own edge weights in the user's order, or None.
        num_nodes: N.
    """

    def __init__(
        self,
        indptr: Tensor | np.ndarray,
        indices: Tensor | np.ndarray,
        perm: Tensor | None = None,
        value: Tensor | None = None,
    ) -> None:
        arrays: dict[str, Any] = {"indptr": indptr, "indices": indices}
        self._sources = {name: array for name, array in arrays.items() if _mapping(array) is not None}
        self._watch()
        self.indptr, self.indices, self.perm, self.value = as_tensor(indptr), as_tensor(indices), perm, value
        self._check()

    def _check(self) -> None:
        for name, tensor in (("indptr", self.indptr), ("indices", self.indices)):
            if tensor.dim() != 1 or tensor.dtype not in (torch.int32, torch.int64):
                raise TypeError(
                    f"{name} must be int32 or int64 with one dimension, got {tensor.dtype} {tuple(tensor.shape)}"
                )
        edges = self.num_edges
        if self.indptr.shape[0] == 0 or int(self.indptr[0]) != 0 or int(self.indptr[-1]) != edges:
            raise ValueError(
                f"indptr must rise from 0 to the number of edges, {edges}; got {self.indptr.shape[0]} entries"
                + (f" from {int(self.indptr[0])} to {int(self.indptr[-1])}" if self.indptr.shape[0] else "")
            )
        if self._sources:  # not read through: what a batch touches is checked as it is touched
            return
        for start in range(0, self.num_nodes, _CHUNK):
            if bool((self.indptr[start : start + _CHUNK + 1].diff() < 0).any()):
                raise ValueError("indptr must never fall")
        if edges:
            low, high = (int(v) for v in self.indices.aminmax())
            if low < 0 or high >= self.num_nodes:
                raise ValueError(
                    f"edges must join nodes 0 to {self.num_nodes - 1}, got {low if low < 0 else high}; "
                    "set num_nodes if there are more nodes"
                )

    @property
    def num_nodes(self) -> int:
        return self.indptr.shape[0] - 1

    @property
    def num_edges(self) -> int:
        return self.indices.shape[0]

    def sources(self, position: Tensor) -> Tensor:
        """int64 nodes from which the edges at these positions come."""
        if self._file is not None:
            return self._sound(read_elements(*self._file, self.indices.dtype, position))
        return self._sound(self.indices.index_select(0, position).to(torch.int64))

    def _sound(self, sources: Tensor) -> Tensor:
        """``sources``, which must be nodes; those of arrays in memory were looked at once."""
        return node_ids("row", sources, self.num_nodes) if self._sources else sources

    def _watch(self) -> None:
        """Tells the system how the maps are read, and opens the file of a read-only one.

        A page of a map that was read counts as the process's own memory, and for every edge a large page or many small
        ones come along; edges read from the file leave none.
        """
        for array in self._sources.values():  # otherwise every read brings its surroundings on disk along
            _mapping(array).madvise(mmap.MADV_RANDOM)
        self._file: tuple[_File, int] | None = None
        array = self._sources.get("indices")
        if not isinstance(array, np.memmap) or array.filename is None or array.flags.writeable:
            return  # a writable map may hold what its file does not
        if array.flags.c_contiguous and can_read_elements():
            self._file = _File(array.filename), _offset(array)

    def edge_ids(self, position: Tensor) -> Tensor:
        """The user's numbers of the edges at these positions."""
        return position if self.perm is None else self.perm.index_select(0, position)

    def in_degree(self, nodes: Tensor | None = None) -> Tensor:
        """int64 edges that arrive at the nodes (all of them for None)."""
        if nodes is None:
            return self.indptr.diff().to(torch.int64)
        return (self.indptr[nodes + 1] - self.indptr[nodes]).to(torch.int64)

    def out_degree(self) -> Tensor:
        """int64 [N] edges that leave each node; reads all edges once."""
        count = torch.zeros(self.num_nodes, dtype=torch.int64)
        for sources, _, _ in self.chunks():
            count += torch.bincount(sources, minlength=self.num_nodes)
        return count

    def chunks(self) -> Iterator[tuple[Tensor, Tensor, slice]]:
        """Pieces of the edge list: (sources, destinations, positions)."""
        for start in range(0, self.num_edges, _CHUNK):
            end = min(start + _CHUNK, self.num_edges)
            first = int(torch.searchsorted(self.indptr, start, right=True)) - 1
            last = int(torch.searchsorted(self.indptr, end))
            pointers = self.indptr[first : last + 1].to(torch.int64).clamp(start, end)
            to = torch.arange(first, last).repeat_interleave(pointers.diff())
            yield self._sound(self.indices[start:end].to(torch.int64)), to, slice(start, end)

    def __getstate__(self) -> dict[str, Any]:
        """Memory-mapped arrays travel to other processes by name."""
        state = dict(self.__dict__)
        for name, array in self._sources.items():
            if isinstance(array, np.memmap) and array.filename is not None:
                state.pop(name)
        state.pop("_file")
        state["_sources"] = {
            name: (str(a.filename), a.dtype, a.shape, _offset(a))
            for name, a in self._sources.items()
            if isinstance(a, np.memmap) and a.filename is not None
        }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._sources = {
            name: np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape)
            for name, (file, dtype, shape, offset) in state["_sources"].items()
        }
        for name, array in self._sources.items():
            setattr(self, name, as_tensor(array))
        self._watch()


class _File:
    """An open file, closed when it is no longer used."""

    def __init__(self, name: Any) -> None:
        self._descriptor = os.open(name, os.O_RDONLY)

    def fileno(self) -> int:
        return self._descriptor

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _mapping(array: object) -> Any:
    """The memory map under an array, or None."""
    while isinstance(array, np.ndarray):
        array = array.base
    return array if isinstance(array, mmap.mmap) else None


def _offset(array: np.memmap) -> int:
    """Bytes of the file before the first element: that of the map, and of a view of it."""
    whole = array
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    return int(whole.offset) + array.ctypes.data - whole.ctypes.data


def as_tensor(array: Tensor | np.ndarray) -> Tensor:
    """The array as a tensor on the CPU, over the same memory."""
    if isinstance(array, Tensor):
        return array.detach().cpu()
    if not isinstance(array, np.ndarray):
        raise TypeError(f"expected a torch.Tensor or a numpy array, got {type(array).__name__}")
    if array.dtype == np.uint32 or array.dtype == np.uint64:
        array = array.view(np.int32 if array.dtype == np.uint32 else np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def edge_graph(edge_index: Tensor, num_nodes: int, num_src: int | None = None, value: Tensor | None = None) -> Graph:
    """CSC of an edge list [2, E]; edges that are sorted by destination are taken as they are.

    ``num_src``: nodes on the side where edges start, if they are of another type.
    """
    kind = edge_index.dtype
    if (
        edge_index.dim() != 2
        or edge_index.shape[0] != 2
        or kind.is_floating_point
        or kind.is_complex
        or kind == torch.bool
    ):
        raise ValueError(f"edge_index must be integers of shape [2, E], got {kind} {tuple(edge_index.shape)}")
    row, col = edge_index.as_subclass(Tensor).detach().cpu().unbind(0)
    for ids, most in ((col, num_nodes), (row, num_nodes if num_src is None else num_src)):
        if ids.numel():
            low, high = (int(v) for v in ids.aminmax())
            if low < 0 or high >= most:
                wrong = low if low < 0 else high
                raise ValueError(
                    f"edge_index must hold node ids from 0 to {most - 1}, got {wrong}; set num_nodes right"
                )
    perm = None
    if not _is_sorted(col):
        col, perm = col.sort(stable=True)
        row = row[perm]
    made = Graph.__new__(Graph)  # checked above; sources of another type may exceed num_nodes
    made._sources, made._file = {}, None
    made.perm, made.value = perm, value
    made.indptr, made.indices = index2ptr(col, num_nodes), row.contiguous()
    return made


def _is_sorted(values: Tensor) -> bool:
    return all(
        bool((values[s : s + _CHUNK + 1].diff() >= 0).all()) for s in range(0, max(0, values.shape[0] - 1), _CHUNK)
    )


def as_graph(source: Any) -> Graph:
    """The graph in any of the forms that samplers take.

    ``Data`` with ``edge_index`` (sorted or not, ``EdgeIndex`` too) or ``adj_t`` (a sparse CSR tensor, or a
    ``SparseTensor``), a pair ``(colptr, row)`` of tensors or arrays that may be memory-mapped, or a :class:`Graph`.
    """
    if isinstance(source, Graph):
        return source
    if isinstance(source, (tuple, list)) and len(source) == 2:
        return Graph(*source)
    if not isinstance(source, Data):
        raise TypeError(
            f"the graph must be a torch_geometric Data, a pair (colptr, row) of CSC arrays, got {type(source).__name__}"
        )
    adj_t = source.adj_t if "adj_t" in source else None
    value = source.edge_weight if "edge_weight" in source else None
    if adj_t is not None:
        if hasattr(adj_t, "csr"):  # torch_sparse.SparseTensor
            indptr, indices, own = adj_t.csr()
        elif isinstance(adj_t, Tensor) and adj_t.layout == torch.sparse_csr:
            indptr, indices, own = adj_t.crow_indices(), adj_t.col_indices(), adj_t.values()
            own = None if bool((own == 1).all()) else own
        else:
            kind = adj_t.layout if isinstance(adj_t, Tensor) else type(adj_t).__name__
            raise TypeError(f"adj_t must be a sparse CSR tensor (a row for each node that receives), got {kind}")
        return Graph(indptr, indices, value=own if value is None else value)
    if "edge_index" not in source or source.edge_index is None:
        raise ValueError("the graph has no edges to sample: data needs edge_index or adj_t")
    return edge_graph(source.edge_index, source.num_nodes, value=value)
