"""One layer that drops tokens and keeps the others in few bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphlossy.core._packed_attention import slots as slots_of
from graphlossy.core.packed_attention import PackedTokens
from graphlossy.llm.kv._chunks import writable
from graphlossy.llm.kv._evicting_layer import Budget, EvictingLayer
from graphlossy.llm.kv._kivi_layer import KIVILayer
from graphlossy.llm.kv._packed_states import MOST_QUERIES, attend_packed
from graphlossy.llm.kv._rotation import rotate
from graphlossy.llm.kv._sums import attention_sums
from graphlossy.llm.kv.scorers import Scorer

__all__ = ["PackedEvictingLayer"]


class PackedEvictingLayer(EvictingLayer):
    """An :class:`EvictingLayer` whose tokens are stored by a :class:`KIVILayer`.

    The first pass is attended in full precision; what it leaves is packed. Later a row drops a chunk of tokens whenever
    it is a chunk above its budget, of those that are packed: the ones with the lowest scores go, and what remains of
    the last chunk takes the places that they leave in the others, which are rounded anew. Sinks, the window of the
    storage and the recent tokens stay, whatever the budget. A row that begins in a later pass (its prompt is read in
    pieces, of which the first has only pads of it) is packed at once and drops its first tokens by chunks too.

    Args:
        scorer: says what a token is worth.
        budget: of every row.
        store: an empty layer.
        prompt_only: whether tokens of the prompt alone are dropped.
    """

    def __init__(self, scorer: Scorer, budget: Budget, store: KIVILayer, prompt_only: bool = False) -> None:
        self.store = store
        super().__init__(scorer, budget, prompt_only)

    def reset(self) -> None:
        super().reset()
        self.store.reset()

    @property
    def slots(self) -> int:
        return self.store.seen or super().slots

    def states(self) -> tuple[Tensor, Tensor]:
        return self.store.states() if self.store.seen else super().states()

    def _append(self, keys: Tensor, values: Tensor) -> None:
        if self.store.seen:
            total = self.store.seen + keys.shape[2]
            self.store.padding = [total - n for n in self.counts]
            self.store.append(keys, values)
        else:
            super()._append(keys, values)

    def _attended(self, query: Tensor, call: Any, observed: bool) -> tuple[Tensor, Callable[[int | None], Tensor]]:
        if not any(self.store.packed) or query.shape[2] > MOST_QUERIES or not call.is_plain:
            return super()._attended(query, call, observed)
        tokens = self.store.packed_tokens()
        found, weights = attend_packed(query, tokens, self.store.rotate_values, call, sums=observed)

        def sums(last: int | None) -> Tensor:
            if last is None or last >= query.shape[2]:
                return self._by_slot(tokens, weights)
            mask = self._mask(query.shape[2], call.mask)
            return attention_sums(query, self.states()[0], mask, call.scaling, call.softcap, last)

        return found, sums

    def _by_slot(self, tokens: PackedTokens, weights: Tensor) -> Tensor:
        """Weights [B, H, slots of the storage] in the order of the text."""
        valid, place = slots_of(tokens)
        index = place.clamp(0, self.slots - 1)[:, None].expand_as(weights)
        return weights.new_zeros(self.scores.shape).scatter_add_(2, index, weights * valid[:, None])

    def settle(self, drops: bool) -> None:
        store = self.store
        if not store.seen:
            super().settle(drops)
            store.padding = [self.slots - n for n in self.counts]
            keys, values = self.kept_keys, self.kept_values
            self.kept_keys, self.kept_values = keys[..., :0, :].clone(), values[..., :0, :].clone()
            store.append(keys, values)
            store.pack()
            return
        surplus = [0] * len(self.counts)
        if drops:
            surplus = [self._surplus(n, limits) for n, limits in zip(self.counts, self.limits, strict=True)]
        states = self.states() if any(surplus) else ()  # tokens that are packed now are exact here
        store.pack()
        for row, count in enumerate(surplus):
            if count:
                self._drop(row, count, *(t[row] for t in states))
        if states:
            self._trim()

    def _surplus(self, count: int, limits: tuple[int, int]) -> int:
        """Chunks' tokens that a row of ``count`` is to drop: of those that will be packed, without the recent ones."""
        split = self.store.split
        packed = split.chunks(count) * split.chunk
        behind = count - min(split.sinks, count) - packed  # in the window
        free = packed - max(0, limits[1] - behind)
        return max(0, min(count - sum(limits), free)) // split.chunk

    def _drop(self, row: int, surplus: int, keys: Tensor, values: Tensor) -> None:
        """Drops as many chunks' tokens of a row, whose states are keys and values [H, slots, D]."""
        store, chunk = self.store, self.store.split.chunk
        pads, packed = store.padding[row], store.packed[row]
        start = pads + min(store.split.sinks, self.counts[row])  # of what is packed
        end, places = start + packed * chunk, (packed - surplus) * chunk
        newest = self.seen - 1 - self.padding[row]
        recent = self.positions[row, :, start:end] > newest - self.limits[row][1]  # in any place
        scores = self.scores[row, :, start:end].masked_fill(recent, torch.inf)
        lowest = scores.argsort(dim=-1, stable=True)[:, : surplus * chunk]
        kept = torch.ones_like(scores, dtype=torch.bool).scatter_(-1, lowest, False)
        holes, movers = ~kept[:, :places], kept[:, places:]  # as many of one as of the other
        width = min(holes.shape[1], movers.shape[1])
        to = holes.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :width]
        by = movers.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :width] + places
        pair = torch.arange(width, device=self.device) < holes.sum(-1, keepdim=True)
        source = torch.arange(places, device=self.device).repeat(len(holes), 1)
        source.scatter_(-1, to, torch.where(pair, by, to))
        changed = holes.view(len(holes), -1, chunk).any(-1)

        def chunks(states: Tensor) -> Tensor:
            taken = states[:, start:end].gather(1, source[..., None].expand(-1, -1, states.shape[-1]))
            return taken.unflatten(1, (-1, chunk))

        if places:
            store.key_chunks.replace(row, chunks(keys).transpose(-1, -2), changed)
            new = chunks(values)
            store.value_chunks.replace(row, rotate(new) if store.rotate_values else new, changed)
        gone = surplus * chunk
        slots = torch.arange(self.slots, device=self.device).expand(len(holes), -1)
        index = torch.cat([slots[:, :gone], slots[:, :start], source + start, slots[:, end:]], 1)  # one more as pads
        for name in ("scores", "positions"):
            held = writable(getattr(self, name))
            held[row] = held[row].gather(-1, index)
            setattr(self, name, held)
        store.padding[row] += gone
        store.packed[row] -= surplus
        self.counts[row] -= gone

    def _trim(self) -> None:
        """Forgets slots that no row has a token in."""
        store, first = self.store, min(self.store.padding)
        store.seen -= first
        store.padding = [pads - first for pads in store.padding]
        self.scores, self.positions = self.scores[..., first:].clone(), self.positions[..., first:].clone()
        for chunks in (store.key_chunks, store.value_chunks):
            chunks.keep(max(store.packed))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        held, numbers = super().state()
        stored, others = self.store.state()
        return held | {f"store_{name}": t for name, t in stored.items()}, {**numbers, "store": others}

    def load_state(self, held: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        super().load_state(held, numbers)
        stored = {n.removeprefix("store_"): t for n, t in held.items() if n.startswith("store_")}
        self.store.load_state(stored, numbers.get("store", {}))

    def take_rows(self, chosen: list[int], index: Tensor) -> None:
        super().take_rows(chosen, index)
        self.store.take(index)

    def bytes_by_kind(self) -> dict[str, int]:
        """Bytes of codes, of scales, offsets, scores and positions, of the window and of the sinks."""
        if not self.store.seen:
            return super().bytes_by_kind()
        kinds = self.store.bytes_by_kind()
        return {**kinds, "metadata": kinds["metadata"] + super().bytes_by_kind()["metadata"]}
