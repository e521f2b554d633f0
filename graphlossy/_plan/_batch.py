"""Example inputs of a model without a graph, and batches of other sizes like them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from graphlossy._plan._probe import BatchProbe

__all__ = ["BatchInputs"]


class BatchInputs:
    """Arguments of a model, of which those with the batch's size in front can be made shorter or longer.

    Args:
        given: a tensor, a shape such as ``(512, 784)``, a list of these (positional arguments), or a dict of them
            (keyword arguments). A shape stands for standard normal float32 numbers; rows of a tensor are repeated, so
            that token numbers stay valid.

    Raises:
        TypeError: ``given`` is nothing of that kind.
        ValueError: there is no tensor with a batch dimension.
    """

    def __init__(self, given: Any) -> None:
        if isinstance(given, Mapping):
            self._args: list[Any] = []
            self._kwargs = {str(name): _leaf(value) for name, value in given.items()}
        elif isinstance(given, Tensor) or _is_shape(given):
            self._args, self._kwargs = [_leaf(given)], {}
        elif isinstance(given, (list, tuple)):
            self._args, self._kwargs = [_leaf(value) for value in given], {}
        else:
            raise TypeError(
                "inputs must be a tensor, a shape such as (512, 784), a list or a dict of these; "
                f"got {type(given).__name__}"
            )
        leaves = [leaf for leaf in (*self._args, *self._kwargs.values()) if _shape(leaf)]
        if not leaves or _shape(leaves[0])[0] < 1:
            raise ValueError("inputs must hold a tensor whose first dimension is the batch, of at least one example")
        self.batch = _shape(leaves[0])[0]

    def nbytes(self, batch: int) -> int:
        """Bytes of the inputs of a batch of that size."""
        total = 0
        for leaf in (*self._args, *self._kwargs.values()):
            shape = _shape(leaf)
            if shape:
                width = leaf.element_size() if isinstance(leaf, Tensor) else 4
                rows = batch if shape[0] == self.batch else shape[0]
                total += rows * _product(shape[1:]) * width
        return total

    def make(self, batch: int, dtype: torch.dtype, device: torch.device, seed: int) -> BatchProbe:
        """The arguments for a batch of that size."""
        generator = torch.Generator().manual_seed(seed)

        def build(leaf: Any) -> Any:
            shape = _shape(leaf)
            if not shape:
                return leaf.to(device) if isinstance(leaf, Tensor) else leaf
            rows = batch if shape[0] == self.batch else shape[0]
            if isinstance(leaf, Tensor):
                return leaf.detach()[torch.arange(rows, device=leaf.device) % shape[0]].to(device)
            return torch.randn(rows, *shape[1:], generator=generator).to(device, dtype)

        args = tuple(build(leaf) for leaf in self._args)
        kwargs = {name: build(leaf) for name, leaf in self._kwargs.items()}
        return BatchProbe(args, kwargs, torch.zeros(batch, dtype=torch.int64, device=device))


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
    )


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor) or not _is_shape(value):
        return value
    if any(n < 1 for n in value):
        raise ValueError(f"inputs: a shape has positive sizes only, got {tuple(value)}")
    return torch.Size(value)


def _shape(leaf: Any) -> tuple[int, ...]:
    """Shape of a tensor or a stated one; empty for everything else."""
    if isinstance(leaf, torch.Size):
        return tuple(leaf)
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else ()


def _product(sizes: tuple[int, ...]) -> int:
    out = 1
    for size in sizes:
        out *= size
    return out
