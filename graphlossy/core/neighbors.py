"""Sampling of edges node by node from a compressed adjacency, and numbering of the nodes that were found.

Two operators, graphlossy::sample_neighbors and graphlossy::relabel, with a reference on every device and a C++ kernel
on the CPU that gives the same numbers with any number of threads. The graph is two arrays: the edges of node v are
entries ``indptr[v]`` to ``indptr[v + 1] - 1`` of an array ``indices`` of neighbours, which is not needed here, so that
it may stay on disk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from graphlossy.core import _cpu, _neighbors
from graphlossy.core._random import _key
from graphlossy.core._schemas import LIBRARY
from graphlossy.core.quantize import seed_or_draw

__all__ = ["relabel", "sample_neighbors"]


class SupportsFileno(Protocol):
    """An open file."""

    def fileno(self) -> int: ...


WEIGHT_DTYPES = (torch.float32, torch.float64, torch.int32, torch.int64)
_OPS = {
    "sample_neighbors": (
        "(Tensor indptr, Tensor seeds, Tensor? weight, Tensor? stream, int k, bool replace, SymInt seed)"
        " -> (Tensor, Tensor, Tensor)"
    ),
    "relabel": "(Tensor known, Tensor found, SymInt num_nodes) -> (Tensor, Tensor)",
}
_ARRAY_ENTRIES = 2**24  # of 4 bytes: an array over all nodes rather than a hash table up to this many
_ARRAY_SHARE = 16  # and beyond it, up to as many times the ids of the call


def sample_neighbors(
    indptr: Tensor,
    seeds: Tensor,
    k: int,
    *,
    replace: bool = False,
    weight: Tensor | None = None,
    stream: Tensor | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw up to ``k`` edges of every seed node.

    Without weights: a uniform subset (Bentley and Floyd, CACM 30(9), 1987) or uniform draws with replacement; the bias
    of a single choice among d edges is below d / 2**64. With weights, ``replace=True`` draws edge e with probability
    w_e / W to within 2**-60, and ``replace=False`` takes a subset that holds e with probability exactly
    min(1, k' w_e / W') (systematic sampling, Madow 1949; edges that would exceed 1 are certain and leave k' draws and
    the weight W' to the others), so that dividing by it makes sums unbiased (Horvitz and Thompson, JASA 1952). Edges
    of weight zero are never drawn. Weights are rounded to 2**-31 of the largest of their node, upwards from zero.

    What is drawn for a node depends on (seed, node, stream) alone: not on the other seeds, nor on the threads.

    Args:
        indptr: [N + 1] int32 or int64, rising; may be memory-mapped.
        seeds: [S] node ids, int32 or int64; a node may be there more than once and then has the same edges each time,
            unless ``stream`` tells its entries apart.
        k: edges of a node, below 2**31; -1 for all of them (whatever their weights).
        replace: draw with replacement: ``k`` edges of every node that has any.
        weight: [E] float32, float64, int32 or int64, finite and at least 0 (others count as 0); may be memory-mapped.
        stream: [S] int64 numbers that give a node other draws.
        seed: of the draws; None takes one from torch's global generator.

    Returns:
        (position, counts, expected): int64 [M] positions of the edges, seed after seed; int64 [S] edges of each seed;
        float64 [M] how often each edge is expected to be drawn, w.r.t. the weights (empty without weights, where it is
        ``counts / degree``).

    Raises:
        TypeError: a tensor has the wrong type.
        ValueError: ``k`` is out of range, a seed is no node, or a node has 2**29 edges or more.

    Example:
        >>> indptr = torch.tensor([0, 3, 3, 5])
        >>> position, counts, _ = sample_neighbors(indptr, torch.tensor([0, 1, 2]), 2, seed=1)
        >>> counts.tolist(), position[2:].tolist(), bool((position[:2] < 3).all())
        ([2, 0, 2], [3, 4], True)
    """
    seed = seed_or_draw(seed)
    return torch.ops.graphlossy.sample_neighbors(indptr, seeds, weight, stream, k, replace, seed)


def relabel(known: Tensor, found: Tensor, num_nodes: int = 0) -> tuple[Tensor, Tensor]:
    """Number node ids in order of first appearance, after those that have a number already.

    Args:
        known: [K] int64 ids with numbers 0 to K - 1; of an id that is there twice, the first counts.
        found: [M] int64 ids.
        num_nodes: all ids are below it; 0 if that is not known. It only decides how the work is done.

    Returns:
        (fresh, local): int64 [F] the distinct ids of ``found`` that are not in ``known``, in order of appearance: they
        have the numbers K to K + F - 1; int64 [M] the number of each id of ``found``.

    Raises:
        TypeError: a tensor is not int64.
        ValueError: an id is negative, or not below ``num_nodes``.

    Example:
        >>> fresh, local = relabel(torch.tensor([7, 3]), torch.tensor([5, 3, 9, 5]))
        >>> fresh.tolist(), local.tolist()
        ([5, 9], [2, 1, 3, 2])
    """
    return torch.ops.graphlossy.relabel(known, found, num_nodes)


