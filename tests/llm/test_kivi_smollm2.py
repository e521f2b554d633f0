"""Our caches under the real SmolLM2-135M: what transformers asks of its own caches, see its tests/utils."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")
from kv_models import generate  # noqa: E402
from transformers import DynamicCache  # noqa: E402

from graphlossy.datasets import find_model, text  # noqa: E402
from graphlossy.llm import EvictionCache, H2OCache, KIVICache  # noqa: E402
from graphlossy.llm.finetune import load_model, load_tokenizer  # noqa: E402
from graphlossy.llm.kv import scorers  # noqa: E402

pytestmark = pytest.mark.slow
LENGTHS = (70, 47, 34)  # tokens of three prompts
NEAR = {8: 0.2, 4: 1.5}  # logits, whose spread is 3, beside those of the plain cache
NOISE = 2e-3  # of float32 where products are of other shapes


@pytest.fixture(scope="module")
def model() -> Any:
    folder = find_model("smollm2")
    if folder is None:
        pytest.skip("SmolLM2 is not here: graphlossy datasets prepare smollm2")
    found: Any = load_model(folder)
    found.set_attn_implementation("graphlossy")
    found.generation_config.eos_token_id = None
    found.config.use_cache = True
    return found.eval()


@pytest.fixture(scope="module")
def prompts() -> list[Tensor]:
    folder = find_model("smollm2")
    held = text.blocks(text.split(text.documents("pydoc")).test, load_tokenizer(folder), max(LENGTHS))
    return [held[5 * row, :length][None] for row, length in enumerate(LENGTHS)]


def packing(model: Any, bits: int, **options: Any) -> KIVICache:
    """A cache that packs soon."""
    return KIVICache(model.config, bits, **{"group_size": 16, "residual_length": 16, **options})


def evicting(model: Any, **options: Any) -> EvictionCache:
    return H2OCache(model.config, 20, 12, **options)


def padded(prompts: list[Tensor], more: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens and mask of a batch, padded on the left to the longest and ``more``."""
    width = max(one.shape[1] for one in prompts) + more
    rows = [torch.nn.functional.pad(one[0] + 1, (width - one.shape[1], 0)) for one in prompts]
    both = torch.stack(rows)
    return (both - 1).clamp(min=0), (both > 0).long()


