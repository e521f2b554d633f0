"""graphlossy.llm.compress beside what training is made of: adapters, autocast, checkpointing, resume, the Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from graphlossy import llm
from graphlossy.llm import NormCache, SampleIds, with_sample_ids

transformers = pytest.importorskip("transformers")


def tiny(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{
            "vocab_size": 64, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "use_cache": False,
            "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, **changes,
        }
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).train()


def tokens(samples: int = 4, length: int = 32) -> Tensor:
    return torch.randint(1, 64, (samples, length), generator=torch.Generator().manual_seed(1))


def gradients(model: Any, **given: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model(**given).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")  # PEFT's calls of transformers
def test_frozen_weights_keep_no_input_and_adapters_a_sample() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny(hidden_size=64), peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    ids = tokens()
    wanted = gradients(model, input_ids=ids, labels=ids)
    ledger = llm.compress(model, 0.5, estimator="uniform", target_modules="lora_A", recompute=False, seed=3)
    found = [gradients(model, input_ids=ids, labels=ids) for _ in range(20)]
    assert set(found[0]) == set(wanted) and all("lora" in name for name in wanted)
    sampled = [r for r in ledger.records if r.shape == (64, 64) and "lora_A" in r.module]
    assert len(sampled) == 4 and sum(r.saved_bytes > 0 for r in sampled) == 2  # q and v share
    assert not any(r.op == "linear" and r.saved_bytes and "base_layer" in r.module for r in ledger.records)
    name = next(name for name in wanted if "lora_A" in name)
    mean = sum(gradient[name] for gradient in found) / 20
    one = torch.stack([(gradient[name] - wanted[name]).norm() for gradient in found]).mean()
    assert 0 < float((mean - wanted[name]).norm()) < 0.5 * float(one)
    assert torch.equal(found[0][name.replace("lora_A", "lora_B")], wanted[name.replace("lora_A", "lora_B")])


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_computes_its_part_plainly(reentrant: bool) -> None:
    model, ids = tiny(), tokens()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    wanted = gradients(model, input_ids=ids, labels=ids)
    llm.compress(model, bits=None)
    found = gradients(model, input_ids=ids, labels=ids)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    ledger = llm.compress(model, 0.5, estimator="pps", bits=4)
    sampled = gradients(model, input_ids=ids, labels=ids, sample_ids=torch.arange(4))
    assert not any(r.saved_bytes for r in ledger.records if "layers" in r.module and r.op == "linear")
    assert set(sampled) == set(wanted) and all(bool(g.isfinite().all()) for g in sampled.values())


@pytest.mark.parametrize("options", [{"bits": None}, {"bits": 8}, {"budget": 0.6, "estimator": "wta"}])
def test_bfloat16_autocast(options: dict[str, Any]) -> None:
    model, ids = tiny(vocab_size=1200), tokens()
    numbers = {"sample_ids": torch.arange(4)} if "budget" in options else {}

    def run(**more: Any) -> tuple[float, dict[str, Tensor]]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, **more).loss
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}

    loss, wanted = run()
    ledger = llm.compress(model, seed=2, **options)
    value, found = run(**numbers)
    assert value == loss and all(gradient.dtype == torch.float32 for gradient in found.values())
    a, b = (torch.cat([g[name].flatten() for name in wanted]) for g in (found, wanted))
    limit = {None: 0.03, 8: 0.08}.get(options.get("bits", 0), 1.5)
    assert float((a - b).norm() / b.norm()) < limit and ledger.plain_bytes > 1.1 * ledger.saved_bytes


def test_accumulated_gradients_are_sums() -> None:
    model, ids = tiny(), tokens()
    llm.compress(model, bits=None)
    whole = gradients(model, input_ids=ids, labels=ids)
    model.zero_grad()
    for part in ids.split(2):
        (model(input_ids=part, labels=part).loss / 2).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, whole[name], rtol=1e-4, atol=1e-6)


def test_distributed_data_parallel(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, ids = tiny(), tokens()
        llm.compress(model, 0.5, estimator="pps", seed=9)
        alone = [gradients(model, input_ids=ids, labels=ids, sample_ids=torch.arange(4)) for _ in range(2)][1]
        llm.compress(model, 0.5, estimator="pps", seed=9)
        wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            model.zero_grad()
            wrapped(input_ids=ids, labels=ids, sample_ids=torch.arange(4)).loss.backward()
        assert all(torch.equal(p.grad, alone[name]) for name, p in model.named_parameters())
    finally:
        torch.distributed.destroy_process_group()


def steps(model: Any, count: int, start: int = 0) -> list[float]:
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for step in range(start, start + count):
        ids = tokens(8)[step % 2 :: 2]
        loss = model(input_ids=ids, labels=ids, sample_ids=torch.arange(step % 2, 8, 2)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    options = {"estimator": "wta", "bits": 4}
    model = tiny()
    torch.manual_seed(11)
    llm.compress(model, 0.4, **options)
    steps(model, 3)
    kept = {"model": model.state_dict(), "lossy": llm.state(model), "rng": torch.get_rng_state()}
    torch.save(kept, tmp_path / "kept.pt")
    wanted = steps(model, 3, 3)
    held = torch.load(tmp_path / "kept.pt", weights_only=True)
    for with_norms in (True, False):
        other = tiny()
        other.load_state_dict(held["model"])
        llm.compress(other, 0.4, **options)
        if with_norms:
            llm.load_state(other, held["lossy"])
        torch.set_rng_state(held["rng"])
        assert (steps(other, 3, 3) == wanted) is with_norms


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")
def test_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    data = SampleIds([{"input_ids": row, "labels": row} for row in tokens(8)])

    def train(folder: Path, resume: str | None = None) -> Any:
        arguments = transformers.TrainingArguments(
            str(folder), max_steps=4, save_steps=2, per_device_train_batch_size=4, logging_steps=1, seed=3,
            remove_unused_columns=False, report_to=[], disable_tqdm=True, use_cpu=True, save_total_limit=5,
            dataloader_pin_memory=False,
        )  # fmt: skip
        callback = llm.LossyCallback(0.5, estimator="pps")
        collate = with_sample_ids(transformers.default_data_collator)
        trainer = transformers.Trainer(
            tiny(), arguments, train_dataset=data, data_collator=collate, callbacks=[callback]
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    first = train(tmp_path / "run")
    logs = [entry for entry in first.state.log_history if "loss" in entry]
    assert len(logs) == 4 and all(0 < entry["saved_mb"] < entry["plain_mb"] for entry in logs)
    assert not first.model._forward_pre_hooks
    held = torch.load(tmp_path / "run" / "checkpoint-2" / "graphlossy.pt", weights_only=True)
    assert held["rows"]["norms"]
    again = train(tmp_path / "run", str(tmp_path / "run" / "checkpoint-2"))
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (first, again)]
    assert losses[1] == losses[0]


def test_without_transformers_a_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "graphlossy.llm._callback", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"LossyCallback needs the package transformers: pip install"):
        _ = llm.LossyCallback
    with pytest.raises(AttributeError, match="no attribute 'LossyCalback'"):
        _ = llm.LossyCalback


def test_collating() -> None:
    features = [{"input_ids": torch.ones(2), "sample_ids": number} for number in (3, 9)]
    found = with_sample_ids(lambda items: {"input_ids": torch.stack([i["input_ids"] for i in items])})(features)
    assert found["sample_ids"].tolist() == [3, 9] and found["sample_ids"].dtype == torch.int64
    with pytest.raises(KeyError, match="it has input_ids; wrap the dataset in SampleIds"):
        with_sample_ids(dict)([{"input_ids": 1}])
    with pytest.raises(TypeError, match="item 0 is int"):
        SampleIds([1])[0]
    with pytest.raises(TypeError, match="got generator"):
        SampleIds(i for i in range(3))
    assert SampleIds([{}, {}])[-1] == {"sample_ids": 1}


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    asked=st.lists(st.integers(0, 8), min_size=1, max_size=6),
    length=st.integers(1, 12),
)
def test_norms_are_kept_by_sample_and_position(lengths: list[int], asked: list[int], length: int) -> None:
    cache = NormCache()
    for number, size in enumerate(lengths):
        cache.store("a", [number], torch.arange(1.0, size + 1).unsqueeze(0) + number)
    assert cache.nbytes == 2 * sum(lengths) and cache.lookup("b", asked, length) is None
    twin = NormCache()
    twin.load_state_dict(cache.state_dict())
    found = cache.lookup("a", asked, length)
    if all(number >= len(lengths) for number in asked):
        assert found is None
        return
    assert torch.equal(found, twin.lookup("a", asked, length))
    assert found.shape == (len(asked), length) and bool((found > 0).all())
    for row, number in zip(found, asked, strict=True):
        if number < len(lengths):
            there = min(length, lengths[number])
            assert row[:there].tolist() == [number + i + 1.0 for i in range(there)]


def test_norms_that_are_zero_or_not_finite() -> None:
    cache = NormCache()
    cache.store("a", [0, 1], torch.tensor([[0.0, 4.0], [float("nan"), 1.0]]))
    assert cache.lookup("a", [1], 2) is None
    low, high = cache.lookup("a", [0], 2)[0].tolist()
    assert 0 < low < 0.01 and high == 4  # a row of weight zero would never be drawn again
    cache.store("a", [0], torch.zeros(1, 2))
    assert cache.lookup("a", [0], 2).tolist() == [[1.0, 1.0]]


def test_ids_that_do_not_fit_the_batch() -> None:
    model = tiny()
    llm.compress(model, 0.5, estimator="pps")
    with pytest.raises(ValueError, match="sample_ids has 3 numbers for a batch of 4 samples"):
        model(input_ids=tokens(), labels=tokens(), sample_ids=torch.arange(3))


def test_ids_are_taken_away_where_nothing_is_sampled() -> None:
    model = tiny()
    llm.compress(model)
    model(input_ids=tokens(), labels=tokens(), sample_ids=torch.arange(4)).loss.backward()


def test_a_state_of_other_arguments_is_refused() -> None:
    model, other = tiny(), tiny()
    llm.compress(model)
    llm.compress(other, 0.5, estimator="pps")
    for target, source in ((model, other), (other, model)):
        with pytest.raises(ValueError, match="of a switch with other arguments"):
            llm.load_state(target, llm.state(source))
