"""``graphlossy llm`` with tiny models and a tiny tokenizer made on the spot."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from graphlossy.cli._group import LazyGroup

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
from tiny_llm import WORDS, save_tokenizer, sentences  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

RUN = ["--length", 16, "--batch-size", 4, "--lr", "5e-3", "--device", "cpu", "--threads", 1, "--quiet"]
UNTIMED = ("seconds", "evaluation_seconds", "peak_bytes", "step_peak_bytes")
MAIN = "from graphlossy.cli._group import LazyGroup; LazyGroup({'llm': ''})()"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=save_tokenizer(folder), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=save_tokenizer(folder), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "notes.txt"
    file.write_text("\n\n".join(sentences(80)))
    return file


@pytest.fixture(scope="module")
def mail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("mail") / "mail.jsonl"
    rows = [{"body": " ".join(WORDS[k : k + 6]), "kind": "ham" if k % 20 < 10 else "spam"} for k in range(20)] * 4
    file.write_text("\n".join(json.dumps({**row, "body": f"{row['body']} {'.' * i}"}) for i, row in enumerate(rows)))
    return file


def call(*arguments: object) -> Result:
    return CliRunner().invoke(LazyGroup({"llm": "Language models."}), ["llm", *map(str, arguments)])


def refused(result: Result, *words: str) -> None:
    """One clear line on stderr, nothing on stdout, exit code 2, no traceback."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("graphlossy: error: ") and result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


def lines(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in UNTIMED} for row in rows]


