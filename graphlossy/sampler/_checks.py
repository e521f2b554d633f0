"""Errors of one line for what a sampler cannot take."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["check_count", "check_fanouts", "check_flag", "check_weights", "node_ids"]

_CHUNK = 1 << 22


def check_count(name: str, value: object, least: int = 1) -> int:
    """``value`` as an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__} {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def check_flag(name: str, value: object) -> bool:
    """``value`` if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def check_fanouts(num_neighbors: object) -> list[int]:
    """One number of neighbours for each hop, each from 1 to 2**31 - 1, or -1 for all."""
    if isinstance(num_neighbors, (str, Tensor)) or not isinstance(num_neighbors, Sequence):
        raise TypeError(f"num_neighbors must be a list of one int for each hop, got {num_neighbors!r}")
    fanouts = list(num_neighbors)
    if not fanouts:
        raise ValueError("num_neighbors must name at least one hop, such as [15, 10, 5]; got an empty list")
    for k in fanouts:
        if isinstance(k, bool) or not isinstance(k, int):
            raise TypeError(f"num_neighbors must hold ints, got {k!r} in {fanouts}")
        if k == 0 or not -1 <= k < 2**31:
            raise ValueError(
                f"num_neighbors must be from 1 to 2**31 - 1, or -1 for all neighbours; got {k} in {fanouts}"
            )
    return fanouts


def check_weights(name: str, weight: object, edges: int) -> Tensor:
    """Drawing weights: [E] real numbers, finite and at least 0, as float32, float64, int32 or int64."""
    if not isinstance(weight, Tensor) or weight.layout != torch.strided:
        raise TypeError(f"{name} must be a dense torch.Tensor of {edges} weights, got {type(weight).__name__}")
    if weight.dim() == 2 and weight.shape[1] == 1:
        weight = weight.squeeze(1)
    if tuple(weight.shape) != (edges,):
        raise ValueError(f"{name} must have one weight for each of {edges} edges, got shape {tuple(weight.shape)}")
    if weight.is_complex() or weight.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got dtype {weight.dtype}; convert with .float()")
    weight = weight.detach().cpu()
    if weight.dtype not in (torch.float32, torch.float64, torch.int32, torch.int64):
        weight = weight.to(torch.float32)
    for start in range(0, edges, _CHUNK):
        chunk = weight[start : start + _CHUNK]
        low, high = (float(v) for v in chunk.aminmax())
        if not (low >= 0 and math.isfinite(high)):
            at = start + int((~(chunk >= 0) | ~chunk.isfinite()).nonzero()[0])
            raise ValueError(f"{name} must be finite and at least 0; the weight of edge {at} is {weight[at].item()}")
    return weight


def node_ids(name: str, nodes: object, num_nodes: int) -> Tensor:
    """Node ids: int64 [S] from a mask [N], a tensor or a list of ids, all of them below ``num_nodes``."""
    try:
        ids = nodes if isinstance(nodes, Tensor) else torch.as_tensor(nodes)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name} must be a mask or a list of node ids, got {nodes!r:.60}") from None
    if ids.dtype == torch.bool:
        if tuple(ids.shape) != (num_nodes,):
            raise ValueError(f"{name} is a mask and must have shape ({num_nodes},), got {tuple(ids.shape)}")
        return ids.cpu().nonzero().squeeze(1)
    if ids.is_floating_point() or ids.is_complex() or ids.dim() != 1:
        if ids.numel():
            raise TypeError(f"{name} must be a mask or a list of node ids, got {ids.dtype} {tuple(ids.shape)}")
        ids = ids.reshape(-1)
    ids = ids.cpu().to(torch.int64)
    if ids.numel():
        low, high = (int(v) for v in ids.aminmax())
        if low < 0 or high >= num_nodes:
            wrong = low if low < 0 else high
            raise ValueError(f"{name} must hold node ids from 0 to {num_nodes - 1}, got {wrong}")
    return ids
