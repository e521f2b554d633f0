"""Files: what is read, what is refused with one clear line, and that nothing in a file is ever run."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data, HeteroData

from graphlossy.core._files import allowed_globals
from graphlossy.datasets import DatasetError
from graphlossy.outliers._files_npz import read_npz
from graphlossy.outliers._files_pygod import read_pt
from graphlossy.outliers.data import load, save_npz


def small(nodes: int = 12, **more: Any) -> Data:
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(nodes, (2, 3 * nodes), generator=generator).unique(dim=1)
    y = torch.zeros(nodes, dtype=torch.int64)
    y[:3] = torch.tensor([1, 2, 3])[: min(3, nodes)]
    return Data(x=torch.rand(nodes, 4, generator=generator), edge_index=ends, y=y, **more)


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def zipped(file: Path, path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names or (file.name,):
            archive.write(file, name)
    return path


def same(found: Data, data: Data) -> bool:
    return torch.equal(found.x, data.x) and torch.equal(found.edge_index, data.edge_index)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_saved_data_is_read(tmp_path: Path, legacy: bool) -> None:
    data = small(train_mask=torch.ones(12, dtype=torch.bool), note_of_mine="text")
    torch.save(data, tmp_path / "mine.pt", _use_new_zipfile_serialization=not legacy)
    found = load(f"{tmp_path / 'mine.pt'}#y")
    assert same(found, data)
    assert (found.name, found.typed, found.y.tolist()) == ("mine", True, data.y.tolist())


def test_an_archive_around_the_file_is_read(tmp_path: Path) -> None:
    file = saved(small(), tmp_path / "inj_cora.pt")
    zipped(file, tmp_path / "inj_cora.pt.zip", "inj_cora.pt", "__MACOSX/._inj_cora.pt")
    file.unlink()
    found = load("inj_cora", root=tmp_path)
    assert same(found, small())
    assert found.typed
    assert "PyGOD's inj_cora.pt.zip" in found.note


def test_torchs_own_format_may_be_called_zip(tmp_path: Path) -> None:
    assert same(load(saved(small(), tmp_path / "mine.pt").rename(tmp_path / "mine.pt.zip")), small())


@pytest.mark.parametrize("slices", [None, {"x": torch.tensor([0, 12])}], ids=["None", "one"])
def test_the_processed_file_of_a_dataset_is_read(tmp_path: Path, slices: Any) -> None:
    data = small()
    assert same(load(saved((data.to_dict(), slices, Data), tmp_path / "data.pt")), data)


def test_several_graphs_are_refused(tmp_path: Path) -> None:
    file = saved((small().to_dict(), {"x": torch.tensor([0, 6, 12])}, Data), tmp_path / "data.pt")
    with pytest.raises(DatasetError, match="holds 2 graphs; save the one that is meant"):
        load(file)


def test_a_dictionary_and_a_sparse_adjacency_are_read(tmp_path: Path) -> None:
    dense = torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 0, 0]])  # row: target, column: source
    content = {"x": torch.rand(3, 2), "adj_t": dense.to_sparse_csr(), "y": torch.tensor([0, 1, 0])}
    found = load(saved(content, tmp_path / "mine.pt"))
    assert found.edge_index.tolist() == [[1, 2], [0, 1]]


class Trap:
    """Makes a folder when it is unpickled: what a hostile file would do, and worse."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("archive", [False, True])
def test_nothing_in_a_file_is_run(tmp_path: Path, archive: bool) -> None:
    trap = tmp_path / "sprung"
    file = saved({"x": torch.rand(3, 2), "trap": Trap(str(trap))}, tmp_path / "evil.pt")
    file = zipped(file, tmp_path / "evil.pt.zip") if archive else file
    with pytest.raises(DatasetError, match=r"holds a (posix|nt)\.mkdir, which could run code and is not read"):
        load(file)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(str(trap))))
    assert trap.exists(), "the trap works where nothing prevents it"


