"""OGB's folders: what is read from each layout, what is kept of it, and what is refused."""

from __future__ import annotations

import gzip
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.utils import to_undirected

from graphlossy.datasets import DatasetError, check_data, load, open_structure, prepare, save_folder, write_ogb
from graphlossy.datasets import _ogb as ogb_module
from graphlossy.datasets._ogb import OGB

_spec = importlib.util.spec_from_file_location("ogb_fakes", Path(__file__).with_name("ogb_fakes.py"))
fakes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fakes)
fake_ogb, write_csv = fakes.fake_ogb, fakes.write_csv


def read_text(folder: Path, name: str) -> np.ndarray:
    with gzip.open(folder / "raw" / name, "rt") as stream:
        return np.loadtxt(stream, delimiter=",", ndmin=2)


@pytest.mark.parametrize("name", OGB)
def test_each_layout(tmp_path: Path, name: str) -> None:
    folder = fake_ogb(tmp_path, name)
    for data in (load(name, root=tmp_path), load(folder), load(name, root=tmp_path)):  # the second time from .npy files
        check_data(data)
        assert data.num_nodes == fakes.NODES and data.is_undirected() and not data.has_self_loops()
        assert (data.synthetic, data.reference, data.name) == (True, name, f"fake-{name}")
        assert data.metric == ("rocauc" if name == "ogbn-proteins" else "accuracy")
        assert data.num_classes == (112 if name == "ogbn-proteins" else 7)
        assert int(data.train_mask.sum()) == 250 and int(data.val_mask.sum()) == 125
    if name == "ogbn-papers100M":
        with np.load(folder / "raw" / "data.npz") as raw:
            edges, x, year = raw["edge_index"], raw["node_feat"], raw["node_year"]
        with np.load(folder / "raw" / "node-label.npz") as raw:
            label = np.nan_to_num(raw["node_label"], nan=0)
        assert int(data.test_mask.sum()) == 85 and data.node_year.numpy().tolist() == year.tolist()
    else:
        edges, label = read_text(folder, "edge.csv.gz").T.astype(np.int64), read_text(folder, "node-label.csv.gz")
        x = read_text(folder, "node-feat.csv.gz") if name != "ogbn-proteins" else None
    expected = to_undirected(torch.from_numpy(edges[:, edges[0] != edges[1]]), num_nodes=data.num_nodes)
    assert data.edge_index.equal(expected)
    assert data.y.tolist() == (label if name == "ogbn-proteins" else label[:, 0].astype(int)).tolist()
    if x is not None:
        assert data.x.tolist() == x.astype(np.float32).tolist()
    if name == "ogbn-arxiv":
        assert data.node_year.tolist() == read_text(folder, "node_year.csv.gz").tolist()


def test_proteins_features_are_the_means_of_the_edges(tmp_path: Path) -> None:
    folder = fake_ogb(tmp_path, "ogbn-proteins")
    data = load("ogbn-proteins", root=tmp_path, edge_features=True)
    assert data.edge_attr.shape == (data.num_edges, 8) and data.edge_attr.dtype == torch.float32
    edges, scores = read_text(folder, "edge.csv.gz").astype(int), read_text(folder, "edge-feat.csv.gz")
    by_ends = {tuple(sorted(ends)): score for ends, score in zip(edges.tolist(), scores.tolist(), strict=True)}
    for column in range(0, data.num_edges, 97):
        assert data.edge_attr[column].tolist() == pytest.approx(
            by_ends[tuple(sorted(data.edge_index[:, column].tolist()))]
        )
    degree = torch.bincount(data.edge_index[0], minlength=data.num_nodes)
    mean = torch.zeros(data.num_nodes, 8).index_add_(0, data.edge_index[0], data.edge_attr) / degree[:, None]
    torch.testing.assert_close(data.x, mean)
    assert data.node_species.tolist() == read_text(folder, "species.csv.gz").tolist()
    assert "edge_attr" not in load("ogbn-proteins", root=tmp_path)


def test_nodes_without_edges_have_features_of_zero(tmp_path: Path) -> None:
    folder = fake_ogb(tmp_path, "ogbn-proteins")
    edges = read_text(folder, "edge.csv.gz").astype(int)
    kept = (edges != 7).all(1) & (edges != fakes.NODES - 1).all(1)
    write_csv(folder / "raw" / "edge.csv.gz", edges[kept])
    write_csv(folder / "raw" / "edge-feat.csv.gz", read_text(folder, "edge-feat.csv.gz")[kept], "%.3f")
    write_csv(folder / "raw" / "num-edge-list.csv.gz", [[kept.sum()]])
    x = load(folder).x
    assert x[[7, -1]].eq(0).all() and x[[6, 8, -2]].gt(0).all()


