"""The catalogue, what ``prepare`` leaves behind, and what ``verify`` finds out."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from graphlossy.datasets import (
    DatasetError,
    _manifest,
    _planetoid,
    catalogue,
    load,
    names,
    prepare,
    save_folder,
    statistics,
    verify,
)
from graphlossy.datasets._catalogue import catalogue_entry, locate, pyg_folder, quick, way
from graphlossy.datasets._checksums import PLANETOID_FILES
from graphlossy.datasets._manifest import MANIFEST, compare, read_manifest, sha256, whole, write_manifest


def problems(findings: list) -> dict[str, str]:
    return {finding.what: finding.problem for finding in findings if finding.problem}


def test_every_name_has_its_row() -> None:
    entries = catalogue()
    assert [entry.name for entry in entries] == names()
    for entry in entries:
        assert min(entry.nodes, entry.edges, entry.features, entry.classes) > 0, entry.name
        assert entry.metric in ("accuracy", "rocauc") and entry.licence and len(entry.source) > 20, entry.name
        assert entry.synthetic == entry.name.startswith("synth-") == (way(entry.name) == "generated")
        assert entry.sizes_of_split is None or sum(entry.sizes_of_split) <= entry.nodes


@pytest.mark.parametrize("name", ["wordnet-verbs", "synth-arxiv", "synth-arxiv-tiny"])
def test_rows_are_what_is_loaded(name: str) -> None:
    entry, data = catalogue_entry(name), load(name)
    assert (data.num_nodes, data.num_edges, data.num_features) == (entry.nodes, 2 * entry.edges, entry.features)
    assert (data.num_classes, data.metric) == (entry.classes, entry.metric)
    if entry.sizes_of_split:
        assert tuple(statistics(data).splits.values()) == entry.sizes_of_split


def test_names_in_any_case_and_misspelt() -> None:
    assert catalogue_entry("REDDIT").name == "Reddit"
    with pytest.raises(DatasetError, match=r"no data set 'ogbn-arxi'; did you mean 'ogbn-arxiv'"):
        catalogue_entry("ogbn-arxi")
    with pytest.raises(DatasetError, match=r"no data set 'zzzz'; the names are Actor, "):
        prepare("zzzz")


def test_what_is_made_on_the_spot() -> None:
    assert quick(catalogue_entry("synth-arxiv")) and quick(catalogue_entry("synth-products"), 0.01)
    assert not quick(catalogue_entry("synth-products")) and not quick(catalogue_entry("Cora"))


@pytest.mark.parametrize("name", ["Tolokers", "Amazon-Photo", "Coauthor-CS", "WikiCS", "Reddit", "Roman-empire"])
def test_pyg_folders_are_where_its_classes_look(name: str, tmp_path: Path) -> None:
    from torch_geometric import datasets

    from graphlossy.datasets._pyg import PYG

    kind, options, _ = PYG[name]
    cls = getattr(datasets, kind)
    found = cls.__new__(cls)  # only its paths: made as usual, it would download
    found.root = str(tmp_path if "name" in options else tmp_path / name)
    if "name" in options:
        lower = kind in ("HeterophilousGraphDataset", "Amazon")
        found.name = options["name"].lower().replace("-", "_") if lower else options["name"]
    assert Path(found.raw_dir).parent == pyg_folder(name, tmp_path)
    assert locate(name, tmp_path) is None
    Path(found.raw_dir).mkdir(parents=True)
    for file in found.raw_paths:
        assert locate(name, tmp_path) is None
        Path(file).write_bytes(b"")
    assert locate(name, tmp_path) == pyg_folder(name, tmp_path)


def test_manifest(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"")
    write_manifest(tmp_path, "mine", {"seed": 1})
    files = read_manifest(tmp_path)["files"]
    assert files["raw/a"] == {
        "bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }  # fmt: skip
    assert sorted(files) == ["b", "raw/a"] and whole(tmp_path)
    assert all(problem is None for _, problem in compare(tmp_path, files))
    write_manifest(tmp_path, "mine", {}, ("raw",))
    assert sorted(read_manifest(tmp_path)["files"]) == ["raw/a"]  # and not itself
    assert compare(tmp_path, {"raw/a": {"git": "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f"}}) == [("raw/a", None)]
    (tmp_path / "raw" / "a").write_bytes(b"abd")
    assert whole(tmp_path)  # which looks at sizes alone
    assert "other contents than it should (sha256 " in compare(tmp_path, files)[1][1]
    (tmp_path / "raw" / "a").write_bytes(b"ab")
    assert compare(tmp_path, files)[1][1] == "has 2 bytes, expected 3" and not whole(tmp_path)
    (tmp_path / "raw" / "a").unlink()
    assert compare(tmp_path, files)[1][1] == "is missing"


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"name": 1, "origin": {}, "files": {}}', '{"name": "a", "origin": {}, "files": {"b": 1}}',
        '{"name": "a", "origin": {}, "files": {"../b": {"bytes": 1, "sha256": ""}}}',
        '{"name": "a", "origin": {}, "files": {"/b": {"bytes": 1, "sha256": ""}}}',
    ],
)  # fmt: skip
def test_what_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    assert read_manifest(tmp_path) is None and not whole(tmp_path)


def test_checksums_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 5)
    before = sha256(tmp_path / "a")
    monkeypatch.setattr(_manifest, "_CHUNK", 100)
    assert sha256(tmp_path / "a") == before


def test_the_embedded_graph_is_sound_and_a_changed_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(verify("wordnet-verbs")) == {}
    file = shutil.copy(prepare("wordnet-verbs"), tmp_path)
    content = bytearray(Path(file).read_bytes())
    content[1000] ^= 1
    Path(file).write_bytes(content)
    from graphlossy.datasets import _catalogue, _verify

    monkeypatch.setattr(_catalogue, "FILE", Path(file))
    monkeypatch.setattr(_verify, "FILE", Path(file))
    assert "other contents" in problems(verify("wordnet-verbs"))["wordnet_verbs.npz"]


def test_files_that_are_not_the_publishers(write_planetoid, tmp_path: Path) -> None:
    folder = write_planetoid(tmp_path / "Cora" / "raw")
    assert load("Cora", root=tmp_path).num_nodes == 538  # they can be loaded
    wrong = problems(verify("Cora", tmp_path))
    assert sorted(wrong) == sorted(f"ind.cora.{part}" for part in PLANETOID_FILES["Cora"])
    assert problems(verify(folder)) == problems(verify(folder.parent)) == wrong  # by name or by path


def test_a_download_of_other_files_is_refused(write_planetoid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_planetoid(tmp_path / "server")
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda url, timeout: io.BytesIO((source / url.rpartition("/")[2]).read_bytes())
    )
    with pytest.raises(DatasetError, match=r"ind.cora.\w+: has other contents .*; remove it and prepare Cora again"):
        prepare("Cora", tmp_path / "root")
    assert _planetoid.find_raw(tmp_path / "root" / "Cora" / "raw") == "Cora"


def test_other_data_under_a_known_name(heterophilous, tmp_path: Path) -> None:
    raw = tmp_path / "tolokers" / "raw"
    raw.mkdir(parents=True)
    np.savez_compressed(raw / "tolokers.npz", **heterophilous(classes=2))
    assert prepare("tolokers", tmp_path) == tmp_path / "tolokers"
    wrong = problems(verify("Tolokers", tmp_path))
    assert wrong == {"sizes": "it has 30 nodes, not 11,758, 4 features, not 10: these are other data than Tolokers"}
    with open(raw / "tolokers.npz", "ab") as file:
        file.write(b"more")
    assert "expected" in problems(verify("Tolokers", tmp_path, contents=False))["raw/tolokers.npz"]


def test_what_is_absent(tmp_path: Path) -> None:
    (finding,) = verify("Reddit", tmp_path)
    assert finding.problem == "is not here; `graphlossy datasets prepare Reddit` gets it"
    with pytest.raises(DatasetError, match="Flickr: is not here"):
        prepare("Flickr", tmp_path, download=False)
    with pytest.raises(DatasetError, match="there is no such file or folder"):
        verify(tmp_path / "no.npz")
    assert [finding.what for finding in verify("synth-products", tmp_path)] == [
        "files"
    ]  # too large to be made for this


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    folder = save_folder(load("synth-arxiv-tiny"), tmp_path / "tiny")
    files, contents = verify(folder)
    assert "no checksums are known" in files.detail and "1,500 nodes" in contents.detail
    x = np.load(folder / "x.npy")
    x[7, 3] = np.nan
    np.save(folder / "x.npy", x)
    assert "1 NaN or infinite value, at node 7" in problems(verify(folder))["contents"]
    (folder / MANIFEST).write_text("{")
    assert problems(verify(folder)) == {MANIFEST: "is damaged; remove it, or prepare the data set again"}


def test_a_generated_graph_is_written_once_and_verified(tmp_path: Path) -> None:
    folder = prepare("synth-arxiv", tmp_path, scale=0.01, seed=3)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert prepare("SYNTH-ARXIV", tmp_path, scale=0.01, seed=3) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert read_manifest(folder)["origin"] == {"scale": 0.01, "seed": 3}
    assert problems(verify(folder)) == {}
    labels = folder / "raw" / "node-label.csv.gz"
    labels.write_bytes(labels.read_bytes()[:-1])
    assert list(problems(verify(folder))) == ["raw/node-label.csv.gz"]
    labels.unlink()
    assert problems(verify(folder, contents=False)) == {"raw/node-label.csv.gz": "is missing"}


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("Cora", {"scale": 0.5}, DatasetError, "scale is for generated graphs alone"),
        ("synth-arxiv", {"scale": -1.0}, ValueError, "scale must be a number from"),
        ("synth-arxiv-tiny", {}, DatasetError, "there is nothing to prepare"),
    ],
)
def test_what_cannot_be_prepared(tmp_path: Path, name: str, options: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        prepare(name, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, sys
import numpy as np
from graphlossy.datasets import _debian
_debian.description_features = lambda texts: np.ones((len(texts), 2), np.float32)  # without importing scikit-learn
_debian.write_manifest = lambda *_: os.kill(os.getpid(), 9)  # when all files but the last are written
_debian.prepare_debian(sys.argv[1], sys.argv[2])
"""


def test_a_killed_preparation_is_started_again(tmp_path: Path) -> None:
    index, root = tmp_path / "Packages", tmp_path / "root"
    index.write_text(
        "\n".join(
            f"Package: p{i}\nSection: {'libs' if i % 2 else 'net'}\nDepends: p{i * 7 % 240}\nDescription: w{i % 9} a\n"
            for i in range(240)
        )
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, index, root], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    (left,) = (root / "debian-packages").iterdir()
    assert left.name.startswith(".") and locate("debian-packages", root) is None
    assert load(index, root=root).num_nodes == 240
    (folder,) = (root / "debian-packages").iterdir()  # what was left is gone
    assert locate("debian-packages", root) == folder and problems(verify("debian-packages", root)) == {}
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["origin"]["index_sha256"] == sha256(index) and manifest["name"] == "debian-packages"
