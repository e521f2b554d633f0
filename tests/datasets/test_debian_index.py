"""The format of Debian package indexes: fields, versions, compressions, and their damages."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphlossy.datasets import DatasetError, _debian_index
from graphlossy.datasets._debian_graph import dependency_edges
from graphlossy.datasets._debian_index import is_index_name, read_index, version_key

INDEX = """\
Package: exim
Version: 4.96-1
Source: exim4 (4.96-0)
Depends: libc (>= 2.36), perl:any, libc (<< 3) | libc-other
Provides: mail-transport-agent, mta (= 1)
Section: mail
Description: mail transport agent, a daemon
 This line and the next belong to the description,
 .
 of which only the synopsis is used.

Package: libc
Version: 2.36-9
Section: libs
Description: Bibliothèque C – naïve ☃

Package: mutt
Version: 2.2-1
Depends: libc [amd64] <!nocheck>, mta,
 perl | python
Pre-Depends: mutt
Recommends: no-such-package | libc, exim
Section: contrib/mail
Description: text-based mailreader

Version: 1
Section: libs
Description: a paragraph without a name

Package: perl
Version: 5.36-1
Section: interpreters
not a field at all

PACKAGE: perl
Version: 5.36-2
Section: interpreters
Description: practical extraction


Package: perl
Version: 5.9-9
Section: oldlibs
Description: of an older version
Depends: mutt
"""
CLEAN = INDEX.replace("Version: 1\nSection: libs\nDescription: a paragraph without a name\n\n", "")
LONG = "\n".join(f"Package: p{i}\nVersion: {i * 7919 % 9973}\n" for i in range(4_000))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    path = tmp_path / "Packages"
    path.write_text(INDEX)
    return path


def test_fields(index: Path) -> None:
    found = read_index(index)
    assert (found.stanzas, found.malformed) == (7, 2)
    exim, libc, mutt, perl = found.packages
    assert (exim.name, exim.source, exim.section) == ("exim", "exim4", "mail")
    assert exim.description == "mail transport agent, a daemon"
    assert exim.clauses == (("libc",), ("perl",), ("libc", "libc-other"))
    assert exim.provides == ("mail-transport-agent", "mta")
    assert (libc.source, libc.description, libc.clauses) == ("libc", "Bibliothèque C – naïve ☃", ())
    assert mutt.clauses == (("libc",), ("mta",), ("perl", "python"), ("mutt",), ("no-such-package", "libc"), ("exim",))
    assert (perl.version, perl.clauses) == ("5.36-2", ())  # the highest version, whatever the order


def test_edges_take_the_first_alternative_and_virtual_names_a_provider(index: Path) -> None:
    packages = read_index(index).packages
    names = [package.name for package in packages]
    pairs = {tuple(sorted((names[a], names[b]))) for a, b in dependency_edges(packages).T.tolist()}
    # no-such-package's clause is left out, though its second alternative is there
    assert pairs == {("exim", "libc"), ("exim", "perl"), ("libc", "mutt"), ("exim", "mutt"), ("mutt", "perl")}


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".bz2", ".lzma-by-another-name"])
def test_compressions_are_told_by_the_bytes(tmp_path: Path, suffix: str) -> None:
    pack: Callable[[bytes], bytes] = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}.get(
        suffix, lambda content: content
    )
    if suffix.startswith(".lzma"):
        pack = lzma.compress
    path = tmp_path / f"Packages{suffix}"
    path.write_bytes(pack(CLEAN.encode()))
    assert [package.name for package in read_index(path).packages] == ["exim", "libc", "mutt", "perl"]


def lz4_frame(content: bytes) -> bytes:
    """A frame of one block that is stored as it is."""
    return b"\x04\x22\x4d\x18\x60\x70\x73" + (len(content) | 1 << 31).to_bytes(4, "little") + content + b"\0\0\0\0"


HELPERS = [name for name, there in (("apt", _debian_index._APT_HELPER.exists()), ("lz4", shutil.which("lz4"))) if there]


@pytest.mark.parametrize("program", HELPERS)
@pytest.mark.parametrize("damage", [False, True])
def test_lz4_by_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, damage: bool) -> None:
    monkeypatch.setitem(sys.modules, "lz4", None)  # as if the Python package were not there
    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    if program == "lz4":
        monkeypatch.setattr(_debian_index, "_APT_HELPER", Path("/nowhere"))
    frame = lz4_frame(CLEAN.encode())
    path = tmp_path / "-Packages.lz4"
    path.write_bytes(frame[: len(frame) // 2] if damage else frame)
    if damage:
        with pytest.raises(DatasetError, match="Packages.lz4: is truncated or damaged") as error:
            read_index(path)
        assert "\n" not in str(error.value)
    else:
        assert len(read_index(path).packages) == 4


def test_lz4_by_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Frame:
        @staticmethod
        def open(raw, mode):
            assert mode == "rb" and raw.read(4) == b"\x04\x22\x4d\x18"
            return gzip.open(tmp_path / "content.gz")

    (tmp_path / "content.gz").write_bytes(gzip.compress(CLEAN.encode()))
    (tmp_path / "Packages.lz4").write_bytes(lz4_frame(b""))
    monkeypatch.setitem(sys.modules, "lz4", Frame)
    monkeypatch.setitem(sys.modules, "lz4.frame", Frame)
    assert len(read_index(tmp_path / "Packages.lz4").packages) == 4


def test_lz4_without_any_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lz4", None)
    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    monkeypatch.setattr(_debian_index, "_APT_HELPER", Path("/nowhere"))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "Packages.lz4").write_bytes(lz4_frame(CLEAN.encode()))
    with pytest.raises(DatasetError, match="is compressed by lz4, which needs `pip install lz4`"):
        read_index(tmp_path / "Packages.lz4")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_files(tmp_path: Path, pack: Callable[[bytes], bytes], damage: str) -> None:
    content = bytearray(pack(LONG.encode()))
    if damage == "cut":
        content = content[: len(content) * 2 // 3]
    else:
        middle = len(content) // 2
        content[middle : middle + 8] = bytes(byte ^ 0xFF for byte in content[middle : middle + 8])
    path = tmp_path / "Packages.packed"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="Packages.packed: is truncated or damaged") as error:
        read_index(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"\n \n\n", "it is empty"),
        (b"hello, world\n", "1 of its first 1 paragraphs name no package"),
        (bytes(range(256)) * 40, "name no package"),
        (b"Name: a\n\n" * 200, "100 of its first 100 paragraphs name no package"),
        (b" folded: without a field\nPackage: a\n", "1 of its first 1"),
    ],
)
def test_what_is_no_index(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "Packages").write_bytes(content)
    with pytest.raises(DatasetError, match=f"is no Debian package index .*{words}"):
        read_index(tmp_path / "Packages")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no such index; run `apt-get update`, or give the path"):
        read_index(tmp_path / "Packages")
    with pytest.raises(DatasetError, match="is a folder; give the path of an index file"):
        read_index(tmp_path)


@settings(max_examples=60)
@given(
    pack=st.sampled_from([bytes, gzip.compress, lzma.compress, bz2.compress]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4),
    kept=st.floats(0, 1),
)
def test_any_damage_is_an_index_or_one_clear_line(
    tmp_path_factory: pytest.TempPathFactory,
    pack: Callable[[bytes], bytes],
    changes: list[tuple[float, int]],
    kept: float,
) -> None:
    content = bytearray(pack(CLEAN.encode()))
    for place, value in changes:
        content[int(place * len(content))] = value
    path = tmp_path_factory.mktemp("index") / "Packages"
    path.write_bytes(content[: round(kept * len(content))])
    try:
        found = read_index(path)
        dependency_edges(found.packages)
        assert 0 <= 2 * found.malformed <= found.stanzas
    except DatasetError as error:
        assert str(path) in str(error) and "\n" not in str(error)


VERSIONS = st.text("019a~+.-:Z", min_size=1, max_size=6).map(lambda text: f"1{text}1")


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="there is no dpkg to compare with")
@settings(max_examples=30)
@given(one=VERSIONS, other=VERSIONS)
def test_versions_sort_as_dpkg_sorts_them(one: str, other: str) -> None:
    def dpkg(relation: str) -> bool:
        done = subprocess.run(["dpkg", "--compare-versions", one, relation, other], capture_output=True)
        return done.returncode == 0 and b"bad syntax" not in done.stderr

    if not any(map(dpkg, ("lt", "eq", "gt"))) or any(version[0].isalpha() for version in (one, other)):
        return
    if any(not version.partition(":")[0].isdecimal() for version in (one, other) if ":" in version):
        return  # an epoch that dpkg refuses
    ours, theirs = version_key(one), version_key(other)
    assert (ours < theirs, ours == theirs, ours > theirs) == (dpkg("lt"), dpkg("eq"), dpkg("gt"))


def test_names_of_indexes() -> None:
    right = ("Packages", "Packages.xz", "x_dists_stable_main_binary-amd64_Packages.lz4")
    wrong = ("MyPackages", "Packages.diff", "packages", "x_Packages.gz.part", "InRelease")
    assert all(is_index_name(Path("a") / name) for name in right)
    assert not any(is_index_name(Path("a") / name) for name in wrong)
