"""Documents of text: Python's own documentation, text files, folders, JSONL files, and their split into parts."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.datasets import DatasetError
from graphlossy.datasets import _pydoc as pydoc_module
from graphlossy.datasets._pydoc import module_text, pydoc_documents
from graphlossy.datasets.text import Document, documents, split

NAMES = st.lists(st.text(max_size=8), max_size=200)


@pytest.fixture(scope="module")
def pydoc() -> list[Document]:
    return documents("pydoc")


def test_pythons_own_documentation(pydoc: list[Document]) -> None:
    from pydoc_data.topics import topics

    names = [document.name for document in pydoc]
    assert len(set(names)) == len(names) and all(document.text.strip() and document.label is None for document in pydoc)
    kinds = Counter(name.partition(":")[0] for name in names)
    assert kinds["topic"] == len(topics) and kinds["module"] > 150
    texts = {document.name: document.text for document in pydoc}
    assert texts["topic:lambda"].startswith("Lambdas\n*******\n")
    found = texts["module:json.decoder"]
    assert found.startswith("json.decoder\n\nImplementation of JSONDecoder")
    assert "\n\n    raw_decode(self, s, idx=0)\n        Decode a JSON document from ``s``" in found
    assert not any(".test" in name or "idlelib" in name or "._" in name for name in names)
    assert sum(map(len, texts.values())) > 1_000_000


def test_docstrings_as_text() -> None:
    source = '''
"""First line.

    Indented.