def test_a_pickle_is_not_read_as_a_file_of_torch(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Trap(str(trap))))
    with pytest.raises(DatasetError, match="evil.pt"):
        load(tmp_path / "evil.pt")
    assert not trap.exists()


def test_weights_only_cannot_be_turned_off_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: asked.append(k.get("weights_only")) or original(*a, **k))
    load(saved(small(), tmp_path / "mine.pt"))
    assert asked == [True]


@given(at=st.floats(0, 0.999))
def test_a_truncated_file_is_one_clear_line(tmp_path_factory: pytest.TempPathFactory, at: float) -> None:
    folder = tmp_path_factory.mktemp("cut")
    file = saved(small(), folder / "mine.pt")
    archive = zipped(file, folder / "mine.pt.zip")
    table = save_npz(small(), folder / "mine.npz")
    for path in (file, archive, table):
        content = path.read_bytes()
        path.write_bytes(content[: int(at * len(content))])
        with pytest.raises(DatasetError, match="damaged or incomplete|cannot be read") as error:
            load(path)
        assert "\n" not in str(error.value)
        assert path.name in str(error.value)
        assert "allow_pickle" not in str(error.value) and not re.search(r"\(\d*\)", str(error.value))


@given(at=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_a_flipped_bit_never_gives_another_graph(tmp_path_factory: pytest.TempPathFactory, at: float, bit: int) -> None:
    """Read unharmed (the bit was in a name or in padding) or refused by a clear line: nothing else."""
    folder = tmp_path_factory.mktemp("flipped")
    file = saved(small(), folder / "mine.pt")
    for path in (zipped(file, folder / "mine.pt.zip"), save_npz(small(), folder / "mine.npz")):
        content = bytearray(path.read_bytes())
        content[int(at * len(content))] ^= 1 << bit
        path.write_bytes(content)
        try:
            found = load(path)
        except DatasetError as error:
            assert "\n" not in str(error)
        else:
            assert same(found, small())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2, 3], "holds a int; it must hold a torch_geometric.data.Data"),
        (torch.ones(3), "holds a Tensor; it must hold"),
        ({"x": torch.ones(3, 1)}, "has no edge_index; its attributes are x"),
        ({"weight": torch.ones(3, 1)}, "has no x and no edge_index; its attributes are weight"),
        (Data(edge_index=torch.zeros(2, 1, dtype=torch.long)), "has no x; its attributes are edge_index"),
        ({"x": torch.ones(3, 1), "adj_t": torch.ones(2, 3)}, r"adj_t has shape \[2, 3\]"),
    ],
)
def test_what_is_no_graph_is_said(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load(saved(content, tmp_path / "mine.pt"))


def test_a_heterogeneous_graph_is_refused(tmp_path: Path) -> None:
    data = HeteroData()
    data["user"].x = torch.ones(3, 1)
    with pytest.raises(DatasetError, match="mine.pt"):
        load(saved(data, tmp_path / "mine.pt"))


def test_an_archive_of_two_files_is_refused(tmp_path: Path) -> None:
    file = saved(small(), tmp_path / "one.pt")
    with pytest.raises(DatasetError, match="must hold one .pt file, it holds one.pt, two.pt"):
        load(zipped(file, tmp_path / "both.pt.zip", "one.pt", "two.pt"))
    with pytest.raises(DatasetError, match="must hold one .pt file, it holds readme.txt"):
        load(zipped(file, tmp_path / "none.pt.zip", "readme.txt"))


@given(
    nodes=st.integers(1, 30), features=st.integers(1, 8), edges=st.integers(0, 60), density=st.floats(0, 1),
    labelled=st.booleans(), typed=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_an_npz_file_gives_back_what_was_saved(
    tmp_path_factory: pytest.TempPathFactory, nodes: int, features: int, edges: int, density: float, labelled: bool,
    typed: bool, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((nodes, features)) * (rng.random((nodes, features)) < density)
    ends = np.unique(rng.integers(nodes, size=(2, edges)), axis=1)
    data = Data(x=torch.from_numpy(x).float(), edge_index=torch.from_numpy(ends))
    if labelled:
        data.y = torch.from_numpy(rng.integers(4 if typed else 2, size=nodes))
        data.typed = typed
    data.note = "where it is from"
    file = save_npz(data, tmp_path_factory.mktemp("saved") / "graph.npz")
    found = load(file)
    assert same(found, data)
    assert found.note == data.note
    assert ("y" in found) == labelled
    if labelled:
        assert torch.equal(found.y, data.y)
        assert found.typed == typed


def test_the_same_graph_gives_the_same_file(tmp_path: Path) -> None:
    first, second = (save_npz(small(), tmp_path / f"{name}.npz").read_bytes() for name in "ab")
    assert first == second


def test_sparse_rows_are_stored_as_such(tmp_path: Path) -> None:
    x = torch.zeros(50, 400)
    x[:, 399] = 1
    data = Data(x=x, edge_index=torch.empty(2, 0, dtype=torch.long))
    file = save_npz(data, tmp_path / "graph.npz")
    with np.load(file) as archive:
        assert "x" not in archive.files
        assert archive["x_data"].shape == (50,)
    assert torch.equal(load(file).x, x)


def test_plain_arrays_of_other_types_are_read(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "mine.npz", x=np.arange(6, dtype=">f8").reshape(3, 2), edges=np.array([[0, 1], [1, 2]], np.uint16),
        labels=np.array([0, 0, 1], np.uint8),
    )  # fmt: skip
    found = load(tmp_path / "mine.npz")
    assert found.edge_index.tolist() == [[0, 1], [1, 2]]
    assert (found.x.dtype, found.y.tolist()) == (torch.float32, [0, 0, 1])


def test_an_npz_of_another_format_goes_to_its_reader(tmp_path: Path) -> None:
    masks = np.ones((1, 4), np.bool_)
    np.savez(
        tmp_path / "mine.npz", node_features=np.ones((4, 2)), node_labels=np.arange(4), edges=np.array([[0, 1]]),
        train_masks=masks, val_masks=~masks, test_masks=~masks,
    )  # fmt: skip
    found = load(tmp_path / "mine.npz")
    assert found.edge_index.tolist() == [[0, 1], [1, 0]]
    assert "y" not in found


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    np.savez(tmp_path / "evil.npz", x=np.array([Trap(str(trap))], dtype=object), edge_index=np.zeros((2, 1), np.int64))
    with pytest.raises(DatasetError, match="x is stored as pickled objects, which could run code"):
        read_npz(tmp_path / "evil.npz")
    assert not trap.exists()


def test_an_unwritable_place_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="absent.*cannot be written .*No such file or directory.*another folder"):
        save_npz(small(), tmp_path / "absent" / "graph.npz")
    with pytest.raises(DatasetError, match=r"path must end in \.npz, got"):
        save_npz(small(), tmp_path / "graph.pt")
    assert list(tmp_path.iterdir()) == []


def test_labels_that_are_none_are_not_saved(tmp_path: Path) -> None:
    data = small()
    data.y[4] = 9
    with pytest.raises(DatasetError, match="the label of node 4 is 9; labels of outliers are 0 and 1"):
        save_npz(data, tmp_path / "graph.npz")


def test_a_file_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be opened .*No such file"):
        read_pt(tmp_path / "absent.pt")


def test_what_was_allowed_before_stays_allowed(tmp_path: Path) -> None:
    """A library that has allowed a class for good, as PyTorch Geometric does, still reads its own files."""
    graph = Data(x=torch.eye(3), edge_index=torch.tensor([[0, 1], [1, 2]]), y=torch.tensor([0, 1, 0]))
    file = tmp_path / "mine.pt"
    torch.save(graph, file)
    with allowed_globals([Data]):
        before = torch.serialization.get_safe_globals()
        read_pt(file)
        assert set(torch.serialization.get_safe_globals()) == set(before) and Data in before
