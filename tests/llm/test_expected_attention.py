"""ExpectedAttention: the model's own rotary embedding undone and averaged, and the expectation against draws."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")
from kv_models import FAMILIES, SIZES, WORDS, model_of, prompt  # noqa: E402

from graphlossy.llm.kv._rope import Rotary  # noqa: E402
from graphlossy.llm.kv.scorers import ExpectedAttention, Scorer, SnapKV, StreamingLLM, View  # noqa: E402

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 256}
CONFIGS: dict[str, Any] = {
    **{name: FAMILIES[name] for name in ("llama", "qwen3", "gemma3", "phi", "gpt2")},
    "cohere": lambda: transformers.CohereConfig(**SIZES),  # pairs of neighbours
    "yarn": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=YARN),  # scales, too
}


def seen_by(config: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
    """The last attention layer, and queries before and after their embedding of one pass of 2 x 20 words."""
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    layer = [module for name, module in model.named_modules() if name.endswith(("self_attn", ".attn"))][-1]
    names, found = vars(sys.modules[type(layer).__module__]), []
    if "apply_rotary_pos_emb" in names:
        own = names["apply_rotary_pos_emb"]

        def record(query: Tensor, *rest: Any, **options: Any) -> Any:
            after = own(query, *rest, **options)
            found.append((query, after[0]))
            return after

        monkeypatch.setitem(names, "apply_rotary_pos_emb", record)
    with torch.no_grad():
        model(prompt(2, 20) % WORDS)
    monkeypatch.undo()
    return layer, found


@pytest.mark.parametrize("family", CONFIGS)
def test_the_embedding_is_taken_off(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, found = seen_by(CONFIGS[family](), monkeypatch)
    places = torch.arange(20).expand(2, -1)
    if family == "gpt2":
        x = torch.randn(2, 4, 20, 16)
        assert not found and torch.equal(Rotary(layer).undo(x, places), x)
        assert torch.equal(Rotary(layer).mean_matrix(places, x)[0], torch.eye(16))
        return
    before, after = found[-1]
    assert torch.allclose(Rotary(layer).undo(after, places), before, atol=1e-5)
    assert not torch.allclose(Rotary(layer).undo(after, places + 1), before, atol=1e-2)
    mean = before @ Rotary(layer).mean_matrix(places[:, 7:8], before)[:, None]
    assert torch.allclose(mean[:, :, 7], after[:, :, 7], atol=1e-5)  # the mean over one position is that position
    x = torch.cat([before[:, :, :1], torch.ones(2, before.shape[1], 1, 5)], -1)  # channels that are not embedded
    assert torch.equal(Rotary(layer).undo(x, places[:, 9:10])[..., -5:], x[..., -5:])


def test_the_mean_of_rotations_is_what_the_formula_says(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = seen_by(FAMILIES["llama"](), monkeypatch)
    width, ahead = 16, torch.arange(30, 50)
    angles = ahead[:, None] * 10000 ** (-torch.arange(0, width, 2) / width)
    x = torch.randn(1, width)
    first, second = x[:, :8], x[:, 8:]
    expected = torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
    )
    found = x @ Rotary(layer).mean_matrix(ahead[None], x)[0]
    assert torch.allclose(found[0], expected.mean(0), atol=1e-5)


def test_an_unknown_embedding_is_refused() -> None:
    config = transformers.GPTJConfig(n_embd=64, n_layer=1, n_head=4, rotary_dim=8, vocab_size=WORDS)
    layer = transformers.GPTJForCausalLM(config).transformer.h[0].attn
    with pytest.raises(ValueError, match="how GPTJAttention embeds positions is not known: take another scorer"):
        Rotary(layer)


def view(query: Tensor, keys: Tensor, values: Tensor, padding: int = 0) -> View:
    positions = (torch.arange(keys.shape[2]) - padding).to(torch.int32).expand(keys.shape[:3])
    # the module of SimpleNamespace has no rotary embedding
    return View(lambda: (keys, values), positions, torch.zeros(keys.shape[:3]), None, query, SimpleNamespace())


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(6, 8, 8, generator=draw) / 4
    query = torch.randn(1, 6, 40, 8, generator=draw) @ mixing + torch.randn(1, 6, 1, 8, generator=draw)
    return query, torch.randn(1, 2, 40, 8, generator=draw), torch.randn(1, 2, 40, 8, generator=draw)


@pytest.mark.parametrize("covariance", [True, False])
def test_the_expectation_is_that_of_normal_queries(covariance: bool) -> None:
    query, keys, values = drawn()
    used = query[:, :, 4:].double()
    mean = used.mean(2)
    around = used - mean[:, :, None]
    spread = around.transpose(-1, -2) @ around / used.shape[2]
    normal = torch.distributions.MultivariateNormal(mean[0], spread[0])
    torch.manual_seed(0)
    draws = normal.sample((200_000,))  # [n, 6, 8]
    paid = []
    for head in range(6):
        products = draws[:, head] @ keys[0, head // 3].double().T / 8**0.5
        weights = (
            products.exp().mean(0) if covariance else (mean[0, head] @ keys[0, head // 3].double().T / 8**0.5).exp()
        )
        paid.append(weights / weights.sum())
    expected = torch.stack(paid).view(2, 3, 40).mean(1) * values[0].norm(dim=-1)
    found = ExpectedAttention(use_covariance=covariance).scores(view(query, keys, values))[0]
    assert torch.isinf(found[:, :4]).all()
    assert torch.allclose(found[:, 4:].double(), expected[:, 4:], rtol=0.05)
    other = ExpectedAttention(use_covariance=not covariance).scores(view(query, keys, values))[0]
    assert not torch.allclose(other[:, 4:].double(), expected[:, 4:], rtol=0.1)


def test_options() -> None:
    query, keys, values = drawn(1)
    with_norm = ExpectedAttention(epsilon=0.5).scores(view(query, keys, values))
    without = ExpectedAttention(use_vnorm=False, n_sink=0).scores(view(query, keys, values))
    assert torch.allclose(without.sum(-1), torch.ones(1, 2))
    assert torch.isfinite(without).all() and (with_norm[..., 4:] > 0.5 * values[:, :, 4:].norm(dim=-1) - 1e-5).all()
    for wrong in ({"n_future_positions": 0}, {"epsilon": -0.1}):
        with pytest.raises(ValueError, match="n_future_positions must be at least 1"):
            ExpectedAttention(**wrong)


def test_a_scorer_must_say_scores() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Scorer()


def test_numbers_of_every_scorer() -> None:
    with pytest.raises(ValueError, match="ExpectedAttention: n_sink must be at least 0, got -1"):
        ExpectedAttention(n_sink=-1)
    with pytest.raises(TypeError, match="StreamingLLM: n_sink must be a whole number, got '4'"):
        StreamingLLM(n_sink="4")
    with pytest.raises(TypeError, match="SnapKV: window_size must be a whole number, got True"):
        SnapKV(window_size=True)


def test_few_tokens_and_pads() -> None:
    query, keys, values = drawn(2)
    short = ExpectedAttention().scores(view(query[:, :, :3], keys[:, :, :3], values[:, :, :3]))
    assert torch.isinf(short).all()
    padded = ExpectedAttention().scores(view(query, keys, values, padding=10))
    alone = ExpectedAttention().scores(view(query[:, :, 10:], keys[:, :, 10:], values[:, :, 10:]))
    assert torch.allclose(padded[..., 10:], alone, rtol=1e-4)


def test_it_drops_tokens_of_a_prompt() -> None:
    from graphlossy.llm import EvictionCache

    model = model_of("llama")
    model.set_attn_implementation("graphlossy")
    cache = EvictionCache(model.config, ExpectedAttention(), heavy=12, recent=8)
    ids, layer = prompt(1, 60), cache.own_layers[1]
    with torch.no_grad():
        model(ids, past_key_values=cache)
    assert layer.counts == [20] and layer.positions[0, 0, :4].tolist() == [0, 1, 2, 3]
    model.generate(torch.cat([ids, prompt(1, 1)], 1), past_key_values=cache, max_new_tokens=4)
    assert layer.counts == [24]
