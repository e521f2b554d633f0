"""One call from a graph to the mini-batches of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from graphlossy.core.quantize import seed_or_draw
from graphlossy.sampler._batches import Batches, Plan
from graphlossy.sampler._checks import check_count, check_flag, node_ids
from graphlossy.sampler._graph import as_graph
from graphlossy.sampler._induced import SubgraphSampler
from graphlossy.sampler.cluster import ClusterSampler
from graphlossy.sampler.neighbor import NeighborSampler
from graphlossy.sampler.saint import SaintEdgeSampler, SaintNodeSampler, SaintWalkSampler
from graphlossy.sampler.sparsified import DegreeSparsifySampler

__all__ = ["KINDS", "BatchLoader", "make_loader"]

KINDS = ("neighbor", "degree-neighbor", "saint-node", "saint-edge", "saint-walk", "cluster", "sparsify")
_BATCH_SIZE = {"saint-node": 8192, "saint-edge": 4096, "saint-walk": 2048, "cluster": 10, "sparsify": 1}


class BatchLoader:
    """Iterates over the batches of an epoch; made by :func:`make_loader`.

    A batch is a function of (seed, epoch, batch number): of nothing that was drawn before, of no number of workers or
    threads. Each pass over the loader is an epoch of its own, counted from 0, unless :meth:`set_epoch` says which.

    Attributes:
        epoch: of the next pass.
        sampler: the sampler beneath.
    """

    def __init__(self, batches: Batches, num_workers: int = 0, prefetch_factor: int | None = None) -> None:
        self.epoch = 0
        self.sampler = batches.sampler
        self._batches = batches
        self._keys: list[tuple[int, int]] = []
        self._loader = torch.utils.data.DataLoader(
            batches,
            batch_size=None,
            sampler=_Keys(self._keys),
            num_workers=num_workers,
            collate_fn=_as_it_is,
            persistent_workers=num_workers > 0,
            prefetch_factor=prefetch_factor if num_workers > 0 else None,
            generator=torch.Generator(),  # the loader draws a seed for its workers, which use none: not from torch's
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Data]:
        self._keys[:] = [(self.epoch, number) for number in range(len(self))]
        self.epoch += 1
        return iter(self._loader)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next pass."""
        self.epoch = check_count("epoch", epoch, 0)

    def batch(self, number: int, epoch: int | None = None) -> Data:
        """One batch by its number, of the epoch that comes next unless given."""
        if not 0 <= check_count("number", number, 0) < len(self):
            raise ValueError(f"number must be from 0 to {len(self) - 1}, got {number}")
        return self._batches[self.epoch if epoch is None else check_count("epoch", epoch, 0), number]


class _Keys(torch.utils.data.Sampler):
    """The (epoch, number) pairs of a pass."""

    def __init__(self, keys: list[tuple[int, int]]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(self.keys))

    def __len__(self) -> int:
        return len(self.keys)


def _as_it_is(batch: Data) -> Data:
    return batch