"""
class Open(Base, metaclass=Meta):
    def read(self, size: int = -1, /, *rest, fast=True, **more) -> bytes:
        """Reads
        on.
        """
    def _hidden(self):
        "no"
    async def wait(self):
        "Waits."
class Empty:
    "  "
    def method(self):
        pass
class _Private:
    "no"
def undocumented():
    pass
'''
    assert module_text("a.b", source) == (
        "a.b\n\nFirst line.\n\nIndented.\n\nclass Open(Base)\n\n"
        "    read(self, size: int=-1, /, *rest, fast=True, **more)\n        Reads\n        on.\n\n"
        "    wait(self)\n        Waits."
    )
    assert module_text("a", "x = 1") == module_text("a", '"""  """') == ""


def test_a_library_with_odd_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_text(f'"""{"word " * 50}"""\nraise RuntimeError')  # if it is imported
    (tmp_path / "json" / "decoder.py").write_text("this is no Python")
    (tmp_path / "json" / "encoder.py").write_bytes(b'"\xff"')
    (tmp_path / "json" / "tests").mkdir()
    (tmp_path / "json" / "tests" / "a.py").write_text(f'"""{"word " * 50}"""')
    (tmp_path / "csv.py").write_text('"""Short."""')
    (tmp_path / "mine.py").write_text(f'"""{"word " * 50}"""')
    monkeypatch.setattr(pydoc_module.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    found = pydoc_documents.__wrapped__()
    assert [name for name, _ in found if name.startswith("module:")] == ["module:json"]
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DatasetError, match="pydoc: this Python has come without pydoc_data; install"):
        pydoc_documents.__wrapped__()


def test_a_text_file_by_paragraph_line_and_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeff\r\n  Indented one,\r\ntwo lines. \r\n \t\r\n\r\n    Ünicode\u2028\r\n".encode())
    assert [document.text for document in documents(file)] == ["  Indented one,\ntwo lines.", "    Ünicode"]
    assert [document.text for document in documents(file, by="line")] == [
        "  Indented one,",
        "two lines.",
        "    Ünicode",
    ]
    (whole,) = documents(str(file), by="file")
    assert whole.name == "a.txt" and whole.text.startswith("  Indented one,\n") and whole.text.endswith("Ünicode\u2028")


@given(
    st.lists(st.text(st.sampled_from("ab é\t"), min_size=1).filter(str.strip), min_size=1, max_size=8),
    st.integers(1, 4),
)
def test_paragraphs_keep_their_text_and_order(texts: list[str], blank: int) -> None:
    pieces = [document.text for document in _read_text(("\n" + "\n" * blank).join(texts))]
    assert pieces == [text.rstrip() for text in texts]


def _read_text(text: str) -> list[Document]:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        return documents(file.name)


def test_equal_paragraphs_have_equal_names(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\none\n")
    found = documents(tmp_path / "a.txt")
    assert found[0] == found[2] != found[1]
    (tmp_path / "b.md").write_text("two\n\nthree\n")
    names = [document.name for document in documents(tmp_path, by="paragraph")]
    assert len(names) == 5 and len(set(names)) == 3


def test_a_folder(tmp_path: Path) -> None:
    for name, text in (
        ("b.txt", "B\n\nb"), ("a/c.md", "C"), ("a/.hidden.txt", "no"), (".git/d.txt", "no"), ("e.py", "no"),
        ("empty.rst", " \n"), ("z.rst", "Z"),
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [(d.name, d.text) for d in documents(tmp_path)] == [("a/c.md", "C"), ("b.txt", "B\n\nb"), ("z.rst", "Z")]
    assert [d.text for d in documents(tmp_path, by="paragraph")] == ["C", "B", "b", "Z"]


def test_jsonl(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "a\\u2028b\\n", "y": 1}\r\n\r\n{"text": "c", "y": 0, "more": [1]}')
    assert [(d.text, d.label) for d in documents(file)] == [("a\u2028b\n", None), ("c", None)]
    assert [d.label for d in documents(file, label_field="y")] == [1, 0]
    (tmp_path / "b.ndjson").write_text('{"body": "x", "kind": "ham"}')
    (found,) = documents(tmp_path / "b.ndjson", text_field="body", label_field="kind")
    assert (found.text, found.label) == ("x", "ham")


GOOD = '{"text": "a", "label": 1}\n\n'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": ', r"line 3: is no JSON \(Expecting value.*\); write one object a line"),
        ("[1]", r"line 3: is a JSON array, expected an object such as \{\"text\": \.\.\.\}"),
        ('"a"', "line 3: is a JSON string"),
        ("null", "line 3: is a JSON null"),
        ("{}", "line 3: has no field 'text'; its fields are none"),
        ('{"body": "a", "label": 1}', "line 3: has no field 'text'; its fields are body, label"),
        ('{"text": "a", "y": 1}', "line 3: has no field 'label'; its fields are text, y"),
        ('{"text": " \\n", "label": 1}', "line 3: field 'text' is empty; correct the line or remove it"),
        ('{"text": ["a"], "label": 1}', "line 3: field 'text' is a JSON array, expected a text"),
        ('{"text": "\\ud800", "label": 1}', "line 3: field 'text' has half a character"),
        ('{"text": "a", "label": true}', "line 3: label 'label' is true; it must be a whole number or a text"),
        ('{"text": "a", "label": null}', "line 3: label 'label' is null; it must be"),
        ('{"text": "a", "label": 1.0}', "line 3: label 'label' is 1.0; it must be"),
        ("[" * 100_000, "line 3: is "),
        (b"\xff", r"line 3: is no UTF-8 text \(byte 1\)"),
    ],
)
def test_lines_that_are_wrong(tmp_path: Path, line: str | bytes, words: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(GOOD.encode() + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(DatasetError, match=rf"^{file}: {words}") as caught:
        documents(file, label_field="label")
    assert "\n" not in str(caught.value)


def test_sources_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "latin.txt").write_bytes("ä".encode("latin-1"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").write_text(GOOD)
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.txt").write_text("\n")
    for source, options, words in (
        ("none.txt", {}, "there is no such file or folder; give a text file"),
        ("empty.txt", {}, "holds no text"),
        ("empty.jsonl", {}, "holds no text"),
        ("a.json", {}, "a .json file is not read; write one object a line to a .jsonl file"),
        ("latin.txt", {}, r"is no UTF-8 text \(byte 1\); save it as UTF-8"),
        ("folder", {}, r"holds no .txt, .md, .rst file; give .*folder/a.jsonl itself"),
        ("blank", {}, "holds no text"),
        ("empty.jsonl", {"by": "line"}, "each line of a JSONL file is a document; leave by='line' out"),
        ("empty.txt", {"label_field": "y"}, "has no labels; label_field='y' is for .jsonl files"),
        ("folder", {"label_field": "y"}, "has no labels"),
    ):
        with pytest.raises(DatasetError, match=words):
            documents(tmp_path / source, **options)
    with pytest.raises(DatasetError, match="pydoc: has no labels"):
        documents("pydoc", label_field="y")
    with pytest.raises(ValueError, match=r"by must be 'paragraph', 'line', 'file' or None, got 'page'"):
        documents(tmp_path / "empty.txt", by="page")
    monkeypatch.chdir(tmp_path)
    Path("pydoc").write_text("mine")
    assert documents("./pydoc")[0].text == "mine"  # a path, not the name
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(DatasetError, match=r"empty.txt: cannot be read \(Permission denied\)"):
        documents(tmp_path / "empty.txt")


@given(NAMES, st.integers(-(2**40), 2**40))
def test_every_document_is_in_one_part_and_in_order(names: list[str], seed: int) -> None:
    given_documents = [Document(name, str(i)) for i, name in enumerate(names)]
    try:
        parts = split(given_documents, valid=0.2, test=0.2, seed=seed)
    except DatasetError as error:
        assert "is in the part" in str(error)
        return
    found = sorted((document for part in parts for document in part), key=lambda document: int(document.text))
    assert found == given_documents
    for part in parts:
        assert [int(document.text) for document in part] == sorted(int(document.text) for document in part)
    sets = [{document.name for document in part} for part in parts]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]


@given(NAMES, st.randoms())
def test_other_documents_do_not_matter(names: list[str], random: Random) -> None:
    base = [Document(f"base {i}", "") for i in range(100)]
    where = {d.name: i for i, part in enumerate(split(base)) for d in part}
    mixed = [*base, *(Document(name, "") for name in names)]
    random.shuffle(mixed)
    again = {d.name: i for i, part in enumerate(split(mixed)) for d in part}
    assert {name: again[name] for name in where} == where


def test_shares_and_seeds() -> None:
    many = [Document(f"page {i}", "") for i in range(20_000)]
    parts = split(many, valid=0.05, test=0.2)
    assert abs(len(parts.valid) / 20_000 - 0.05) < 0.01 and abs(len(parts.test) / 20_000 - 0.2) < 0.01
    wider = split(many, valid=0.1, test=0.2)
    assert wider.test == parts.test and set(wider.valid) > set(parts.valid)
    other = split(many, valid=0.05, test=0.2, seed=1)
    shared = len(set(other.test) & set(parts.test)) / len(parts.test)
    assert 0.15 < shared < 0.25  # as of two independent draws
    assert split(many, valid=0, test=0) == (many, [], [])


def test_parts_stay_what_they_are(pydoc: list[Document]) -> None:
    """The names of the reference's topics are those of every Python since 3.8: their parts are written down here."""
    parts = split(pydoc)
    where = {document.name: name for name, part in zip(parts._fields, parts, strict=True) for document in part}
    topics = ["assert", "assignment", "atom-identifiers", "break", "class", "del", "lambda", "while", "with", "yield"]
    assert [
        where[f"topic:{topic}"] for topic in topics
    ] == "train test test train train valid train train test train".split()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"valid": -0.1}, ValueError, "valid must be a share of at least 0, got -0.1"),
        ({"test": float("nan")}, ValueError, "test must be a share of at least 0, got nan"),
        ({"test": True}, ValueError, "test must be a share"),
        ({"valid": 0.5, "test": 0.5}, ValueError, "must be less than 1 together, got 0.5 [+] 0.5"),
        ({"seed": 1.0}, TypeError, "seed must be an integer, got 1.0"),
        ({}, DatasetError, "none of the 2 documents is in the part '(valid|test)', whose share is 0.1; give more"),
    ],
)
def test_splits_that_are_wrong(options: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        split([Document("a", "a"), Document("b", "b")], **options)
