"""Generated stand-ins: the shape of their originals at any scale, the same for the same seed, on disk or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from graphlossy.datasets import DatasetError, check_data, load, ogb_evaluate, open_structure, write_ogb
from graphlossy.datasets._facts import FACTS, fact
from graphlossy.datasets._generate import GENERATED, check_scale, papers, scaled_name
from graphlossy.datasets._papers_model import CitationModel, Papers
from graphlossy.datasets._write_ogb import STAND_INS, stand_in_folder

SMALL = {"synth-arxiv": 0.01, "synth-products": 0.001, "synth-proteins": 0.01, "synth-papers100M": 1e-5}


def tensors(data) -> dict[str, torch.Tensor]:
    return {key: value for key, value in data.items() if isinstance(value, torch.Tensor)}


def same(first, second) -> bool:
    one, other = tensors(first), tensors(second)
    return one.keys() == other.keys() and all(value.equal(other[key]) for key, value in one.items())


@pytest.mark.parametrize("name", SMALL)
def test_small_scales(name: str) -> None:
    scale, entry = SMALL[name], FACTS[name]
    data = load(name, scale=scale)
    check_data(data)
    assert data.num_nodes == round(entry.nodes * scale)
    assert data.is_undirected() and data.is_coalesced() and not data.has_self_loops()
    assert (data.name, data.synthetic, data.reference) == (f"{name} x{scale:f}".rstrip("0"), True, entry.reference)
    assert data.metric == entry.metric and data.num_features == entry.features
    parts = [int(mask.sum()) for mask in (data.train_mask, data.val_mask, data.test_mask)]
    for found, original in zip(parts, entry.sizes_of_split, strict=True):
        assert found == pytest.approx(original * scale, abs=1.5)
    if name != "synth-papers100M":
        assert sum(parts) == data.num_nodes
    assert same(load(name, scale=scale), data)
    assert not same(load(name, scale=scale, seed=1), data)


@pytest.mark.parametrize("name", SMALL)
def test_the_same_from_disk(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scale, weighed = SMALL[name], name == "synth-proteins"
    memory = load(name, root=tmp_path, scale=scale, seed=2, edge_features=weighed)
    folder = write_ogb(name, tmp_path, scale, seed=2)
    assert folder == stand_in_folder(name, tmp_path, scale, 2)
    assert "NOT ogbn" in (folder / "mapping" / "README.md").read_text() == (folder / "RELEASE_v1.txt").read_text()
    from graphlossy.datasets import _load

    with monkeypatch.context() as patch:
        patch.setattr(_load, "generate", lambda *_: pytest.fail("it was generated again"))
        disk = load(name, root=tmp_path, scale=scale, seed=2, edge_features=weighed)
    for data in (disk, load(folder, edge_features=weighed)):
        assert same(data, memory)
        for key in ("name", "synthetic", "reference", "metric", "num_classes"):
            assert data[key] == memory[key]
    assert not same(load(name, root=tmp_path, scale=scale, seed=3, edge_features=weighed), memory)
    with pytest.raises(DatasetError, match="exists already; remove it first"):
        write_ogb(name, tmp_path, scale, seed=2)


def test_equal_graphs_are_equal_files(tmp_path: Path) -> None:
    for name in ("synth-proteins", "synth-papers100M"):
        first, second = (write_ogb(name, tmp_path / part, SMALL[name]) for part in "ab")
        files = [file.relative_to(first) for file in first.rglob("*") if file.is_file()]
        assert len(files) > 5
        assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_products_are_split_by_popularity() -> None:
    data = load("synth-products", scale=0.002)
    degree = torch.bincount(data.edge_index[0], minlength=data.num_nodes).double()
    train, validation, test = (degree[data[f"{part}_mask"]].mean() for part in ("train", "val", "test"))
    assert train > 1.5 * validation > 2 * test
    assert data.num_edges / data.num_nodes == pytest.approx(50.5, abs=0.1)
    source, target = data.edge_index
    assert (data.y[source] == data.y[target]).double().mean() > 0.6


def test_proteins_are_split_by_species() -> None:
    data = load("synth-proteins", scale=0.01, edge_features=True)
    parts = [set(data.node_species[mask, 0].tolist()) for mask in (data.train_mask, data.val_mask, data.test_mask)]
    assert parts == [{0, 1, 2, 3, 4, 5}, {6}, {7}]
    assert data.edge_attr.shape == (data.num_edges, 8) and 0 < data.edge_attr.min() and data.edge_attr.max() <= 1
    order = torch.argsort(data.edge_index[1] * data.num_nodes + data.edge_index[0])
    assert data.edge_attr[order].equal(data.edge_attr)  # both directions of an edge have the same scores
    degree = torch.bincount(data.edge_index[0], minlength=data.num_nodes)
    mean = torch.zeros(data.num_nodes, 8).index_add_(0, data.edge_index[0], data.edge_attr) / degree[:, None]
    torch.testing.assert_close(data.x, mean)
    assert set(data.y.unique().tolist()) == {0.0, 1.0}


def fit(x: torch.Tensor, data) -> float:
    """Test ROC-AUC of logistic regression."""
    x = (x - x[data.train_mask].mean(0)) / x[data.train_mask].std(0)
    model = torch.nn.Linear(x.shape[1], data.num_classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(x[data.train_mask]), data.y[data.train_mask]).backward()
        optimizer.step()
    return ogb_evaluate("synth-proteins", data.y[data.test_mask], model(x[data.test_mask]).detach())


def test_the_neighbours_of_a_protein_tell_more_than_itself() -> None:
    data = load("synth-proteins", scale=0.012)
    source, target = data.edge_index
    mean = torch.zeros_like(data.x).index_add_(0, source, data.x[target])
    mean /= torch.bincount(source, minlength=data.num_nodes)[:, None]
    own, neighbours = fit(data.x, data), fit(mean, data)
    assert 0.6 < own < 0.8 and own + 0.02 < neighbours < 0.9


def test_years_agree_with_the_split() -> None:
    for name in ("synth-arxiv", "synth-papers100M"):
        data = load(name, scale=SMALL[name])
        year = data.node_year[:, 0]
        assert year[data.train_mask].max() <= 2017
        assert year[data.val_mask].eq(2018).all() and year[data.test_mask].ge(2019).all()


def test_papers_are_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphlossy.datasets import _papers_model

    monkeypatch.setattr(_papers_model, "_CHUNK", 1000)
    model = CitationModel(3000, 20_000, 10, 4)
    chunks = list(Papers(model, 1).edges())
    edges = np.concatenate(chunks, axis=1)
    assert len(chunks) >= 15 and max(chunk.shape[1] for chunk in chunks) < 3000
    assert edges.shape == (2, 20_000) and (np.diff(edges[0]) >= 0).all() and (edges[0] != edges[1]).all()
    assert len(np.unique(edges[0] * 3000 + edges[1])) == 20_000 and edges.max() < 3000
    graph = papers(0, 1e-5)
    assert np.isnan(graph.labels()).mean() > 0.9
    with pytest.raises(DatasetError, match="edges from .* nodes of 20 cannot be placed"):
        list(Papers(CitationModel(20, 399, 4, 4), 0).edges())


def test_open_structure(tmp_path: Path) -> None:
    folder = write_ogb("synth-papers100M", tmp_path, 1e-5)
    directed, both = open_structure(folder, undirected=False), open_structure(folder)
    with np.load(folder / "raw" / "data.npz") as raw:
        edges, x = raw["edge_index"], raw["node_feat"]
    assert not (folder / "graphlossy" / "features").exists()  # structure first
    assert isinstance(both.row, np.memmap) and isinstance(both.colptr, np.memmap) and isinstance(both.y, np.memmap)
    assert directed.num_edges == edges.shape[1] and directed.row.dtype == np.int32
    order = np.lexsort(edges)
    np.testing.assert_array_equal(directed.row, edges[0][order])
    np.testing.assert_array_equal(directed.colptr, np.searchsorted(edges[1][order], np.arange(directed.num_nodes + 1)))
    data = load(folder)
    for node in (0, 17, data.num_nodes - 1):
        assert both.neighbors(node).tolist() == data.edge_index[1, data.edge_index[0] == node].tolist()
        assert directed.neighbors(node).tolist() == sorted(edges[0, edges[1] == node].tolist())
    assert both.nbytes == 8 * (data.num_nodes + 1) + 4 * data.num_edges
    for part in ("train", "val", "test"):
        assert both.nodes(part).tolist() == data[f"{part}_mask"].nonzero()[:, 0].tolist()
    assert (both.name, both.reference, both.num_classes) == (data.name, "ogbn-papers100M", data.num_classes)
    np.testing.assert_array_equal(both.features(), x)
    with pytest.raises(ValueError, match="part must be 'train', 'val' or 'test', got 'valid'"):
        both.nodes("valid")
    with pytest.raises(DatasetError, match="holds no graph in OGB's layout"):
        open_structure(tmp_path)


def test_a_killed_writer_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    code = "import sys; from graphlossy.datasets import write_ogb; write_ogb('synth-products', sys.argv[1], 0.02)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    end = time.monotonic() + 60
    while time.monotonic() < end and not list(tmp_path.glob(".synth*/raw/edge.csv.gz")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert os.listdir(tmp_path) and not list(tmp_path.glob("synth*"))
    folder = write_ogb("synth-products", tmp_path, 0.001)
    assert os.listdir(tmp_path) == [folder.name]  # what was left is swept away


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"scale": 1e-9},
            r"scale must be a number from 0.003 \(500 nodes\) to 64 for synth-arxiv of 169,343",
        ),
        ({"scale": "1"}, "scale must be a number .*, got '1'"),
        ({"scale": True}, "scale must be a number .*, got True"),
        ({"scale": float("nan")}, "scale must be a number .*, got nan"),
        ({"edge_features": True, "scale": 0.01}, "edge_features must be left out for synth-arxiv: its edges have none"),
    ],
)
def test_load_errors(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("synth-arxiv", **arguments)


def test_write_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name must be one of synth-arxiv, .*got 'ogbn-arxiv'"):
        write_ogb("ogbn-arxiv", tmp_path)
    with pytest.raises(ValueError, match="seed must be a whole number from 0 to 4294967295, got -1"):
        write_ogb("synth-arxiv", tmp_path, 0.01, -1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written"):
        write_ogb("synth-arxiv", tmp_path / "file", 0.01)


def test_names_and_facts() -> None:
    assert set(STAND_INS) < set(GENERATED) < set(FACTS)
    assert all(fact(name).name == name for name in FACTS)
    assert scaled_name("synth-arxiv", 3e-5) == "synth-arxiv x0.00003"
    assert check_scale("synth-papers100M", None) == 0.001 and check_scale("synth-arxiv", 2) == 2.0
