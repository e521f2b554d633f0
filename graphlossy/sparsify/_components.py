"""Connected components without a graph library: labels sink to the smallest node of each component."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["components"]

_CHUNK = 1 << 22


def components(size: int, u: Tensor, v: Tensor) -> Tensor:
    """int64 [size], the smallest node of each node's component, edges (u, v) taken in both directions.

    Hooking and pointer jumping (Shiloach and Vishkin 1982): every round passes over the edges once.

    Example:
        >>> components(5, torch.tensor([3, 1]), torch.tensor([1, 4])).tolist()
        [0, 1, 2, 1, 1]
    """
    label = torch.arange(size, device=u.device)
    while True:
        before = label.clone()
        for start in range(0, u.numel(), _CHUNK):
            a = label[u[start : start + _CHUNK].to(torch.int64)]
            b = label[v[start : start + _CHUNK].to(torch.int64)]
            low = torch.minimum(a, b)
            # The roots are hooked, so that all that hangs on them comes along.
            label.scatter_reduce_(0, a, low, "amin")
            label.scatter_reduce_(0, b, low, "amin")
        while True:
            jumped = label[label]
            if torch.equal(jumped, label):
                break
            label = jumped
        if torch.equal(label, before):
            return label
