"""Caches by name, and how far each is from the full one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

transformers = pytest.importorskip("transformers")
from kv_models import model_of, prompt  # noqa: E402

from graphlossy.llm import EvictionCache, KIVICache  # noqa: E402
from graphlossy.llm.kv import scorers  # noqa: E402
from graphlossy.llm.kv._quality import compare_caches  # noqa: E402
from graphlossy.llm.kv.schemes import CacheScheme, parse_cache  # noqa: E402

SMALL = {"group_size": 8, "residual_length": 8, "sinks": 2}


@pytest.mark.parametrize(
    ("name", "scorer", "amounts", "packing"),
    [
        ("plain", None, {}, None),
        (" 4BIT ", None, {}, {"bits": 4}),
        ("k4v2-r-w32-s8-g64", None, {}, {"key_bits": 4, "value_bits": 2, "rotate_values": True, "residual_length": 32,
                                         "sinks": 8, "group_size": 64}),
        ("k4v3-r-v64", None, {}, {"key_bits": 4, "value_bits": 3, "rotate_values": True, "value_group_size": 64}),
        ("h2o", scorers.H2O(), {"heavy": 0.1, "recent": 0.1}, None),
        ("tova:32:8", scorers.TOVA(), {"heavy": 32, "recent": 8}, None),
        ("h2o-p:0.25:64", scorers.H2O(), {"heavy": 0.25, "recent": 64, "prompt_only": True}, None),
        ("expected:0.2", scorers.ExpectedAttention(), {"heavy": 0.2, "recent": 0.1}, None),
        ("snapkv:0.25+2bit-w16", scorers.SnapKV(), {"heavy": 0.25, "recent": 0.1},
         {"bits": 2, "residual_length": 16}),
    ],
)  # fmt: skip
def test_names(name: str, scorer: Any, amounts: dict[str, Any], packing: dict[str, Any] | None) -> None:
    assert parse_cache(name) == CacheScheme(name.strip().lower(), scorer, amounts, packing)


@pytest.mark.parametrize(
    "name", ["", "4bits", "4bit+h2o", "4bit+2bit", "k4", "h2o:1:2:3", "h2o-p-p", "-p", "4bit-x", "nothing"]
)
def test_no_such_name(name: str) -> None:
    with pytest.raises(ValueError, match="(?s)no cache has the name.*k4v3-r-w16-g64.*streaming"):
        parse_cache(name)
    with pytest.raises(ValueError, match="'a' in 'h2o:a' is no number of tokens"):
        parse_cache("h2o:a")


def test_what_is_made() -> None:
    config = model_of("llama").config
    assert isinstance(parse_cache("plain").make(config), transformers.DynamicCache)
    cache = parse_cache("k4v2-r-w32").make(config)
    assert isinstance(cache, KIVICache) and cache.arguments["widths"] == [[4, 2]] * 2
    both = parse_cache("h2o:0.2:0.1+4bit").make(config)
    assert isinstance(both, EvictionCache) and both.own_layers[0].store.key_chunks.bits == 4
    with pytest.raises(ValueError, match="^bits must be one of"):
        parse_cache("5bit").make(config)
    with pytest.raises(ValueError, match="heavy must be"):
        parse_cache("h2o:1.5").make(config)


def test_quality_against_the_whole_text_at_once() -> None:
    model, ids = model_of("llama"), prompt(1, 70)
    schemes = [
        CacheScheme("8", packing={"bits": 8, **SMALL}), CacheScheme("2", packing={"bits": 2, **SMALL}),
        CacheScheme("all", scorers.H2O(), {"heavy": 100, "recent": 5}),
        CacheScheme("few", scorers.H2O(), {"heavy": 4, "recent": 5}),
    ]  # fmt: skip
    plain, eight, two, everything, few = compare_caches(model, ids, [CacheScheme("plain"), *schemes], 40, 4)
    with torch.no_grad():
        expected = functional.cross_entropy(model(ids).logits[0, 40:-1], ids[0, 41:], reduction="sum")
    assert plain.tokens == 29 and plain.nll == pytest.approx(float(expected), rel=1e-4)
    assert plain.kl == pytest.approx(0, abs=1e-6) and plain.agreement == 29
    assert plain.nbytes == 2 * plain.plain_16 == 2 * 2 * 2 * 16 * 69 * 4 and plain.bytes_16 == plain.plain_16
    assert 0 < eight.kl < two.kl and eight.nbytes > two.nbytes
    assert everything.kl < 1e-4 and few.kl > 0.1 and few.nbytes < everything.nbytes / 3
    assert eight.bytes_16 < eight.nbytes and two.plain_16 == plain.plain_16
    assert model.config._attn_implementation == "sdpa"


def test_what_is_scored_is_no_part_of_the_prompt() -> None:
    model, ids = model_of("llama"), prompt(1, 60)
    scheme = CacheScheme("few", scorers.SnapKV(4, 3), {"heavy": 4, "recent": 5})
    (_, one), (_, many) = (compare_caches(model, ids, [scheme], 30, step) for step in (1, 7))
    assert one.nbytes == many.nbytes == 2 * 2 * 2 * 16 * (9 + 29) * 4
    assert many.nll == pytest.approx(one.nll, rel=1e-4)


def test_steps_of_another_size_score_the_same_words() -> None:
    model, ids = model_of("gpt2"), prompt(1, 60)
    scheme = CacheScheme("4", packing={"bits": 4, **SMALL})
    found = [list(compare_caches(model, ids, [scheme], 30, step)) for step in (1, 7, 100)]
    for one in found[1:]:
        assert one[0].nll == pytest.approx(found[0][0].nll, rel=1e-5)
        assert one[1].nll == pytest.approx(found[0][1].nll, rel=0.05)
    for text, first, step in ((ids, 59, 1), (ids, 0, 1), (prompt(2, 9), 3, 1), (ids, 30, 0)):
        with pytest.raises(ValueError, match="one text of more than prompt"):
            next(compare_caches(model, text, [], first, step))
