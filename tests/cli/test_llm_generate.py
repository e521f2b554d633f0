"""``graphlossy llm generate`` and ``plan-kv`` with a tiny model made on the spot."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from graphlossy.cli._group import LazyGroup
from graphlossy.llm import _versions

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
from tiny_llm import save_tokenizer, sentences  # noqa: E402

from graphlossy.llm import kv  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=save_tokenizer(folder), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=512, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def run(*arguments: Any, **options: Any) -> Result:
    group = LazyGroup({"llm": ""})
    return CliRunner().invoke(group, ["llm", *map(str, arguments)], **options)


def generated(llama: Path, *arguments: Any) -> dict[str, Any]:
    found = run("generate", "--model", llama, "--device", "cpu", "--json", *arguments)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_text_and_figures(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(" ".join(sentences(20)))
    plain, packed, both = (
        generated(llama, "--prompt-file", file, "--new-tokens", 9, "--cache", name)
        for name in ("plain", "8bit-w8-g8", "h2o:0.2:0.1+4bit-w8-g8")
    )
    assert plain["text"] == packed["text"] != "" and plain["new_tokens"] == both["new_tokens"] == 9
    assert plain["cache_bytes"] == plain["plain_bytes"] == packed["plain_bytes"]
    assert both["cache_bytes"] < packed["cache_bytes"] / 1.5 < plain["cache_bytes"] / 3
    assert plain["prompt_tokens"] > 200 and plain["tokens_per_second"] > 0


def test_what_a_person_sees(llama: Path) -> None:
    text = sentences(1)[0]
    found = run("generate", "--model", llama, "--device", "cpu", "--new-tokens", 5, text)
    assert found.exit_code == 0, found.output
    assert len(found.stdout.split()) >= 1 and "tokens/s" in found.stderr
    assert "cache 4bit" in found.stderr and "times less than the model's own" in found.stderr
    read = run("generate", "--model", llama, "--device", "cpu", "--new-tokens", 5, "--prompt-file", "-", input=text)
    assert read.stdout == found.stdout


def test_seeds_draw_words(llama: Path) -> None:
    options = ["--temperature", 2.0, "--new-tokens", 12, sentences(1)[0]]
    one, again, other = (generated(llama, "--seed", seed, *options)["text"] for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a prompt, or --prompt-file, and not both"),
        (["word", "--prompt-file", "x"], "give a prompt, or --prompt-file, and not both"),
        ([" "], "the prompt is empty"),
        (["--prompt-file", "nowhere.txt"], "cannot read nowhere.txt: No such file"),
        (["the cat", "--cache", "4bits"], "no cache has the name '4bits'"),
        (["the cat", "--cache", "5bit"], "bits must be one of 1, 2, 3, 4, 8, got 5"),
        (["the cat", "--new-tokens", "600"], "more than the model's limit of 512"),
        (["the cat", "--chat"], "has no chat template"),
        (["the cat", "--device", "tpu9"], "device"),
        (["the \ud800 cat"], "the prompt is no text in UTF-8"),
        (["the cat", "--temperature", "nan"], "expected a finite number, got nan"),
        (["the cat", "--temperature", "inf"], "not in the range"),
        (["the cat", "--top-p", "nan"], "expected a finite number, got nan"),
        (["the cat", "--seed", "9" * 23], "not in the range"),
        (["the cat", "--cache", "4bit-s" + "9" * 23], "sinks must be a whole number of at least 0 and at most 1,024"),
    ],
)
def test_mistakes_end_in_one_line(llama: Path, arguments: list[str], said: str) -> None:
    found = run("generate", "--model", llama, *arguments)
    assert found.exit_code == 2 and said in found.output and "Traceback" not in found.output


def test_a_temperature_near_zero_is_zero(llama: Path) -> None:
    words = sentences(1)[0]
    found = [generated(llama, "--temperature", t, "--new-tokens", 6, words)["text"] for t in ("0", "1e-40")]
    assert found[0] == found[1]


def test_half_a_model(llama: Path, tmp_path: Path) -> None:
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    found = run("generate", "--model", tmp_path, "the cat")
    assert found.exit_code == 2 and "cannot load the model in" in found.output and "Traceback" not in found.output


COMMANDS = (["generate", "the cat"], ["plan-kv"], ["bench-kv", "--quiet"], ["finetune", "--quiet", "--data", __file__])


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_hidden_layers": "two"},  # found by checks of types, of what goes together, and by code
        {"hidden_size": 33},
        {"num_attention_heads": 0},
        {"id2label": 3},
        {"auto_map": 3},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_settings_that_cannot_be(llama: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    model = tmp_path / "model"
    shutil.copytree(llama, model)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, **wrong}))
    for name, *rest in COMMANDS:
        out = [] if name in ("generate", "plan-kv") else ["--out", tmp_path / "out"]
        found = run(name, "--model", model, *rest, *out)
        assert found.exit_code == 2 and f" in {model}: " in found.output, found.output
        assert not (tmp_path / "out").exists()


def test_no_model() -> None:
    for name in ("generate", "plan-kv"):
        found = run(name, *(["the cat"] if name == "generate" else []))
        assert found.exit_code == 2 and "give --model" in found.output
        found = run(name, "--model", "./nothing", *(["the cat"] if name == "generate" else []))
        assert found.exit_code == 2 and "Traceback" not in found.output


def test_plan(llama: Path) -> None:
    found = run("plan-kv", "--model", llama, "--batch-size", 3, "--length", 1000, "--dtype", "fp16")
    assert found.exit_code == 0 and found.stdout.startswith("3 x 1000 tokens") and "k4v2-r" in found.stdout
    told = json.loads(run("plan-kv", "--model", llama, "--batch-size", 3, "--length", 1000, "--json").stdout)
    assert told["rows"][0]["nbytes"] == 3 * 1000 * 2 * 2 * 32 * 4
    assert told["rows"][0]["bits_per_number"] == 32
    told = json.loads(run("plan-kv", "--model", llama, "--caches", "h2o:0.2:0.1+4bit", "--json").stdout)
    assert [row["scheme"] for row in told["rows"]] == ["plain", "h2o:0.2:0.1+4bit"]
    for wrong, said in (
        (["--length", 10**10, "--caches", "h2o"], "length must be at most 16,777,216 tokens (2^24)"),
        (["--length", 2, "--batch-size", 10**12], "batch_size x length must be at most 2^40 tokens"),
    ):
        found = run("plan-kv", "--model", llama, *wrong)
        assert found.exit_code == 2 and said in found.output and "Traceback" not in found.output
    assert run("plan-kv", "--model", llama, "--length", 1, "--batch-size", 10**12, "--caches", "4bit").exit_code == 0
    found = run("plan-kv", "--model", llama, "--caches", "5bits")
    assert found.exit_code == 2 and "no cache has the name '5bits'" in found.output and "Traceback" not in found.output


def test_help_shows_examples() -> None:
    for name in ("generate", "plan-kv"):
        found = run(name, "--help")
        assert found.exit_code == 0 and "graphlossy llm " + name in found.output


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for arguments in (["generate", "--model", "any", "the cat"], ["plan-kv", "--model", "any"]):
        found = run(*arguments)
        assert found.exit_code == 2 and "pip install 'graphlossy[llm]'" in found.output


def test_an_old_transformers(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = re.findall(r'"transformers>=([\d.]+)"', (Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert bounds == [_versions.LEAST]
    for version in ("4.50.3", "5.22.2", "5.9.0.dev0"):
        monkeypatch.setattr("transformers.__version__", version)  # the module is another one once a model was made
        said = f"made for transformers {_versions.LEAST} or newer, and this is {version}: pip install"
        with pytest.raises(ImportError, match=said):
            importlib.reload(kv)
        for name, *rest in COMMANDS[:3]:
            found = run(name, "--model", llama, *rest)
            assert found.exit_code == 2 and said in " ".join(found.output.split()), found.output
    for version in ("5.23.0", "5.100.0", "6.0.0rc1"):
        monkeypatch.setattr("transformers.__version__", version)  # the module is another one once a model was made
        _versions.check_transformers()
