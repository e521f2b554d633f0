"""graphlossy.llm.compress on whole models: exact forward passes, gradients right on average, and its errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphlossy
from graphlossy import llm

transformers = pytest.importorskip("transformers")
ESTIMATORS = ("pps", "wta", "crs", "uniform", "topk")


def tiny(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=1100, hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=True, use_cache=False,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config).train()
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=1100, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, use_cache=False, bos_token_id=1, eos_token_id=1,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config).train()
    config = transformers.BertConfig(
        vocab_size=1100, hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).train()


def batch(model: Any, samples: int = 4, length: int = 32) -> dict[str, Tensor]:
    ids = torch.randint(1100, (samples, length), generator=torch.Generator().manual_seed(3))
    classes = model.config.architectures is None and type(model).__name__.startswith("Bert")
    return {"input_ids": ids, "labels": torch.arange(samples) % 3 if classes else ids}


def gradients(model: Any, **given: Any) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**given).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Relative distance of all gradients as one vector."""
    a, b = (torch.cat([gradient[name].flatten() for name in wanted]) for gradient in (found, wanted))
    return float((a - b).norm() / b.norm())


@pytest.fixture(params=["llama", "gpt2", "bert"])
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    yield tiny(request.param)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("recompute", [True, False])
def test_the_loss_is_exact_and_the_gradient_near(model: Any, estimator: str, recompute: bool) -> None:
    given, ids = batch(model), torch.arange(4)
    loss, wanted = gradients(model, **given)
    llm.compress(model, 0.5, estimator=estimator, recompute=recompute, seed=1)
    found = [gradients(model, sample_ids=ids, **given) for _ in range(6)]
    assert all(value == loss for value, _ in found)
    assert set(found[0][1]) == set(wanted)
    later = [gradient for _, gradient in found[1:]]  # at first the norms of the gradients are not known
    mean = {name: sum(gradient[name] for gradient in later) / 5 for name in wanted}
    assert 1e-3 < apart(found[0][1], wanted) < 1.5
    if estimator != "topk":
        assert apart(mean, wanted) < 0.7 * sum(apart(gradient, wanted) for gradient in later) / 5
    llm.restore(model)
    assert apart(gradients(model, **given)[1], wanted) == 0


@pytest.mark.parametrize("bits", [None, 8, 4, 2])
def test_without_a_share_everything_is_rounded_or_computed_again(model: Any, bits: int | None) -> None:
    given = batch(model, 4, 64)
    loss, wanted = gradients(model, **given)
    ledger = llm.compress(model, bits=bits, seed=1)
    value, found = gradients(model, **given)
    assert value == loss and ledger.plain_bytes > 1.15 * ledger.saved_bytes
    error = apart(found, wanted)
    assert error < 1e-6 if bits is None else error < {8: 0.05, 4: 0.5, 2: 2.5}[bits]


def projections(estimator: str, seeds: int) -> tuple[Tensor, float]:
    """One weight's gradient along its true direction, on the second visit, over seeds; and the true length."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 1))
    x = torch.randn(8, 16, 32) * torch.logspace(-1, 0.7, 16).view(1, 16, 1)
    target = torch.randn(8, 16, 1)

    def gradient(**given: Any) -> Tensor:
        net.zero_grad()
        (net(x, **given) - target).square().mean().backward()
        return net[2].weight.grad.flatten().clone()

    true = gradient()
    direction, found = true / true.norm(), []
    for seed in range(seeds):
        llm.compress(net, 0.3, estimator=estimator, seed=1000 * seed)
        for _ in range(2):  # at first the norms of the gradients are not known
            last = gradient(sample_ids=torch.arange(8))
        found.append(last @ direction)
    return torch.stack(found), float(true.norm())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_weight_gradients_are_unbiased_but_for_topk(estimator: str) -> None:
    found, true = projections(estimator, 50)
    off = float((found.mean() - true).abs() / (found.std() / 50**0.5 + 1e-12))
    assert off > 6 if estimator == "topk" else off < 4


def test_a_planted_bias_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the paper's code, where in a corner case rows are not rescaled."""
    from dataclasses import replace

    from graphlossy.llm import _sampled_linear

    plain = _sampled_linear.sample_rows

    def unscaled(weights: Tensor, k: int, method: str, seed: int) -> Any:
        sample = plain(weights, k, method, seed)
        return replace(sample, scale=torch.ones_like(sample.scale))

    monkeypatch.setattr(_sampled_linear, "sample_rows", unscaled)
    found, true = projections("pps", 50)
    assert float((found.mean() - true).abs() / (found.std() / 50**0.5)) > 6


def test_norms_of_the_last_visit_lower_the_error() -> None:
    """The second visit draws by ||x|| ||g||, the first by ||x|| alone."""
    model = tiny("llama")
    labels = torch.full((4, 32), -100)
    labels[:, ::8] = 7  # few tokens carry the gradient
    given = {"input_ids": batch(model)["input_ids"], "labels": labels}
    _, wanted = gradients(model, **given)
    errors: list[list[float]] = []
    for seed in range(8):
        llm.compress(model, 0.25, estimator="pps", seed=100 * seed)
        errors.append([apart(gradients(model, sample_ids=torch.arange(4), **given)[1], wanted) for _ in range(2)])
    first, second = torch.tensor(errors).mean(0)
    assert second < 0.8 * first


