"""The cache inside transformers' models: families, padding, beams, rollbacks, turns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
from kv_models import FAMILIES, HYBRID, close, generate, model_of, prompt, small  # noqa: E402
from transformers import DynamicCache  # noqa: E402

from graphlossy.llm import H2OCache, KIVICache  # noqa: E402


@pytest.mark.parametrize("family", [*FAMILIES, HYBRID])
def test_a_family_generates_what_it_would(family: str) -> None:
    model, ids = model_of(family), prompt(2, 40)
    plain, packed = (generate(model, cache, ids) for cache in (DynamicCache(config=model.config), small(model.config)))
    cache = packed.past_key_values
    assert isinstance(cache, KIVICache) and cache.get_seq_length() == 63
    assert all(layer.key_chunks.count == (63 - 2 - 8) // 8 for layer in cache.packed_layers)
    close(plain, packed)
    exact = generate(model, KIVICache(model.config), ids)  # the window takes all of it
    assert torch.equal(exact.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(exact.logits, plain.logits, strict=True))


@pytest.mark.parametrize("family", ["llama", HYBRID])
def test_rows_padded_on_the_left_are_what_they_are_alone(family: str) -> None:
    model, ids = model_of(family), prompt(3, 50)
    mask = torch.ones_like(ids)
    for row, pads in enumerate((0, 17, 31)):
        ids[row, :pads], mask[row, :pads] = 0, 0
    cache = small(model.config, 2)
    together = generate(model, cache, ids, attention_mask=mask)
    assert cache.packed_layers[-1].padding == [0, 17, 31]
    for row, pads in enumerate((0, 17, 31)):
        alone = generate(model, small(model.config, 2), ids[row : row + 1, pads:])
        for a, b in zip(together.logits, alone.logits, strict=True):
            assert torch.allclose(a[row], b[0], atol=1e-3)
        assert torch.equal(together.sequences[row, 50:], alone.sequences[0, 50 - pads :])


def test_padding_is_known_however_the_prompt_comes() -> None:
    model, ids = model_of("llama"), prompt(2, 40)
    mask = torch.ones_like(ids)
    ids[1, :21], mask[1, :21] = 0, 0
    found = []
    for pieces in ([40], [10, 10, 20], [1] * 40):
        cache, start = small(model.config, 4), 0
        for piece in pieces:
            end = start + piece
            places = (mask[:, :end].cumsum(1) - 1).clamp(min=0)[:, start:end]
            with torch.no_grad():
                out = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, position_ids=places)
            start = end
        assert all(layer.padding == [0, 21] for layer in cache.packed_layers)
        found.append(out.logits[:, -1])
    told = small(model.config, 4)
    told.set_padding(mask)
    assert told.packed_layers[0].padding == [0, 21]
    assert torch.allclose(found[1], found[2], atol=0.3) and torch.allclose(found[0], found[1], atol=0.5)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", HYBRID])
def test_beams(family: str) -> None:
    model, ids = model_of(family), prompt(2, 30)
    options = {"num_beams": 3, "output_logits": False}
    plain = generate(model, DynamicCache(config=model.config), ids, **options)
    exact = generate(model, KIVICache(model.config), ids, **options)
    assert torch.equal(plain.sequences, exact.sequences)
    packed = generate(model, small(model.config), ids, **options)
    assert packed.past_key_values.get_seq_length() == 53 and packed.past_key_values.packed_layers[0].key_chunks.count
    agree = (plain.sequences == packed.sequences).float().mean()
    assert agree > 0.9


@pytest.mark.parametrize("group", [8, 32])
def test_assisted_decoding_rolls_back(group: int) -> None:
    model, helper, ids = model_of("llama"), model_of("llama"), prompt(1, 70)
    for parameter in helper.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)  # agrees now and then
    helper.generation_config.assistant_confidence_threshold = 0.0  # always drafts 20
    plain, assisted = (
        generate(model, small(model.config, group_size=group), ids, output_logits=False, **options)
        for options in ({}, {"assistant_model": helper})
    )
    assert torch.equal(plain.sequences, assisted.sequences)
    cache = assisted.past_key_values
    assert cache.get_seq_length() == 93 and cache.packed_layers[0].packed == [(93 - 10) // group]
    with torch.no_grad():
        model(plain.sequences[:, :-1], past_key_values=(fresh := small(model.config, group_size=group)))
    for found, wanted in zip(cache.layers[0].states(), fresh.layers[0].states(), strict=True):
        assert torch.allclose(found, wanted, atol=1e-4)  # nothing was rounded twice


def test_several_turns() -> None:
    model, ids = model_of("llama"), prompt(1, 40)
    plain, cache = DynamicCache(config=model.config), small(model.config)
    first, packed = (generate(model, held, ids, 10) for held in (plain, cache))
    close(first, packed)
    longer = torch.cat([first.sequences, prompt(1, 15)], 1)
    second, packed = (generate(model, held, longer, 10) for held in (plain, cache))
    close(second, packed)
    assert cache.get_seq_length() == 74 and torch.equal(packed.sequences[:, :65], longer)


@pytest.mark.parametrize("kind", ["kivi", "h2o", "packed h2o"])
def test_layers_show_all_their_tokens_as_any_layer_does(kind: str) -> None:
    model, ids = model_of("llama"), prompt(2, 60)
    if kind != "kivi":
        model.set_attn_implementation("graphlossy")
    storage = small(model.config) if kind == "packed h2o" else None
    cache = small(model.config) if kind == "kivi" else H2OCache(model.config, 24, 8, storage=storage)
    assert cache.layers[1].keys is None and cache.layers[1].values is None
    plain, kept = DynamicCache(config=model.config), []
    with torch.no_grad():
        model(ids, past_key_values=plain)
        model(ids, past_key_values=cache)
    for own, other in zip(cache.layers, plain.layers, strict=True):
        kept.append(60 if kind == "kivi" else 32)
        assert own.keys.shape == own.values.shape == (2, other.keys.shape[1], kept[-1], other.keys.shape[-1])
        assert own.plain_bytes == 2 * 4 * other.keys.numel()
        assert torch.allclose(own.keys[:, :, -8:], other.keys[:, :, -8:], atol=1e-5)  # in full precision
        if kind == "kivi":
            assert (own.values - other.values).abs().max() < 0.1 * other.values.abs().max()
    cache.reset()
    assert cache.layers[0].keys is None


def test_layers_of_their_own_widths() -> None:
    config = FAMILIES["llama"]()
    cache = small(config, 2, per_layer={0: (8, 4), 1: None})
    assert (cache.layers[0].key_chunks.bits, cache.layers[0].value_chunks.bits) == (8, 4)
    assert cache.packed_layers == cache.layers[:1]
    generate(model_of("llama"), cache, prompt(2, 40), 4)
    assert cache.bytes_by_layer()[1].keys() == {"plain"} and cache.nbytes < cache.plain_bytes
    mixed = KIVICache(config, 4, key_bits=8, value_bits=2)
    assert (mixed.layers[1].key_chunks.bits, mixed.layers[1].value_chunks.bits) == (8, 2)
    rotated = small(config, 4, rotate_values=True, per_layer={1: (4, 2)})  # in groups of 8, and of the whole head
    generate(model_of("llama"), rotated, prompt(2, 40), 4)
    scales = [layer.value_chunks.parts[1] for layer in rotated.packed_layers]
    assert [part.shape[-1] for part in scales] == [2, 1] and len(rotated.layers[1].value_chunks.state()) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": 5}, "bits must be one of 1, 2, 3, 4, 8, got 5"),
        ({"key_bits": 16}, "key_bits must be one of"),
        ({"value_bits": True}, "value_bits must be one of"),
        ({"group_size": 12}, "group_size must be a multiple of 8"),
        ({"group_size": 0}, "group_size must be a whole number of at least 8 and at most"),
        ({"value_group_size": 20}, "value_group_size must be a multiple of 8, such as 32, got 20"),
        ({"residual_length": -1}, "residual_length must be a whole number of at least 0"),
        ({"sinks": 1.5}, "sinks must be a whole number"),
        ({"sinks": 1025}, "sinks must be a whole number of at least 0 and at most 1,024, got 1025"),
        ({"residual_length": 10**30}, "residual_length must be a whole number"),
        ({"per_layer": {2: 4}}, "this model has layers 0 to 1, got 2"),
        ({"per_layer": {0: (4, 4, 4)}}, "give bits, (key_bits, value_bits) or None for layer 0"),
        ({"per_layer": {0: None, 1: None}}, "nothing to pack"),
    ],
)
def test_what_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        KIVICache(FAMILIES["llama"](), **options)
    assert said in str(error.value)


def test_another_object_than_a_configuration_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model's configuration \(model.config\), got Linear"):
        KIVICache(torch.nn.Linear(2, 2))
    cache = small(FAMILIES["llama"]())
    with pytest.raises(ValueError, match=r"shape \[rows, tokens\]"):
        cache.set_padding(torch.ones(3))
    generate(model_of("llama"), cache, prompt(2, 20), 2)
    with pytest.raises(ValueError, match="before the first pass"):
        cache.set_padding(torch.ones(2, 20))
    with pytest.raises(ValueError, match="holds 2 rows of 2 heads of 16"):
        model_of("llama")(prompt(3, 1), past_key_values=cache)
