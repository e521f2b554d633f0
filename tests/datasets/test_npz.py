"""The two .npz formats of published graphs: read exactly, and refused with reason."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from graphlossy.datasets import DatasetError, load


def both_ways(edges: np.ndarray) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for pair in edges for a, b in (pair, pair[::-1]) if a != b}


def test_heterophilous(heterophilous, save_npz) -> None:
    arrays = heterophilous()
    arrays["edges"] = np.concatenate([arrays["edges"], [[4, 3], [3, 4], [7, 7]]])  # duplicates and a self-loop
    path = save_npz(arrays)
    data = load(path, split=4)
    assert (data.name, data.num_classes, data.metric) == ("graph", 3, "accuracy")
    assert data.x.dtype == torch.float32 and data.x.equal(torch.from_numpy(arrays["node_features"]))
    assert data.y.dtype == torch.int64 and data.y.tolist() == arrays["node_labels"].tolist()
    columns = data.edge_index.t().tolist()
    assert columns == sorted(map(list, both_ways(arrays["edges"])))
    for name, key in (("train_mask", "train_masks"), ("val_mask", "val_masks"), ("test_mask", "test_masks")):
        assert data[name].dtype == torch.bool and data[name].tolist() == arrays[key][4].tolist()


def test_every_split_and_all_of_them(heterophilous, save_npz) -> None:
    path = save_npz(heterophilous())
    everything = load(path, split=None)
    assert everything.train_mask.shape == (30, 10)
    for number in range(10):
        assert load(path, split=number).val_mask.equal(everything.val_mask[:, number])
    with pytest.raises(DatasetError, match="graph.npz: there is no split 10; its 10 splits are 0 to 9"):
        load(path, split=10)


def test_two_classes_are_scored_by_roc_auc(heterophilous, save_npz) -> None:
    data = load(save_npz(heterophilous(classes=2)))
    assert (data.metric, data.num_classes) == ("rocauc", 2)


def test_attributed(attributed, save_npz) -> None:
    arrays = attributed()
    data = load(save_npz(arrays))
    assert (data.num_nodes, data.num_edges, data.num_classes, data.metric) == (300, 600, 3, "accuracy")
    assert data.x.equal(2 * torch.nn.functional.one_hot(torch.arange(300) % 7, 7).float())
    assert data.is_undirected() and not data.has_self_loops() and data.is_coalesced()
    for label in range(3):
        sizes = [int(mask[data.y == label].sum()) for mask in (data.train_mask, data.val_mask, data.test_mask)]
        assert sizes == [20, 30, 50]


def test_attributed_splits_follow_split_and_seed(attributed, save_npz) -> None:
    path = save_npz(attributed())
    first = load(path).train_mask
    assert first.equal(load(path, split=0, seed=0).train_mask)
    assert not first.equal(load(path, split=1).train_mask)
    assert not first.equal(load(path, seed=1).train_mask)
    assert load(path, split=None).train_mask[:, 0].equal(first)


def test_attributed_with_dense_features_and_explicit_zeros(attributed, save_npz) -> None:
    arrays = {key: value for key, value in attributed().items() if not key.startswith("attr")}
    arrays["attr_matrix"] = np.arange(600.0).reshape(300, 2)
    arrays["adj_data"][1] = 0  # stored, but no edge: 0 -> 1
    data = load(save_npz(arrays))
    assert data.x.equal(torch.arange(600.0).reshape(300, 2))
    assert data.num_edges == 598


def test_small_classes_keep_nodes_for_every_part(attributed, save_npz) -> None:
    arrays = attributed()
    arrays["labels"] = np.where(np.arange(300) < 10, 1, 0)
    data = load(save_npz(arrays))
    assert [int(mask[:10].sum()) for mask in (data.train_mask, data.val_mask, data.test_mask)] == [4, 3, 3]


def test_other_entries_may_be_pickled_but_needed_ones_may_not(attributed, save_npz, tmp_path: Path) -> None:
    arrays = attributed()
    arrays["metadata"] = np.array({"a": 1}, dtype=object)
    assert load(save_npz(arrays)).num_nodes == 300
    arrays["labels"] = arrays["labels"].astype(object)
    with pytest.raises(DatasetError, match="labels is stored as pickled objects, .* save it as a plain array"):
        load(save_npz(arrays))


def test_wrong_keys(heterophilous, save_npz) -> None:
    arrays = heterophilous()
    arrays["edge"] = arrays.pop("edges")
    with pytest.raises(DatasetError, match="its keys are edge, node_features, .*; a graph has either node_features"):
        load(save_npz(arrays))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9, 0.999])
def test_truncated_file(attributed, save_npz, share: float) -> None:
    path = save_npz(attributed())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DatasetError, match="graph.npz: no readable .npz file .*; it is damaged or incomplete"):
        load(path)


def test_flipped_bytes_never_pass_unnoticed(attributed, save_npz) -> None:
    path = save_npz(attributed())
    with zipfile.ZipFile(path) as archive:
        entries = [info for info in archive.infolist() if info.filename != "attr_indptr.npy"]
    content = path.read_bytes()
    for info in entries:  # one byte within the compressed data of every entry that is read
        start = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
        path.write_bytes(content[:start] + bytes([content[start] ^ 0xFF]) + content[start + 1 :])
        with pytest.raises(DatasetError, match=rf"graph.npz: {info.filename[:-4]} cannot be read"):
            load(path)


def test_no_npz_inside(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    path.write_text("hello")
    with pytest.raises(DatasetError, match=r"no readable .npz file \(no archive of arrays\)"):
        load(path)
    with open(path, "wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(DatasetError, match="holds a single array"):
        load(path)


CHANGES = {
    "NaN": ("node_features", (3, 1), np.nan, "1 NaN or infinite value, at node 3, feature 1"),
    "label": ("node_labels", 2, -1, r"1 label out of range, at node 2 \(-1\)"),
    "edge": ("edges", (5, 0), 30, r"1 edge with an end out of range, at column 5 \(30, 6\)"),
    "mask": ("train_masks", slice(None), True, "train_mask and val_mask share 10 nodes"),
    "training": ("train_masks", slice(None), False, "there are no training nodes"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_bad_values(heterophilous, save_npz, case: str) -> None:
    key, where, value, message = CHANGES[case]
    arrays = heterophilous()
    arrays[key][where] = value
    with pytest.raises(DatasetError, match=f"^graph.npz: .*{message}"):
        load(save_npz(arrays))


SHAPES = {
    "edges": ("edges", lambda a: a.T, r"edges has shape \[2, 29\]; it must be \[edges, 2\]"),
    "edges halves": ("edges", lambda a: a + 0.5, "edge_index is an array of float64; it must hold whole numbers"),
    "features text": ("node_features", lambda a: a.astype(str), "x is an array of <U32; it must hold numbers"),
    "features scalar": ("node_features", lambda a: a[0, 0], r"x has shape \[\]"),
    "no nodes": ("node_features", lambda a: a[:0], "at least one node"),
    "labels short": ("node_labels", lambda a: a[:-1], r"y has shape \[29\]; it must be \[30\]"),
    "masks short": ("val_masks", lambda a: a[:, 1:], r"val_mask has shape \[29\]"),
    "masks integer": ("val_masks", lambda a: a.astype(np.int8), "a mask is an array of int8"),
    "overflow": ("node_features", lambda a: a.astype(np.float64) * 1e300, "120 NaN or infinite values, the first at"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_bad_shapes_and_types(heterophilous, save_npz, case: str) -> None:
    key, change, message = SHAPES[case]
    arrays = heterophilous()
    arrays[key] = change(arrays[key])
    with pytest.raises(DatasetError, match=f"^graph.npz: .*{message}"):
        load(save_npz(arrays))


CSR = {
    "adj_shape": (lambda a: np.array([300, 301]), r"adj_shape is \[300, 301\]; an adjacency matrix must be square"),
    "adj_indptr": (lambda a: a[:-1], "adj_indptr must rise from 0 to the 301 stored entries in 301 values"),
    "attr_indptr": (lambda a: a[::-1], "attr_indptr must rise from 0"),
    "attr_indices": (lambda a: a + 1, "attr_indices go from 1 to 7; the columns are 0 to 6"),
    "attr_data": (lambda a: a[1:], "attr_data 299"),
    "attr_shape": (lambda a: np.array([300, 10**15]), "GiB when dense, more than there is"),
    "adj_data": (lambda a: a.astype(str), "are no CSR matrix"),
    "labels": (lambda a: a[:-1], r"y has shape \[299\]"),
}


@pytest.mark.parametrize("key", CSR)
def test_bad_csr(attributed, save_npz, key: str) -> None:
    change, message = CSR[key]
    arrays = attributed()
    arrays[key] = change(arrays[key])
    with pytest.raises(DatasetError, match=f"^graph.npz: .*{message}"):
        load(save_npz(arrays))


def test_labels_of_several_tasks_are_scored_by_roc_auc(heterophilous, save_npz) -> None:
    arrays = heterophilous()
    arrays["node_labels"] = np.stack([np.arange(30) % 2, np.arange(30) % 3 == 0], 1).astype(np.int64)
    data = load(save_npz(arrays))
    assert data.y.shape == (30, 2) and (data.metric, data.num_classes) == ("rocauc", 2)


def test_labels_that_are_text(heterophilous, save_npz) -> None:
    arrays = heterophilous()
    arrays["node_labels"] = np.array(["ham", "spam", "eggs"])[arrays["node_labels"]]
    with pytest.raises(DatasetError, match="graph.npz: y is an array of <U4; it must hold whole numbers"):
        load(save_npz(arrays))


def test_unsigned_node_numbers_do_not_wrap(heterophilous, save_npz) -> None:
    arrays = heterophilous()
    arrays["edges"] = arrays["edges"].astype(np.uint64)
    arrays["edges"][3, 1] = 2**64 - 1
    with pytest.raises(DatasetError, match="edge_index holds 18446744073709551615, which is out of range"):
        load(save_npz(arrays))


@pytest.mark.parametrize("split", [0, None])
def test_masks_without_a_split(heterophilous, save_npz, split: int | None) -> None:
    arrays = heterophilous()
    for name in ("train_masks", "val_masks", "test_masks"):
        arrays[name] = arrays[name][:0]
    with pytest.raises(DatasetError, match="graph.npz: the masks hold no split"):
        load(save_npz(arrays), split=split)