def read(model: Any, cache: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits of the last token."""
    with torch.no_grad():
        found: Tensor = model(ids, attention_mask=mask, past_key_values=cache, logits_to_keep=1).logits[:, -1]
    return found


def texts(found: Any) -> Tensor:
    """The tokens that were generated."""
    sequences: Tensor = found.sequences
    return sequences[:, -len(found.logits) :]


def row_of(found: Any, row: int) -> Any:
    """One row of what was generated."""
    one = copy.copy(found)
    one.sequences = found.sequences[row : row + 1]
    one.logits = tuple(step[row : row + 1] for step in found.logits)
    return one


def alike(first: Any, second: Any, within: float) -> None:
    """Logits within a bound and equal tokens, in every row until a near tie: a gap that the bound can turn."""
    assert texts(first).shape == texts(second).shape
    for row, (a, b) in enumerate(zip(texts(first).tolist(), texts(second).tolist(), strict=True)):
        for step, (one, other) in enumerate(zip(a, b, strict=True)):
            x, y = first.logits[step][row], second.logits[step][row]
            assert float((x - y).abs().max()) < within, (row, step)
            if one != other:
                assert float(x[one] - x[other]) < 2 * within, (row, step)
                break


def equal(first: Any, second: Any) -> None:
    """The same tokens from the same logits, bit for bit."""
    assert torch.equal(texts(first), texts(second))
    assert all(torch.equal(a, b) for a, b in zip(first.logits, second.logits, strict=True))


@pytest.mark.parametrize("bits", [8, 4])
def test_texts_are_near_those_of_the_plain_cache(model: Any, prompts: list[Tensor], bits: int) -> None:
    cache = packing(model, bits)
    plain = generate(model, DynamicCache(config=model.config), prompts[0], 12)
    packed = generate(model, cache, prompts[0], 12)
    alike(plain, packed, NEAR[bits])
    assert cache.packed_layers[0].packed == [3] and cache.plain_bytes > cache.nbytes
    model.set_attn_implementation("sdpa")
    try:
        decoded = generate(model, packing(model, bits), prompts[0], 12)
    finally:
        model.set_attn_implementation("graphlossy")
    alike(decoded, packed, NOISE)


@pytest.mark.parametrize("kind", [8, 4, "h2o"])
def test_padded_rows_are_what_they_are_alone(model: Any, prompts: list[Tensor], kind: Any) -> None:
    def cache() -> Any:
        return evicting(model) if kind == "h2o" else packing(model, kind)

    alone = [generate(model, cache(), one, 6) for one in prompts]
    for more in (0, 32):  # 32: each row has pads that it needs not
        ids, mask = padded(prompts, more)
        together = generate(model, cache(), ids, 6, attention_mask=mask)
        assert together.past_key_values.own_layers[0].padding == [LENGTHS[0] + more - length for length in LENGTHS]
        for row, one in enumerate(alone):
            alike(one, row_of(together, row), NOISE)


@pytest.mark.parametrize("bits", [8, 4])
def test_beams_change_places(model: Any, prompts: list[Tensor], bits: int) -> None:
    options = {"num_beams": 3, "num_return_sequences": 3, "output_logits": False, "output_scores": True}
    plain, packed = (
        generate(model, cache, prompts[1], 8, **options)
        for cache in (DynamicCache(config=model.config), packing(model, bits))
    )
    assert any(len(set(row)) > 1 for row in packed.beam_indices.tolist())
    if bits == 8:
        assert torch.equal(plain.sequences, packed.sequences)
    assert torch.allclose(plain.sequences_scores, packed.sequences_scores, atol=NEAR[bits] / 10)
    assert packed.past_key_values.packed_layers[0].packed == [2] * 3


def test_beams_of_a_cache_that_drops_tokens(model: Any, prompts: list[Tensor]) -> None:
    options = {"num_beams": 3, "output_logits": False}
    everything = H2OCache(model.config, 200, 12)
    plain, whole = (
        generate(model, cache, prompts[1], 8, **options) for cache in (DynamicCache(config=model.config), everything)
    )
    assert torch.equal(plain.sequences, whole.sequences)
    cache = evicting(model)
    generate(model, cache, prompts[1], 8, **options)
    assert cache.own_layers[0].counts == [32] * 3 and cache.get_seq_length() == 54


@pytest.mark.parametrize("kind", [8, 4, "h2o"])
def test_a_generation_goes_on_from_the_cache_that_it_returned(model: Any, prompts: list[Tensor], kind: Any) -> None:
    def cache() -> Any:
        return evicting(model) if kind == "h2o" else packing(model, kind)

    ids, mask = padded(prompts[:2])
    once = generate(model, cache(), ids, 12, attention_mask=mask)
    part = generate(model, cache(), ids, 4, attention_mask=mask)
    for new in (3, 5):
        longer = torch.ones_like(part.sequences)
        longer[:, : mask.shape[1]] = mask
        logits = part.logits
        part = generate(model, part.past_key_values, part.sequences, new, attention_mask=longer)
        part.logits = logits + part.logits
    equal(once, part)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_prompt_in_pieces(model: Any, prompts: list[Tensor], bits: int) -> None:
    once, pieces = packing(model, bits), packing(model, bits)
    whole = read(model, once, prompts[0])
    for piece in prompts[0].split([37, 1, 8, 20, 4], 1):
        last = read(model, pieces, piece)
    assert float((whole - last).abs().max()) < NEAR[bits]
    for a, b in zip(once.packed_layers, pieces.packed_layers, strict=True):
        assert a.packed == b.packed == [3]  # stored alike, whatever the pieces
        assert a.recent_keys.shape == b.recent_keys.shape
    first, again = (cache.packed_layers[0].states()[0] for cache in (once, pieces))  # which tokens alone determine
    assert torch.allclose(first, again, atol=1e-2)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_prefix_is_read_once_for_several_questions(model: Any, prompts: list[Tensor], bits: int) -> None:
    prefix, questions = packing(model, bits), [prompts[1][:, :9], prompts[2][:, :9]]
    read(model, prefix, prompts[0])
    state = copy.deepcopy([layer.state() for layer in prefix.packed_layers])
    answers = []
    for question in questions:
        answers.append(generate(model, copy.deepcopy(prefix), torch.cat([prompts[0], question], 1), 4))
    for layer, (held, numbers) in zip(prefix.packed_layers, state, strict=True):  # the copies went on, it did not
        assert layer.state()[1] == numbers and layer.state()[0].keys() == held.keys()
        assert all(torch.equal(layer.state()[0][name], t) for name, t in held.items())
    again = generate(model, copy.deepcopy(prefix), torch.cat([prompts[0], questions[0]], 1), 4)
    equal(answers[0], again)
    both = torch.cat([prompts[0].repeat(2, 1), torch.cat(questions)], 1)
    prefix.batch_repeat_interleave(2)
    together = generate(model, prefix, both, 4)
    for row, answer in enumerate(answers):
        alike(answer, row_of(together, row), NOISE)


@pytest.mark.parametrize("bits", [8, 4])
def test_cropped_and_generated_again(model: Any, prompts: list[Tensor], bits: int) -> None:
    cache = packing(model, bits)
    read(model, cache, prompts[0][:, :-1])
    first = generate(model, cache, prompts[0], 14)
    cache.crop(-13)
    assert cache.get_seq_length() == 70
    cache.crop(-1)  # to where it began, and within what leaves no trace
    equal(first, generate(model, cache, prompts[0], 14))
    generate(model, cache, first.sequences, 20)
    cache.crop(-34)  # beyond it: what was packed comes back rounded
    assert cache.get_seq_length() == 69
    alike(first, generate(model, cache, prompts[0], 14), NEAR[bits])
    with pytest.raises(ValueError, match="0 to -83, got -84"):
        cache.crop(-84)
    with pytest.raises(ValueError, match="cannot be rolled back"):
        dropping = evicting(model)
        read(model, dropping, prompts[2])
        dropping.crop(-1)


@pytest.mark.parametrize("bits", [8, 4])
def test_assisted_decoding_says_the_same(
    model: Any, prompts: list[Tensor], bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = generate(model, packing(model, bits), prompts[0], 12)
    cache, crop = packing(model, bits), KIVICache.crop
    asked: list[int] = []

    def noted(cache: KIVICache, tokens: int) -> None:
        asked.append(tokens)
        crop(cache, tokens)

    monkeypatch.setattr(KIVICache, "crop", noted)
    assisted = generate(model, cache, prompts[0], 12, prompt_lookup_num_tokens=5)
    assert min(asked) < 0  # something was proposed and taken back, at the end beyond what is packed: without a trace
    alike(usual, assisted, NOISE)
    assert cache.get_seq_length() == 81


@pytest.mark.parametrize("kind", [8, 4, "h2o"])
def test_rows_change_places(model: Any, prompts: list[Tensor], kind: Any) -> None:
    cache: Any = evicting(model) if kind == "h2o" else packing(model, kind)
    ids, mask = padded(prompts)
    read(model, cache, ids, mask)
    next_, order = torch.tensor([[50], [60], [70]]), torch.tensor([2, 0, 0])
    other = copy.deepcopy(cache)
    mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    places = mask.sum(1, keepdim=True) - 1

    def step(held: Any, rows: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(
                next_[rows], attention_mask=mask[rows], position_ids=places[rows], past_key_values=held
            ).logits[:, -1]
        return found

    selected = copy.deepcopy(cache)
    expected = step(cache, torch.arange(3))
    other.reorder_cache(order)
    assert float((step(other, order) - expected[order]).abs().max()) < NOISE
    selected.batch_select_indices(torch.tensor([False, True, True]))
    assert selected.own_layers[0].padding == [23, 36]
    assert float((step(selected, torch.tensor([1, 2])) - expected[1:]).abs().max()) < NOISE


def test_what_transformers_asks_of_a_cache(model: Any, prompts: list[Tensor]) -> None:
    plain, packed, dropping = DynamicCache(config=model.config), packing(model, 4), evicting(model)
    for cache in (plain, packed, dropping):
        assert cache.get_seq_length() == 0
        read(model, cache, prompts[1])
        assert len(cache) == len(list(cache.layers)) == model.config.num_hidden_layers == 30
        assert cache.get_seq_length() == cache.get_seq_length(29) == 47
        assert not any(cache.is_sliding) and cache.get_max_length() == -1
    for queries in (1, 7):
        assert packed.get_mask_sizes(queries, 29) == plain.get_mask_sizes(queries, 29) == (47 + queries, 0)
        assert dropping.get_mask_sizes(queries, 29) == (32 + queries, 15)
    assert not packed.is_compileable and not dropping.is_compileable  # their sizes follow from what they are given
    assert packed.is_croppable and not dropping.is_croppable
    with pytest.raises(TypeError, match="offloading"):  # no layer can be moved away between passes
        packing(model, 4, offloading=True)


@pytest.mark.parametrize("kind", [8, 4, "h2o", "knorm"])
def test_a_cache_that_was_reset_is_as_new(model: Any, prompts: list[Tensor], kind: Any) -> None:
    kinds: dict[Any, Any] = {
        "h2o": lambda: evicting(model, storage=packing(model, 8)),
        "knorm": lambda: EvictionCache(model.config, scorers.Knorm(), heavy=0.3, recent=10),
    }
    cache = kinds[kind]() if kind in kinds else packing(model, kind)
    first = generate(model, cache, prompts[1], 4)
    cache.reset()
    assert cache.get_seq_length() == 0
    ids, mask = padded(prompts[1:])
    generate(model, cache, ids, 2, attention_mask=mask)
    cache.reset()
    equal(first, generate(model, cache, prompts[1], 4))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_generation_goes_on_from_a_file(model: Any, prompts: list[Tensor], bits: int, tmp_path: Path) -> None:
    ids, mask = padded(prompts[:2])
    part = generate(model, packing(model, bits), ids, 4, attention_mask=mask)
    cache = part.past_key_values
    cache.save(tmp_path / "cache")
    loaded = KIVICache.load(tmp_path / "cache", model.config)
    mask = torch.nn.functional.pad(mask, (0, 4), value=1)
    equal(*(generate(model, held, part.sequences, 10, attention_mask=mask) for held in (cache, loaded)))
    assert loaded.packed_layers[0].packed == cache.packed_layers[0].packed == [3, 2]