def test_any_graph_in_the_layout(tmp_path: Path) -> None:
    folder = fake_ogb(tmp_path, "ogbn-arxiv", mark=False)
    data = load(folder)
    assert (data.name, data.synthetic, "reference" in data, data.num_classes) == ("ogbn_arxiv", False, False, 7)
    with pytest.raises(DatasetError, match="says that it has 500 nodes and 3,000 edges; ogbn-arxiv has 169,343"):
        load("ogbn-arxiv", root=tmp_path)
    assert load("OGBN-Arxiv", root=fake_ogb(tmp_path / "b", "ogbn-arxiv").parent).reference == "ogbn-arxiv"


def test_large_structures_are_mapped_and_sorted_outside_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphlossy.datasets import _csc

    plain = {name: load(fake_ogb(tmp_path / "a", name), edge_features=name == "ogbn-proteins") for name in OGB}
    monkeypatch.setattr(_csc, "_BUCKET", 500)
    monkeypatch.setattr(ogb_module, "_IN_MEMORY", 1000)
    for name in OGB:
        folder = fake_ogb(tmp_path / "b", name)
        data = load(folder, edge_features=name == "ogbn-proteins")
        for key, value in plain[name].items():
            assert value.equal(data[key]) if isinstance(value, torch.Tensor) else value == data[key]
        assert (folder / "graphlossy" / "edge_index" / "edge_index.npy").stat().st_size > 16 * data.num_edges
        assert not list(folder.rglob("bucket-*"))


def test_what_is_kept_is_used_and_made_again_when_the_files_change(tmp_path: Path) -> None:
    folder = fake_ogb(tmp_path, "ogbn-products")
    first = load(folder)
    made = (folder / "graphlossy" / "features" / "x.npy").stat().st_mtime_ns
    assert load(folder).x.equal(first.x)
    assert (folder / "graphlossy" / "features" / "x.npy").stat().st_mtime_ns == made
    x = read_text(folder, "node-feat.csv.gz")
    x[3] = 0.5
    write_csv(folder / "raw" / "node-feat.csv.gz", x, "%.6f")
    again = load(folder)
    assert again.x[3].eq(0.5).all() and again.x[4:].equal(first.x[4:])
    assert (folder / "graphlossy" / "structure" / "manifest.json").stat().st_mtime_ns < made + 10**12
    (folder / "graphlossy" / "structure" / "row.npy").write_bytes(b"half")
    assert load(folder).edge_index.equal(first.edge_index)


def test_read_only_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphlossy.datasets import _converted

    folder = fake_ogb(tmp_path, "ogbn-arxiv")
    monkeypatch.setenv("GRAPHLOSSY_DATA", str(tmp_path / "cache"))
    real = _converted._writable
    monkeypatch.setattr(_converted, "_writable", lambda place: place.parent != folder and real(place))
    first = load(folder)
    assert not (folder / "graphlossy").exists() and list((tmp_path / "cache" / "converted").iterdir())
    assert load(folder).x.equal(first.x)
    monkeypatch.setattr(_converted, "_writable", lambda place: False)
    with pytest.raises(DatasetError, match="neither .*graphlossy nor .*converted.* can be written to"):
        load(fake_ogb(tmp_path / "other", "ogbn-products"))


KILLED = """
import os, signal, sys
from graphlossy.datasets import load, _npy
class Killing(_npy.NpyWriter):
    def append(self, rows):
        super().append(rows)
        self._stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
from graphlossy.datasets import _ogb
_ogb.NpyWriter = Killing
load(sys.argv[1])
"""


def test_a_killed_conversion_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    folder = fake_ogb(tmp_path, "ogbn-arxiv")
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    left = [path.name for path in (folder / "graphlossy").iterdir()]
    assert "features" not in left and any(name.startswith(".features-") for name in left)
    check_data(load(folder))
    assert not [path for path in (folder / "graphlossy").iterdir() if path.name.startswith(".")]


def test_the_second_load_is_quick(tmp_path: Path) -> None:
    folder = fake_ogb(tmp_path, "ogbn-arxiv", nodes=2000)
    load(folder)
    start = time.perf_counter()
    load(folder)
    assert time.perf_counter() - start < 0.5


def edited(folder: Path, name: str, change) -> None:
    file = folder / name
    text = gzip.decompress(file.read_bytes()).decode()
    file.write_bytes(gzip.compress(change(text).encode()))