def test_layers_with_one_input_share_a_sample() -> None:
    model = tiny("llama")
    ledger = llm.compress(model, 0.5, estimator="uniform", recompute=False)
    gradients(model, **batch(model))
    rows = [r for r in ledger.records if r.op == "linear" and r.shape == (64, 32)]  # 64 of 128 rows
    q, k, v = ([r for r in rows if f"layers.0.self_attn.{name}_proj" in r.module] for name in "qkv")
    assert [r.saved_bytes for r in (*q, *k, *v)] == [64 * 32 * 4, 0, 0]
    gate, up = ([r for r in rows if f"layers.0.mlp.{name}_proj" in r.module] for name in ("gate", "up"))
    assert [r.saved_bytes for r in (*gate, *up)] == [64 * 32 * 4, 0]
    assert q[0].plain_bytes == 128 * 32 * 4


def test_an_input_that_is_stored_anyway_costs_nothing() -> None:
    """All linear inputs of a block follow from what the other operations keep: sampling saves products, not bytes."""
    model = tiny("llama")
    saved = {}
    for share in (None, 0.5):
        ledger = llm.compress(model, share, bits=None, estimator=None if share is None else "uniform")
        gradients(model, **batch(model))
        saved[share] = sum(r.saved_bytes for r in ledger.records if len(r.shape) > 1)
    assert saved[0.5] == saved[None]


def test_sample_ids_are_asked_for_and_never_reach_the_model() -> None:
    model = tiny("llama")
    given = batch(model)
    llm.compress(model, 0.5, estimator="wta")
    with pytest.raises(ValueError, match=r"'wta' weighs rows .* give the model sample_ids"):
        model(**given)
    with pytest.raises(TypeError, match=r"integer tensor \[B\].*got torch.float32 of shape \(4,\)"):
        model(sample_ids=torch.zeros(4), **given)
    with pytest.raises(TypeError, match="got list"):
        model(sample_ids=[0, 1, 2, 3], **given)
    gradients(model, sample_ids=torch.arange(4), **given)
    model.eval()
    assert model(sample_ids=torch.arange(4), **given).loss == model(**given).loss
    model.train()
    with torch.no_grad():
        model(**given)
    llm.compress(model, 0.5, estimator="uniform")
    gradients(model, **given)
    gradients(model, sample_ids=torch.arange(4), **given)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"budget": 0.0}, ValueError, r"budget=0.0: a share of the rows must be above 0 and at most 1"),
        ({"budget": 1.5}, ValueError, "bytes are a whole number"),
        ({"budget": float("nan")}, ValueError, "budget=nan"),
        ({"budget": True}, TypeError, "got True"),
        ({"budget": [1]}, TypeError, "a share of the rows"),
        ({"budget": "many"}, ValueError, "'many' is not a size"),
        ({"budget": "1GiB", "bits": 4}, ValueError, "bits or a budget in bytes, not both"),
        ({"budget": "1GiB", "estimator": "pps"}, ValueError, "takes a share of the rows as its budget, got '1GiB'"),
        ({"estimator": "wtacrs"}, ValueError, "estimator must be one of 'pps', 'wta', .*; got 'wtacrs'"),
        ({"bits": 5}, ValueError, "bits must be one of"),
        ({"bits": "four"}, ValueError, "bits must be 1, 2, 3, 4, 8 or None; got 'four'"),
        ({"target_modules": ["q_proj"]}, ValueError, "give a share too"),
        ({"budget": 0.3, "target_modules": "q_porj"}, ValueError, "no linear layer .* 'q_porj'; there are q_proj"),
    ],
)  # fmt: skip
def test_arguments_that_are_refused(given: dict[str, Any], error: type[Exception], said: str) -> None:
    model = tiny("llama")
    with pytest.raises(error, match=said):
        llm.compress(model, **given)
    assert not model._forward_pre_hooks
    with pytest.raises(TypeError, match="torch.nn.Module; got str"):
        llm.compress("model", **{**given, "budget": None, "bits": 4, "estimator": None, "target_modules": None})  # type: ignore[arg-type]


def test_target_modules_by_name_or_part() -> None:
    model = tiny("llama")
    from graphlossy.llm._switch import _targets

    assert _targets(model, "q_proj") == [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
    assert _targets(model, ["mlp", "model.layers.1.self_attn.o_proj"])[-1] == "model.layers.1.self_attn.o_proj"
    everything = _targets(model, None)
    assert len(everything) == 14 and "lm_head" not in everything


def test_a_budget_in_bytes_is_kept() -> None:
    model = tiny("llama")
    given = batch(model, 8, 64)
    ledger = llm.compress(model, bits=4)
    gradients(model, **given)
    size = int(0.8 * ledger.saved_bytes)
    ledger = llm.compress(model, size)
    for _ in range(3):
        gradients(model, **given)
        assert ledger.saved_bytes <= size


def test_names_weights_and_copies() -> None:
    model = tiny("llama")
    before, text = {k: v.clone() for k, v in model.state_dict().items()}, repr(model)
    llm.compress(model, 0.5, estimator="pps", seed=5)
    assert repr(model) == text and list(model.state_dict()) == list(before)
    given = batch(model)
    loss, first = gradients(model, sample_ids=torch.arange(4), **given)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ValueError, match="sample_ids"):
            twin(**given)
        assert gradients(twin, sample_ids=torch.arange(4), **given)[0] == loss
    graphlossy.restore(model)
    assert not model._forward_pre_hooks and not model._forward_hooks and not model._forward_pre_hooks_with_kwargs
