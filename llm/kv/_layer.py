"""What our cache layers have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

__all__ = ["RowsLayer", "storage_bytes"]


class RowsLayer(CacheLayerMixin):
    """A layer whose rows may each have another number of pads.

    Attributes:
        padding: pads before the first real token of each row.
        seen: tokens of a row, pads included.
    """

    is_compileable = False
    is_sliding = False
    padding: list[int]
    seen: int

    def __init__(self) -> None:  # that of the base would store keys and values
        self.is_initialized = False

    def holds(self, keys: Tensor, values: Tensor) -> None:
        """Learns from keys and values [B, H, n, D] of what kind those are that it holds from now on."""
        self.dtype, self.device = keys.dtype, keys.device
        self._token_bytes = keys.shape[1] * (keys.shape[-1] + values.shape[-1]) * keys.element_size()
        self.is_initialized = True

    @abstractmethod
    def states(self) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, T, D] of all tokens that it has, in floating point."""

    @property
    def keys(self) -> Tensor | None:
        """Those of :meth:`states`, which are made whenever they are asked for; None of an empty layer."""
        return self.states()[0] if self.is_initialized else None

    @property
    def values(self) -> Tensor | None:
        """Those of :meth:`states`, likewise."""
        return self.states()[1] if self.is_initialized else None

    def get_seq_length(self) -> int:
        return self.seen

    def padding_for(self, batch: int) -> list[int]:
        """Pads of each row of a batch that begins.

        Raises:
            ValueError: pads were told of another number of rows.
        """
        if self.padding and len(self.padding) != batch:
            raise ValueError(
                f"set_padding told of the pads of {len(self.padding)} rows, and the first pass has {batch}: give it "
                "the mask of the rows that the model reads (with beams, each of them), or reset() the cache"
            )
        return self.padding or [0] * batch

    def get_max_length(self) -> int:
        return -1

    def offload(self) -> None:
        """Raises ValueError: a layer stays on its device."""
        raise ValueError("this cache cannot be offloaded layer by layer: leave it on its device")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.take(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.take(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.take(torch.arange(len(self.padding)).repeat_interleave(repeats))

    def take(self, rows: Tensor) -> None:
        """Takes rows of the batch, by numbers (also from the end) or as a mask."""
        if not self.is_initialized:
            return
        places = range(len(self.padding))
        chosen = [places[int(i)] for i in (rows.nonzero().flatten() if rows.dtype == torch.bool else rows).tolist()]
        self.take_rows(chosen, torch.tensor(chosen, dtype=torch.long, device=self.device))
        self.padding = [self.padding[row] for row in chosen]

    @abstractmethod
    def check_crop(self, tokens_to_remove: int) -> None:
        """Raises ValueError where :meth:`crop` would."""

    @abstractmethod
    def take_rows(self, chosen: list[int], index: Tensor) -> None:
        """Does so with all but ``padding``; ``index`` is ``chosen`` on the device."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, numbers) for :meth:`load_state`."""

    @abstractmethod
    def load_state(self, held: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Gives an empty layer what :meth:`state` gave."""

    @abstractmethod
    def bytes_by_kind(self) -> dict[str, int]:
        """Bytes of all that is stored, by kind."""

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(self.bytes_by_kind().values())

    @property
    def plain_bytes(self) -> int:
        """Bytes of all tokens that were seen, in full precision."""
        if not self.is_initialized:
            return 0
        return self.seen * len(self.padding) * self._token_bytes

    def check_keys(self, keys: Tensor, have: Sequence[int]) -> None:
        """Raises ValueError where keys [B, H, q, D] are not of ``have`` = (B, H, D), or narrower than what is held."""
        batch, heads, _, width = keys.shape
        if (batch, heads, width) != tuple(have):
            raise ValueError(
                f"this cache holds {have[0]} rows of {have[1]} heads of {have[2]}, and was given keys of {batch} rows "
                f"of {heads} heads of {width}: use a new cache for another batch or model, or reset() this one"
            )
        if torch.promote_types(keys.dtype, self.dtype) != keys.dtype:
            raise ValueError(
                f"this cache holds {self.dtype}, and was given keys of {keys.dtype}: run the model in {self.dtype}, or "
                "read the text anew"
            )


def storage_bytes(*tensors: Tensor | None) -> int:
    """Bytes of the storages behind tensors."""
    return sum(t.untyped_storage().nbytes() for t in tensors if t is not None)
