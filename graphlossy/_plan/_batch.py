"""Example inputs of a model without a graph, and batches of other sizes like them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from graphlossy._plan._probe import BatchProbe, batch_loss
from graphlossy._plan._sizes import Design, batch_design

__all__ = ["BatchInputs"]

_PILOT = 4  # examples that show what one costs


class BatchInputs:
    """Arguments of a model, of which those with the batch's size in front can be made shorter or longer.

    Args:
        given: a tensor, a shape such as ``(512, 784)``, a list of these (positional arguments), or a dict of them
            (keyword arguments). A shape stands for standard normal float32 numbers; rows of a tensor are repeated, so
            that token numbers stay valid.
        dtype: of the numbers that stand for a shape.
        device: where the model is.
        seed: of the numbers.

    Raises:
        TypeError: ``given`` is nothing of that kind.
        ValueError: there is no tensor with a batch dimension.
    """

    loss = staticmethod(batch_loss)  # where none is given

    def __init__(self, given: Any, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self._dtype, self._device, self._seed = dtype, device, seed
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
        self._batch = _shape(leaves[0])[0]
        self.sizes = {"batch": self._batch}

    def pilot(self) -> dict[str, int]:
        """A few examples."""
        return {"batch": min(self._batch, _PILOT)}

    def design(self, target: Mapping[str, int], pilot_bytes: int) -> Design:
        """Which batches to probe, if :meth:`pilot` needs ``pilot_bytes``."""
        return batch_design(target, pilot_bytes / self.pilot()["batch"])

    def data_bytes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Bytes of the inputs of a batch of that size."""
        total = 0
        for leaf in (*self._args, *self._kwargs.values()):
            shape = _shape(leaf)
            if shape:
                width = leaf.element_size() if isinstance(leaf, Tensor) else self._dtype.itemsize
                total += self._rows(shape, sizes) * math.prod(shape[1:]) * width
        return {"inputs": total}

    def make(self, sizes: Mapping[str, int]) -> BatchProbe:
        """The arguments for a batch of that size."""
        generator = torch.Generator().manual_seed(self._seed)

        def build(leaf: Any) -> Any:
            shape = _shape(leaf)
            if not shape:
                return leaf.to(self._device) if isinstance(leaf, Tensor) else leaf
            rows = self._rows(shape, sizes)
            if isinstance(leaf, Tensor):
                return leaf.detach()[torch.arange(rows, device=leaf.device) % shape[0]].to(self._device)
            return torch.randn(rows, *shape[1:], generator=generator).to(self._device, self._dtype)

        args = tuple(build(leaf) for leaf in self._args)
        kwargs = {name: build(leaf) for name, leaf in self._kwargs.items()}
        return BatchProbe(args, kwargs, torch.zeros(sizes["batch"], dtype=torch.int64, device=self._device))

    def _rows(self, shape: tuple[int, ...], sizes: Mapping[str, int]) -> int:
        return sizes["batch"] if shape[0] == self._batch else shape[0]


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
