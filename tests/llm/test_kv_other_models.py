"""Caches whose model is another than they were made for, or not of the usual kind; what is stored in each of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")
from kv_models import FAMILIES, HYBRID, SIZES, close, generate, model_of, prompt, small  # noqa: E402
from transformers import DynamicCache  # noqa: E402

from graphlossy.llm import EvictionCache, H2OCache, KIVICache, plan_cache  # noqa: E402
from graphlossy.llm.kv import scorers  # noqa: E402
from graphlossy.llm.kv._quality import with_attention  # noqa: E402


@torch.no_grad()
def read(model: Any, cache: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    return model(ids, attention_mask=mask, past_key_values=cache).logits


def test_pads_are_forgotten_with_their_text() -> None:
    model, ids = model_of("llama"), prompt(2, 60)
    mask = torch.ones_like(ids)
    mask[1, :20] = 0
    cache = small(model.config)
    read(model, cache, ids, mask)
    cache.crop(-60)
    fresh = small(model.config)
    for piece in (ids, ids[:, :20]):  # without a mask: nothing is padded
        assert torch.equal(read(model, cache, piece), read(model, fresh, piece))
    assert cache.packed_layers[0].padding == [0, 0]


def test_pads_of_other_rows_are_refused() -> None:
    for make in (small, lambda config: EvictionCache(config, scorers.Knorm(), heavy=4, recent=4)):
        model = model_of("llama")
        model.set_attn_implementation("graphlossy")
        cache = make(model.config)
        cache.set_padding(torch.ones(3, 10))
        with pytest.raises(ValueError, match="set_padding told of the pads of 3 rows, and the first pass has 2"):
            read(model, cache, prompt(2, 10))


def storages(cache: Any) -> int:
    """Bytes of all storages that the attributes of layers lead to."""
    found: dict[int, int] = {}

    def look(value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif depth:
            inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
            for part in (*inside, *getattr(value, "__dict__", {}).values()):
                look(part, depth - 1)

    for layer in cache.layers:
        look({k: v for k, v in vars(layer).items() if k != "_sliding_window_tensor"}, 4)  # a number
    return sum(found.values())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", HYBRID])
def test_bytes_are_those_of_all_storages(family: str) -> None:
    model = model_of(family)
    cache = small(model.config, 4)
    for count in (500, 1, 1, 7):  # after the prompt a sliding window is a view of all of it, in transformers
        read(model, cache, prompt(2, count))
        assert cache.nbytes == storages(cache)
    assert all(sum(kinds.values()) > 0 for kinds in cache.bytes_by_layer())
    if family.startswith("gemma"):
        assert cache.bytes_by_layer()[0]["plain"] <= 1.25 * 2 * 2 * 2 * 31 * 16 * 4  # not the 500 tokens


@pytest.mark.parametrize("kind", ["kivi", "h2o"])
def test_rows_of_a_model_with_states_are_taken(kind: str) -> None:
    model, ids = model_of(HYBRID), prompt(3, 40)
    if kind == "h2o":
        model.set_attn_implementation("graphlossy")

    def cache() -> Any:
        return small(model.config) if kind == "kivi" else H2OCache(model.config, 20, 8)

    held, rows = cache(), torch.tensor([2, 0, 0])
    read(model, held, ids)
    held.batch_repeat_interleave(2)
    held.batch_select_indices(torch.tensor([True, False] * 3))
    held.batch_select_indices(rows)
    again = cache()
    read(model, again, ids[rows])
    following = prompt(3, 50)[rows][:, 40:]
    for name in ("conv_states", "recurrent_states"):
        found, wanted = (getattr(layer, name)[0] for layer in (held.layers[0], again.layers[0]))
        assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(read(model, held, following), read(model, again, following), atol=1e-3)


def test_a_cache_is_rolled_back_whole_or_not_at_all() -> None:
    model, ids = model_of(HYBRID), prompt(1, 60)
    cache = small(model.config)
    cache.activate_past_recording()  # of the convolution alone
    read(model, cache, ids)
    with pytest.raises(ValueError, match=r"layer 0 \(LinearAttentionLayer\) cannot be rolled back by 5 tokens"):
        cache.crop(-5)
    assert cache.get_seq_length() == 60
    cache.crop(0)
    model = model_of("gemma3")  # whose first layer is a window of 24
    cache = small(model.config)
    read(model, cache, ids[:, :20])
    with pytest.raises(ValueError, match="0 to -20, got -21"):
        cache.crop(-21)
    cache.crop(-5)
    read(model, cache, ids[:, 15:])
    with pytest.raises(ValueError, match=r"layer 0 \(DynamicSlidingWindowLayer\) cannot be rolled back by 5 tokens"):
        cache.crop(-5)
    assert [layer.get_seq_length() for layer in cache.layers] == [60, 60]
    cache.activate_past_recording()
    read(model, cache, ids[:, :8])
    cache.crop(-5)
    assert [layer.get_seq_length() for layer in cache.layers] == [63, 63]
    with pytest.raises(ValueError, match="cannot be rolled back by 5 tokens"):
        cache.crop(-5)  # what it recorded went with the first rollback


def test_a_model_of_more_layers_is_refused() -> None:
    deep = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 3}))
    deep.set_attn_implementation("graphlossy")
    shallow = FAMILIES["llama"]()
    shallow._attn_implementation = "graphlossy"
    for cache in (small(shallow), H2OCache(shallow)):
        with pytest.raises(ValueError, match="made for a model of 2 layers, and was given the tokens of layer 2"):
            read(deep, cache, prompt(1, 9))


def test_a_copy_is_of_the_same_model() -> None:
    model, ids = model_of("llama"), prompt(2, 40)
    cache = H2OCache(model.config, 10, 10)
    copied = copy.deepcopy(cache)
    model.set_attn_implementation("graphlossy")
    assert torch.equal(read(model, copied, ids), read(model, cache, ids))
    again = copy.deepcopy(cache)
    assert torch.equal(read(model, again, ids[:, :1]), read(model, cache, ids[:, :1]))
    assert again.own_layers[0].kept_keys.data_ptr() != cache.own_layers[0].kept_keys.data_ptr()


def test_shares_are_of_all_that_was_read() -> None:
    model, ids = model_of("llama"), prompt(1, 100)
    model.set_attn_implementation("graphlossy")
    kept = []
    for pieces in ([100], [10] * 10, [10, 90]):
        cache, start = H2OCache(model.config, 0.2, 0.2), 0
        for piece in pieces:
            read(model, cache, ids[:, start : start + piece])
            start += piece
        for _ in range(5):  # what is written counts in no share
            read(model, cache, ids[:, :1])
        kept.append(cache.own_layers[0].counts)
    assert kept[0] == [40] and kept[2] == [40] and kept[1] == [40]


def test_models_with_sinks_of_their_own_keep_their_attention() -> None:
    config = transformers.GptOssConfig(
        **SIZES, head_dim=16, num_local_experts=2, num_experts_per_tok=1, sliding_window=24,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    model, ids = transformers.GptOssForCausalLM(config).eval(), prompt(2, 40)
    model.generation_config.eos_token_id = None
    cache = small(model.config)
    with with_attention(model, cache):
        packed = generate(model, cache, ids)
    assert any(cache.packed_layers[0].packed)
    close(generate(model, DynamicCache(config=model.config), ids), packed)
    with (
        with_attention(model, dropping := H2OCache(config)),
        pytest.raises(ValueError, match="caches that drop tokens"),
    ):
        read(model, dropping, ids)


def test_layers_of_two_kinds_in_one_are_named() -> None:
    config = transformers.FalconH1Config(num_hidden_layers=2)
    for make in (KIVICache, H2OCache):
        with pytest.raises(ValueError, match="LinearAttentionAndFullAttentionLayer.* are not supported yet"):
            make(config)


def test_plans_of_models_without_keys_and_of_several_widths() -> None:
    with pytest.raises(ValueError, match="'mamba' keeps no keys and values"):
        plan_cache(transformers.MambaConfig(num_hidden_layers=2), caches=[])
    config = transformers.Gemma4TextConfig(
        **{**SIZES, "num_hidden_layers": 4}, head_dim=16, global_head_dim=32, sliding_window=24,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    plan = plan_cache(config, 3, 200, torch.float32, ["4bit-w8-g8"])
    assert plan["plain"].kinds == {"plain": 2 * 3 * 2 * 4 * 2 * (23 * 16 + 200 * 32)}
    with pytest.raises(ValueError, match=r"at most 2\^40 tokens, got 1048576 x 10000000"):
        plan_cache(config, 2**20, 10**7)


def test_options_of_the_wrong_type() -> None:
    config = FAMILIES["llama"]()
    for options, said in (
        ({"per_layer": [4, 2]}, "per_layer must give widths by the number of a layer"),
        ({"rotate_values": "yes"}, "rotate_values must be True or False, got 'yes'"),
    ):
        with pytest.raises(TypeError, match=said):
            KIVICache(config, **options)
