"""The neighbours of every node as memory-mapped arrays, sorted outside of memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from graphlossy.datasets._errors import DatasetError
from graphlossy.datasets._npy import NpyWriter

__all__ = ["build_csc", "expand"]

_BUCKET = 1 << 23  # edge ends sorted at a time; 8 bytes each, and about four times as much while they are sorted
_MOST_BUCKETS = 512  # files that are open at a time


def build_csc(
    chunks: Iterable[np.ndarray],
    nodes: int,
    edges: int,
    folder: Path,
    where: str,
    *,
    undirected: bool = True,
    ids: bool = False,
) -> int:
    """Writes ``colptr.npy`` int64 [N + 1] and ``row.npy`` [E'], the sources of the edges into each node in order.

    The edges are dealt out to files by their target; each file is then sorted in memory. So the memory needed does not
    grow with the edges; it grows with the nodes by 8 bytes each. Self-loops are left out, and an edge that comes twice
    is there once.

    Args:
        chunks: of the edges, [2, k] each.
        nodes: N.
        edges: how many there must be.
        folder: to write to.
        where: what messages call the edges.
        undirected: takes every edge in both directions.
        ids: also writes ``edge_id.npy`` [E'], the number of the (first) edge in ``chunks`` that each came from.

    Returns:
        The number of edges E' written.

    Raises:
        DatasetError: an end is no node, or there are more or fewer edges.
    """
    buckets = min(_MOST_BUCKETS, -(-max(1, edges * (2 if undirected else 1)) // _BUCKET), max(1, nodes))
    spill = _Spill(folder, nodes, buckets, ids)
    first = 0
    with spill:
        for chunk in chunks:
            _check(chunk, nodes, first, where)
            number = np.arange(first, first + chunk.shape[1])
            first += chunk.shape[1]
            proper = chunk[0] != chunk[1]
            source, target = chunk if proper.all() else chunk[:, proper]
            number = number if proper.all() else number[proper]
            spill.add(source, target, number)
            if undirected:
                spill.add(target, source, number)
    if first != edges:
        raise DatasetError(f"{where}: has {first:,} edges; there must be {edges:,}: download or write it again")
    index = np.int32 if nodes < 2**31 else np.int64
    degree = np.zeros(nodes + 1, np.int64)
    with NpyWriter(folder / "row.npy", index) as rows, NpyWriter(folder / "edge_id.npy", _index(edges)) as numbers:
        for key, lowest in spill.sorted():
            target, source = np.divmod(key, nodes)
            rows.append(source)
            if lowest is not None:
                numbers.append(lowest)
            if len(target):
                low = int(target[0])
                counts = np.bincount(target - low)
                degree[low + 1 : low + 1 + len(counts)] += counts
    if not ids:
        (folder / "edge_id.npy").unlink()
    np.cumsum(degree, out=degree)
    np.save(folder / "colptr.npy", degree)
    return int(degree[-1])


def expand(colptr: np.ndarray, row: np.ndarray, out: np.ndarray | None = None, step: int = 1 << 20) -> np.ndarray:
    """The ``edge_index`` [2, E] int64 of an undirected graph's CSC arrays, sorted by source and then target.

    Example:
        >>> expand(np.array([0, 1, 3, 4]), np.array([1, 0, 2, 1])).tolist()
        [[0, 1, 1, 2], [1, 0, 2, 1]]
    """
    out = np.empty((2, len(row)), np.int64) if out is None else out
    out[1] = row
    for low in range(0, len(colptr) - 1, step):
        part = colptr[low : low + step + 1]
        out[0, part[0] : part[-1]] = np.repeat(np.arange(low, low + len(part) - 1), np.diff(part))
    return out


def _index(count: int) -> type:
    return np.int32 if count < 2**31 else np.int64


def _check(chunk: np.ndarray, nodes: int, first: int, where: str) -> None:
    if chunk.size and not (chunk.min() >= 0 and chunk.max() < nodes):
        wrong = int(((chunk < 0) | (chunk >= nodes)).any(0).argmax())
        ends = chunk[:, wrong].tolist()
        raise DatasetError(
            f"{where}: edge {first + wrong:,} has an end out of range ({ends[0]}, {ends[1]}); the numbers of "
            f"{nodes:,} nodes go from 0 to {nodes - 1:,}: the file is damaged, or the number of nodes is wrong"
        )


class _Spill:
    """Edges dealt out by target: as lists in memory where one bucket holds all, else as files."""

    def __init__(self, folder: Path, nodes: int, buckets: int, ids: bool) -> None:
        self.nodes, self.buckets, self.ids = nodes, buckets, ids
        self._kept: list[tuple[np.ndarray, np.ndarray]] = []
        self._files = [folder / f"bucket-{number}" for number in range(buckets)] if buckets > 1 else []

    def __enter__(self) -> None:
        self._streams = [open(file, "wb") for file in self._files]

    def __exit__(self, *error: object) -> None:
        for stream in self._streams:
            stream.close()

    def add(self, source: np.ndarray, target: np.ndarray, number: np.ndarray) -> None:
        key = target * self.nodes + source
        if not self._files:
            self._kept.append((key, number if self.ids else number[:0]))
            return
        bucket = (target * self.buckets // self.nodes).astype(np.uint16)
        order = np.argsort(bucket, kind="stable")
        ends = np.cumsum(np.bincount(bucket, minlength=self.buckets))
        record = np.stack([key[order], number[order]], 1) if self.ids else key[order]
        for stream, part in zip(self._streams, np.split(record, ends[:-1]), strict=True):
            stream.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)

    def sorted(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """The distinct keys ``target * nodes + source`` in rising order, and the lowest number of each."""
        if not self._files:
            keys = np.concatenate([key for key, _ in self._kept]) if self._kept else np.empty(0, np.int64)
            numbers = np.concatenate([number for _, number in self._kept]) if self._kept else np.empty(0, np.int64)
            self._kept.clear()
            yield _distinct(keys, numbers if self.ids else None)
        for file in self._files:
            record = np.fromfile(file, np.int64)
            file.unlink()
            yield _distinct(record[0::2], record[1::2]) if self.ids else _distinct(record, None)


def _distinct(keys: np.ndarray, numbers: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    if numbers is None:
        keys.sort()
    else:
        order = np.argsort(keys)
        keys, numbers = keys[order], numbers[order]
    if not len(keys):
        return keys, numbers
    new = np.empty(len(keys), np.bool_)
    new[0] = True
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    if numbers is not None:
        numbers = np.minimum.reduceat(numbers, np.flatnonzero(new))
    return (keys if new.all() else keys[new]), numbers
