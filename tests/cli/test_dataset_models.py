"""Language models in ``graphlossy datasets``."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from graphlossy.cli import main
from graphlossy.datasets import _convert, _prepare_model
from graphlossy.datasets._models import MODELS

_spec = importlib.util.spec_from_file_location("gguf_fakes", Path(__file__).parents[1] / "datasets" / "gguf_fakes.py")
fakes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fakes)


def run(arguments: str) -> Result:
    return CliRunner().invoke(main, ["datasets", *shlex.split(arguments)])


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model whose file lies in the folder of the data sets, and a conversion that needs no transformers."""

    def write(model: Any, file: Path, folder: Path, say: Any) -> None:
        (folder / "model.safetensors").write_bytes(bytes(1_000))

    monkeypatch.setenv("GRAPHLOSSY_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_prepare_model, "need", lambda *_: None)
    monkeypatch.setattr(_prepare_model, "convert", write)
    monkeypatch.setattr(_prepare_model, "check_model", lambda *_: "sound")
    monkeypatch.setitem(MODELS, "tiny", fakes.tiny_model())
    fakes.write_wheel(tmp_path / "data", fakes.header_bytes())


def test_list_has_a_table_of_models() -> None:
    result = run("list")
    assert result.exit_code == 0
    table = result.stdout.partition("Language models")[2]
    (row,) = (line for line in table.splitlines() if "│ smollm2 " in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "smollm2", "SmolLM2-135M-Instruct", "134,515,008", "Apache-2.0", "92.9 MB", "542 MB", "no",
    ]  # fmt: skip
    found = {row["name"]: row for row in json.loads(run("list --json").stdout) if row["kind"] == "model"}
    assert sorted(found) == ["smollm2", "tiny"] and found["smollm2"]["place"] is None
    assert found["smollm2"]["parameters"] == 134_515_008 and found["smollm2"]["licence"] == "Apache-2.0"


def test_prepare_says_licence_and_steps_and_prints_the_folder(tmp_path: Path) -> None:
    first = run("prepare Tiny")
    assert first.exit_code == 0 and first.stdout == f"{tmp_path / 'data' / 'tiny'}\n"
    said = first.stderr.splitlines()
    assert said[0].startswith("Tiny-Llama, ") and "licence Apache-2.0" in said[0]
    assert any(line.startswith("unpacking tiny_llama_of_test/Tiny-Llama.Q4_1.gguf") for line in said)
    assert any(line.startswith("weights: 1 tensor F32") for line in said) and said[-1].startswith("tiny is ready: ")
    again = run("prepare tiny --json")
    found = json.loads(again.stdout)
    assert found["place"] == str(tmp_path / "data" / "tiny") and found["bytes"] > 1_000
    assert again.stderr.startswith("tiny is here already: ") and again.stderr.count("\n") == 1
    assert [row["place"] for row in json.loads(run("list --json").stdout) if row["name"] == "tiny"] == [found["place"]]
    result = run("verify tiny --files-only")
    assert result.exit_code == 0 and "ok     model.safetensors: 1,000 bytes" in result.stdout
    (tmp_path / "data" / "tiny" / "model.safetensors").write_bytes(bytes(999) + b"1")
    result = run("verify data/tiny")
    assert result.exit_code == 1 and "WRONG  model.safetensors: has other contents" in result.stdout


def test_info(tmp_path: Path) -> None:
    result = run("info smollm2")
    assert result.exit_code == 0 and result.stderr == ""
    for words in ("134,515,008", "Apache-2.0", "rounded to 4 bits (Q4_1)", "no; `graphlossy datasets prepare smollm2`"):
        assert words in result.stdout
    assert json.loads(run("info smollm2 --json").stdout)["kind"] == "model"
    result = run("info tiny --get")
    assert result.exit_code == 0 and "tiny is ready" in result.stderr
    assert str(tmp_path / "data" / "tiny") in result.stdout
    assert "made from   tiny_llama_of_test-1.0-py3-none-any.whl: 1 tensor F32" in result.stdout


def test_a_source(tmp_path: Path) -> None:
    (tmp_path / "own.gguf").write_bytes(fakes.header_bytes())
    result = run("prepare tiny --root here --source own.gguf")
    assert result.exit_code == 0 and result.stdout == "here/tiny\n"
    (tmp_path / "other.gguf").write_bytes(fakes.header_bytes() + b"\0")
    result = run("prepare tiny --root here --source other.gguf")
    assert result.exit_code == 2 and "is here already, made from another file, own.gguf" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("prepare tiny --source none.gguf", "none.gguf: there is no such file; the source of tiny is a .gguf file"),
        ("prepare tiny --source data", "data: is a folder"),
        ("prepare tiny --source ''", "expected the name of a file or folder, got ''"),
        ("prepare tiny --scale 0.1", "--scale is for generated graphs alone; tiny is a language model"),
        ("prepare Cora --source own.gguf", "--source is for language models alone, smollm2, tiny; Cora is none"),
        ("prepare smolm2", "there is no data set 'smolm2'; did you mean 'smollm2'?"),
        ("info smolm2", "there is no data set 'smolm2'; did you mean 'smollm2'?"),
        ("info tiny --picture a.png", "--picture is of a graph's degrees; tiny is a language model"),
        ("verify tiny --scale 0.1", "scale is for generated graphs alone; tiny is none"),
    ],
)
def test_errors_are_one_line(arguments: str, words: str) -> None:
    result = run(arguments)
    assert result.exit_code == 2 and words in result.stderr, result.stderr
    assert result.stderr.startswith("graphlossy: error: ") and result.stderr.count("\n") == 1


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(_convert, "_is_there", lambda name: name != "gguf")
    result = run("prepare smollm2 --root here")
    assert result.exit_code == 2
    assert result.stderr == "graphlossy: error: smollm2: needs gguf, which is not installed: pip install gguf\n"


def test_verify_of_what_is_not_here() -> None:
    result = run("verify smollm2")
    assert result.exit_code == 1
    assert result.stdout == "WRONG  smollm2: is not here, or not whole; `graphlossy datasets prepare smollm2` gets it\n"
