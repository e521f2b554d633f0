"""Attention straight from packed keys and values inside transformers' models: what decoding them would give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
from kv_models import FAMILIES, generate, model_of, prompt, small  # noqa: E402

from graphlossy.llm import KIVICache  # noqa: E402
from graphlossy.llm.kv import _attention, _packed_states  # noqa: E402


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Queries of every pass through packed attention, those of the heads that share keys together."""
    found: list[int] = []
    straight = _packed_states.packed_attention

    def counted(query: torch.Tensor, *rest: Any) -> Any:
        found.append(query.shape[2])
        return straight(query, *rest)

    monkeypatch.setattr(_packed_states, "packed_attention", counted)
    return found


@pytest.mark.parametrize("rotate_values", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_generates_what_it_does_with_decoded_states(
    family: str, rotate_values: bool, passes: list[int]
) -> None:
    model, ids = model_of(family), prompt(2, 40)
    mask = torch.ones_like(ids)
    ids[1, :13], mask[1, :13] = 0, 0
    options = {"key_bits": 3, "value_bits": 2, "rotate_values": rotate_values, "value_group_size": 16}
    decoded = generate(model, small(model.config, **options), ids, attention_mask=mask)
    assert passes == []
    model.set_attn_implementation("graphlossy")
    packed = generate(model, small(model.config, **options), ids, attention_mask=mask)
    layers = len(packed.past_key_values.packed_layers)
    steps = 0 if family == "deepseek_v3" else 23  # every one after the prompt; a latent is expanded, so it is decoded
    assert len(passes) == steps * layers
    assert torch.equal(packed.sequences, decoded.sequences)
    for a, b in zip(packed.logits, decoded.logits, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_beams_and_rollbacks(passes: list[int]) -> None:
    model, helper, ids = model_of("llama"), model_of("llama"), prompt(2, 30)
    for parameter in helper.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    found = []
    for name in ("sdpa", "graphlossy"):
        model.set_attn_implementation(name)
        beams = generate(model, small(model.config), ids, output_logits=False, num_beams=3)
        assisted = generate(model, small(model.config), ids[:1], output_logits=False, assistant_model=helper)
        found.append((beams.sequences, assisted.sequences))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert {2} < set(passes)  # more than one position: what an assistant proposed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_models(dtype: torch.dtype, passes: list[int]) -> None:
    model, ids = model_of("llama").to(dtype), prompt(2, 40)
    with torch.no_grad():
        decoded = [small(model.config, 4), small(model.config, 4)]
        logits = []
        for name, cache in zip(("sdpa", "graphlossy"), decoded, strict=True):
            model.set_attn_implementation(name)
            model(ids[:, :-1], past_key_values=cache)
            logits.append(model(ids[:, -1:], past_key_values=cache).logits.float())
    assert passes == [2, 2]
    assert float((logits[0] - logits[1]).abs().max()) < 0.05 * float(logits[0].std())


def test_many_positions_are_decoded_once(passes: list[int]) -> None:
    model, ids = model_of("llama"), prompt(2, 60)
    model.set_attn_implementation("graphlossy")
    with torch.no_grad():
        whole, pieces = small(model.config), small(model.config)
        model(ids[:, :40], past_key_values=whole)
        expected = model(ids[:, 40:], past_key_values=whole).logits
        assert passes == []  # 20 positions
        model(ids[:, :40], past_key_values=pieces)
        found = [model(ids[:, i : i + 5], past_key_values=pieces).logits for i in range(40, 60, 5)]
    assert passes == [10] * 8
    assert float((torch.cat(found, 1) - expected).abs().max()) < 0.1 * float(expected.std())


def test_a_mask_of_numbers_is_added_to_decoded_scores(passes: list[int]) -> None:
    model, ids = model_of("llama"), prompt(1, 40)
    mask = torch.zeros(1, 1, 1, 40)
    mask[..., 5:9] = -1.5
    found = []
    for name in ("sdpa", "graphlossy"):
        model.set_attn_implementation(name)
        cache = small(model.config)
        with torch.no_grad():
            model(ids[:, :-1], past_key_values=cache)
            found.append(model(ids[:, -1:], past_key_values=cache, attention_mask=mask).logits)
    assert passes == [] and torch.equal(*found)


def test_what_packed_states_are_asked_for_is_decoded() -> None:
    model, ids = model_of("llama"), prompt(1, 40)
    model.set_attn_implementation("graphlossy")
    cache = small(model.config)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    layer = cache.packed_layers[0]
    new = torch.randn(1, 2, 1, 16)
    expected = small(model.config)
    with torch.no_grad():
        model(ids, past_key_values=expected)
    keys, values = expected.packed_layers[0].update(new, new)
    states = layer.update(new, new)
    assert isinstance(states[0], _packed_states.PackedStates)
    assert states[0].shape == (1, 2, 41, 16) and torch.equal(states[0][:, 1], keys[:, 1])
    assert torch.equal(states[1].transpose(1, 2), values.transpose(1, 2))
    query = torch.randn(1, 2, 1, 16)
    assert torch.equal(torch.matmul(query, states[0].mT), query @ keys.mT)
    assert torch.equal(torch.cat([states[1], new], 2)[:, :, :-1], values)


def test_sinks_of_the_softmax_are_refused() -> None:
    with pytest.raises(ValueError, match="Linear adds sinks of its own"):
        _attention.attention(torch.nn.Linear(1, 1), *[torch.ones(1, 1, 1, 8)] * 3, None, s_aux=torch.ones(1))


def test_other_caches_and_attentions_are_left_alone() -> None:
    model, ids = model_of("gemma2"), prompt(2, 40)
    plain = generate(model, transformers.DynamicCache(config=model.config), ids)
    model.set_attn_implementation("graphlossy")
    for cache in (transformers.DynamicCache(config=model.config), KIVICache(model.config)):  # the window takes all
        found = generate(model, cache, ids)
        assert torch.equal(found.sequences, plain.sequences)
