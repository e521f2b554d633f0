"""Planetoid's raw files: the same data as PyTorch Geometric reads, no code run, no network, clear faults."""

from __future__ import annotations

import io
import pickle
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from graphlossy.datasets import DatasetError, load
from graphlossy.datasets._planetoid import prepare


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("GRAPHLOSSY_DATA", str(tmp_path / "cache"))


@pytest.mark.parametrize(("name", "gap"), [("Cora", False), ("CiteSeer", True), ("PubMed", False)])
def test_as_torch_geometric_reads_them(write_planetoid, tmp_path: Path, name: str, gap: bool) -> None:
    from torch_geometric.io import read_planetoid_data

    raw = write_planetoid(tmp_path / name / "raw", name.lower(), gap)
    data = load(name.lower(), root=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = read_planetoid_data(str(raw), name)
    for key in ("x", "y", "train_mask", "val_mask", "test_mask"):
        assert data[key].equal(theirs[key]), key
    directed = {tuple(edge) for edge in theirs.edge_index.t().tolist()}
    assert {tuple(edge) for edge in data.edge_index.t().tolist()} == directed | {edge[::-1] for edge in directed}
    assert (data.name, data.num_classes, data.metric) == (name, 3, "accuracy")
    assert data.is_coalesced() and data.is_undirected() and not data.has_self_loops()
    assert not theirs.has_self_loops()


@pytest.mark.parametrize("place", ["Cora/raw", "Cora", "raw", "."])
def test_places_where_the_files_are_found(write_planetoid, tmp_path: Path, place: str) -> None:
    raw = write_planetoid(tmp_path / place)
    assert prepare("Cora", tmp_path, download=False) == raw
    assert load("Cora", root=tmp_path).name == "Cora"


def test_raw_folder_as_a_path(write_planetoid, tmp_path: Path) -> None:
    raw = write_planetoid(tmp_path / "mine" / "raw")
    assert load(raw).name == "Cora"
    assert load(tmp_path / "mine").x.equal(load(raw).x)


def test_default_root_is_the_environment_variable(write_planetoid, tmp_path: Path) -> None:
    write_planetoid(tmp_path / "cache" / "Cora" / "raw")
    assert load("Cora").num_classes == 3


def test_absent_files_are_explained(tmp_path: Path) -> None:
    message = r"Cora: its files are not there and the download failed \(.*no route to host.*\); download ind.cora.\{x,"
    with pytest.raises(DatasetError, match=message):
        load("Cora", root=tmp_path)
    with pytest.raises(
        DatasetError, match="Cora: no file ind.cora.x in .*Cora/raw.* into .*Cora/raw, or set GRAPHLOSSY_DATA"
    ):
        prepare("cora", tmp_path, download=False)
    with pytest.raises(DatasetError, match="'Nell' is no Planetoid graph; they are CiteSeer, Cora, PubMed"):
        prepare("Nell")


def test_download(write_planetoid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_planetoid(tmp_path / "server")
    asked = []

    def serve(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        assert timeout > 0
        if len(asked) == 8 and asked.count(url) == 1:
            raise TimeoutError("timed out")
        return io.BytesIO((source / url.rpartition("/")[2]).read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", serve)
    with pytest.raises(DatasetError, match="the download failed .timed out."):
        prepare("Cora", tmp_path / "root")
    folder = prepare("Cora", tmp_path / "root")  # a broken download is not taken for a whole one
    assert folder == tmp_path / "root" / "Cora" / "raw"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        file.name: file.read_bytes() for file in source.iterdir()
    }
    monkeypatch.undo()
    assert load("Cora", root=tmp_path / "root").x.equal(load(source).x)


class Trap:
    """Unpickled by an ordinary unpickler, this makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.file), "w")


def test_no_code_in_a_file_is_run(write_planetoid, tmp_path: Path) -> None:
    raw = write_planetoid(tmp_path / "raw")
    content = pickle.dumps({0: [Trap(tmp_path / "sprung")]})
    (raw / "ind.cora.graph").write_bytes(content)
    with pytest.raises(
        DatasetError, match=r"ind.cora.graph: cannot be read \(it asks for \w+.open, which is not allowed"
    ):
        load(raw)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(content)[0][0].close()
    assert (tmp_path / "sprung").exists()  # the trap works


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("allx", b"", "ind.cora.allx: cannot be read"),
        ("ty", pickle.dumps([1, 2]), "ind.cora.ty: holds a list; a matrix is expected"),
        ("tx", pickle.dumps(np.zeros((2, 9))), "its files do not fit together"),
        ("graph", pickle.dumps([1, 2]), "ind.cora.graph: must hold lists of neighbours by node"),
        ("graph", pickle.dumps({0: [600]}), "1 edge with an end out of range"),
        ("test.index", b"1\n2\nx\n", "test.index: must hold one node number a line"),
        ("test.index", b"0\n1\n2\n3\n4\n5\n", "its files do not fit together"),
        ("test.index", None, "ind.cora.test.index missing"),
    ],
)
def test_damage(write_planetoid, tmp_path: Path, part: str, content: bytes | None, message: str) -> None:
    raw = write_planetoid(tmp_path / "raw")
    file = raw / f"ind.cora.{part}"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        load(raw)


def test_there_is_one_public_split(write_planetoid, tmp_path: Path) -> None:
    raw = write_planetoid(tmp_path)
    assert load(raw, split=None).train_mask.shape == (538, 1)
    assert load(raw, seed=5).train_mask.equal(torch.arange(538) < 12)
    with pytest.raises(DatasetError, match="Cora: there is no split 1; it has one split, 0"):
        load(raw, split=1)
