"""One verb for every source: names, paths, labels, and what is said where one of them is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from graphlossy import datasets
from graphlossy.datasets import DatasetError
from graphlossy.outliers.data import DESCRIPTIONS, find, labels, load, names, save_npz, types

NAN = float("nan")


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of the machine is found."""
    monkeypatch.setenv("GRAPHLOSSY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def small(y: object = None, **more: object) -> Data:
    data = Data(x=torch.rand(5, 3), edge_index=torch.tensor([[0, 1, 1, 2, 0], [1, 0, 0, 2, 1]]), **more)
    if y is not None:
        data.y = torch.as_tensor(y)
    return data


def saved(data: object, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(data, path)
    return path


@pytest.mark.parametrize("name", ["inj_wordnet", "inj_wordnet_leakfree"])
def test_the_embedded_graph_with_injected_outliers(name: str) -> None:
    data, base = load(name), datasets.load("wordnet-verbs")
    assert (data.name, data.typed, data.num_nodes) == (name, True, base.num_nodes)
    assert data.is_undirected()
    assert int(labels(data).sum()) / data.num_nodes == pytest.approx(0.05, rel=0.03)
    assert not torch.equal(load(name, seed=1).y, data.y)
    assert (data.num_edges == base.num_edges) == name.endswith("leakfree")
    assert "licence" in data.note


@pytest.mark.parametrize("name", ["synth_300", "synth_300_leakfree", "SYNTH_300"])
def test_generated_graphs_of_any_size(name: str) -> None:
    data = load(name, seed=3)
    assert (data.name, data.num_nodes, set(types(data))) == (name.lower(), 300, {"contextual", "structural"})
    assert torch.equal(load(name, seed=3).x, data.x)
    assert not torch.equal(load(name, seed=4).x, data.x)


@pytest.mark.parametrize("size", [99, 10_000_001, 10**30])
def test_sizes_that_are_not_generated(size: int) -> None:
    with pytest.raises(DatasetError, match=f"N must be from 100 to 10000000, got {size}"):
        load(f"synth_{size}")


@pytest.mark.parametrize("where", ["data/NAME.pt", "data/outliers/NAME.pt", "home/.pygod/data/NAME.pt"])
def test_files_are_found_where_they_may_be(tmp_path: Path, where: str) -> None:
    file = saved(small([0, 1, 0, 0, 0]), tmp_path / where.replace("NAME", "books"))
    assert find("books") == file
    data = load("Books")
    assert (data.name, data.typed, data.y.tolist()) == ("books", False, [0, 1, 0, 0, 0])
    assert "MIT licence" in data.note
    assert "2 duplicate edges merged" in data.note
    assert data.edge_index.tolist() == [[0, 1, 2], [1, 0, 2]]


def test_a_given_root_is_the_only_place(tmp_path: Path) -> None:
    saved(small([0, 1, 0, 0, 0]), tmp_path / "data" / "books.pt")
    save_npz(small([1, 0, 0, 0, 0]), saved(None, tmp_path / "mine" / "outliers" / "x").with_name("books.npz"))
    assert load("books", root=tmp_path / "mine").y.tolist() == [1, 0, 0, 0, 0]
    assert find("books", tmp_path / "empty") is None


def test_a_missing_file_is_said_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as error:
        load("inj_flickr")
    message = str(error.value)
    places = ["data", "data/outliers", "home/.pygod/data", "inj_flickr.pt.zip", "github.com/pygod-team/data"]
    assert all(place in message for place in [*places, "GRAPHLOSSY_DATA"])
    assert str(tmp_path) in message and "\n" not in message
    with pytest.raises(DatasetError, match="in mine, mine/outliers;"):
        load("books", root="mine")


def test_a_name_of_both_collections_is_that_of_the_outliers() -> None:
    assert "Reddit" in datasets.names()
    with pytest.raises(DatasetError, match=r"reddit: no file reddit\.pt"):
        load("Reddit")


@pytest.mark.parametrize(
    ("given", "suggested"),
    [("boks", "books"), ("inj-cora", "inj_cora"), ("Inj_Coraa", "inj_cora"), ("synth1000", "synth_1000"),
     ("corra", "Cora")],
)  # fmt: skip
def test_a_misspelt_name_is_answered_with_close_ones(given: str, suggested: str) -> None:
    with pytest.raises(DatasetError, match=f"there is no data set '{given}'; did you mean .*'{suggested}'"):
        load(given)


def test_names_that_resemble_none() -> None:
    with pytest.raises(
        DatasetError, match=r"there is no data set 'zzzzzzz'; the names are books.*synth_N.*paths of files"
    ):
        load("zzzzzzz")
    with pytest.raises(TypeError):
        load(5)  # type: ignore[arg-type]


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    saved(small(), tmp_path / "graph.pt")
    with pytest.raises(DatasetError, match=r"grph\.pt: there is no such file or folder; did you mean .*graph\.pt\?"):
        load(tmp_path / "grph.pt")
    with pytest.raises(DatasetError, match="no such file or folder$"):
        load(tmp_path / "absent" / "graph.pt")
    (tmp_path / "graph.txt").write_text("0 1")
    with pytest.raises(DatasetError, match=r"a file of a graph ends in \.pt, \.pt\.zip or \.npz"):
        load(tmp_path / "graph.txt")


def test_every_name_is_described() -> None:
    assert names() == sorted(set(DESCRIPTIONS) - {"synth_N", "synth_N_leakfree"})


def test_a_graph_for_classification_has_no_labels_of_outliers() -> None:
    data = load("wordnet-verbs")
    assert data.num_nodes == 13767
    with pytest.raises(DatasetError, match="wordnet-verbs: has no labels of outliers.*set data.y to 1"):
        labels(data)


def test_a_folder_of_arrays(tmp_path: Path) -> None:
    graph = datasets.load("synth-arxiv-tiny")
    datasets.save_folder(graph, tmp_path / "mine")
    data = load(tmp_path / "mine")
    assert torch.equal(data.x, graph.x)
    assert "y" not in data


def test_a_folder_in_the_layout_of_ogb(tmp_path: Path) -> None:
    folder = datasets.write_ogb("synth-arxiv", tmp_path, scale=0.003)
    np.save(tmp_path / "found.npy", np.arange(datasets.load(folder).num_nodes) % 20 == 0)
    data = load(f"{folder}#{tmp_path / 'found.npy'}")
    assert torch.equal(data.x, datasets.load(folder).x)
    assert int(labels(data).sum()) == -(-data.num_nodes // 20)


@pytest.mark.parametrize(
    ("y", "kept"),
    [
        (torch.tensor([True, False, False, False, True]), [1, 0, 0, 0, 1]),
        (torch.tensor([0.0, 1, 0, 0, 0], dtype=torch.float64), [0, 1, 0, 0, 0]),
        (torch.tensor([[0], [1], [0], [0], [0]], dtype=torch.uint8), [0, 1, 0, 0, 0]),
        (torch.tensor([0, 1, 2, 3, 0]), None),
        (torch.tensor([6, 1, 2, 5, 0]), None),
    ],
)
def test_labels_of_every_type_and_class_numbers(tmp_path: Path, y: torch.Tensor, kept: list[int] | None) -> None:
    data = load(saved(small(y), tmp_path / "mine.pt"))
    if kept is None:
        assert "y" not in data
        assert "its y holds class numbers and was left out" in data.note
        bits = "if it is a bit field of outliers, 1 contextual and 2 structural, name it: "
        assert (f"{bits}{tmp_path / 'mine.pt'}#y" in data.note) == bool((y <= 3).all())
    else:
        assert (data.y.tolist(), data.y.dtype, data.typed) == (kept, torch.int64, False)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 1, 0, 0], r"the labels have shape \[4\]; there must be one for each of 5 nodes"),
        ([0.0, 1, float("nan"), 0, 0], "the label of node 2 is nan"),
        ([0, -1, 0, 0, 0], "the label of node 1 is -1"),
        ([0.5, 0, 0, 0, 0], "the label of node 0 is 0.5"),
    ],
)
def test_labels_that_cannot_be(tmp_path: Path, y: list[float], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load(saved(small(y), tmp_path / "mine.pt"))


def test_labels_named_after_the_path(tmp_path: Path) -> None:
    file = saved(
        small([3, 1, 2, 0, 4], fraud=torch.tensor([0, 0, 1, 0, 0]), kind=torch.tensor([0, 1, 2, 3, 0])),
        tmp_path / "a.pt",
    )
    assert load(f"{file}#fraud").y.tolist() == [0, 0, 1, 0, 0]
    kind = load(f"{file}#kind")
    assert kind.typed
    assert {name: mask.tolist() for name, mask in types(kind).items()} == {
        "contextual": [False, True, False, True, False],
        "structural": [False, False, True, True, False],
    }
    np.save(tmp_path / "own.npy", np.array([True, False, False, False, False]))
    torch.save(torch.tensor([0, 0, 0, 0, 1]), tmp_path / "own.pt")
    (tmp_path / "own.txt").write_text("0\n1\n0\n0\n1\n")
    assert load(f"{file}#own.npy").y.tolist() == [1, 0, 0, 0, 0]
    assert load(f"{file}#{tmp_path / 'own.pt'}").y.tolist() == [0, 0, 0, 0, 1]
    assert load(f"{file}#own.txt").y.tolist() == [0, 1, 0, 0, 1]


@pytest.mark.parametrize("where", [".", "mine", "elsewhere"])
def test_labels_of_a_folder_inside_it_and_beside_it(tmp_path: Path, where: str) -> None:
    graph = datasets.load("synth-arxiv-tiny")
    datasets.save_folder(graph, tmp_path / "mine")
    (tmp_path / where).mkdir(exist_ok=True)
    np.save(tmp_path / where / "fraud.npy", np.arange(graph.num_nodes) == 3)
    if where == "elsewhere":
        with pytest.raises(
            DatasetError, match=r"no file fraud\.npy or .*mine/fraud\.npy or .*fraud\.npy, and no array"
        ):
            load(f"{tmp_path / 'mine'}#fraud.npy")
    else:
        assert load(f"{tmp_path / 'mine'}#fraud.npy").y.nonzero().tolist() == [[3]]


def test_labels_for_a_named_graph(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", np.arange(300) % 100 == 7)
    data = load(f"synth_300#{tmp_path / 'own.npy'}")
    assert (int(data.y.sum()), data.typed) == (3, False)


def test_labels_that_are_not_there(tmp_path: Path) -> None:
    file = saved(small(fraud=torch.zeros(5)), tmp_path / "a.pt")
    with pytest.raises(DatasetError, match="no file frod or .*arrays with one value a node are fraud"):
        load(f"{file}#frod")
    (tmp_path / "bad.txt").write_text("0\nyes\n")
    with pytest.raises(DatasetError, match=r"bad\.txt: cannot be read as labels, one number a node"):
        load(f"{file}#bad.txt")
    (tmp_path / "short.txt").write_text("0\n1\n")
    with pytest.raises(DatasetError, match=r"short\.txt: the labels have shape \[2\]"):
        load(f"{file}#short.txt")
    with pytest.raises(DatasetError, match="before # comes a name or path"):
        load(f"{file}#")


def test_a_path_may_hold_the_sign_itself(tmp_path: Path) -> None:
    assert load(saved(small([0, 1, 0, 0, 0]), tmp_path / "a#1.pt")).y.tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("value", [0, 1])
def test_labels_that_are_all_equal(tmp_path: Path, value: int) -> None:
    data = load(saved(small([value] * 5), tmp_path / "mine.pt"))
    with pytest.raises(
        DatasetError, match=f"mine: {'all' if value else 'none'} of its 5 nodes are labelled as outliers"
    ):
        labels(data)


def test_no_labels_at_all(tmp_path: Path) -> None:
    data = load(saved(small(), tmp_path / "mine.pt"))
    with pytest.raises(DatasetError, match="mine: has no labels of outliers"):
        labels(data)
    with pytest.raises(DatasetError, match="mine: has no labels of outliers"):
        types(data)


def test_a_users_own_class_numbers_are_not_taken_for_outliers() -> None:
    with pytest.raises(DatasetError, match="y goes up to 2, as class numbers do.*data.typed = True"):
        labels(small([0, 1, 2, 0, 0]))
    assert labels(small([0, 1, 2, 0, 0], typed=True)).tolist() == [False, True, True, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.tensor([[1.0], [NAN], [2], [NAN], [3]])}, "x has NaN or infinite features in 2 of 5 .*node 1"),
        ({"x": torch.empty(0, 3)}, "has no nodes"),
        ({"x": torch.ones(5)}, r"x must have shape \[N, F\].*got \[5\]"),
        ({"edge_index": torch.tensor([[0], [5]])}, r"node numbers from 0 to 5, but the graph has 5 nodes"),
        ({"edge_index": torch.tensor([[-1], [2]])}, r"node numbers from -1 to 2"),
        ({"edge_index": torch.tensor([[0, 1, 2]])}, r"edge_index must have shape \[2, E\], got \[1, 3\]"),
        ({"edge_index": torch.tensor([[0.5], [1.0]])}, "edge_index must hold node numbers, got torch.float32"),
        ({"edge_index": [[0], [1]]}, "edge_index must be a tensor"),
    ],
)  # fmt: skip
def test_graphs_that_cannot_be_used(tmp_path: Path, change: dict[str, object], message: str) -> None:
    data = small([0, 1, 0, 0, 0]).to_dict() | change
    with pytest.raises(DatasetError, match=rf"mine\.pt: .*{message}") as error:
        load(saved(data, tmp_path / "mine.pt"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("none", [torch.empty(2, 0), torch.empty(2, 0, dtype=torch.long), torch.empty(0)])
def test_no_edges_and_isolated_nodes_are_fine(tmp_path: Path, none: torch.Tensor) -> None:
    data = load(saved(small([0, 1, 0, 0, 0]).to_dict() | {"edge_index": none}, tmp_path / "mine.pt"))
    assert (data.num_nodes, list(data.edge_index.shape)) == (5, [2, 0])
    isolated = load(saved(small([0, 1, 0, 0, 0]), tmp_path / "mine.pt"))
    assert (isolated.num_nodes, int(isolated.edge_index.max())) == (5, 2)