def make_loader(
    data: Data,
    kind: str = "neighbor",
    split: str | Tensor | Sequence[int] | None = "train",
    batch_size: int | None = None,
    num_neighbors: Sequence[int] = (15, 10, 5),
    num_parts: int = 100,
    walk_length: int = 2,
    seed: int | None = 0,
    num_workers: int = 0,
    shuffle: bool = True,
    *,
    rank: int = 0,
    world_size: int = 1,
    graph: Any = None,
    num_batches: int | None = None,
    drop_last: bool = False,
    replace: bool = False,
    weighted: bool | None = None,
    mean: bool = False,
    disjoint: bool = False,
    ratio: float = 0.5,
    coverage: int = 20,
    partition: Tensor | None = None,
    cache: str | Path | None = None,
    prefetch_factor: int | None = None,
) -> BatchLoader:
    """Mini-batches of a graph: ``Data`` with x, y, edge_index, n_id (global node ids) and all other attributes.

    Rows that carry the loss: with the neighbour kinds the first ``batch.batch_size``, the batch's seeds; with the
    others those of ``batch.train_mask``, the split's nodes in the subgraph. ``batch.edge_weight`` is there where a
    sampler (or the graph) has weights, ``batch.node_weight`` with GraphSAINT: the sum of node_weight * loss over the
    rows of ``train_mask`` is unbiased for the mean loss over the split.

    Args:
        data: features, labels and masks, in memory or memory-mapped arrays, and the edges.
        kind: ``"neighbor"``, ``"degree-neighbor"`` (drawn by 1/d_u + 1/d_v), ``"saint-node"``, ``"saint-edge"``,
            ``"saint-walk"``, ``"cluster"`` or ``"sparsify"`` (the whole graph with fresh DSpar edges).
        split: ``"train"`` (``data.train_mask``), ``"val"``, ``"test"``, a mask [N], node ids, or None for all nodes.
        batch_size: seeds (1024) of a batch over all ranks; draws for the SAINT kinds: nodes (8192), edges (4096) or
            walks (2048); clusters (10).
        num_neighbors: neighbours drawn for a node in each hop, -1 for all; neighbour kinds.
        num_parts: METIS clusters; or give ``partition`` [N]. ``cache`` is a file to keep the partition in.
        walk_length: steps of a walk; ``coverage`` says how long its normalisation is estimated.
        seed: of everything; None draws one from torch's global generator.
        num_workers: processes that sample and gather ahead, each ``prefetch_factor`` (2) batches.
        shuffle: permute seeds or clusters every epoch.
        rank, world_size: every rank takes its share of the seeds of each batch, or subgraphs of its own; all ranks have
            equally many batches (a last batch with fewer seeds than ranks joins the one before it).
        graph: a pair ``(colptr, row)`` of CSC arrays, such as memory-mapped ones, instead of the edges in ``data``.
        num_batches: of an epoch and all ranks, for ``"saint-*"`` (default: as many as draw N nodes) and ``"sparsify"``
            (1).
        drop_last: leave out a last batch that is not full.
        replace, mean, disjoint: as for `NeighborSampler`.
        weighted: unbiased edge weights for the neighbour kinds; by default for ``"degree-neighbor"`` only.
        ratio: expected share of edges that ``"sparsify"`` keeps.

    Returns:
        A `BatchLoader`: iterable, with a length, ``set_epoch(epoch)`` and ``batch(number, epoch)``.

    Raises:
        TypeError, ValueError: an argument or the graph cannot be used; the message names it.

    Example:
        >>> edges = torch.randint(100, (2, 1000), generator=torch.Generator().manual_seed(0))
        >>> data = Data(x=torch.rand(100, 8), y=torch.arange(100), edge_index=edges, train_mask=torch.arange(100) < 50)
        >>> loader = make_loader(data, "neighbor", batch_size=20, num_neighbors=[5, 5], seed=0)
        >>> [batch.batch_size for batch in loader]
        [20, 20, 10]
        >>> sum(int(batch.train_mask.sum()) for batch in make_loader(data, "saint-node", batch_size=50)) > 0
        True
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if not isinstance(data, Data):
        raise TypeError(f"data must be a torch_geometric Data, got {type(data).__name__}; give CSC arrays as graph=")
    batch_size = check_count("batch_size", _BATCH_SIZE.get(kind, 1024) if batch_size is None else batch_size)
    check_count("num_workers", num_workers, 0)
    if prefetch_factor is not None:
        check_count("prefetch_factor", prefetch_factor)
    check_count("world_size", world_size)
    if not 0 <= check_count("rank", rank, 0) < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1 = {world_size - 1}, got {rank}")
    for name, flag in (("shuffle", shuffle), ("drop_last", drop_last)):
        check_flag(name, flag)
    seed = seed_or_draw(seed)
    edges = as_graph(data if graph is None else graph)
    nodes = _split_nodes(data, split, edges.num_nodes)
    if nodes.shape[0] == 0:
        raise ValueError(f"split {split if isinstance(split, str) else 'given'!r} has no nodes: nothing to train on")
    sampler: NeighborSampler | SubgraphSampler
    if kind in ("neighbor", "degree-neighbor"):
        sampler = NeighborSampler(
            edges,
            num_neighbors,
            replace=replace,
            weight="degree" if kind == "degree-neighbor" else "uniform",
            weighted=kind == "degree-neighbor" if weighted is None else weighted,
            mean=mean,
            disjoint=disjoint,
            seed=seed,
        )
        count = _seed_batches(nodes.shape[0], batch_size, world_size, drop_last)
        plan = Plan(nodes, batch_size, count, shuffle, True, not drop_last, seed, rank, world_size)
        return BatchLoader(Batches(data, sampler, None, plan), num_workers, prefetch_factor)
    items = torch.empty(0, dtype=torch.int64)
    drawn = edges.num_nodes  # node draws of an epoch
    if kind == "saint-node":
        sampler, per_batch = SaintNodeSampler(edges, batch_size, seed=seed), batch_size
    elif kind == "saint-edge":
        sampler, per_batch = SaintEdgeSampler(edges, batch_size, seed=seed), 2 * batch_size
    elif kind == "saint-walk":
        sampler = SaintWalkSampler(edges, batch_size, walk_length, coverage=coverage, seed=seed)
        per_batch = batch_size * (walk_length + 1)
    elif kind == "sparsify":
        sampler, per_batch = DegreeSparsifySampler(edges, ratio=ratio, seed=seed), drawn
    else:
        parts = {"num_parts": num_parts, "cache": cache} if partition is None else {"partition": partition}
        clusters = ClusterSampler(edges, **parts, seed=seed)
        sampler, items = clusters, clusters.clusters
        drawn, per_batch = items.shape[0], batch_size
    if num_batches is None:
        num_batches = drawn // per_batch if drop_last and drawn >= per_batch else math.ceil(drawn / per_batch)
    elif kind == "cluster":
        raise ValueError("num_batches follows from num_parts and batch_size with kind='cluster'; leave it out")
    count = max(check_count("num_batches", num_batches) // world_size, 0 if kind == "cluster" else 1)
    if count == 0:
        raise ValueError(
            f"{num_batches} batches of {batch_size} clusters are fewer than world_size = {world_size}; "
            "lower batch_size or raise num_parts"
        )
    plan = Plan(items, batch_size, count, shuffle, False, False, seed, rank, world_size)
    return BatchLoader(Batches(data, sampler, nodes, plan), num_workers, prefetch_factor)


def _split_nodes(data: Data, split: Any, num_nodes: int) -> Tensor:
    """Node ids of a split, in the order given."""
    if split is None:
        return torch.arange(num_nodes)
    if isinstance(split, str):
        name = f"{split}_mask"
        if name not in data:
            known = sorted(key.removesuffix("_mask") for key in data.keys() if key.endswith("_mask"))
            raise ValueError(f"split {split!r} needs data.{name}; data has masks for {', '.join(known) or 'no split'}")
        return node_ids(f"data.{name}", data[name], num_nodes)
    return node_ids("split", split, num_nodes)


def _seed_batches(nodes: int, batch_size: int, world_size: int, drop_last: bool) -> int:
    """Batches of an epoch; a rest with fewer seeds than ranks joins the batch before it."""
    for name, count in (("batch_size", batch_size), ("the number of seeds", nodes)):
        if count < world_size:
            raise ValueError(f"every rank needs a seed: {name} must be at least world_size = {world_size}, got {count}")
    count, rest = divmod(nodes, batch_size)
    if drop_last and count == 0:
        raise ValueError(f"drop_last=True leaves no batch: {nodes} seeds, batch_size {batch_size}")
    return count + (not drop_last and (rest >= world_size or count == 0))