def can_read_elements() -> bool:
    """Whether `read_elements` works here: with the CPU kernels, on Linux."""
    return _cpu.kernels is not None and sys.platform == "linux"


def read_elements(file: SupportsFileno, offset: int, dtype: torch.dtype, position: Tensor) -> Tensor:
    """int64 [M] elements of an int32 or int64 array in a file that begins at byte ``offset``, without mapping it.

    Raises:
        OSError: an element lies outside the file, or cannot be read.
        RuntimeError: `can_read_elements` says no.
    """
    if _cpu.kernels is None:
        raise RuntimeError(f"elements of a file are read by the CPU kernels, which are not there: {_cpu.load_error}")
    position = position.contiguous()
    out = torch.empty(position.shape, dtype=torch.int64)
    size = 8 if dtype == torch.int64 else 4
    pointers = position.data_ptr(), position.shape[0], out.data_ptr()
    failed = _cpu.kernels._library.lossy_read_elements(file.fileno(), offset, size, *pointers, torch.get_num_threads())
    if failed:
        raise OSError(f"element {int(position[-1 - failed])} of the array cannot be read from its file: is it whole?")
    return out


def _check_sample(
    indptr: Tensor, seeds: Tensor, weight: Tensor | None, stream: Tensor | None, k: int, replace: bool, seed: int
) -> None:
    for name, tensor, allowed in (
        ("indptr", indptr, (torch.int32, torch.int64)),
        ("seeds", seeds, (torch.int32, torch.int64)),
        ("weight", weight, WEIGHT_DTYPES),
        ("stream", stream, (torch.int64,)),
    ):
        if tensor is None:
            continue
        if tensor.dim() != 1:
            raise ValueError(f"{name} must have one dimension, got shape {tuple(tensor.shape)}")
        if tensor.dtype not in allowed:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
            raise TypeError(f"{name} must be {names}, got {str(tensor.dtype).removeprefix('torch.')}; convert it first")
        if tensor.device != seeds.device:
            raise ValueError(f"{name} and seeds must be on one device, got {tensor.device} and {seeds.device}")
    if indptr.shape[0] == 0:
        raise ValueError("indptr must have at least one entry (N + 1 for N nodes), got none")
    if stream is not None and stream.shape[0] != seeds.shape[0]:
        raise ValueError(f"stream must have one entry for each of {seeds.shape[0]} seeds, got {stream.shape[0]}")
    if not -1 <= k < 2**31:  # times a weight's 2**31 units it stays in an int64
        raise ValueError(f"k must be -1 (all edges) or from 0 to 2**31 - 1, got {k}")


def _check_relabel(known: Tensor, found: Tensor, num_nodes: int) -> None:
    for name, tensor in (("known", known), ("found", found)):
        if tensor.dtype != torch.int64 or tensor.dim() != 1:
            raise TypeError(f"{name} must be int64 with one dimension, got {tensor.dtype} {tuple(tensor.shape)}")


def _no_node(seed: int, nodes: int) -> ValueError:
    return ValueError(
        f"seeds must be node ids from 0 to {nodes - 1} of a graph with rising indptr, and a node has fewer than "
        f"2**29 edges; seed {seed} is none or its edges are not sound"
    )


def _no_id(num_nodes: int) -> ValueError:
    return ValueError(f"ids must be at least 0{f' and below num_nodes = {num_nodes}' if num_nodes else ''}")