FAULTS = {
    "no split": (lambda f: (f / "split" / "time").rename(f / "away"), "split/time: there is no such folder"),
    "no part": (lambda f: (f / "split/time/valid.csv.gz").unlink(), "valid.csv.gz: there is no such file"),
    "empty part": (
        lambda f: write_csv(f / "split/time/valid.csv.gz", np.empty((0, 1))),
        "split/time: there are no valid nodes",
    ),
    "part out of range": (
        lambda f: write_csv(f / "split/time/test.csv.gz", [[3], [500]]),
        "the test nodes go from 3 to 500, but nodes go from 0 to 499",
    ),
    "node twice": (
        lambda f: edited(f, "split/time/test.csv.gz", lambda text: text + text.splitlines()[0] + "\n"),
        r"split/time: node \d+ is listed 2 times",
    ),
    "truncated edges": (
        lambda f: (f / "raw/edge.csv.gz").write_bytes((f / "raw/edge.csv.gz").read_bytes()[:-100]),
        "raw/edge.csv.gz: is truncated",
    ),
    "fewer edges": (
        lambda f: edited(f, "raw/edge.csv.gz", lambda text: text[: text.rindex("\n", 0, -1) + 1]),
        "raw/edge.csv.gz: has 2,999 edges; there must be 3,000",
    ),
    "edge out of range": (
        lambda f: edited(f, "raw/edge.csv.gz", lambda text: "5,500\n" + text[text.index("\n") + 1 :]),
        r"raw/edge.csv.gz: edge 0 has an end out of range \(5, 500\); the numbers of 500 nodes go from 0 to 499",
    ),
    "letters": (
        lambda f: edited(f, "raw/edge.csv.gz", lambda text: text.replace("\n", "x\n", 1)),
        "raw/edge.csv.gz: line 1 is '",
    ),
    "nodes wrong": (
        lambda f: write_csv(f / "raw/num-node-list.csv.gz", [[501]]),
        "node-label.csv.gz: has 500 rows, but there are 501 nodes",
    ),
    "no nodes": (lambda f: write_csv(f / "raw/num-node-list.csv.gz", [[0]]), "says that there are 0 nodes"),
    "two graphs": (lambda f: write_csv(f / "raw/num-node-list.csv.gz", [[5], [7]]), "must hold one number"),
    "no sizes": (lambda f: (f / "raw/num-edge-list.csv.gz").unlink(), "num-edge-list.csv.gz: there is no such file"),
    "no features": (lambda f: (f / "raw/node-feat.csv.gz").unlink(), "has no node features"),
    "NaN feature": (
        lambda f: edited(f, "raw/node-feat.csv.gz", lambda text: text.replace(text.splitlines()[2], "1,2,nan,4,5")),
        "node-feat.csv.gz: NaN or infinite value at node 2, feature 2; every feature must be finite",
    ),
    "short features": (
        lambda f: edited(f, "raw/node-feat.csv.gz", lambda text: text[text.index("\n") + 1 :]),
        "node-feat.csv.gz: has 499 rows, but there are 500 nodes",
    ),
    "class too high": (
        lambda f: edited(f, "raw/node-label.csv.gz", lambda text: "7" + text[1:]),
        "node-label.csv.gz: labels go from 0 to 7; there are 7 classes",
    ),
    "half a class": (
        lambda f: edited(f, "raw/node-label.csv.gz", lambda text: "0.5" + text[1:]),
        "node-label.csv.gz: class numbers must be whole",
    ),
    "no label": (
        lambda f: edited(f, "raw/node-label.csv.gz", lambda text: "nan" + text[1:]),
        "node-label.csv.gz: node 0 is in the split but has no label",
    ),
    "short years": (
        lambda f: edited(f, "raw/node_year.csv.gz", lambda text: text[5:]),
        "node_year.csv.gz: has 499 rows, but there are 500 nodes",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults(tmp_path: Path, case: str) -> None:
    folder = fake_ogb(tmp_path, "ogbn-arxiv")
    change, message = FAULTS[case]
    change(folder)
    for _ in range(2):  # nothing of the first attempt is taken for whole
        with pytest.raises(DatasetError, match=message) as caught:
            load("ogbn-arxiv", root=tmp_path)
        assert "\n" not in str(caught.value)
    assert not [path for path in (folder / "graphlossy").glob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("damage", ["truncated", "no key", "flat edges", "pickled"])
def test_damaged_archives(tmp_path: Path, damage: str) -> None:
    folder = fake_ogb(tmp_path, "ogbn-papers100M")
    file = folder / "raw" / "data.npz"
    with np.load(file) as raw:
        arrays = dict(raw)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-200])
    elif damage == "no key":
        del arrays["edge_index"]
    elif damage == "flat edges":
        arrays["edge_index"] = arrays["edge_index"].reshape(-1)
    else:
        arrays["node_feat"] = np.array([{}] * 500, dtype=object)
    if damage != "truncated":
        np.savez(file, **arrays)
    with pytest.raises(DatasetError, match="no whole .npz|has no array 'edge_|must be .2, edges.|must hold numbers"):
        load(folder)


def test_absent_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphlossy.datasets import _ogb_download

    with pytest.raises(DatasetError, match="there is no folder .*ogbn_products with raw/ in it; unpack .* .1.5 GB"):
        prepare("ogbn-products", tmp_path, download=False)
    with pytest.raises(DatasetError, match="no folder .*ogbn_papers100M .*60.3 GB"):  # never downloaded unasked
        load("ogbn-papers100M", root=tmp_path)
    monkeypatch.setattr(_ogb_download, "_published", lambda name: None)
    with pytest.raises(DatasetError, match=r"ogb is not installed to download it: pip install .graphlossy\[ogb\]"):
        load("ogbn-arxiv", root=tmp_path)
    (tmp_path / "ogbn_arxiv").mkdir()
    (tmp_path / "ogbn_arxiv" / "notes").write_text("mine")
    with pytest.raises(DatasetError, match="but other files are there"):
        load("ogbn-arxiv", root=tmp_path)


def test_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("ogb") is None:  # importing it here would look for a newer version on the network
        pytest.skip("needs ogb")
    import shutil

    from graphlossy.datasets import _ogb_download

    fake_ogb(tmp_path / "web", "ogbn-arxiv").rename(tmp_path / "web" / "arxiv")
    archive = shutil.make_archive(str(tmp_path / "arxiv"), "zip", tmp_path / "web")
    assert _ogb_download._published("ogbn-arxiv")[1] == "arxiv"
    assert _ogb_download._published("ogbn-papers100M")[0].endswith("papers100M-bin.zip")
    monkeypatch.setattr(_ogb_download, "_published", lambda name: (Path(archive).as_uri(), "arxiv"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    data = load("ogbn-arxiv", root=tmp_path / "root")
    assert data.num_nodes == fakes.NODES and sorted(os.listdir(tmp_path / "root")) == ["ogbn_arxiv"]
    monkeypatch.setattr(_ogb_download, "_published", lambda name: ("file:///nowhere/arxiv.zip", "arxiv"))
    with pytest.raises(DatasetError, match="the download failed .*; unpack OGB's archive"):
        load("ogbn-arxiv", root=tmp_path / "other")
    assert os.listdir(tmp_path / "other") == []


def test_arguments(tmp_path: Path) -> None:
    folder = fake_ogb(tmp_path, "ogbn-arxiv")
    with pytest.raises(DatasetError, match="its edges have no features; leave edge_features out"):
        load(folder, edge_features=True)
    with pytest.raises(DatasetError, match="scale is for generated graphs alone"):
        load("ogbn-arxiv", root=tmp_path, scale=0.5)
    with pytest.raises(DatasetError, match="there is no split 1"):
        load(folder, split=1)
    copy = load(save_folder(load(folder), tmp_path / "copy"))
    assert (copy.num_nodes, copy.synthetic, copy.reference) == (fakes.NODES, True, "ogbn-arxiv")


def test_edges_are_whole_numbers_and_features_are_there(tmp_path: Path) -> None:
    folder = write_ogb("synth-papers100M", tmp_path, 1e-5)
    with np.load(folder / "raw" / "data.npz") as raw:
        arrays = dict(raw)
    for changed, message in (
        (
            {"edge_index": arrays["edge_index"] + 0.5},
            r"edge_index has shape .* and type float64; it must be .* of whole",
        ),
        ({"node_feat": np.empty((0, 128), np.float32)}, "node_feat: is empty"),
    ):
        np.savez(folder / "raw" / "data.npz", **(arrays | changed))
        with pytest.raises(DatasetError, match=message):
            load(folder)
    tables = write_ogb("synth-arxiv", tmp_path, 0.003)
    (tables / "raw" / "node-feat.csv.gz").write_bytes(b"")
    with pytest.raises(DatasetError, match="node-feat.csv.gz: is empty"):
        load(tables)


def test_labels_fit_the_number_of_nodes_that_is_now_in_the_archive(tmp_path: Path) -> None:
    folder = write_ogb("synth-papers100M", tmp_path, 1e-5)
    nodes = open_structure(folder).num_nodes
    with np.load(folder / "raw" / "data.npz") as raw:
        arrays = dict(raw)
    np.savez(folder / "raw" / "data.npz", **(arrays | {"num_nodes_list": np.array([nodes + 1])}))
    with pytest.raises(DatasetError, match="node_label: has 1,111 rows, but there are 1,112 nodes"):
        open_structure(folder)


def test_a_damaged_folder_gets_no_manifest(tmp_path: Path) -> None:
    folder = write_ogb("synth-arxiv", tmp_path, 0.003)
    (folder / "split" / "time" / "valid.csv.gz").unlink()
    with pytest.raises(DatasetError, match="valid.csv.gz: there is no such file"):
        prepare("synth-arxiv", tmp_path, scale=0.003)
    assert not (folder / "manifest.json").exists()