def test_a_run_ends_with_a_table_a_report_and_a_model(llama: Path, notes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = call("finetune", "--model", llama, "--data", notes, "--out", out, "--steps", 12, *RUN[:-1])
    assert done.exit_code == 0, done.output
    for words in (
        "held-out loss",
        "perplexity",
        "saved for backward",
        "seconds per step",
        f"report: {out}/report.html",
    ):
        assert words in done.stdout
    for words in ("LlamaForCausalLM", "sequences of 16 tokens", f"run folder: {out}"):
        assert words in done.stderr
    page = (out / "report.html").read_text()
    assert "<polyline" in page and "<rect" in page and "linear" in page
    assert "<script" not in page and "http" not in page  # self-contained
    model = transformers.AutoModelForCausalLM.from_pretrained(out / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "model")
    ids = tokenizer("the cat sat on a mat", return_tensors="pt", return_token_type_ids=False)
    assert tokenizer.decode(model.generate(**ids, max_new_tokens=2, do_sample=False)[0]).startswith("the cat")


def test_json_is_all_there_is_on_stdout(llama: Path, notes: Path, tmp_path: Path) -> None:
    done = call("finetune", "--model", llama, "--data", notes, "--out", tmp_path / "run", "--steps", 2, *RUN, "--json")
    assert done.exit_code == 0 and done.stderr == "", done.output
    assert json.loads(done.stdout) == json.loads((tmp_path / "run" / "result.json").read_text())


def test_a_method_fills_in_options_and_options_win(llama: Path, notes: Path, tmp_path: Path) -> None:
    options = ["--model", llama, "--data", notes, "--steps", 1, *RUN, "--json"]
    for name, extra, expected in (
        ("pps", ["--method", "pps+4bit", "--budget", "0.5"], {"bits": 4, "budget": 0.5, "estimator": "pps"}),
        ("exact", ["--method", "4bit", "--bits", "none"], {"bits": None, "recompute": True}),
        ("bytes", ["--budget", "1MiB"], {"bits": None, "budget": "1MiB"}),
        ("rows", ["--no-packing", "--method", "plain"], {"bits": None, "recompute": False}),
    ):
        done = call("finetune", *options, *extra, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
        settings = json.loads(done.stdout)["settings"]
        assert {key: settings[key] for key in expected} == expected


def test_adapters_alone_are_saved(llama: Path, notes: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    options = ["--method", "lora+4bit", "--lora-rank", 2, "--lora-modules", "q_proj,down_proj"]
    done = call("finetune", "--model", llama, "--data", notes, "--out", tmp_path / "run", "--steps", 2, *options, *RUN)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_an_encoder_learns_classes(bert: Path, mail: Path, tmp_path: Path) -> None:
    options = ["--task", "classify", "--text-field", "body", "--label-field", "kind", "--valid-share", "0.2"]
    done = call("finetune", "--model", bert, "--data", mail, "--out", tmp_path / "run", "--epochs", 7, *options, *RUN,
                "--method", "wta", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["valid_accuracy"] > 0.8 and result["about"]["classes"] == ["ham", "spam"]
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "ham", "1": "spam"}


def test_runs_are_compared(llama: Path, notes: Path, tmp_path: Path) -> None:
    for method in ("plain", "4bit"):
        options = ["--method", method, "--out", tmp_path / method, "--steps", 3, *RUN]
        assert call("finetune", "--model", llama, "--data", notes, *options).exit_code == 0
    done = call("report", tmp_path / "plain", tmp_path / "4bit", "--out", tmp_path / "both.html")
    assert done.exit_code == 0 and "plain" in done.stdout and "4bit" in done.stdout, done.output
    page = (tmp_path / "both.html").read_text()
    assert page.count("bytes by operation, the forward pass") == 2
    refused(call("report", tmp_path), "is not a run folder")


@pytest.fixture(scope="module")
def undisturbed(llama: Path, notes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[object], Path]:
    """The arguments of a run, and its folder; nothing interrupted it."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    arguments = ["finetune", "--model", llama, "--data", notes, "--steps", 60, "--method", "pps+4bit", *RUN]
    assert call(*arguments, "--out", out).exit_code == 0
    return arguments, out


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAIN, "llm", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_lines(folder: Path, count: int) -> None:
    log, end = folder / "metrics.jsonl", time.monotonic() + 100
    while not log.exists() or log.read_bytes().count(b"\n") < count:
        assert time.monotonic() < end, "the run did not get that far"
        time.sleep(0.005)


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_with_the_same_numbers(
    number: int, undisturbed: tuple[list[object], Path], tmp_path: Path
) -> None:
    arguments, whole = undisturbed
    out = tmp_path / "run"
    process = start(*arguments, "--out", out, "--checkpoint-seconds", 0)
    wait_for_lines(out, 12)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=100)
    assert len(lines(out)) < 61 and stdout == ""
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        refused(call("report", out), "is not done", f"--resume {out}")
    else:
        assert process.returncode == 130 and f"graphlossy llm finetune --resume {out}" in stderr
        assert "Traceback" not in stderr
    done = call("finetune", "--resume", out, "--quiet")
    assert done.exit_code == 0, done.output
    assert lines(out) == lines(whole)
    again = call("finetune", "--resume", out, "--quiet")  # nothing is left to do
    assert again.exit_code == 0 and again.stdout == done.stdout
    refused(call("finetune", "--resume", out, "--bits", 2), "--resume takes its settings from", "leave out --bits")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "1.5"], ["budget must be a share of the token rows in (0, 1]", "1.5"]),
        (["--budget", "0"], ["(0, 1]"]),
        (["--budget", "lots"], ["such as 6GiB; got lots"]),
        (["--budget", "0.5", "--target-modules", "q_prj"], ["q_prj", "q_proj"]),
        (["--target-modules", "q_proj"], ["give a budget"]),
        (["--length", "100"], ["--length 100 is more than the model's limit of 64 tokens"]),
        (["--method", "4bits"], ["did you mean 4bit?"]),
        (["--lora-rank", "many"], ["expected a number or none"]),
        (["--data", "no-such.txt"], ["no-such.txt"]),
        (["--label-field", "kind", "--task", "classify"], ["has no labels"]),
        (["--valid-share", "0.0001"], ["valid"]),
        (["--device", "gpu"], ["device must be auto"]),
        (["--lr", "1e30", "--clip", "0", "--steps", "20"], ["in step", "lower --lr"]),
    ],
)
def test_what_is_wrong_is_one_line(
    options: list[str], words: list[str], llama: Path, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = ["--model", llama, "--data", notes, "--out", tmp_path / "run", "--steps", 2, *RUN]
    refused(call("finetune", *first, *options), *words)


def test_models_that_are_not_there(llama: Path, notes: Path, tmp_path: Path) -> None:
    first = ["--data", notes, *RUN]
    refused(call("finetune", *first), "give --model", "smollm2")
    refused(call("finetune", *first, "--model", tmp_path / "nothing"), "no model folder at", "nothing")
    refused(call("finetune", *first, "--model", tmp_path), "no config.json")
    refused(
        call("finetune", *first, "--model", "smollm2", "--root", tmp_path / "root"),
        "model smollm2 is not here yet: graphlossy datasets prepare smollm2",
    )


def test_empty_text(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    refused(call("finetune", "--model", llama, "--data", tmp_path / "empty.txt", *RUN), "holds no text")
    (tmp_path / "short.txt").write_text("the cat\n")
    options = ["--model", llama, "--data", tmp_path / "short.txt", "--valid-share", 0]
    refused(call("finetune", *options, *RUN), "fewer than one block")


def test_folders_that_cannot_be_used(llama: Path, notes: Path, tmp_path: Path) -> None:
    first = ["finetune", "--model", llama, "--data", notes, "--steps", 1, *RUN]
    (tmp_path / "file").touch()
    refused(call(*first, "--out", tmp_path / "file" / "run"), "cannot write output folder")
    assert call(*first, "--out", tmp_path / "run").exit_code == 0
    refused(call(*first, "--out", tmp_path / "run"), "holds another run", "--resume")
    refused(call("finetune", "--resume", tmp_path), "is not a run folder")


def test_help_names_methods_and_examples() -> None:
    for arguments, words in (
        (["--help"], "graphlossy llm finetune"),
        (["finetune", "--help"], "lora"),
        ([], "Commands"),
    ):
        done = call(*arguments)
        assert done.exit_code == 0 and words in done.stdout and "Examples:" in done.stdout
    refused(call("fintune"), "did you mean finetune?")


def test_the_example_keeps_a_fraction(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).parents[2] / "examples" / "finetune_llm.py"
    for options in ([], ["--budget", "0.5", "--estimator", "wta", "--bits", "4"]):
        monkeypatch.setattr(sys, "argv", [str(script), "--steps", "20", "--length", "64", *options])
        runpy.run_path(str(script), run_name="__main__")
        out = capsys.readouterr().out
        found = re.findall(r"held-out ([0-9.]+)  ([0-9.]+) of ([0-9.]+) MiB saved", out)
        assert len(found) == 3 and float(found[-1][0]) < float(found[0][0]) < 6
        assert all(float(saved) < 0.3 * float(plain) for _, saved, plain in found)
        assert "total" in out
