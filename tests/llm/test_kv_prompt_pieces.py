"""Prompts that are read in pieces, and where a prompt ends for a cache that drops tokens of it alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")
from kv_models import WORDS, close, generate, model_of, prompt, small  # noqa: E402
from transformers import DynamicCache  # noqa: E402

from graphlossy.llm import EvictionCache, H2OCache  # noqa: E402
from graphlossy.llm.kv import scorers  # noqa: E402


def padded(rows: list[int], count: int) -> tuple[Tensor, Tensor]:
    """Words no two of which are equal in a row, and the mask of rows with so many pads."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randperm(WORDS - 3, generator=draw)[:count] + 3 for _ in rows])
    mask = torch.ones_like(ids)
    for row, pads in enumerate(rows):
        ids[row, :pads], mask[row, :pads] = 0, 0
    return ids, mask


@torch.no_grad()
def read(model: Any, cache: Any, ids: Tensor, pieces: list[int], mask: Tensor | None = None) -> Any:
    mask = torch.ones_like(ids) if mask is None else mask
    places, start = (mask.cumsum(1) - 1).clamp(min=0), 0
    for end in torch.tensor(pieces).cumsum(0).tolist():
        options = {"attention_mask": mask[:, :end], "position_ids": places[:, start:end]}
        model(ids[:, start:end], past_key_values=cache, **options)
        start = end
    return cache


@pytest.mark.parametrize("kind", ["kivi", "h2o", "packed h2o"])
def test_generate_reads_a_prompt_in_pieces(kind: str) -> None:
    model, (ids, mask) = model_of("llama"), padded([0, 25], 60)  # the second row begins in the second piece
    plain = generate(model, DynamicCache(config=model.config), ids, attention_mask=mask)
    if kind != "kivi":
        model.set_attn_implementation("graphlossy")
    storage = small(model.config) if kind != "h2o" else None
    cache: Any = storage if kind == "kivi" else H2OCache(model.config, 100, 10, storage)
    found = generate(model, cache, ids, attention_mask=mask, prefill_chunk_size=16)
    close(plain, found, 0.1)
    assert cache.get_seq_length() == 83 and all(layer.padding == [0, 25] for layer in cache.own_layers)


def test_generate_drops_after_every_piece() -> None:
    model, (ids, mask) = model_of("llama"), padded([0, 25], 60)
    model.set_attn_implementation("graphlossy")
    cache = H2OCache(model.config, 0.2, 0.1)
    text = generate(model, cache, ids, 10, attention_mask=mask, prefill_chunk_size=16).sequences
    assert cache.own_layers[0].counts == [12 + 6, 7 + 3]
    mask = torch.cat([mask, mask.new_ones(2, 10)], 1)
    again = read(model, H2OCache(model.config, 0.2, 0.1), text, [16, 16, 16, 12, *[1] * 9], mask)
    for a, b in zip(cache.own_layers, again.own_layers, strict=True):
        assert torch.equal(a.positions, b.positions)


@pytest.mark.parametrize("storage", [False, True])
@pytest.mark.parametrize("scorer", [scorers.SnapKV(8, 3), scorers.ExpectedAttention(50)])
def test_a_scorer_of_the_prompt_drops_after_every_piece(scorer: Any, storage: bool) -> None:
    model, (ids, mask) = model_of("llama"), padded([0, 40], 90)
    model.set_attn_implementation("graphlossy")

    def cache() -> Any:
        store = small(model.config, residual_length=0) if storage else None
        return EvictionCache(model.config, scorer, heavy=0.2, recent=0.2, storage=store)

    held = read(model, cache(), ids, [32, 32, 26], mask)
    wanted = [18 + 18, 10 + 10]  # as if they had come at once
    for layer in held.own_layers:
        assert all(n <= count < n + 8 * storage + 1 for n, count in zip(wanted, layer.counts, strict=True))
    alone = read(model, cache(), ids[1:, 40:], [24, 26])
    for together, layer in zip(held.own_layers, alone.own_layers, strict=True):
        kept = layer.counts[0]
        assert together.counts[1] == kept
        if not storage:  # which packs a row that begins later before it drops from it, first tokens as sinks
            assert torch.equal(together.positions[1, :, -kept:], layer.positions[0, :, -kept:])
    kept = held.own_layers[0].counts
    held = cache()
    generate(model, held, ids, 10, attention_mask=mask, prefill_chunk_size=32)
    assert held.own_layers[0].counts == [count + 9 for count in kept]
    assert held.own_layers[0].positions.shape[-1] == held.own_layers[0].scores.shape[-1] == 0


def test_where_a_prompt_ends() -> None:
    model, ids = model_of("llama"), prompt(1, 80)
    model.set_attn_implementation("graphlossy")

    def counts(pieces: list[int], cache: Any, later: tuple[int, ...] = ()) -> list[int]:
        read(model, cache, ids, pieces)
        if later:
            cache.end_prompt()
            read(model, cache, ids, list(later))
        return cache.own_layers[0].counts

    def snap() -> Any:
        return EvictionCache(model.config, scorers.SnapKV(4, 3), heavy=10, recent=2)

    assert counts([30, 10], snap()) == counts([1, 30], snap()) == [12]
    assert counts([30, 10, 1, 20], snap()) == [12 + 21]  # another turn is kept whole
    assert counts([30, 10], snap(), (20, 5)) == [12 + 25]
    assert counts([30], H2OCache(model.config, 10, 2), (20, 5)) == [12]  # which drops whatever comes
