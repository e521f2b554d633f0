"""One layer of an :class:`EvictionCache`: the tokens that matter most, and the recent ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphlossy.llm.kv._layer import RowsLayer, storage_bytes
from graphlossy.llm.kv._states import ATTENTION, LazyStates
from graphlossy.llm.kv._sums import attention_sums
from graphlossy.llm.kv.scorers import Scorer, View

__all__ = ["Budget", "EvictingLayer"]

_TENSORS = ("kept_keys", "kept_values", "positions", "scores")


@dataclass(frozen=True)
class Budget:
    """How many tokens of a row are kept.

    Args:
        heavy: with the highest scores: a number of tokens, or a share of those that were read, not written: those of
            the first pass and of every later one of several tokens.
        recent: the last ones, likewise.

    Example:
        >>> Budget(0.1, 64).tokens(1000)
        (100, 64)
    """

    heavy: int | float
    recent: int | float

    def tokens(self, prompt: int) -> tuple[int, int]:
        """(heavy, recent) tokens of a row of which ``prompt`` real ones were read."""
        heavy, recent = (n if isinstance(n, int) else int(n * prompt) for n in (self.heavy, self.recent))
        return heavy, max(1, recent)


class ObservedStates(LazyStates):
    """Keys, or values, of an :class:`EvictingLayer`, which learns what attention was paid to them."""

    def __init__(self, layer: EvictingLayer, which: int) -> None:
        super().__init__(lambda: layer.states()[which])
        self._layer = layer

    def attend(self, query: Tensor, values: Any, call: Any) -> Tensor:
        return self._layer.attend(query, call)


class EvictingLayer(RowsLayer):
    """Keys and values of one attention layer, of which each row and head of keys keeps its own.

    A pass sees all tokens that are kept and its own; then those beyond the budget are dropped, those with the lowest
    scores first, the recent ones never. Pads are never kept while a row has a real token to drop.

    With ``prompt_only`` that is done while the prompt is read: after the first pass, and after those of several tokens
    that follow it at once (a prompt in pieces). The first later pass of a single token ends the prompt, and so does
    :meth:`end_prompt`; from then on all is kept, also what is read in further turns.

    Args:
        scorer: says what a token is worth.
        budget: of every row.
        prompt_only: whether tokens of the prompt alone are dropped.

    Attributes:
        padding: pads before the first real token of each row.
        seen: tokens of a row, pads and dropped ones included.
        counts: real tokens of each row that are kept; they are the last of the slots.
        prompts: real tokens of each row that were read: in the first pass that had any, and in passes of several.
        positions: int32 [B, H, K] of the tokens that are kept, counted from the row's first real one; where nothing is
            dropped any more there are none, and no scores.
    """

    is_croppable = False

    def __init__(self, scorer: Scorer, budget: Budget, prompt_only: bool = False) -> None:
        super().__init__()
        self.scorer, self.budget, self.prompt_only = scorer, budget, prompt_only
        self.reset()

    def reset(self) -> None:
        self.kept_keys = self.kept_values = torch.empty(0)
        self.positions, self.scores = torch.empty(0, dtype=torch.int32), torch.empty(0)
        self.padding: list[int] = []
        self.counts: list[int] = []
        self.prompts: list[int] = []
        self._unseen = 0  # tokens of a pass whose attention has not been told
        self.seen, self.is_initialized = 0, False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.holds(key_states, value_states)
        batch, heads = key_states.shape[:2]
        self.padding = self.padding_for(batch)
        self.counts, self.prompts = [0] * batch, [0] * batch
        self.kept_keys, self.kept_values = key_states[..., :0, :], value_states[..., :0, :]
        self._width = key_states.shape[-1]
        self.positions = torch.empty((batch, heads, 0), dtype=torch.int32, device=self.device)
        self.scores = torch.empty((batch, heads, 0), device=self.device)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Appends tokens [B, H, q, D]; returns what our attention takes. No gradient passes through.

        Raises:
            ValueError: the batch or the model is another one, or the last pass did not go through our attention.
        """
        key_states, value_states = key_states.detach(), value_states.detach()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._unseen:
            raise ValueError(
                f"the last pass of this cache did not go through the attention {ATTENTION!r}, so nothing is known of "
                "what its tokens are worth; models that cache a latent, as DeepSeek's do, cannot have this cache"
            )
        self.check_keys(key_states, (*self.positions.shape[:2], self._width))
        new = key_states.shape[-2]
        for row, pads in enumerate(self.padding):
            real = min(new, max(0, self.seen + new - pads))
            self.counts[row] += real
            if new > 1 or not self.prompts[row]:  # a prompt may come in pieces, and a conversation has several
                self.prompts[row] += real
        self._append(key_states, value_states)
        if self.seen and new == 1:
            self.end_prompt()
        if not self.seen or self.drops:
            places = torch.arange(self.seen, self.seen + new, dtype=torch.int32) - torch.tensor(self.padding)[:, None]
            places = places.to(self.device, torch.int32)[:, None].expand(-1, self.positions.shape[1], -1)
            self.positions = torch.cat([self.positions, places], -1)
            self.scores = torch.cat([self.scores, self.scores.new_zeros(places.shape)], -1)
        self.seen += new
        self._unseen = new
        return ObservedStates(self, 0), ObservedStates(self, 1)

    @property
    def drops(self) -> bool:
        """Whether tokens are dropped after the pass whose tokens were appended last."""
        return self.positions.shape[-1] > 0

    def end_prompt(self) -> None:
        """With ``prompt_only`` nothing is dropped any more: forgets what only served that."""
        if self.prompt_only:
            self.positions, self.scores = (t[..., :0].clone() for t in (self.positions, self.scores))

    @property
    def limits(self) -> list[tuple[int, int]]:
        """Heavy and recent tokens that each row keeps."""
        return [self.budget.tokens(count) if count else (0, 1) for count in self.prompts]

    @property
    def slots(self) -> int:
        """Tokens of a row that there is room for: of those that are kept, the last are real."""
        return int(self.kept_keys.shape[2]) if self.is_initialized else 0

    def states(self) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, slots, D] of the tokens that are kept, in floating point."""
        return self.kept_keys, self.kept_values

    def attend(self, query: Tensor, call: Any) -> Tensor:
        """Attention [B, heads, Q, E] of the pass whose tokens were appended last; then drops what is too much.

        Raises:
            ValueError: the scorer reads sums of an attention that has a bias.
        """
        drops = self.drops
        found, sums = self._attended(query, call, drops and self.scorer.reads_sums)
        self._unseen = 0
        with torch.no_grad():  # scores would keep the graph of every pass
            if drops:
                view = View(self.states, self.positions, self.scores, sums, query, call.module)
                self.scores = self.scorer.scores(view).float().contiguous()
            self.settle(drops)
        return found

    def _append(self, keys: Tensor, values: Tensor) -> None:
        self.kept_keys = torch.cat([self.kept_keys, keys], -2)
        self.kept_values = torch.cat([self.kept_values, values], -2)

    def _attended(self, query: Tensor, call: Any, observed: bool) -> tuple[Tensor, Callable[[int | None], Tensor]]:
        """The result, and what gives sums of the attention (see :class:`View`) if they are ``observed``."""
        if observed:
            _check_no_bias(call)
        keys, values = self.states()
        queries, count = query.shape[2], self.slots
        mask = self._mask(queries, call.mask)
        found: Tensor = call.run(query, keys, values, mask)
        if mask is not None:
            if mask.dtype != torch.bool:
                mask = mask > torch.finfo(mask.dtype).min / 2
            real = torch.arange(count - queries, count, device=self.device) >= self._firsts()
            mask = mask & real[:, None, :, None]  # queries that are pads tell nothing
        return found, lambda last: attention_sums(query, keys, mask, call.scaling, call.softcap, last)

    def _firsts(self) -> Tensor:
        """[B, 1] the first slot of each row that is real."""
        return torch.tensor([self.slots - n for n in self.counts], device=self.device)[:, None]

    def _mask(self, queries: int, given: Tensor | None) -> Tensor | None:
        """What transformers says, without the slots in which a row has nothing."""
        count = self.slots
        if all(n == count for n in self.counts):
            return given
        slots = torch.arange(count, device=self.device)
        real = slots >= self._firsts()
        if given is None:
            given = (slots <= slots[count - queries :, None])[None, None]
        if given.dtype == torch.bool:
            return given & real[:, None, None]
        return given.masked_fill(~real[:, None, None], torch.finfo(given.dtype).min)

    def settle(self, drops: bool) -> None:
        """Drops what is too much, if ``drops``."""
        count = self.slots
        kept = [min(n, heavy + recent) for n, (heavy, recent) in zip(self.counts, self.limits, strict=True)]
        if not drops or kept == self.counts:
            return
        slots = torch.arange(count, device=self.device)

        def column(numbers: list[int]) -> Tensor:
            return torch.tensor(numbers, device=self.device)[:, None, None]

        recent = slots >= column([count - recent for _, recent in self.limits])
        real = slots >= self._firsts()[..., None]
        candidates = real & ~recent
        order = self.scores.masked_fill(~candidates, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(-1, order, slots.expand_as(order))
        keep = candidates & (rank < column([heavy for heavy, _ in self.limits])) | recent & real
        index = keep.to(torch.uint8).argsort(dim=-1, stable=True)[..., count - max(kept) :]  # in order, at the end
        self.positions, self.scores = self.positions.gather(-1, index), self.scores.gather(-1, index)
        self.kept_keys, self.kept_values = (
            t.gather(2, index[..., None].expand(-1, -1, -1, t.shape[-1])) for t in (self.kept_keys, self.kept_values)
        )
        self.counts = kept

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots + query_length, self.seen - self.slots

    def crop(self, tokens_to_remove: int) -> None:
        """Raises ValueError unless there is nothing to remove: what was dropped cannot come back."""
        self.check_crop(tokens_to_remove)

    def check_crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise ValueError(
                "a cache that drops tokens cannot be rolled back: it does not go with assisted decoding, KIVICache does"
            )

    def bytes_by_kind(self) -> dict[str, int]:
        """Bytes of keys and values, and of scores and positions."""
        if not self.is_initialized:
            return {"plain": 0, "metadata": 0}
        kinds = {"plain": (self.kept_keys, self.kept_values), "metadata": (self.scores, self.positions)}
        return {kind: storage_bytes(*held) for kind, held in kinds.items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if not self.is_initialized:
            return {}, {}
        numbers = {"seen": self.seen, "padding": self.padding, "counts": self.counts, "prompts": self.prompts}
        return {name: getattr(self, name) for name in _TENSORS}, {**numbers, "unseen": self._unseen}

    def load_state(self, held: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        if not held:
            return
        self.lazy_initialization(held["kept_keys"], held["kept_values"])
        for name in _TENSORS:
            setattr(self, name, held[name])
        self.seen, self._unseen = numbers["seen"], numbers["unseen"]
        self.padding, self.counts, self.prompts = (list(numbers[name]) for name in ("padding", "counts", "prompts"))

    def take_rows(self, chosen: list[int], index: Tensor) -> None:
        for name in _TENSORS:
            setattr(self, name, getattr(self, name).index_select(0, index))
        self.counts, self.prompts = ([numbers[row] for row in chosen] for numbers in (self.counts, self.prompts))


def _check_no_bias(call: Any) -> None:
    """Raises ValueError where a call adds to its products what a mask does not say: sums would leave it out."""
    biased = call.others.get("position_bias") is not None
    if call.mask is not None and call.mask.dtype != torch.bool:
        hidden = call.mask <= torch.finfo(call.mask.dtype).min
        biased = biased or not bool((hidden | (call.mask == 0)).all())
    if biased:
        raise ValueError(
            f"the attention of {type(call.module).__name__} has a bias (position_bias, or a mask of floats other than "
            "0 and their minimum), which scores by attention would leave out: give a mask of bools, or take a scorer "
            "that reads no attention, such as Knorm()"
        )