def _reference_sample(
    indptr: Tensor, seeds: Tensor, weight: Tensor | None, stream: Tensor | None, k: int, replace: bool, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    _check_sample(indptr, seeds, weight, stream, k, replace, seed)
    nodes, seeds = indptr.shape[0] - 1, seeds.to(torch.int64)
    wrong = (seeds < 0) | (seeds >= nodes)
    if not bool(wrong.any()):
        begin, end = indptr[seeds].to(torch.int64), indptr[seeds + 1].to(torch.int64)
        wrong = (begin < 0) | (end < begin) | (end - begin > _neighbors.LARGEST_DEGREE)
        if weight is not None:
            wrong |= end > weight.shape[0]
    if bool(wrong.any()):
        raise _no_node(int(seeds[wrong][0]), nodes)
    return _neighbors.sample_neighbors(indptr, seeds, weight, stream, k, replace, seed)


def _reference_relabel(known: Tensor, found: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    _check_relabel(known, found, num_nodes)
    for ids in (known, found):
        if ids.numel() and (int(ids.min()) < 0 or (num_nodes and int(ids.max()) >= num_nodes)):
            raise _no_id(num_nodes)
    return _neighbors.relabel(known, found, num_nodes)


def _fake_sample(
    indptr: Tensor, seeds: Tensor, weight: Tensor | None, stream: Tensor | None, k: int, replace: bool, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    _check_sample(indptr, seeds, weight, stream, k, replace, seed)
    size = torch.library.get_ctx().new_dynamic_size()
    position = seeds.new_empty((size,), dtype=torch.int64)
    counts = seeds.new_empty(seeds.shape, dtype=torch.int64)
    return position, counts, seeds.new_empty((0 if weight is None else size,), dtype=torch.float64)


def _fake_relabel(known: Tensor, found: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    _check_relabel(known, found, num_nodes)
    size = torch.library.get_ctx().new_dynamic_size()
    return found.new_empty((size,)), torch.empty_like(found)


def cpu_sample(
    kernels: _cpu.Kernels,
    indptr: Tensor,
    seeds: Tensor,
    weight: Tensor | None,
    stream: Tensor | None,
    k: int,
    replace: bool,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """graphlossy::sample_neighbors on the CPU."""
    _check_sample(indptr, seeds, weight, stream, k, replace, seed)
    indptr, seeds = indptr.contiguous(), seeds.to(torch.int64).contiguous()
    weight = None if weight is None else weight.contiguous()
    stream = None if stream is None else stream.contiguous()
    nodes, threads = indptr.shape[0] - 1, torch.get_num_threads()
    edges = 2**62 if weight is None else weight.shape[0]
    kind = 0 if weight is None else WEIGHT_DTYPES.index(weight.dtype)
    graph = (indptr.data_ptr(), int(indptr.dtype == torch.int64), nodes, edges)
    at_weight = None if weight is None else weight.data_ptr()
    counts = torch.empty(seeds.shape, dtype=torch.int64)
    total = kernels._library.lossy_count_neighbors(
        *graph, seeds.data_ptr(), seeds.shape[0], at_weight, kind, k, replace, counts.data_ptr(), threads
    )
    if total < 0:
        raise _no_node(int(seeds[-1 - total]), nodes)
    ends = counts.cumsum(0)
    position = torch.empty(total, dtype=torch.int64)
    expected = torch.empty(0 if weight is None else total, dtype=torch.float64)
    kernels._library.lossy_sample_neighbors(
        *graph,
        seeds.data_ptr(),
        seeds.shape[0],
        None if stream is None else stream.data_ptr(),
        at_weight,
        kind,
        k,
        replace,
        _key(seed, _neighbors.STREAM),
        counts.data_ptr(),
        ends.data_ptr(),
        position.data_ptr(),
        None if weight is None else expected.data_ptr(),
        threads,
    )
    return position, counts, expected


def cpu_relabel(
    kernels: _cpu.Kernels, known: Tensor, found: Tensor, num_nodes: int, array: bool | None = None
) -> tuple[Tensor, Tensor]:
    """graphlossy::relabel on the CPU; ``array`` says how, None for what suits the sizes."""
    _check_relabel(known, found, num_nodes)
    known, found = known.contiguous(), found.contiguous()
    ids = known.shape[0] + found.shape[0]
    if array is None:
        array = 0 < num_nodes <= max(_ARRAY_ENTRIES, _ARRAY_SHARE * ids)
    if ids >= 2**31:
        raise ValueError(f"known and found must have fewer than 2**31 ids together, got {ids}; take smaller batches")
    fresh, local = torch.empty_like(found), torch.empty_like(found)
    pointers = known.data_ptr(), known.shape[0], found.data_ptr(), found.shape[0]
    count = kernels._library.lossy_relabel(*pointers, num_nodes if array else 0, fresh.data_ptr(), local.data_ptr())
    if count == -1:
        raise MemoryError(f"no memory to number {ids} ids")
    if count == -2:
        raise _no_id(num_nodes)
    if num_nodes and not array and ids and max(int(t.max()) for t in (known, found) if t.numel()) >= num_nodes:
        raise _no_id(num_nodes)
    return fresh[:count].clone(), local


_FAKES: dict[str, Callable[..., Any]] = {"sample_neighbors": _fake_sample, "relabel": _fake_relabel}
_REFERENCES: dict[str, Callable[..., Any]] = {"sample_neighbors": _reference_sample, "relabel": _reference_relabel}


def _register() -> None:
    for name, schema in _OPS.items():
        LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"graphlossy::{name}", _FAKES[name], lib=LIBRARY)
        LIBRARY.impl(name, _REFERENCES[name], "CompositeExplicitAutograd")
    kernels = _cpu.kernels
    if kernels is not None:
        LIBRARY.impl("sample_neighbors", lambda *arguments: cpu_sample(kernels, *arguments), "CPU")
        LIBRARY.impl("relabel", lambda *arguments: cpu_relabel(kernels, *arguments), "CPU")


_register()
