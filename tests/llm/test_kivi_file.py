"""Saving and loading a cache, and the bytes of one that is planned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")
from kv_models import FAMILIES, generate, model_of, prompt, small  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from graphlossy.llm import EvictionCache, H2OCache, KIVICache, plan_cache  # noqa: E402
from graphlossy.llm.kv import scorers  # noqa: E402
from graphlossy.llm.kv._quality import with_attention  # noqa: E402
from graphlossy.llm.kv.schemes import CacheScheme  # noqa: E402
from graphlossy.llm.kv.scorers import H2O, Knorm  # noqa: E402


def started(family: str, **options: Any) -> tuple[Any, Tensor, Tensor, Any]:
    """A model, a padded prompt with its mask, and a cache that has read it."""
    model, ids = model_of(family), prompt(2, 40)
    mask = torch.ones_like(ids)
    ids[1, :13], mask[1, :13] = 0, 0
    cache = small(model.config, 2, **options)
    with torch.no_grad():
        model(ids, attention_mask=mask, past_key_values=cache)
    return model, ids, mask, cache


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_goes_on_from_its_file(family: str, tmp_path: Path) -> None:
    model, ids, mask, cache = started(family, rotate_values=True, value_group_size=16)
    cache.save(tmp_path / "new" / "prefix.safetensors")
    again = KIVICache.load(tmp_path / "new" / "prefix.safetensors", model.config)
    assert again.nbytes <= cache.nbytes and again.get_seq_length() == 40
    more = torch.cat([ids, prompt(2, 3)], 1)
    mask = torch.cat([mask, torch.ones(2, 3, dtype=mask.dtype)], 1)
    a, b = (generate(model, held, more, attention_mask=mask) for held in (cache, again))
    assert torch.equal(a.sequences, b.sequences)
    assert all(torch.equal(x, y) for x, y in zip(a.logits, b.logits, strict=True))


def test_a_short_text_of_which_nothing_is_packed_yet(tmp_path: Path) -> None:
    model = model_of("llama")
    cache = small(model.config, 4)
    with torch.no_grad():
        model(prompt(2, 6), past_key_values=cache)
    assert not any(any(layer.packed) for layer in cache.own_layers)
    cache.save(tmp_path / "short")
    again = KIVICache.load(tmp_path / "short", model.config)
    for old, new in zip(cache.own_layers, again.own_layers, strict=True):
        assert torch.equal(old.keys, new.keys) and torch.equal(old.values, new.values) and new.seen == 6


class Oldest(scorers.Scorer):
    """One of a user's own."""

    def scores(self, view: Any) -> Tensor:
        return -view.positions.float()


def eviction(config: Any, kind: str) -> Any:
    storage = small(config, 4, residual_length=8) if kind == "packed" else None
    scorer = {"own": Oldest(), "prompt": scorers.SnapKV(4, 3)}.get(kind, scorers.H2O())
    return EvictionCache(config, scorer, heavy=10, recent=6, storage=storage)


@pytest.mark.parametrize("kind", ["plain", "packed", "prompt", "own"])
def test_what_was_kept_goes_on_from_its_file(kind: str, tmp_path: Path) -> None:
    model, ids, mask, _ = started("gemma3")
    model.set_attn_implementation("graphlossy")
    cache = eviction(model.config, kind)
    with torch.no_grad():
        model(ids, attention_mask=mask, past_key_values=cache)
    cache.save(tmp_path / "cache")
    again = EvictionCache.load(tmp_path / "cache", model.config, "cpu", Oldest() if kind == "own" else None)
    assert again.nbytes <= cache.nbytes and again.own_layers[0].counts == cache.own_layers[0].counts == [16, 16]
    more = torch.cat([ids, prompt(2, 3)], 1)
    mask = torch.cat([mask, torch.ones(2, 3, dtype=mask.dtype)], 1)
    a, b = (generate(model, held, more, 30, attention_mask=mask) for held in (cache, again))
    assert torch.equal(a.sequences, b.sequences)
    assert all(torch.equal(x, y) for x, y in zip(a.logits, b.logits, strict=True))
    assert again.arguments == cache.arguments and again.own_layers[0].counts == cache.own_layers[0].counts


