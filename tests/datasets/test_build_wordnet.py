"""The script that builds the embedded graph, on a WordNet of four verbs."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "build_wordnet.py"
VERBS = """\
  1 This software is yours.
  2
  3 WordNet 3.0
00000001 29 v 02 breathe 0 respire a 004 ~ 00000002 v 0000 + 03110323 n 0101 * 00000003 v 0000 @ 00000001 v 0000 01 + 02 00 | draw air, into the lungs; "I can breathe"
00000002 29 v 01 choke 0 001 @ 00000001 v 0000 01 + 02 00 | breathe badly
00000003 30 v 01 change 0 001 ! 00000004 v 0101 02 + 02 00 + 08 00 | make air air Different's
00000004 43 v 01 rain 0 001 ! 00000003 v 0101 01 + 02 00 | water falls
"""  # noqa: E501


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_wordnet", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dense(arrays: dict[str, np.ndarray]) -> np.ndarray:
    x = np.zeros(arrays["x_shape"], int)
    for row, (first, last) in enumerate(zip(arrays["x_indptr"], arrays["x_indptr"][1:], strict=False)):
        x[row, arrays["x_indices"][first:last]] = arrays["x_data"][first:last]
    return x


def bin_of(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little") % 512


def test_arrays(script: ModuleType) -> None:
    arrays = script.build(VERBS)
    assert arrays["y"].tolist() == [0, 0, 1, 14]
    assert arrays["class_names"].tolist()[0] == "verb.body" and arrays["class_names"].tolist()[14] == "verb.weather"
    assert arrays["edges"].tolist() == [[0, 1], [0, 2], [2, 3]]  # both directions once, no noun, no self-loop
    expected = np.zeros((4, 512), int)
    words = ["draw air into the lungs", "breathe badly", "make air air different s", "water falls"]
    for row, text in enumerate(words):
        for word in text.split():
            expected[row, bin_of(word)] += 1
    assert (dense(arrays) == expected).all()


def test_features_hold_neither_the_verb_nor_its_class(script: ModuleType) -> None:
    other = VERBS.replace("00000002 29 v 01 choke", "00000002 35 v 01 strangle").replace("I can breathe", "weather")
    assert script.build(other)["y"].tolist() != script.build(VERBS)["y"].tolist()
    assert (dense(script.build(other)) == dense(script.build(VERBS))).all()


def test_hash_is_the_same_everywhere(script: ModuleType) -> None:
    assert script.hashed("move air, air") == dict(sorted({408: 1, 90: 2}.items()))


def test_license_notice(script: ModuleType) -> None:
    assert script.license_notice(VERBS) == "This software is yours.\n\nWordNet 3.0\n"


def deb(path: Path, content: bytes, name: str = "./usr/share/wordnet/data.verb") -> Path:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    members = [("debian-binary", b"2.0\n"), ("odd", b"x"), ("data.tar.xz", stream.getvalue())]
    out = b"!<arch>\n"
    for member, value in members:
        out += (
            f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(value):<10}`\n".encode() + value + b"\n" * (len(value) % 2)
        )
    path.write_bytes(out)
    return path


def test_sources(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "data.verb").write_text(VERBS)
    assert script.read_source(tmp_path) == VERBS.encode()
    assert script.read_source(deb(tmp_path / "w.deb", VERBS.encode())) == VERBS.encode()
    with pytest.raises(SystemExit, match="SOURCE must be a folder that holds data.verb, or a .deb file"):
        script.read_source(tmp_path / "data.verb")
    deb(tmp_path / "w.deb", b"", "./data.noun")
    with pytest.raises((SystemExit, KeyError)):
        script.read_source(tmp_path / "w.deb")


def test_command(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(script, "DATA", tmp_path)
    source = deb(tmp_path / "w.deb", VERBS.encode())

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["build_wordnet.py", str(source), *arguments])
        script.main()

    with pytest.raises(SystemExit, match="data.verb has SHA-256 .*, not WordNet 3.0's"):
        run()
    assert not (tmp_path / script.GRAPH).exists()
    run("--any-version")
    first = (tmp_path / script.GRAPH).read_bytes()
    run("--any-version")
    assert (tmp_path / script.GRAPH).read_bytes() == first
    run("--any-version", "--check")
    assert "the same arrays" in capsys.readouterr().out
    deb(source, VERBS.replace("badly", "poorly").encode())
    with pytest.raises(SystemExit, match="differs from what this source gives"):
        run("--any-version", "--check")


def test_embedded_file_was_written_by_this_script(script: ModuleType, tmp_path: Path) -> None:
    """Its arrays, written again, have the types and order the script gives them."""
    with np.load(script.DATA / script.GRAPH) as stored:
        arrays = {name: stored[name] for name in stored.files}
    small = script.build(VERBS)
    assert list(arrays) == list(small)
    assert all(arrays[name].dtype == small[name].dtype for name in arrays)
    assert arrays["class_names"].tolist() == small["class_names"].tolist()
