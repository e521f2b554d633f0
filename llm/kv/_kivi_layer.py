"""One layer of a :class:`KIVICache`: sinks and a recent window in full precision, packed chunks between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from graphlossy.core._schemas import LARGEST_GROUP
from graphlossy.core.packed_attention import PackedTokens
from graphlossy.core.symmetric import SYMMETRIC_BITS
from graphlossy.llm.kv._chunks import PARTS, Chunks, writable
from graphlossy.llm.kv._layer import RowsLayer, storage_bytes
from graphlossy.llm.kv._packed_states import MOST_QUERIES, PackedStates
from graphlossy.llm.kv._rotation import rotate
from graphlossy.llm.kv._rows import Split, row_table, same

__all__ = ["KIVILayer"]

DRAFTED = 32  # tokens of assisted decoding that may be taken back at once; transformers drafts 20 if not told otherwise
_TENSORS = ("recent_keys", "recent_values", "key_sinks", "value_sinks")  # in floating point


class KIVILayer(RowsLayer):
    """Keys and values of one attention layer (Liu et al., KIVI, ICML 2024, section 3).

    Keys, after their rotary embedding, are rounded per channel in groups of ``chunk`` tokens, values per token in
    groups of channels. A row's chunks are counted from its first real token, so they hold no pads, and the row is
    stored as it would be alone in a batch without padding.

    A rollback (:meth:`crop`) to at most ``split.rollback`` tokens behind the farthest that the layer has been leaves
    exactly what a layer that never saw them holds. After a larger one, tokens of a chunk that was cut come back
    rounded. Assisted decoding drafts more tokens than are kept for that otherwise: see :meth:`activate_past_recording`.

    Args:
        key_bits: width of the keys.
        value_bits: width of the values.
        value_group_size: channels of a group of values, at most; None: a chunk's number, or the whole head where groups
            are symmetric.
        split: of a row; its chunk is the group of keys.
        rotate_values: store values times a Hadamard matrix, which spreads large channels over all. What is rotated
            looks normally distributed: with 1 to 3 bits its groups are symmetric and have a scale alone.

    Attributes:
        padding: pads before the first real token of each row.
        seen: tokens of a row, pads included.
        packed: chunks of each row.
        direct: whether the attention takes packed states, so that nothing is decoded for it.
    """

    is_croppable = True

    def __init__(
        self, key_bits: int, value_bits: int, value_group_size: int | None, split: Split, rotate_values: bool = False
    ) -> None:
        super().__init__()
        self.split, self.rotate_values = split, rotate_values
        self.key_chunks = Chunks(key_bits, split.chunk)
        symmetric = rotate_values and value_bits in SYMMETRIC_BITS
        shared = value_group_size or (LARGEST_GROUP if symmetric else split.chunk)
        self.value_chunks = Chunks(value_bits, shared, symmetric)
        self.padding: list[int] = []
        self.seen = 0
        self.direct = False
        self.packed: list[int] = []
        self.recent_keys = self.recent_values = self.key_sinks = self.value_sinks = torch.empty(0)

    # -- what transformers calls --------------------------------------------------------------------------------------

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch = key_states.shape[0]
        self.padding = self.padding_for(batch)
        self.packed = [0] * batch
        # The window: the last tokens in full precision, from the first that some row has not packed, or may get back.
        self.recent_keys, self.recent_values = key_states[..., :0, :], value_states[..., :0, :]
        self.key_sinks = key_states.new_zeros((*key_states.shape[:2], self.split.sinks, key_states.shape[-1]))
        self.value_sinks = value_states.new_zeros((*value_states.shape[:2], self.split.sinks, value_states.shape[-1]))
        self.holds(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends tokens [B, H, q, D]; returns all keys and values [B, H, T, D], the packed ones as they are decoded.

        The new tokens are returned in full precision and packed afterwards, as KIVI's prefill does. No gradient passes
        through. With ``direct``, few tokens after packed ones are given :class:`PackedStates`.
        """
        self.append(key_states, value_states)
        found: Any
        if self.direct and key_states.shape[-2] <= MOST_QUERIES and any(self.packed):
            tokens, packed = self.packed_tokens(), list(self.packed)
            found = tuple(
                PackedStates(tokens, self.rotate_values, partial(self._decoded, which, packed, window))
                for which, window in enumerate((self.recent_keys, self.recent_values))
            )
        else:
            found = self.states()
        self.pack()
        return found

    def append(self, key_states: Tensor, value_states: Tensor) -> None:
        """Appends tokens [B, H, q, D] to the window; :meth:`pack` follows when they have been seen."""
        key_states, value_states = key_states.detach(), value_states.detach()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.check_keys(key_states, [self.key_sinks.shape[i] for i in (0, 1, 3)])
        self.recent_keys = torch.cat([self.recent_keys, key_states], -2)
        self.recent_values = torch.cat([self.recent_values, value_states], -2)
        self.seen += key_states.shape[-2]
        self._fill_sinks(key_states.shape[-2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def reset(self) -> None:
        self.key_chunks, self.value_chunks = self.key_chunks.emptied(), self.value_chunks.emptied()
        self.recent_keys = self.recent_values = self.key_sinks = self.value_sinks = torch.empty(0)
        self.padding, self.packed, self.seen, self.is_initialized = [], [], 0, False

    def activate_past_recording(self) -> None:
        """Called as assisted decoding begins: from now on a rollback of up to 32 tokens leaves no trace."""
        self.split = replace(self.split, rollback=max(self.split.rollback, DRAFTED))

    def check_crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0 or -tokens_to_remove > self.seen:
            raise ValueError(
                f"crop takes the tokens to remove as a negative number: 0 to -{self.seen}, got {tokens_to_remove}"
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last ``-tokens_to_remove`` tokens of every row.

        Raises:
            ValueError: the number is positive, or there are not so many tokens.
        """
        self.check_crop(tokens_to_remove)
        if tokens_to_remove == 0:
            return
        seen = self.seen + tokens_to_remove
        if not seen:  # another text may follow, of other pads
            self.reset()
            return
        packed = [min(n, self.split.chunks(seen - pads)) for n, pads in zip(self.packed, self.padding, strict=True)]
        first, gone = self._kept_from(seen, packed), self._window_from
        windows = self.recent_keys, self.recent_values
        if first < gone:  # tokens come back that are in full precision no more
            windows = tuple(torch.cat([t[..., :gone, :], w], -2) for t, w in zip(self.states(), windows, strict=True))
            gone = 0
        here = slice(max(0, first - gone), max(0, seen - gone))
        self.recent_keys, self.recent_values = (t[..., here, :].clone() for t in windows)
        self.seen, self.packed = seen, packed
        for chunks in (self.key_chunks, self.value_chunks):
            chunks.keep(max(packed))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if not self.is_initialized:
            return {}, {}
        held = {name: getattr(self, name) for name in _TENSORS}
        for which, chunks in (("key", self.key_chunks), ("value", self.value_chunks)):
            held |= {f"{which}_{name}": part for name, part in chunks.state().items()}
        return held, {"seen": self.seen, "padding": self.padding, "packed": self.packed}

    def load_state(self, held: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        if not held:
            return
        for name in _TENSORS:
            setattr(self, name, held[name])
        self.seen, self.padding, self.packed = numbers["seen"], list(numbers["padding"]), list(numbers["packed"])
        width, chunk = self.recent_keys.shape[-1], self.split.chunk
        for which, chunks, shape in (
            ("key", self.key_chunks, (width, chunk)),
            ("value", self.value_chunks, (chunk, self.recent_values.shape[-1])),
        ):
            parts = {n: held[f"{which}_{n}"] for n in PARTS if f"{which}_{n}" in held}
            if not parts and any(self.packed):
                raise KeyError(f"{which}_{PARTS[0]}")
            chunks.load(parts, shape)
        self.holds(self.recent_keys, self.recent_values)

    # -- what is stored -----------------------------------------------------------------------------------------------

    def bytes_by_kind(self) -> dict[str, int]:
        """Bytes of codes, of scales and offsets, of the window and of the sinks."""
        chunks = (self.key_chunks, self.value_chunks)
        metadata = sum(part.metadata_nbytes for part in chunks)

        return {
            "packed": sum(part.nbytes for part in chunks) - metadata,
            "metadata": metadata,
            "window": storage_bytes(self.recent_keys, self.recent_values),
            "sinks": storage_bytes(self.key_sinks, self.value_sinks),
        }

    def packed_tokens(self) -> PackedTokens:
        """All that is stored, as :func:`graphlossy.core.packed_attention.packed_attention` takes it."""
        keys, values = self.key_chunks, self.value_chunks
        width = -(-self.recent_values.shape[-1] // 8) * 8
        rows = row_table(
            self.split, tuple(self.padding), tuple(self.packed), self.seen, self._window_from, self.recent_keys.device
        )
        return PackedTokens(
            keys.parts, values.parts, keys.bits, values.bits, keys.group_size, min(values.group_size, width),
            (self.key_sinks, self.value_sinks), (self.recent_keys, self.recent_values), rows,
        )  # fmt: skip

    def states(self) -> tuple[Tensor, Tensor]:
        """All keys and values [B, H, T, D] in floating point; pads that are in the window no more are zero."""
        return self._decoded(0, self.packed, self.recent_keys), self._decoded(1, self.packed, self.recent_values)

    def _decoded(self, which: int, packed: Sequence[int], window: Tensor) -> Tensor:
        """Keys (0) or values (1) in floating point, of ``packed`` chunks of each row and a window."""
        if not any(packed) and window.shape[-2] == self.seen:
            return window
        sinks, chunks = ((self.key_sinks, self.key_chunks), (self.value_sinks, self.value_chunks))[which]
        front = sinks
        if chunks.count:
            decoded = chunks.read(self.dtype)
            if which == 0:
                decoded = decoded.transpose(-1, -2)
            elif self.rotate_values:
                decoded = rotate(decoded)
            front = torch.cat([sinks, decoded.flatten(2, 3)], 2)
        return self._joined(front, window, packed)

    @property
    def _window_from(self) -> int:
        return self.seen - self.recent_keys.shape[-2]

    def _joined(self, front: Tensor, window: Tensor, packed: Sequence[int]) -> Tensor:
        """Pads, the sinks and packed tokens of ``front``, which begins at each row's first real token, the window."""
        gone, split = self.seen - window.shape[-2], self.split
        ends = [
            pads + min(split.sinks, self.seen - pads) + n * split.chunk if self.seen > pads else 0
            for pads, n in zip(self.padding, packed, strict=True)
        ]  # of what is taken from front
        if front.shape[2] == 0:  # nothing but pads has left the window
            return torch.cat([front.new_zeros((*front.shape[:2], gone, front.shape[-1])), window], -2)
        if same(self.padding):
            pads, end = self.padding[0], max(ends[0], gone)
            none = front.new_zeros((*front.shape[:2], min(pads, end), front.shape[-1]))
            return torch.cat([none, front[..., : max(0, end - pads), :], window[..., end - gone :, :]], -2)
        end = max(gone, *ends)
        place = (torch.arange(end) - torch.tensor(self.padding)[:, None]).to(front.device)
        index = place.clamp(0, front.shape[2] - 1)[:, None, :, None].expand(-1, front.shape[1], -1, front.shape[-1])
        first = front.gather(2, index).masked_fill_((place < 0)[:, None, :, None], 0)
        recent = torch.arange(gone, end)[None] >= torch.tensor(ends)[:, None]
        mixed = torch.where(
            recent[:, None, :, None].to(front.device), window[..., : end - gone, :], first[..., gone:, :]
        )
        return torch.cat([first[..., :gone, :], mixed, window[..., end - gone :, :]], -2)

    def _kept_from(self, seen: int, packed: list[int]) -> int:
        """The first token that has to be in the window."""
        return min(pads + self.split.kept_from(seen - pads, n) for pads, n in zip(self.padding, packed, strict=True))

    def _fill_sinks(self, new: int) -> None:
        """Copies the tokens that are sinks among the last ``new`` ones."""
        before, gone = self.seen - new, self._window_from
        if before - max(self.padding) < self.split.sinks:
            self.key_sinks, self.value_sinks = writable(self.key_sinks), writable(self.value_sinks)
        for row, pads in enumerate(self.padding):
            first, last = max(0, before - pads), min(self.split.sinks, self.seen - pads)
            if first < last:
                here = slice(pads + first - gone, pads + last - gone)
                self.key_sinks[row, :, first:last] = self.recent_keys[row, :, here]
                self.value_sinks[row, :, first:last] = self.recent_values[row, :, here]

    def pack(self) -> None:
        """Packs the chunks that have left the window, rows of equal places together, and lets the window move on."""
        gone, chunk = self._window_from, self.split.chunk
        due: dict[tuple[int, int, int], list[int]] = {}
        for row, pads in enumerate(self.padding):
            target = self.split.chunks(self.seen - pads)
            if target > self.packed[row]:
                due.setdefault((pads, self.packed[row], target), []).append(row)
        for (pads, first, target), rows in due.items():
            start = pads + self.split.sinks + first * chunk - gone
            here = slice(start, start + (target - first) * chunk)
            which: Any = slice(None) if len(rows) == len(self.padding) else rows
            recent = (self.recent_keys, self.recent_values)
            keys, values = (t[which][:, :, here].unflatten(2, (-1, chunk)) for t in recent)
            values = rotate(values) if self.rotate_values else values
            self.key_chunks.write(keys.transpose(-1, -2), rows, first, len(self.padding))
            self.value_chunks.write(values, rows, first, len(self.padding))
            for row in rows:
                self.packed[row] = target
        first = self._kept_from(self.seen, self.packed) - gone
        if first > 0:
            self.recent_keys = self.recent_keys[..., first:, :].clone()
            self.recent_values = self.recent_values[..., first:, :].clone()

    def take_rows(self, chosen: list[int], index: Tensor) -> None:
        for name in _TENSORS:
            setattr(self, name, getattr(self, name).index_select(0, index))
        self.key_chunks.select(index)
        self.value_chunks.select(index)
        self.packed = [self.packed[row] for row in chosen]
