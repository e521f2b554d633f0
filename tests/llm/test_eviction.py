"""Caches that drop tokens: what is kept is what a direct, causal computation keeps; padding changes nothing."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

transformers = pytest.importorskip("transformers")
from kv_models import FAMILIES, HYBRID, WORDS, generate, model_of, prompt, small  # noqa: E402
from kv_passes import GROUP, HEADS, WIDTH, call, drawn  # noqa: E402

from graphlossy.llm import EvictionCache, H2OCache  # noqa: E402
from graphlossy.llm.kv import _sums, scorers  # noqa: E402
from graphlossy.llm.kv._evicting_layer import Budget, EvictingLayer  # noqa: E402

SCORERS = [scorers.H2O(), scorers.TOVA(), scorers.SnapKV(8, 3), scorers.Knorm(), scorers.StreamingLLM(2),
           scorers.ExpectedAttention(50)]  # fmt: skip


def straight(
    q: Tensor, k: Tensor, pieces: list[int], budget: Budget, future: bool = False
) -> tuple[list[list[int]], list[dict[int, float]]]:
    """H2O for one row without pads [heads, T, D], token by token: positions and scores that each head of keys keeps."""
    prompt = 0
    kept: list[list[int]] = [[] for _ in range(HEADS)]
    scores: list[dict[int, float]] = [{} for _ in range(HEADS)]
    start = 0
    for piece in pieces:
        new = list(range(start, start + piece))
        prompt += piece if piece > 1 or not start else 0  # what is written counts in no share
        heavy, recent = budget.tokens(prompt)
        for h in range(HEADS):
            held = kept[h] + new
            for token in new:
                scores[h][token] = 0.0
            for query in new:
                seen = held if future else [token for token in held if token <= query]
                for g in range(GROUP):
                    products = [float(q[h * GROUP + g, query] @ k[h, token]) / math.sqrt(WIDTH) for token in seen]
                    top = max(products)
                    weights = [math.exp(p - top) for p in products]
                    for token, weight in zip(seen, weights, strict=True):
                        scores[h][token] += weight / sum(weights)
            if len(held) > heavy + recent:
                best = sorted(held[:-recent], key=lambda token: -scores[h][token])[:heavy]
                held = sorted(best) + held[-recent:]
            kept[h] = held
            scores[h] = {token: scores[h][token] for token in held}
        start += piece
    return kept, scores


@settings(max_examples=40)
@given(st.data())
def test_h2o_keeps_what_a_direct_causal_computation_keeps(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 3), "rows")
    pieces = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=8), "pieces")
    padding = data.draw(st.lists(st.integers(0, max(0, pieces[0] - 1)), min_size=rows, max_size=rows), "padding")
    amount = st.one_of(st.integers(0, 8), st.sampled_from([0.0, 0.25, 0.5]))
    budget = Budget(data.draw(amount, "heavy"), data.draw(amount, "recent"))
    q, k, v = drawn(rows, sum(pieces), data.draw(st.integers(0, 99)))
    layer, start = EvictingLayer(scorers.H2O(), budget), 0
    layer.padding = list(padding)
    for piece in pieces:
        here = slice(start, start + piece)
        states, _ = layer.update(k[:, :, here], v[:, :, here])
        count, offset = layer.keys.shape[2], layer.seen - layer.keys.shape[2]
        mask = torch.arange(offset, layer.seen)[None] <= torch.arange(start, start + piece)[:, None]
        real = torch.arange(offset, layer.seen)[None] >= torch.tensor(padding)[:, None]  # as transformers reads it
        out = states.attend(q[:, :, here], None, call((mask & real[:, None])[:, None]))
        assert out.shape == (rows, HEADS * GROUP, piece, WIDTH) and count <= layer.seen
        start += piece
    for row, pads in enumerate(padding):
        parts = [pieces[0] - pads, *pieces[1:]]
        kept, scores = straight(q[row, :, pads:], k[row, :, pads:], parts, budget)
        for h in range(HEADS):
            first = layer.positions.shape[2] - layer.counts[row]
            assert layer.positions[row, h, first:].tolist() == kept[h]
            wanted = torch.tensor([scores[h][token] for token in kept[h]])
            assert torch.allclose(layer.scores[row, h, first:], wanted, atol=1e-4)
            places = layer.positions[row, h, first:].long() + pads
            assert torch.equal(layer.keys[row, h, first:], k[row, h, places])
            assert torch.equal(layer.values[row, h, first:], v[row, h, places])


@pytest.mark.parametrize("chunk", [1, 500, 1 << 20])
@pytest.mark.parametrize("kind", ["causal", "rows", "heads"])
@pytest.mark.parametrize(("queries", "last"), [(1, None), (40, None), (40, 3)])
def test_sums_are_those_of_the_whole_matrix(
    monkeypatch: pytest.MonkeyPatch, chunk: int, kind: str, queries: int, last: int | None
) -> None:
    monkeypatch.setattr(_sums, "_CHUNK", chunk)
    monkeypatch.setattr(_sums, "_ROWS", 1 if chunk == 1 else 8)
    q, k = torch.randn(3, 4, queries, 8), torch.randn(3, 2, 50, 8)
    mask = None
    seen = torch.ones(50, 50, dtype=torch.bool).tril()[-queries:].expand(3, 4, -1, -1)
    if kind != "causal":
        mask = torch.rand(3, 1 if kind == "rows" else 4, queries, 50) < 0.4
        mask[0, :, -1] = False  # a query that sees nothing counts for nothing
        mask[1, :, :, 20:] = False
        seen = mask.expand(3, 4, -1, -1)
    scores = (0.3 * q @ k.repeat_interleave(2, 1).mT).masked_fill(~seen, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)[:, :, -(last or queries) :]
    wanted = weights.sum(2).unflatten(1, (2, 2)).sum(2)
    assert torch.allclose(_sums.attention_sums(q, k, mask, 0.3, last=last), wanted, atol=1e-5)


def test_looking_into_the_future_would_be_noticed() -> None:
    q, k, v = drawn(1, 60)
    layer = EvictingLayer(scorers.H2O(), Budget(8, 4))
    layer.update(k, v)[0].attend(q, None, call())
    kept = [layer.positions[0, h].tolist() for h in range(HEADS)]
    assert kept == straight(q[0], k[0], [60], Budget(8, 4))[0]
    assert kept != straight(q[0], k[0], [60], Budget(8, 4), future=True)[0]


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("last", [None, 1, 7])
def test_sums_of_attention_a_few_queries_at_a_time(
    last: int | None, softcap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, _ = drawn(2, 30)
    scores = torch.einsum("bhgqd,bhkd->bhgqk", q.view(2, HEADS, GROUP, 30, WIDTH), k) * 0.3
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    mask = torch.ones(30, 30, dtype=torch.bool).tril()
    weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1)
    expected = weights[:, :, :, -(last or 30) :].sum((2, 3))
    for size in (1, 5000, 1 << 24):
        monkeypatch.setattr(_sums, "_CHUNK", size)
        for told in (None, mask[None, None].expand(2, 1, 30, 30)):
            found = _sums.attention_sums(q, k, told, 0.3, softcap, last)
            assert torch.allclose(found, expected, atol=1e-5)


def test_sums_where_every_head_has_a_mask_of_its_own() -> None:
    q, k, _ = drawn(2, 30)
    mask = torch.ones(2, HEADS * GROUP, 30, 30, dtype=torch.bool).tril()
    mask &= torch.rand(mask.shape, generator=torch.Generator().manual_seed(3)) < 0.7
    mask[:, 1, 4] = False  # a query that sees nothing
    scores = q.view(2, HEADS, GROUP, 30, WIDTH) @ k[:, :, None].transpose(-1, -2)
    planes = mask.view_as(scores)
    expected = torch.softmax(scores.masked_fill(~planes, -torch.inf), -1).nan_to_num().sum((2, 3))
    assert torch.allclose(_sums.attention_sums(q, k, mask, 1.0), expected, atol=1e-5)


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: type(scorer).__name__)
def test_a_padded_row_keeps_what_it_would_alone(scorer: scorers.Scorer) -> None:
    model, draw = model_of("llama"), torch.Generator().manual_seed(1)
    model.set_attn_implementation("graphlossy")
    ids = torch.stack([torch.randperm(WORDS - 3, generator=draw)[:70] + 3 for _ in range(3)])  # no equal keys
    mask = torch.ones_like(ids)
    for row, pads in enumerate((0, 17, 44)):
        ids[row, :pads], mask[row, :pads] = 0, 0
    for heavy, recent in ((12, 8), (0.3, 0.2)):
        together, logits = read(model, EvictionCache(model.config, scorer, heavy=heavy, recent=recent), ids, mask)
        for row, pads in enumerate((0, 17, 44)):
            one = slice(row, row + 1)
            cache = EvictionCache(model.config, scorer, heavy=heavy, recent=recent)
            alone, expected = read(model, cache, ids[one, pads:], mask[one, pads:])
            assert torch.allclose(logits[one], expected, atol=1e-3)
            for a, b in zip(together.own_layers, alone.own_layers, strict=True):
                kept = b.counts[0]
                assert a.counts[row] == kept
                assert torch.equal(a.positions[row, :, -kept:], b.positions[0, :, -kept:])


def read(model: Any, cache: Any, ids: Tensor, mask: Tensor, later: int = 20) -> tuple[Any, Tensor]:
    """The cache and the logits of the last ``later`` tokens, which are read one by one."""
    found, places = [], (mask.cumsum(1) - 1).clamp(min=0)
    first = ids.shape[1] - later
    with torch.no_grad():
        for start, end in [(0, first), *((n, n + 1) for n in range(first, ids.shape[1]))]:
            out = model(ids[:, start:end], attention_mask=mask[:, :end], position_ids=places[:, start:end],
                        past_key_values=cache)  # fmt: skip
            found.append(out.logits[:, -1:])
    return cache, torch.cat(found[1:], 1)


@pytest.mark.parametrize("family", [*(name for name in FAMILIES if name != "deepseek_v3"), HYBRID])
def test_every_family(family: str) -> None:
    model, ids = model_of(family), prompt(2, 40)
    plain = generate(model, transformers.DynamicCache(config=model.config), ids)
    model.set_attn_implementation("graphlossy")
    whole = generate(model, H2OCache(model.config, heavy=100, recent=10), ids)
    assert torch.equal(whole.sequences, plain.sequences)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(whole.logits, plain.logits, strict=True))
    cache = H2OCache(model.config, heavy=10, recent=6)
    found = generate(model, cache, ids)
    assert torch.equal(found.logits[0], whole.logits[0])  # the prompt is read in full
    assert cache.get_seq_length() == 63 and all(layer.counts == [16, 16] for layer in cache.own_layers)
    assert cache.nbytes < cache.plain_bytes / 1.5


def test_a_scorer_of_the_prompt_leaves_what_is_generated() -> None:
    model, ids = model_of("llama"), prompt(1, 40)
    model.set_attn_implementation("graphlossy")
    cache = EvictionCache(model.config, scorers.SnapKV(4, 3), heavy=10, recent=2)
    plain = transformers.DynamicCache(config=model.config)
    text = generate(model, cache, ids, 20).sequences
    layer = cache.own_layers[0]
    assert layer.counts == [12 + 19]
    with torch.no_grad():
        model(text[:, :-1], past_key_values=plain)
    assert torch.allclose(layer.keys[:, :, -19:], plain.layers[0].keys[:, :, -19:], atol=1e-5)
    assert layer.bytes_by_kind()["metadata"] == 0  # which nothing is going to ask for


def test_what_is_generated_is_kept_if_asked() -> None:
    model, ids = model_of("llama"), prompt(1, 40)
    model.set_attn_implementation("graphlossy")
    cache = H2OCache(model.config, heavy=10, recent=2, prompt_only=True)
    generate(model, cache, ids, 20)
    assert cache.own_layers[0].counts == [12 + 19]
    both = EvictionCache(model.config, scorers.SnapKV(4, 3), heavy=10, recent=2, prompt_only=False)
    generate(model, both, ids, 20)
    assert both.own_layers[0].counts == [12]
    with pytest.raises(TypeError, match="prompt_only must be True, False or None, got 1"):
        H2OCache(model.config, 4, 4, prompt_only=1)


def test_streaming_keeps_sinks_and_a_window() -> None:
    model, ids = model_of("llama"), prompt(1, 40)
    model.set_attn_implementation("graphlossy")
    cache = EvictionCache(model.config, scorers.StreamingLLM(3), heavy=3, recent=5)
    generate(model, cache, ids, 10)
    assert cache.own_layers[1].positions[0, 1].tolist() == [0, 1, 2, 44, 45, 46, 47, 48]


def test_beams_and_batches() -> None:
    model, ids = model_of("llama"), prompt(2, 40)
    plain = generate(model, transformers.DynamicCache(config=model.config), ids, output_logits=False, num_beams=3)
    model.set_attn_implementation("graphlossy")
    whole = generate(model, H2OCache(model.config, 100, 10), ids, output_logits=False, num_beams=3)
    assert torch.equal(whole.sequences, plain.sequences)
    small = generate(model, H2OCache(model.config, 10, 10), ids, output_logits=False, num_beams=3)
    assert small.past_key_values.own_layers[0].counts == [20] * 6
    layer, (q, k, v) = EvictingLayer(scorers.H2O(), Budget(4, 3)), drawn(3, 30)
    layer.padding = [0, 4, 9]
    layer.update(k, v)[0].attend(q, None, call())
    expected = [layer.keys.clone(), layer.scores.clone(), layer.positions.clone()]
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([True, False] * 3))
    layer.reorder_cache(torch.tensor([2, -2]))
    assert layer.padding == [9, 4] and layer.counts == [7, 7]
    for found, wanted in zip((layer.keys, layer.scores, layer.positions), expected, strict=True):
        assert torch.equal(found, wanted[[2, 1]])


@pytest.mark.parametrize("storage", [False, True])
@pytest.mark.parametrize("scorer", [*SCORERS[:3], SCORERS[5]], ids=lambda scorer: type(scorer).__name__)
def test_no_graph_is_kept(scorer: scorers.Scorer, storage: bool) -> None:
    model, ids = model_of("llama"), prompt(1, 40)
    model.set_attn_implementation("graphlossy")
    store = small(model.config) if storage else None
    cache = EvictionCache(model.config, scorer, heavy=10, recent=6, storage=store, prompt_only=False)
    for piece in (ids, ids[:, :1], ids[:, :1]):
        model(piece, past_key_values=cache)  # its parameters want gradients
        for layer in cache.own_layers:
            held = [layer, layer.store] if storage else [layer]
            assert not any(t.requires_grad for part in held for t in vars(part).values() if isinstance(t, Tensor))
    copy.deepcopy(cache)


def test_attention_with_a_bias_is_refused() -> None:
    q, k, v = drawn(2, 30)
    seen = torch.ones(30, 30, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    lowest = torch.finfo(torch.float32).min
    slope = -0.1 * (torch.arange(30)[:, None] - torch.arange(30))

    def read(scorer: scorers.Scorer, made: Any) -> EvictingLayer:
        layer = EvictingLayer(scorer, Budget(4, 3))
        layer.update(k, v)[0].attend(q, None, made)
        return layer

    wanted = read(scorers.H2O(), call(seen))
    for hidden in (lowest, -math.inf):
        found = read(scorers.H2O(), call(torch.zeros(seen.shape).masked_fill(~seen, hidden)))
        assert torch.equal(found.positions, wanted.positions) and torch.allclose(found.scores, wanted.scores)
    biased = call(slope.expand(seen.shape).masked_fill(~seen, lowest))
    soft = call(torch.zeros(seen.shape).masked_fill(~seen, -1e9))
    for made in (biased, soft, replace(call(), others={"position_bias": slope})):
        with pytest.raises(ValueError, match="the attention of SimpleNamespace has a bias"):
            read(scorers.H2O(), made)
    assert read(scorers.Knorm(), biased).counts == [7, 7]  # which does not read it


def test_what_is_refused() -> None:
    model, ids = model_of("llama"), prompt(1, 10)
    with pytest.raises(ValueError, match=r"model.set_attn_implementation\('graphlossy'\) first \(it is 'sdpa';"):
        model(ids, past_key_values=H2OCache(model.config, 4, 4))
    model.set_attn_implementation("graphlossy")
    cache = H2OCache(model.config, 4, 4)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    cache.crop(0)
    with pytest.raises(ValueError, match="cannot be rolled back"):
        cache.crop(-2)
    with pytest.raises(ValueError, match="holds 1 rows of 2 heads of 16, and was given keys of 3 rows"):
        model(prompt(3, 1), past_key_values=cache)
    for heavy in (-1, 1.5, True, "all", math.nan):
        with pytest.raises(ValueError, match="heavy must be"):
            H2OCache(model.config, heavy, 4)
    with pytest.raises(TypeError, match="scorer must be one of"):
        EvictionCache(model.config, scorers.H2O, heavy=1, recent=1)
    with pytest.raises(TypeError, match="model's configuration"):
        H2OCache(model)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, 15:] = 0
    with pytest.raises(ValueError, match="takes pads on the left alone"):
        model(prompt(2, 20), attention_mask=mask, past_key_values=H2OCache(model.config, 4, 4))
    with pytest.raises(ValueError, match="takes pads on the left alone"):
        H2OCache(model.config, 4, 4).set_padding(mask)
    (told := H2OCache(model.config, 4, 4)).set_padding(mask.flip(1))
    assert told.own_layers[1].padding == [0, 5]
    shared = transformers.Gemma3nTextConfig(num_hidden_layers=4, num_kv_shared_layers=2)
    with pytest.raises(ValueError, match="layers of this model share keys and values"):
        H2OCache(shared, 4, 4)
    with pytest.raises(ValueError, match="kernel_size odd, got 8 and 4"):
        scorers.SnapKV(8, 4)
    latent = model_of("deepseek_v3")
    latent.set_attn_implementation("graphlossy")
    cache = H2OCache(latent.config, 4, 4)
    with torch.no_grad():
        latent(ids, past_key_values=cache)
        with pytest.raises(ValueError, match="did not go through the attention"):
            latent(ids[:, :1], past_key_values=cache)
