"""Caches that drop tokens and keep the others in few bits: what is kept, where it lies, and how well."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")
from kv_models import FAMILIES, WORDS, generate, model_of, prompt, small  # noqa: E402
from kv_passes import GROUP, HEADS, WIDTH, call, drawn  # noqa: E402

from graphlossy.llm import H2OCache, KIVICache  # noqa: E402
from graphlossy.llm.kv import scorers  # noqa: E402
from graphlossy.llm.kv._evicting_layer import Budget  # noqa: E402
from graphlossy.llm.kv._kivi_layer import KIVILayer  # noqa: E402
from graphlossy.llm.kv._packed_eviction import PackedEvictingLayer  # noqa: E402
from graphlossy.llm.kv._rows import Split  # noqa: E402

CHUNK = 8


def layer(budget: Budget, split: Split, rotate: bool = False, bits: int = 8) -> PackedEvictingLayer:
    return PackedEvictingLayer(scorers.H2O(), budget, KIVILayer(bits, bits, CHUNK, split, rotate))


class Straight:
    """One row without pads and one head of keys, token by token and in full precision."""

    def __init__(self, q: Tensor, k: Tensor, budget: Budget, split: Split) -> None:
        self.q, self.k, self.split = q, k, split  # [GROUP, T, D], [T, D]
        self.budget, self.limits, self.prompt = budget, (0, 0), 0
        self.held: list[int] = []  # sinks, packed tokens, the window
        self.scores: dict[int, float] = {}

    def step(self, start: int, end: int) -> None:
        self.held += range(start, end)
        self.scores |= dict.fromkeys(range(start, end), 0.0)
        for query in range(start, end):
            seen = [token for token in self.held if token <= query]
            weights = torch.softmax(self.q[:, query] @ self.k[seen].T / WIDTH**0.5, -1).sum(0)
            for token, weight in zip(seen, weights.tolist(), strict=True):
                self.scores[token] += weight
        self.prompt += end - start if end - start > 1 or start == 0 else 0
        self.limits = heavy, recent = self.budget.tokens(self.prompt)
        if start == 0:
            if len(self.held) > heavy + recent:
                best = sorted(self.held[:-recent], key=lambda token: -self.scores[token])[:heavy]
                self.held = sorted(best) + self.held[-recent:]
            return
        chunks = self.split.chunks(len(self.held))
        surplus = min(max(0, len(self.held) - sum(self.limits)) // CHUNK, chunks)
        if not surplus:
            return
        first, last = self.split.sinks, self.split.sinks + chunks * CHUNK
        newest = max(self.held)
        packed, fixed = self.held[first:last], {token for token in self.held if token > newest - self.limits[1]}
        order = sorted(packed, key=lambda token: float("inf") if token in fixed else self.scores[token])
        gone = set(order[: surplus * CHUNK])
        places, movers = packed[: -surplus * CHUNK], [t for t in packed[-surplus * CHUNK :] if t not in gone]
        filled = [movers.pop(0) if token in gone else token for token in places]
        assert movers == []
        self.held = self.held[:first] + filled + self.held[last:]


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize(
    ("budget", "split", "pieces"),
    [
        (Budget(20, 12), Split(2, 8, CHUNK, 0), [50] + [1] * 60),
        (Budget(0.5, 0.1), Split(0, 4, CHUNK, 0), [80] + [1] * 30),
        (Budget(0.4, 0.1), Split(0, 4, CHUNK, 0), [20] * 5 + [1] * 20),
        (Budget(6, 20), Split(3, 4, CHUNK, 0), [20] + [3] * 20),
        (Budget(16, 8), Split(1, 8, CHUNK, 0), [10] + [7, 30, 1, 1, 25] + [1] * 30),
        (Budget(500, 8), Split(2, 8, CHUNK, 0), [30] + [1] * 10),
    ],
)
def test_what_is_kept_is_what_a_direct_computation_keeps(
    budget: Budget, split: Split, pieces: list[int], rotate: bool
) -> None:
    padding, total = [0, 5], sum(pieces)
    q, k, v = drawn(2, total, seed=3)
    made, start = layer(budget, split, rotate), 0
    made.padding = list(padding)
    straight = [
        [Straight(q[row, h * GROUP : (h + 1) * GROUP, pads:], k[row, h, pads:], budget, split) for h in range(HEADS)]
        for row, pads in enumerate(padding)
    ]
    for piece in pieces:
        here = slice(start, start + piece)
        offset = start - made.slots
        states, _ = made.update(k[:, :, here], v[:, :, here])
        columns = torch.arange(offset, start + piece)
        mask = columns[None] <= torch.arange(start, start + piece)[:, None]
        real = columns[None] >= torch.tensor(padding)[:, None]
        states.attend(q[:, :, here], None, call((mask & real[:, None])[:, None]))
        for row, pads in enumerate(padding):
            for one in straight[row]:
                one.step(max(0, start - pads), start + piece - pads)
        start += piece
    keys, values = made.states()
    for row, pads in enumerate(padding):
        for h, one in enumerate(straight[row]):
            kept = made.counts[row]
            assert made.positions[row, h, -kept:].tolist() == one.held
            wanted = torch.tensor([one.scores[token] for token in one.held])
            assert torch.allclose(made.scores[row, h, -kept:], wanted, atol=0.02 * float(wanted.max()))
            places = [token + pads for token in one.held]
            assert float((keys[row, h, -kept:] - k[row, h, places]).abs().max()) < 0.05
            assert float((values[row, h, -kept:] - v[row, h, places]).abs().max()) < 0.05
    assert max(made.counts) < max(sum(limits) for limits in made.limits) + CHUNK or total < 100


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "deepseek_v3"])
def test_every_family(family: str) -> None:
    model, ids = model_of(family), prompt(2, 40)
    model.set_attn_implementation("graphlossy")
    mask = torch.ones_like(ids)
    ids[1, :13], mask[1, :13] = 0, 0
    plain = generate(model, H2OCache(model.config, 200, 10), ids, 30, attention_mask=mask)
    whole = generate(model, H2OCache(model.config, 200, 10, small(model.config)), ids, 30, attention_mask=mask)
    for step, (a, b) in enumerate(zip(plain.logits, whole.logits, strict=True)):
        if torch.equal(plain.sequences[:, : 40 + step], whole.sequences[:, : 40 + step]):
            assert float((a - b).abs().max()) < 0.1 * float(a.std())
    cache = H2OCache(model.config, 16, 8, small(model.config, 4, residual_length=8))
    found = generate(model, cache, ids, 30, attention_mask=mask)
    assert torch.equal(found.logits[0], plain.logits[0])  # the prompt is read in full
    alone = generate(model, H2OCache(model.config, 16, 8, small(model.config, 4, residual_length=8)), ids[1:, 13:], 30)
    assert torch.equal(found.sequences[1, 40:], alone.sequences[0, 27:])
    for own in cache.own_layers:
        assert all(24 <= n < 24 + 8 for n in own.counts) and own.seen == 69
        assert own.nbytes == sum(own.bytes_by_kind().values()) < own.plain_bytes / 2


def test_beams_and_batches() -> None:
    model, ids = model_of("llama"), prompt(2, 40)
    model.set_attn_implementation("graphlossy")
    cache = H2OCache(model.config, 16, 8, small(model.config, residual_length=8))
    generate(model, cache, ids, output_logits=False, num_beams=3)
    assert all(24 <= n < 32 for n in cache.own_layers[0].counts) and len(cache.own_layers[0].counts) == 6
    made, (q, k, v) = layer(Budget(20, 8), Split(2, 8, CHUNK, 0)), drawn(3, 60)
    made.padding = [0, 4, 9]
    made.update(k[:, :, :50], v[:, :, :50])[0].attend(q[:, :, :50], None, call())
    for at in range(50, 60):
        here = slice(at, at + 1)
        made.update(k[:, :, here], v[:, :, here])[0].attend(q[:, :, here], None, call())
    before = [*made.states(), made.positions]
    made.reorder_cache(torch.tensor([2, 0]))
    for found, wanted in zip([*made.states(), made.positions], before, strict=True):
        assert torch.equal(found, wanted[[2, 0]])
    assert made.padding == [9, 0] and len(made.store.padding) == 2


def test_the_prompt_alone_can_be_dropped_from() -> None:
    model, ids = model_of("llama"), prompt(2, 40)
    model.set_attn_implementation("graphlossy")
    cache = H2OCache(model.config, 12, 8, storage=small(model.config, residual_length=8), prompt_only=True)
    generate(model, cache, ids, 30)
    assert cache.own_layers[0].counts == [49, 49] and cache.own_layers[0].store.packed == [4, 4]


@pytest.mark.parametrize(
    "scorer",
    [scorers.TOVA(), scorers.Knorm(), scorers.StreamingLLM(2), scorers.SnapKV(8), scorers.ExpectedAttention()],
)
def test_every_scorer_goes_with_storage(scorer: Any) -> None:
    from graphlossy.llm import EvictionCache

    model, ids = model_of("llama"), prompt(2, 40)
    model.set_attn_implementation("graphlossy")
    cache = EvictionCache(model.config, scorer, heavy=12, recent=8, storage=small(model.config, residual_length=8))
    generate(model, cache, ids, 30)
    counts = cache.own_layers[0].counts
    assert counts == [49, 49] if scorer.prompt_only else all(20 <= n < 28 for n in counts)


def test_what_is_refused() -> None:
    config = FAMILIES["llama"]()
    with pytest.raises(TypeError, match="storage must be a KIVICache or None, got DynamicCache"):
        H2OCache(config, storage=transformers.DynamicCache(config=config))
    deeper = transformers.LlamaConfig(num_hidden_layers=3)
    with pytest.raises(ValueError, match="it has 3 layers, this one 2"):
        H2OCache(config, storage=KIVICache(deeper))
    with pytest.raises(ValueError, match="storage leaves layer 0 as it is"):
        H2OCache(config, storage=small(config, per_layer={0: None}))


def test_a_storage_is_a_recipe() -> None:
    model, ids = model_of("llama"), prompt(1, 40)
    model.set_attn_implementation("graphlossy")
    recipe = small(model.config, 4, residual_length=8)
    first, second = (generate(model, H2OCache(model.config, 16, 8, recipe), ids) for _ in "ab")
    assert torch.equal(first.sequences, second.sequences)
    assert recipe.get_seq_length() == 0 and recipe.packed_layers[0].split.rollback == 16


@pytest.mark.parametrize(("amounts", "storage"), [((16, 8), False), ((0.5, 0.2), False), ((16, 8), True)])
def test_a_row_that_begins_after_the_first_piece(amounts: tuple[float, float], storage: bool) -> None:
    model, draw = model_of("llama"), torch.Generator().manual_seed(1)
    model.set_attn_implementation("graphlossy")
    ids = torch.stack([torch.randperm(WORDS - 3, generator=draw)[:80] + 3 for _ in range(3)])
    mask = torch.ones_like(ids)
    ids[1, :25], mask[1, :25] = 0, 0
    mask[2] = 0  # no token at all

    def cache() -> Any:
        return H2OCache(model.config, *amounts, small(model.config, residual_length=8) if storage else None)

    def read(ids: Tensor, mask: Tensor, ends: list[int]) -> tuple[Any, Tensor]:
        held, found, start = cache(), [], 0
        places = (mask.cumsum(1) - 1).clamp(min=0)
        for end in [*ends, *range(ends[-1] + 1, ids.shape[1] + 1)]:
            with torch.no_grad():
                out = model(ids[:, start:end], attention_mask=mask[:, :end], position_ids=places[:, start:end],
                            past_key_values=held)  # fmt: skip
            found, start = [*found, out.logits[:, -1]], end
        return held, torch.stack(found[len(ends) :], 1)

    together, logits = read(ids, mask, [20, 40])
    for row, first, ends in ((0, 0, [20, 40]), (1, 25, [15])):
        alone, expected = read(ids[row : row + 1, first:], mask[row : row + 1, first:], ends)
        assert torch.allclose(logits[row : row + 1], expected, atol=1e-3)
        kept = alone.own_layers[0].counts[0]
        assert together.own_layers[0].counts[row] == kept
        places = together.own_layers[0].positions[row, :, -kept:]
        assert torch.equal(places, alone.own_layers[0].positions[0, :, -kept:])
    assert together.own_layers[0].counts[2] == 0 and together.own_layers[0].slots < 60


def test_a_prompt_read_under_inference_mode() -> None:
    model, ids = model_of("llama"), prompt(2, 70)
    model.set_attn_implementation("graphlossy")
    cache = H2OCache(model.config, 16, 4, small(model.config, residual_length=4))
    with torch.inference_mode():
        model(ids[:, :40], past_key_values=cache)
    with torch.no_grad():
        for at in range(40, 70):
            model(ids[:, at : at + 1], past_key_values=cache)
    assert all(20 <= n < 28 for n in cache.own_layers[0].counts)


def test_recent_tokens_stay_where_few_others_may() -> None:
    made, (q, k, v) = layer(Budget(0, 16), Split(6, 0, CHUNK, 0)), drawn(1, 60)
    for start, end in [(0, 20), *((n, n + 1) for n in range(20, 60))]:
        made.update(k[:, :, start:end], v[:, :, start:end])[0].attend(q[:, :, start:end], None, call())
        assert set(range(max(0, end - 16), end)) <= set(made.positions[0, 0, -made.counts[0] :].tolist())
