"""Settings, data, schedule, folders and models of a fine-tuning run: what is refused, and in which words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.llm import finetune
from graphlossy.llm.finetune import (
    METHODS,
    FinetuneConfig,
    FinetuneError,
    Finetuning,
    RunFolder,
    TokenDataset,
    learning_rate,
    load_model,
    load_tokenizer,
    method_settings,
    position_limit,
)
from graphlossy.llm.finetune._data import Batches, as_tokens

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(**changes: Any) -> Any:
    settings = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
                "max_position_embeddings": 32, "pad_token_id": 0, **changes}  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=20, **settings))


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"budget": 1.5}, r"budget must be a share of the token rows in \(0, 1\].*got 1.5"),
        ({"budget": 0.0}, r"\(0, 1\]"),
        ({"budget": -0.3}, r"\(0, 1\]"),
        ({"budget": float("nan")}, r"\(0, 1\]"),
        ({"budget": "six"}, "such as 6GiB; got six"),
        ({"budget": "6GiB"}, "a budget of bytes chooses the bits itself"),
        ({"budget": "6GiB", "bits": None, "estimator": "wta"}, "estimator wta needs a share"),
        ({"bits": 5}, "bits must be one of 8, 4, 3, 2, 1, or none, got 5"),
        ({"estimator": "wat"}, "did you mean wta"),
        ({"target_modules": ("q_proj",)}, "give a budget"),
        ({"task": "casual"}, "did you mean causal"),
        ({"lr": 0}, "lr must be a positive number"),
        ({"lr": float("inf")}, "lr must be a positive number"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"lora_dropout": 1.0}, "below 1"),
        ({"dtype": "fp16"}, "dtype must be one of float32, bf16"),
        ({"schedule": "step"}, "schedule must be one of"),
        ({"clip": -1.0}, "clip must be 0 or a positive number"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(FinetuneError, match=words) as caught:
        FinetuneConfig(**settings)
    assert "\n" not in str(caught.value)


def test_settings_survive_json() -> None:
    config = FinetuneConfig.from_method("pps+4bit", target_modules=["q_proj"], lora_modules="all-linear")
    assert FinetuneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(FinetuneError, match="no setting colour"):
        FinetuneConfig.from_dict({"colour": "red"})


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_settings_and_can_be_overruled(name: str) -> None:
    config = FinetuneConfig.from_method(name)
    assert config.lossy == (name not in ("plain", "lora"))
    assert config.needs_sample_ids == (name in ("wta", "pps", "crs"))
    assert FinetuneConfig.from_method(name, bits=3).bits == 3


def test_methods_add_up() -> None:
    assert method_settings("lora+4bit") == {
        "bits": 4, "budget": None, "estimator": None, "recompute": True, "lora_rank": 8, "lr": 2e-4,
    }  # fmt: skip
    assert method_settings("pps+4bit") == method_settings("4bit+pps")
    assert FinetuneConfig(estimator="wta").budget == 0.3
    assert FinetuneConfig(budget=1).budget == 1.0
    with pytest.raises(FinetuneError, match="sets bits twice"):
        method_settings("4bit+2bit")
    with pytest.raises(FinetuneError, match="did you mean wta"):
        method_settings("wtaa")


@given(st.integers(1, 300), st.integers(0, 50), st.sampled_from(finetune.SCHEDULES))
def test_the_rate_rises_then_falls_and_is_positive(steps: int, warmup: int, schedule: str) -> None:
    warmup = min(warmup, steps)
    rates = [learning_rate(step, steps, 2.0, schedule, warmup) for step in range(1, steps + 1)]
    assert all(0 < rate <= 2.0 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup]) and rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == pytest.approx(2.0)


# -- data -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31 - 1))
def test_every_epoch_visits_every_sequence_once(count: int, size: int, times: int, seed: int) -> None:
    batches = Batches(TokenDataset(torch.ones(count, 2, dtype=torch.long)), size, times, seed)
    for epoch in (1, 2):
        first = (epoch - 1) * batches.steps_in_epoch + 1
        steps = [batches.of_step(step) for step in range(first, first + batches.steps_in_epoch)]
        seen = [i for parts in steps for batch in parts for i in batch["sample_ids"].tolist()]
        assert sorted(seen) == list(range(count))
        assert all(len(parts) <= times and all(len(b["sample_ids"]) <= size for b in parts) for parts in steps)
        assert {batches.epoch_of(step) for step in range(first, first + batches.steps_in_epoch)} == {epoch}


def test_the_order_differs_between_epochs_and_seeds() -> None:
    data = TokenDataset(torch.ones(40, 2, dtype=torch.long))
    orders = [
        [i for step in range(a, a + 10) for i in Batches(data, 4, 1, seed).of_step(step)[0]["sample_ids"].tolist()]
        for seed, a in ((0, 1), (0, 11), (1, 1), (0, 1))
    ]
    assert orders[0] == orders[3] and len({tuple(order) for order in orders}) == 3


def test_padding_is_cut_where_a_batch_has_nothing_else() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    data = TokenDataset(torch.arange(15).view(3, 5), mask)
    batch = data.batch(torch.tensor([0, 1]))
    assert batch["input_ids"].tolist() == [[0, 1, 2], [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[0, 1, 2], [5, 6, -100]] and batch["sample_ids"].tolist() == [0, 1]
    assert "attention_mask" not in data.batch(torch.tensor([2]))


def test_data_in_every_form_are_the_same() -> None:
    ids, labels = torch.arange(12).view(3, 4), torch.tensor([1, 0, 1])
    whole = TokenDataset(ids, None, labels)
    items = [{"input_ids": row.tolist(), "label": int(label)} for row, label in zip(ids, labels, strict=True)]
    for data in (whole, {"input_ids": ids, "labels": labels}, items, [whole[i] for i in range(3)]):
        assert as_tokens(data).fingerprint() == whole.fingerprint()
    assert as_tokens(ids).fingerprint() != whole.fingerprint()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (torch.zeros(0, 8, dtype=torch.long), "the text is empty"),
        ([], "the text is empty"),
        (torch.zeros(3, 4), r"whole numbers of shape \[sequences, length\]"),
        (torch.zeros(3, dtype=torch.long), r"got shape \(3,\)"),
        ("a text", "train must be input_ids"),
        ([1, 2], "dicts with input_ids"),
        ({"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.ones(3)}, "labels must have the shape"),
        ({"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 2)}, "attention_mask must"),
        ({"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 3)}, "whole numbers"),
        (torch.ones(2, 1, dtype=torch.long), "sequence 0 has no token to predict"),
    ],
)
def test_data_that_cannot_be_trained_on(data: Any, words: str) -> None:
    with pytest.raises(FinetuneError, match=words):
        as_tokens(data)


# -- models and folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "settings", "words"),
    [
        (torch.ones(2, 33, dtype=torch.long), {}, "33 tokens, more than the model's limit of 32"),
        (torch.full((2, 8), 20), {}, "token 20, the model knows 0 to 19"),
        (torch.full((2, 8), -1), {}, "token -1"),
        (torch.ones(2, 8, dtype=torch.long), {"task": "classify"}, "task classify needs labels"),
    ],
)
def test_data_that_do_not_fit_the_model(data: Any, settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=words):
        Finetuning(tiny(), data, None, FinetuneConfig(device="cpu", **settings), tmp_path / "run")


def test_a_module_that_is_no_transformers_model(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="must be a transformers model, got Linear"):
        Finetuning(torch.nn.Linear(2, 2), torch.ones(2, 8, dtype=torch.long), folder=tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "words"), [("gpu", "device must be"), ("cuda:99", "not available"), ("mps", "must be")]
)
def test_a_device_that_is_not_here(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=words):
        Finetuning(tiny(), torch.ones(2, 8, dtype=torch.long), None, FinetuneConfig(device=name), tmp_path / "run")


@pytest.mark.parametrize("names", [("q_prj",), ("nothing_like_it",)])
@pytest.mark.parametrize("kind", ["target_modules", "lora_modules"])
def test_an_unknown_module_lists_near_ones(kind: str, names: tuple[str, ...], tmp_path: Path) -> None:
    if kind == "lora_modules":
        pytest.importorskip("peft")
    method = "pps" if kind == "target_modules" else "lora"
    config = FinetuneConfig.from_method(method, device="cpu", **{kind: names})
    with pytest.raises(FinetuneError, match=rf"{kind}.*{names[0]}.*q_proj"):
        Finetuning(tiny(), torch.ones(4, 8, dtype=torch.long), None, config, tmp_path / "run").run()
    assert not (tmp_path / "run").exists()


def test_a_missing_model_folder(tmp_path: Path) -> None:
    for load in (load_model, load_tokenizer, position_limit):
        with pytest.raises(FinetuneError, match="no model folder at"):
            load(tmp_path / "nothing")
        with pytest.raises(FinetuneError, match="has no config.json"):
            load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FinetuneError, match="cannot load the model in") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_name_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FinetuneError, match="there is no such folder here") as caught:
        load_model("nobody/no-such-model")
    assert "\n" not in str(caught.value)


def test_new_weights_follow_the_seed_and_move_no_generator(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    before = torch.get_rng_state()
    heads = [load_model(tmp_path, "classify", 3, seed=seed).score.weight for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2]) and heads[0].shape == (3, 16)


def test_limits_of_positions() -> None:
    assert position_limit(transformers.LlamaConfig(max_position_embeddings=64)) == 64
    assert position_limit(transformers.RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512


def test_a_folder_that_holds_another_run_is_left_alone(tmp_path: Path) -> None:
    data = torch.arange(32).view(4, 8) % 20
    config = FinetuneConfig(device="cpu", steps=1)
    Finetuning(tiny(), data, None, config, tmp_path / "run").run()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(FinetuneError, match="holds another run: continue it with --resume, or choose another --out"):
        Finetuning(tiny(), data, None, config, tmp_path / "run").run()
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(FinetuneError, match="is not empty"):
        RunFolder(tmp_path / "mine").check_free()
    with pytest.raises(FinetuneError, match="cannot write output folder"):
        RunFolder(tmp_path / "mine" / "file" / "below").check_free()


def test_resuming_with_something_else_is_refused(tmp_path: Path) -> None:
    data = torch.arange(64).view(8, 8) % 20

    class Stop(finetune.Observer):
        def step(self, line: dict[str, Any]) -> None:
            if line["step"] == 2:
                raise KeyboardInterrupt

    config = FinetuneConfig(device="cpu", steps=4)
    frozen = tiny()
    frozen.model.layers[0].requires_grad_(False)
    with pytest.raises(KeyboardInterrupt):
        Finetuning(frozen, data, None, config, tmp_path / "run", checkpoint_seconds=0).run(Stop())
    with pytest.raises(FinetuneError, match="the training text changed"):
        Finetuning.resume(tmp_path / "run", frozen, data.flip(0)).run()
    with pytest.raises(FinetuneError, match="the model is not the one"):
        Finetuning.resume(tmp_path / "run", tiny(), data).run()
    with pytest.raises(FinetuneError, match="is not a run folder"):
        Finetuning.resume(tmp_path, frozen, data)
    file = tmp_path / "run" / "checkpoints" / "last.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(FinetuneError, match="cannot read checkpoint"):
        Finetuning.resume(tmp_path / "run", frozen, data).run()


def test_importing_it_does_not_import_transformers() -> None:

    code = "import sys, graphlossy.llm.finetune; print([n for n in ('transformers', 'peft') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_public_names_are_sorted_and_documented() -> None:
    assert finetune.__all__ == sorted(finetune.__all__)
    assert all((getattr(finetune, name).__doc__ or "").strip() for name in finetune.__all__)


@pytest.mark.parametrize("package", ["transformers", "peft"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny().save_pretrained(tmp_path)
    model = tiny()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FinetuneError, match=rf"needs the package {package}: pip install 'graphlossy\[llm\]'"):
        if package == "transformers":
            load_model(tmp_path)
        else:
            settings = FinetuneConfig.from_method("lora", device="cpu")
            Finetuning(model, torch.ones(2, 8, dtype=torch.long), None, settings, tmp_path / "run")
