"""Runs of tiny models: what is written, what is saved, and that a killed run goes on bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from graphlossy.llm.finetune import FinetuneConfig, FinetuneError, Finetuning, Interrupted, Observer, TokenDataset

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")
VOCABULARY = 48
UNTIMED = ("seconds", "evaluation_seconds", "peak_bytes", "step_peak_bytes")


def llama(seed: int = 0, **changes: Any) -> Any:
    settings = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, **changes}  # fmt: skip
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=VOCABULARY, **settings))


def bert(classes: int = 2, dropout: float = 0.1) -> Any:
    settings = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64, num_labels=classes, hidden_dropout_prob=dropout, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(settings)


def counting(sequences: int = 24, length: int = 32, start: int = 0) -> torch.Tensor:
    """Sequences that count upwards from different tokens: a model learns them in a few steps."""
    first = torch.arange(start, start + sequences)[:, None] * 7
    return (first + torch.arange(length)) % (VOCABULARY - 1) + 1


def config(method: str = "4bit", **changes: Any) -> FinetuneConfig:
    settings = {"steps": 6, "batch_size": 4, "lr": 5e-3, "device": "cpu", "threads": 1, "eval_every": 3, **changes}
    return FinetuneConfig.from_method(method, **settings)


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log without what no two runs share."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in UNTIMED} for row in rows]


class Killed(BaseException):
    """What ends a process: nothing catches it."""


class KillAfter(Observer):
    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, line: dict[str, Any]) -> None:
        if line["step"] == self.at:
            raise Killed


@pytest.mark.parametrize("method", ["plain", "exact", "4bit", "wta", "pps+4bit", "lora", "lora+4bit"])
def test_a_run_learns_and_leaves_a_model(method: str, tmp_path: Path) -> None:
    if "lora" in method:
        pytest.importorskip("peft")
    valid = counting(6, start=100)
    run = Finetuning(
        llama(), counting(), valid, config(method, steps=12, lr=5e-2 if "lora" in method else 1e-2), tmp_path / "run"
    )
    result = run.run()
    assert result["valid_loss"] < (0.96 if "lora" in method else 0.9) * result["first_valid_loss"]
    assert result["perplexity"] == pytest.approx(math.exp(result["valid_loss"]))
    smaller = result["saved_bytes"] < result["plain_bytes"]
    assert smaller == (method not in ("plain", "lora")) and result["saved_bytes"] > 0
    assert sum(row["saved_bytes"] for row in result["by_operation"]) == result["saved_bytes"]
    assert result["trained_parameters"] < result["parameters"] or "lora" not in method
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(13))
    assert list((tmp_path / "run" / "model").glob("*.safetensors"))
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert not run.model._forward_pre_hooks and run.model.config.use_cache


def test_the_saved_model_is_the_tuned_one(tmp_path: Path) -> None:
    run = Finetuning(llama(), counting(), None, config(), tmp_path / "run")
    run.run()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    ours = dict(run.model.named_parameters())
    assert all(torch.equal(value, ours[name]) for name, value in loaded.named_parameters())
    assert not torch.equal(loaded.lm_head.weight, llama().lm_head.weight)


def test_merged_adapters_are_a_plain_model(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    valid = counting(4, start=50)
    settings = config("lora+4bit", merge=True, lora_modules=("q_proj", "down_proj"))
    result = Finetuning(llama(), counting(), valid, settings, tmp_path / "run").run()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert float(loaded(valid, labels=valid).loss.detach()) == pytest.approx(result["valid_loss"], rel=1e-4)


def test_recomputing_changes_no_loss(tmp_path: Path) -> None:
    seen = {}
    for method in ("plain", "exact"):
        Finetuning(llama(), counting(), None, config(method), tmp_path / method).run()
        seen[method] = [line["loss"] for line in lines(tmp_path / method)]
    assert seen["exact"] == pytest.approx(seen["plain"], rel=1e-5)


def test_low_bits_stay_near_the_plain_loss(tmp_path: Path) -> None:
    seen = {}
    for method in ("plain", "4bit"):
        seen[method] = Finetuning(llama(), counting(), None, config(method), tmp_path / method).run()
    assert seen["4bit"]["train_loss"] == pytest.approx(seen["plain"]["train_loss"], rel=0.05)
    assert seen["4bit"]["plain_bytes"] == seen["plain"]["plain_bytes"] == seen["plain"]["saved_bytes"]


@pytest.mark.parametrize(
    ("method", "changes", "seconds"),
    [
        ("plain", {}, 0.0),
        ("4bit", {"accumulate": 2}, 0.0),
        ("wta", {"epochs": 3, "steps": None, "batch_size": 10}, 0.0),  # norms of an earlier epoch
        ("pps+4bit", {"epochs": 2, "steps": None, "gradient_checkpointing": True}, 0.0),
        ("lora+4bit", {"lora_dropout": 0.2}, 0.0),
        ("4bit", {}, 1e9),  # killed before its first checkpoint
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(method: str, changes: dict[str, Any], seconds: float, tmp_path: Path) -> None:
    if "lora" in method:
        pytest.importorskip("peft")
    settings, valid = config(method, **changes), counting(4, start=50)
    whole = Finetuning(llama(), counting(), valid, settings, tmp_path / "whole").run()
    cut = Finetuning(llama(), counting(), valid, settings, tmp_path / "cut", checkpoint_seconds=seconds)
    with pytest.raises(Killed):
        cut.run(KillAfter(4))
    assert not (tmp_path / "cut" / "result.json").exists()
    torch.rand(3)  # another process has another stream
    for left in ("checkpoints/.last.pt.x", ".model-1"):  # as if it had been killed while it wrote them
        (tmp_path / "cut" / left).mkdir()
    again = Finetuning.resume(tmp_path / "cut", llama(), counting(), valid)
    result = again.run()
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert not [path for path in (tmp_path / "cut").rglob(".*")]
    assert result["valid_loss"] == whole["valid_loss"] and result["by_operation"] == whole["by_operation"]
    assert Finetuning.resume(tmp_path / "cut", llama(), counting(), valid).run() == result  # nothing is left to do


def test_a_signal_stops_after_a_step_with_a_checkpoint(tmp_path: Path) -> None:
    import os
    import signal

    class Stop(Observer):
        stopped = False

        def step(self, line: dict[str, Any]) -> None:
            if line["step"] == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        def stopping(self) -> None:
            self.stopped = True

    watch, before = Stop(), signal.getsignal(signal.SIGTERM)
    run = Finetuning(llama(), counting(), None, config(), tmp_path / "run")
    with pytest.raises(Interrupted, match="after step 2") as stop:
        run.run(watch)
    assert watch.stopped and stop.value.signal_number == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is before
    Finetuning(llama(), counting(), None, config(), tmp_path / "whole").run()
    Finetuning.resume(tmp_path / "run", llama(), counting()).run()
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    # Sequences of different lengths: the mean is over all tokens, not over the batches' means.
    mask = (torch.arange(32) < torch.randint(4, 32, (24, 1))).long()
    data = TokenDataset(counting(), mask)
    seen = []
    for name, size, times in (("large", 8, 1), ("small", 2, 4)):
        settings = config("plain", batch_size=size, accumulate=times, clip=0.0)
        Finetuning(llama(), data, None, settings, tmp_path / name).run()
        seen.append([(line["loss"], line["grad_norm"]) for line in lines(tmp_path / name)])
    assert torch.allclose(torch.tensor(seen[0]), torch.tensor(seen[1]), rtol=1e-3)


@pytest.mark.parametrize("method", ["4bit", "pps"])
def test_an_encoder_classifies(method: str, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (40,), generator=draw)
    ids = torch.randint(2, VOCABULARY // 2, (40, 20), generator=draw) + labels[:, None] * (VOCABULARY // 2 - 2)
    mask = (torch.arange(20) < torch.randint(5, 21, (40, 1), generator=draw)).long()
    data = TokenDataset(ids * mask, mask, labels)
    settings = config(method, task="classify", steps=20, batch_size=8, lr=3e-3)
    result = Finetuning(bert(), data, data, settings, tmp_path / "run").run()
    assert result["valid_accuracy"] > 0.9 and result["valid_loss"] < result["first_valid_loss"]
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert loaded.config.num_labels == 2


@pytest.mark.parametrize(("method", "given"), [("4bit", False), ("pps", True), ("plain", False)])
def test_sample_ids_are_given_only_where_they_are_needed(
    method: str, given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphlossy.llm.finetune import _step

    seen: list[dict[str, Any]] = []
    real = _step.inputs_of

    def watched(*args: Any) -> dict[str, Any]:
        seen.append(real(*args))
        return seen[-1]

    monkeypatch.setattr(_step, "inputs_of", watched)
    settings = config(method, steps=None, epochs=1)
    Finetuning(llama(), counting(), None, settings, tmp_path / "run").run()
    assert all(("sample_ids" in batch) == given for batch in seen)
    if given:
        assert sorted(i for batch in seen for i in batch["sample_ids"].tolist()) == list(range(24))


def test_bf16_autocast_keeps_float32_weights(tmp_path: Path) -> None:
    run = Finetuning(llama(), counting(), counting(4), config("4bit", dtype="bf16"), tmp_path / "run")
    result = run.run()
    assert result["valid_loss"] < result["first_valid_loss"]
    assert {weight.dtype for weight in run.model.parameters()} == {torch.float32}


def test_gradient_checkpointing_keeps_fewer_bytes_and_the_same_loss(tmp_path: Path) -> None:
    found = {}
    for on in (False, True):
        settings = config("plain", gradient_checkpointing=on)
        run = Finetuning(llama(), counting(), None, settings, tmp_path / str(on))
        found[on] = run.run()
        assert not any(getattr(module, "gradient_checkpointing", False) for module in run.model.modules())
    assert found[True]["saved_bytes"] < 0.7 * found[False]["saved_bytes"]
    assert found[True]["train_loss"] == pytest.approx(found[False]["train_loss"], rel=1e-5)


def test_a_byte_budget_is_kept(tmp_path: Path) -> None:
    settings = config("plain", budget="300KiB", recompute=True)
    result = Finetuning(llama(), counting(), None, settings, tmp_path / "run").run()
    assert 0 < result["saved_bytes"] <= 300 * 1024 < result["plain_bytes"]


def test_a_loss_that_is_not_finite_names_the_step(tmp_path: Path) -> None:
    model = llama()

    class Break(Observer):
        def step(self, line: dict[str, Any]) -> None:
            if line["step"] == 3:
                with torch.no_grad():
                    model.lm_head.weight[5] = math.inf

    run = Finetuning(model, counting(), None, config(), tmp_path / "run")
    with pytest.raises(FinetuneError, match=r"became (nan|inf) in step 4; lower --lr"):
        run.run(Break())
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3]


def test_a_run_that_fails_at_once_leaves_no_folder(tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[5] = math.nan
    with pytest.raises(FinetuneError, match="step 1"):
        Finetuning(model, counting(), None, config(), tmp_path / "run").run()
    assert not (tmp_path / "run").exists()


def test_frozen_and_tied_weights(tmp_path: Path) -> None:
    tied = llama(tie_word_embeddings=True)
    for weight in tied.model.layers[0].parameters():
        weight.requires_grad_(False)
    before = tied.model.layers[0].mlp.up_proj.weight.clone()
    result = Finetuning(tied, counting(), counting(3), config(), tmp_path / "run").run()
    assert torch.equal(tied.model.layers[0].mlp.up_proj.weight, before)
    assert result["trained_parameters"] < result["parameters"] and result["valid_loss"] < result["first_valid_loss"]
    with pytest.raises(Killed):
        Finetuning(tied, counting(), None, config(), tmp_path / "cut", checkpoint_seconds=0).run(KillAfter(2))
    state = torch.load(tmp_path / "cut" / "checkpoints" / "last.pt", weights_only=True)
    assert "lm_head.weight" not in state["weights"] and "model.embed_tokens.weight" in state["weights"]


def test_too_little_memory_names_the_step_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphlossy.llm.finetune import _step

    run = Finetuning(llama(), counting(), None, config(), tmp_path / "run")
    real = _step.Stepper._update

    def fail(self: Any, step: int, loss: float) -> float:
        if step == 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return real(self, step, loss)

    monkeypatch.setattr(_step.Stepper, "_update", fail)
    with pytest.raises(FinetuneError, match="not enough memory in step 3; give a smaller --batch-size"):
        run.run()
    monkeypatch.undo()
    assert Finetuning.resume(tmp_path / "run", llama(), counting()).run()["steps"] == 6
