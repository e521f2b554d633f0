"""The rows of one width: a float table, or its codes of 2, 4 or 8 bits, which can be trained as they are."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.core import QuantizedTensor, quantize

__all__ = ["FloatRows", "LowBitRows", "low_bit_rows_of"]

ROW_BITS = (1, 2, 4, 8)


class FloatRows(nn.Module):
    """A dense table [rows, size] in float.

    Attributes:
        weight: the parameter.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    @property
    def trainable(self) -> Tensor:
        """What an optimizer updates."""
        return self.weight

    @property
    def shape(self) -> torch.Size:
        """[rows, size]"""
        return self.weight.shape

    def dense(self) -> Tensor:
        """The table in float, differentiable."""
        return self.weight

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} rows of {self.weight.shape[1]}"


class LowBitRows(nn.Module):
    """A table [rows, size] as codes of `graphlossy.core.quantize`.

    After training the groups run over the whole table, so that short rows share a scale and an offset. In training
    every row has its own: a step decodes the rows of the batch, updates them and rounds them again, stochastically, so
    that updates much smaller than the distance of two codes are right on average (low-precision training, Xu et al.,
    "Alternate and learned precision training", CIKM 2021; Zhang et al. 2018).

    The parameter ``handle`` stands for the table where autograd and an optimizer need one: it has the table's shape and
    a single element of memory, receives sparse gradients, and says through `low_bit_rows_of` where the codes are. Only
    the optimizers of `graphlossy.recsys` can step it; torch's refuse it.

    Args:
        values: [rows, size] float.
        bits: 1, 2, 4 or 8.
        group_size: elements that share a scale and an offset (4 bytes); not used if ``trainable``.
        trainable: keep a scale for every row, and a handle.
        rounding: of ``values``: ``"nearest"`` or ``"stochastic"``.
        seed: of the stochastic rounding.
    """

    packed: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        values: Tensor,
        bits: int,
        group_size: int = 64,
        trainable: bool = False,
        rounding: str = "nearest",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if bits not in ROW_BITS:
            raise ValueError(f"bits of rows must be one of {ROW_BITS}, got {bits!r}")
        self.bits, self.is_trainable = bits, trainable
        self.rows, self.size = values.shape
        found = self._quantize(values.detach().contiguous(), group_size, rounding, seed)
        self.group_size = found.group_size
        self.register_buffer("packed", found.packed)
        # bfloat16 as int16: conversions such as .half() leave integers alone
        self.register_buffer("scale", found.scale.view(torch.int16))
        self.register_buffer("offset", found.offset.view(torch.int16))
        self._make_handle()

    def _quantize(self, values: Tensor, group_size: int, rounding: str, seed: int | None) -> QuantizedTensor:
        if self.is_trainable:
            group_size = max(8, -(-self.size // 8) * 8)
        dim = -1 if self.is_trainable else None
        return quantize(values, self.bits, group_size, rounding=rounding, dim=dim, seed=seed)

    def _make_handle(self, requires_grad: bool = True) -> None:
        handle = nn.Parameter(self._one_element(), requires_grad) if self.is_trainable else None
        self.register_parameter("handle", handle)

    def _one_element(self) -> Tensor:
        """Zeros of the table's shape that take the memory of one."""
        return torch.zeros((), dtype=torch.float32, device=self.packed.device).expand(self.rows, self.size)

    @property
    def trainable(self) -> Tensor | None:
        """The handle, None if the codes are fixed."""
        if self.handle is not None:
            self.handle._low_bit_rows = weakref.ref(self)  # anew each time: a copy has a handle of its own
        return self.handle

    @property
    def shape(self) -> torch.Size:
        """[rows, size]"""
        return torch.Size((self.rows, self.size))

    def metadata(self) -> tuple[Tensor, Tensor]:
        """(scale, offset) in bfloat16."""
        return self.scale.view(torch.bfloat16), self.offset.view(torch.bfloat16)

    def dense(self) -> Tensor:
        """The table in float32, without gradient."""
        dim = -1 if self.is_trainable else None
        shape, order = (self.rows, self.size), (0, 1)
        stored = self.packed, *self.metadata()
        return QuantizedTensor(*stored, self.bits, self.group_size, shape, torch.float32, dim, order).dequantize()

    def read(self, row: Tensor) -> Tensor:
        """[N, size] float32 of chosen rows of a trainable table."""
        scale, offset = self.metadata()
        stored = self.packed[row], scale[row], offset[row]
        return torch.ops.graphlossy.dequantize(*stored, self.bits, self.group_size, self.size, torch.float32)

    def write(self, row: Tensor, values: Tensor, seed: int | None = None) -> None:
        """Rounds ``values`` [N, size] stochastically to chosen rows, all different, of a trainable table."""
        found = self._quantize(values.float(), self.group_size, "stochastic", seed)
        self.packed[row] = found.packed
        self.scale[row] = found.scale.view(torch.int16)
        self.offset[row] = found.offset.view(torch.int16)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LowBitRows:
        handle, self._parameters["handle"] = self.handle, None  # moving it would give it memory of its own
        super()._apply(fn, recurse)
        if handle is not None:
            if handle.device != self.packed.device:
                handle.grad, handle.data = None, self._one_element()
            self._parameters["handle"] = handle  # the same one, which an optimizer may have
        return self

    def __getstate__(self) -> dict[str, Any]:
        frozen = self.handle is not None and not self.handle.requires_grad
        return {**self.__dict__, "_parameters": {**self._parameters, "handle": None}, "_frozen": frozen}

    def __setstate__(self, state: dict[str, Any]) -> None:
        frozen = state.pop("_frozen")
        super().__setstate__(state)
        self._make_handle(not frozen)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(prefix + "handle", None)
        destination[prefix + "meta"] = self.meta()

    def meta(self) -> Tensor:
        """int64 [5]: bits, group size, rows, size and whether the codes can be trained; a part of the state_dict."""
        return torch.tensor([self.bits, self.group_size, self.rows, self.size, int(self.is_trainable)])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        handle, self._parameters["handle"] = self.handle, None
        meta = state_dict.pop(prefix + "meta", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._parameters["handle"] = handle
        if meta is not None:
            state_dict[prefix + "meta"] = meta

    @classmethod
    def like(cls, meta: Tensor, device: torch.device) -> LowBitRows:
        """Rows of the form that the ``meta`` of a state_dict describes, to load it into."""
        bits, group_size, rows, size, trainable = meta.tolist()
        return cls(torch.zeros((rows, size), device=device), bits, group_size, bool(trainable))

    def extra_repr(self) -> str:
        return f"{self.rows} rows of {self.size}, {self.bits} bits{', trainable' if self.is_trainable else ''}"


def low_bit_rows_of(param: Tensor) -> LowBitRows | None:
    """The rows that a parameter is the handle of; None for a parameter that holds its own values."""
    found = getattr(param, "_low_bit_rows", None)
    return None if found is None else found()