def test_an_eviction_that_cannot_be_loaded(tmp_path: Path) -> None:
    model, _, _, kivi = started("llama")
    kivi.save(tmp_path / "kivi")
    eviction(model.config, "own").save(tmp_path / "own")
    with pytest.raises(ValueError, match="holds another cache: load it with KIVICache.load"):
        EvictionCache.load(tmp_path / "kivi", model.config)
    with pytest.raises(ValueError, match="holds another cache: load it with EvictionCache.load"):
        KIVICache.load(tmp_path / "own", model.config)
    with pytest.raises(ValueError, match=r"by a scorer Oldest that is not ours: give load\(..., scorer=Oldest\(\)\)"):
        EvictionCache.load(tmp_path / "own", model.config)
    assert EvictionCache.load(tmp_path / "own", model.config, scorer=Oldest()).get_seq_length() == 0
    with pytest.raises(ValueError, match="of another model: num_hidden_layers 2, not 3"):
        EvictionCache.load(tmp_path / "own", transformers.LlamaConfig(num_hidden_layers=3), scorer=Oldest())
    with pytest.raises(ValueError, match="of another model: model_type 'llama', not 'gemma3_text'"):
        EvictionCache.load(tmp_path / "own", FAMILIES["gemma3"](), scorer=Oldest())


@pytest.mark.parametrize("kind", ["kivi", "plain", "packed"])
def test_a_file_of_a_wider_dtype_is_refused(kind: str, tmp_path: Path) -> None:
    model, ids, _, cache = started("llama")
    model.set_attn_implementation("graphlossy")
    if kind != "kivi":
        cache = eviction(model.config, kind)
        with torch.no_grad():
            model(ids, past_key_values=cache)
    cache.save(tmp_path / "cache")
    again = type(cache).load(tmp_path / "cache", model.config)
    half = model_of("llama").to(torch.bfloat16)
    half.set_attn_implementation("graphlossy")
    with pytest.raises(
        ValueError, match=r"holds torch.float32, and was given keys of torch.bfloat16: run the model in"
    ):
        half(ids[:, :1], past_key_values=again)
    assert again.get_seq_length() == 40


def test_layers_of_their_own_and_an_empty_cache(tmp_path: Path) -> None:
    model, _, _, cache = started("llama", per_layer={0: None})
    cache.save(tmp_path / "a")
    again = KIVICache.load(tmp_path / "a", model.config, device="cpu")
    assert again.packed_layers == again.layers[1:] and again.bytes_by_layer()[0] == cache.bytes_by_layer()[0]
    small(model.config).save(tmp_path / "b")
    assert KIVICache.load(tmp_path / "b", model.config).get_seq_length() == 0


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    model, _, _, cache = started("llama")
    path = tmp_path / "cache"
    cache.save(path)
    with pytest.raises(TypeError, match="config must be a model's configuration"):
        KIVICache.load(path, None)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        KIVICache.load(tmp_path / "none", model.config)
    deeper = transformers.LlamaConfig(num_hidden_layers=3)
    with pytest.raises(ValueError, match="of another model: num_hidden_layers 2, not 3"):
        KIVICache.load(path, deeper)
    with pytest.raises(ValueError, match="of another model: model_type 'llama', not 'gemma3_text'"):
        KIVICache.load(path, FAMILIES["gemma3"]())
    for name, value in (("num_key_value_heads", 4), ("head_dim", 32)):  # whose layers are of the same kinds
        other = FAMILIES["llama"]()
        setattr(other, name, value)
        with pytest.raises(ValueError, match=f"of another model: {name} {getattr(model.config, name)}, not {value}"):
            KIVICache.load(path, other)
    (tmp_path / "half").write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="truncated"):
        KIVICache.load(tmp_path / "half", model.config)
    save_file({"x": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="not one that a cache"):
        KIVICache.load(tmp_path / "other", model.config)
    facts = {"graphlossy.llm.kv": json.dumps({"version": 9})}
    save_file(load_file(path), tmp_path / "newer", facts)
    with pytest.raises(ValueError, match="version 9"):
        KIVICache.load(tmp_path / "newer", model.config)


def parts_of(facts: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the settings and numbers of a header are."""
    for key, value in facts.items() if isinstance(facts, dict) else enumerate(facts):
        if isinstance(facts, dict) and path != ("model",):  # of another model, where one is missing
            yield (*path, key)
        if isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
            yield from parts_of(value, (*path, key))


@pytest.mark.parametrize("kind", ["kivi", "plain", "packed", "prompt"])
def test_a_file_that_lacks_something_is_damaged(kind: str, tmp_path: Path) -> None:
    model, ids, _, cache = started("gemma3", rotate_values=True)  # layers of its own too
    if kind != "kivi":
        model.set_attn_implementation("graphlossy")
        cache = eviction(model.config, kind)
        with torch.no_grad():
            model(ids, past_key_values=cache)
    path = tmp_path / "cache"
    cache.save(path)
    with safe_open(path, "pt") as file:
        header = file.metadata()["graphlossy.llm.kv"]
    tensors = load_file(path)

    def refused(facts: str, held: dict[str, Tensor]) -> None:
        save_file(held, path, {"graphlossy.llm.kv": facts})
        with pytest.raises(ValueError, match="cache is damaged .*; save the cache again"):
            type(cache).load(path, model.config)

    places = list(parts_of(json.loads(header)))
    assert len(places) > 15 and len(tensors) > 5
    for place in places:
        facts = json.loads(header)
        within = facts
        for key in place[:-1]:
            within = within[key]
        del within[place[-1]]
        refused(json.dumps(facts), tensors)
    for name in tensors:
        refused(header, {other: t for other, t in tensors.items() if other != name})
    own = next(i for i, layer in enumerate(cache.layers) if layer in cache.own_layers)
    refused(header, {other: t for other, t in tensors.items() if not other.startswith(f"{own}.")})
    for wrong in ("", "[]", "3", header.replace('"model": {', '"model": [], "other": {')):
        refused(wrong, tensors)


def test_heavy_hitters_load_their_own_files(tmp_path: Path) -> None:
    config = FAMILIES["llama"]()
    H2OCache(config, 0.2, 7, small(config, 4), prompt_only=True).save(tmp_path / "h2o")
    again = H2OCache.load(tmp_path / "h2o", config)
    assert type(again) is H2OCache and again.own_layers[0].budget.recent == 7 and again.own_layers[0].prompt_only
    assert again.arguments == EvictionCache.load(tmp_path / "h2o", config).arguments
    EvictionCache(config, scorers.TOVA(), heavy=9, recent=9).save(tmp_path / "tova")
    for given in (None, scorers.TOVA()):
        with pytest.raises(ValueError, match=r"what TOVA\(\) kept, not H2O\(\): load it with EvictionCache.load"):
            H2OCache.load(tmp_path / "tova", config, scorer=given)
    with pytest.raises(TypeError, match="scorer must be one of"):
        EvictionCache.load(tmp_path / "tova", config, scorer="tova")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    _, _, _, cache = started("llama", per_layer={0: None})
    cache.save(tmp_path / "cache")
    before = (tmp_path / "cache").read_bytes()
    cache.layers[0] = transformers.cache_utils.StaticLayer(8)
    with pytest.raises(ValueError, match="layer 0 is a StaticLayer, whose state cannot be saved"):
        cache.save(tmp_path / "cache")
    assert (tmp_path / "cache").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


SMALL = {"group_size": 8, "residual_length": 8, "sinks": 2}
PLANNED = [
    CacheScheme("2", packing={"bits": 2, **SMALL}),
    CacheScheme("wide", packing={"key_bits": 4, "value_bits": 3, "value_group_size": 16, **SMALL}),
    CacheScheme("own", packing={"per_layer": {0: 8, 1: 3}}),
    CacheScheme("few", H2O(), {"heavy": 0.25, "recent": 0.1}),
    CacheScheme("few tokens", Knorm(), {"heavy": 20, "recent": 10}),
    CacheScheme("both", H2O(), {"heavy": 0.25, "recent": 0.25}, {"bits": 4, **SMALL}),
]


@pytest.mark.parametrize("length", [1, 7, 40, 200])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_tells_the_bytes_of_the_real_cache(family: str, length: int) -> None:
    model, ids = model_of(family), prompt(3, length)
    sliding = family in ("gemma2", "gemma3")  # whose own layers are longer than the text in a plan
    latent = family == "deepseek_v3"  # of which nothing can be dropped
    schemes = [s for s in PLANNED if not (sliding and s.name == "own" or latent and s.scorer)]
    plan = plan_cache(model.config, 3, length, torch.float32, schemes)
    for scheme in [CacheScheme("plain"), *schemes]:
        cache = scheme.make(model.config)
        with torch.no_grad(), with_attention(model, cache):
            model(ids, past_key_values=cache)
        if scheme.name != "plain":
            assert cache.nbytes == plan[scheme.name].nbytes, scheme.name
        elif not sliding:
            assert plan["plain"].nbytes == sum(4 * (x.keys.numel() + x.values.numel()) for x in cache.layers)
    assert plan["plain"].bits_per_number == 32


def test_a_plan_of_many_texts_takes_no_time() -> None:
    config = FAMILIES["llama"]()
    many, one = (plan_cache(config, batch, 1, caches=["4bit", "h2o", "h2o+4bit"]) for batch in (10**12, 1))
    assert [row.nbytes for row in many.rows] == [10**12 * row.nbytes for row in one.rows]
    assert many.rows[1].bits_per_number == one.rows[1].bits_per_number


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (transformers.FalconConfig(num_hidden_layers=1, hidden_size=64, num_attention_heads=4), 2 * 16 * 100),
        (transformers.GPTBigCodeConfig(n_layer=1, n_embd=64, n_head=4), 2 * 16 * 100),
        (transformers.Qwen3NextConfig(num_hidden_layers=4, num_key_value_heads=2, head_dim=16), 2 * 2 * 16 * 100),
    ],
    ids=["falcon", "big code", "linear attention"],
)
def test_plans_of_other_families(config: Any, numbers: int) -> None:
    assert plan_cache(config, 1, 100, torch.float16, [])["plain"].nbytes == 2 * numbers


def test_what_a_plan_refuses() -> None:
    config = FAMILIES["llama"]()
    with pytest.raises(ValueError, match="length must be a whole number of at least 1, got 0"):
        plan_cache(config, 1, 0)
    with pytest.raises(ValueError, match=r"length must be at most 16,777,216 tokens \(2\^24\), got 10,000,000,000"):
        plan_cache(config, 1, 10**10, caches="h2o")
    with pytest.raises(ValueError, match=r"at most 2\^40 tokens"):
        plan_cache(config, 10**13, 1)
    with pytest.raises(TypeError, match="model's configuration"):
        plan_cache("smollm2")
    with pytest.raises(ValueError, match="^bits must be one of"):
        plan_cache(config, caches="7bit")
    with pytest.raises(ValueError, match="no cache has the name '4-bit'"):
        plan_cache(config, caches=["4-bit"])
    with pytest.raises(KeyError, match="no scheme '3bit' in this plan; it has plain, 8bit"):
        plan_cache(config, 1, 9)["3bit"]
