"""The graph of Debian packages: edges, labels, features, splits, and the kept folder."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.datasets import DatasetError, _debian, load
from graphlossy.datasets._debian import build_debian, find_prepared, prepare_debian, read_debian
from graphlossy.datasets._debian_graph import dependency_edges, description_features, group_split, section_labels
from graphlossy.datasets._debian_index import Package, find_index


def large_index(
    packages: int = 400, sections: tuple[str, ...] = ("libs", "contrib/net", "games"), seed: int = 0
) -> str:
    """An index with enough packages in each section to be classes; two packages a source."""
    words = {section: [f"{section[-2:]}{i}" for i in range(12)] for section in sections}
    draw = random.Random(seed)
    stanzas = []
    for i in range(packages):
        section = sections[i % len(sections)]
        text = " ".join(draw.choices(words[section], k=5))
        needs = ", ".join(f"package{draw.randrange(packages)}" for _ in range(3))
        stanzas.append(
            f"Package: package{i}\nSource: source{i // 2}\nVersion: 1\nDepends: {needs}\nSection: {section}\n"
            f"Description: {text}\n"
        )
    return "\n".join(stanzas)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "main_Packages.gz"
    path.write_bytes(gzip.compress(large_index().encode()))
    return path


def make(name: str, *clauses: tuple[str, ...], provides: tuple[str, ...] = ()) -> Package:
    return Package(name, "1", name, "net", "", clauses, provides)


def test_of_several_providers_the_one_asked_for_most_is_taken() -> None:
    one, two = make("aaa", provides=("web",)), make("zzz", provides=("web",))
    assert dependency_edges([one, make("browser", ("web",)), two]).tolist() == [[0], [1]]
    asked = [one, make("browser", ("web",)), make("page", ("zzz",)), two]
    assert dependency_edges(asked).tolist() == [[1, 2], [3, 3]]
    real = [make("web"), make("browser", ("web",)), two]  # a real package of that name comes first
    assert dependency_edges(real).tolist() == [[0], [1]]


def test_labels() -> None:
    sections = ["libs"] * 3 + ["non-free/libs", "Net", "contrib/net", "net", "", "misc", "other"]
    y, classes = section_labels(sections, least=3)
    assert classes == ["libs", "net", "other"]
    assert y.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    y, classes = section_labels(["a", "b", "a"], least=1)
    assert (y.tolist(), classes) == ([0, 1, 0], ["a", "b"])  # no class without members


@given(sizes=st.lists(st.integers(1, 6), min_size=30, max_size=60), seed=st.integers(0, 5), number=st.integers(0, 9))
def test_split_keeps_groups_whole(sizes: list[int], seed: int, number: int) -> None:
    group = np.random.RandomState(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    part = group_split(group, seed, number)
    assert all(len(set(part[group == value].tolist())) == 1 for value in range(len(sizes)))
    shares = np.bincount(part, minlength=3) / len(part)
    assert np.abs(shares - (0.6, 0.2, 0.2)).max() <= max(sizes) / len(part)  # as near as groups allow
    assert np.array_equal(part, group_split(group, seed, number))


def test_splits_differ() -> None:
    group = np.arange(500)
    parts = [group_split(group, seed, number) for seed, number in ((0, 0), (0, 1), (1, 0))]
    assert all((one != other).mean() > 0.4 for one, other in zip(parts, parts[1:] + parts[:1], strict=True))


def test_features() -> None:
    texts = ["red fish", "blue fish", "red car", "blue car", ""] * 8
    x = description_features(texts, width=5)
    assert x.shape == (40, 5) and x.dtype == np.float32
    assert np.isclose(np.mean(np.square(x)), 1, atol=1e-4)
    np.testing.assert_allclose(x[:5], x[5:10], atol=1e-4)  # the same words, the same features
    assert np.abs(x[4]).max() < 1e-6  # no words, no features
    assert np.array_equal(x, description_features(texts, width=5))
    assert description_features(["one", "two", "three"]).shape == (3, 2)
    with pytest.raises(DatasetError, match="no package has a description"):
        description_features(["", " "])


def test_features_know_nothing_of_names(tmp_path: Path) -> None:
    text = large_index()
    renamed = text.replace("package", "tool")
    (tmp_path / "a").write_text(text)
    (tmp_path / "b").write_text(renamed)
    one, other = (build_debian(tmp_path / name, least=10)[0] for name in "ab")
    assert torch.equal(one.x, other.x)


def test_features_without_scikit_learn(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DatasetError, match=r'need scikit-learn: pip install "graphlossy\[debian\]"'):
        load(large, root=tmp_path / "root")
    assert not list((tmp_path / "root").glob("**/*.npy"))


def test_a_graph_from_a_path(large: Path, tmp_path: Path) -> None:
    data = load(large, root=tmp_path / "root", split=None)
    assert (data.name, data.metric, data.num_classes) == ("debian-packages", "accuracy", 3)
    assert data.x.shape == (400, 128) and data.is_undirected() and not data.has_self_loops()
    assert data.train_mask.shape == (400, 10)
    (folder,) = find_prepared(tmp_path / "root")
    packages = (folder / "packages.txt").read_text().split()
    assert packages == sorted(packages) and (folder / "classes.txt").read_text().split() == ["games", "libs", "net"]
    source = {name: int(name[7:]) // 2 for name in packages}
    for split in range(10):
        parts = {}
        for name, train, test in zip(
            packages, data.train_mask[:, split].tolist(), data.test_mask[:, split].tolist(), strict=True
        ):  # noqa: E501
            assert parts.setdefault(source[name], (train, test)) == (train, test)
    direct = load(folder, split=None)  # the folder by itself: the same graph, splits of seed 0
    assert direct.x.equal(data.x) and direct.edge_index.equal(data.edge_index)
    assert direct.train_mask.equal(data.train_mask)
    assert not load(large, root=tmp_path / "root", seed=1).train_mask.equal(data.train_mask[:, 0])


def test_the_folder_is_made_once(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    folder = prepare_debian(large, root)
    monkeypatch.setattr(_debian, "build_debian", lambda *_: pytest.fail("built again"))
    assert prepare_debian(large, root) == folder
    assert read_debian(large, root).x.shape == (400, 128)


@pytest.mark.parametrize("damage", ["cut", "missing", "no manifest", "bad manifest", "format", "other index"])
def test_a_folder_that_is_not_whole_is_built_again(large: Path, tmp_path: Path, damage: str) -> None:
    root = tmp_path / "root"
    folder = prepare_debian(large, root)
    x, manifest = (folder / "x.npy").read_bytes(), folder / "manifest.json"
    content = json.loads(manifest.read_text())
    if damage == "cut":
        (folder / "x.npy").write_bytes(x[:-1])
    elif damage == "missing":
        (folder / "source.npy").unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "bad manifest":
        manifest.write_text("[]")
    else:
        content["origin"]["format" if damage == "format" else "index_sha256"] = 0
        manifest.write_text(json.dumps(content))
    assert prepare_debian(large, root) == folder
    assert (folder / "x.npy").read_bytes() == x and (folder / "source.npy").exists()
    assert sorted(os.listdir(folder.parent)) == [folder.name]  # and nothing is left beside it


def test_a_changed_index_is_another_graph(large: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    first = prepare_debian(large, root)
    large.write_text(large_index(packages=450))
    second = prepare_debian(large, root)
    assert first != second and load(second).num_nodes == 450 and len(find_prepared(root)) == 2


def test_where_the_index_is_looked_for(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, lists = tmp_path / "root", tmp_path / "lists"
    monkeypatch.setattr(_debian, "find_index", lambda: find_index(lists))
    with pytest.raises(DatasetError, match="there is no package index in .*; run `apt-get update` on a Debian machine"):
        load("debian-packages", root=root)
    lists.mkdir()
    for name, packages in (("stable_main", 420), ("stable-updates_main", 460), ("stable_contrib", 450)):
        (lists / f"host_dists_{name}_binary-amd64_Packages").write_text(large_index(packages))
    assert load("debian-packages", root=root).num_nodes == 420  # no side suite, no other area
    (root / "debian-packages" / "Packages.gz").write_bytes(large.read_bytes())
    assert load("debian-packages", root=root).num_nodes == 400  # the user's own comes first
    (root / "debian-packages" / "Packages").write_text(large_index())
    with pytest.raises(DatasetError, match="holds 2 package indexes"):
        load("debian-packages", root=root)
    for file in ("Packages", "Packages.gz"):
        (root / "debian-packages" / file).unlink()
    shutil.rmtree(lists)
    with pytest.raises(DatasetError, match="several graphs are prepared; give the path of one"):
        load("debian-packages", root=root)
    shutil.rmtree(find_prepared(root)[0])
    assert load("debian-packages", root=root).num_nodes in (400, 420)  # a prepared graph needs no index


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (large_index().replace("Depends:", "Suggests:"), "none of its 400 packages depends on another"),
        (large_index(sections=("libs",)), "only one class, 'libs', among 400 packages"),
        (large_index(packages=90), "only one class, 'other', among 90 packages"),
        (large_index().replace("Description:", "Homepage:"), "Packages: no package has a description"),
    ],
)
def test_indexes_that_make_no_graph(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "Packages").write_text(text)
    with pytest.raises(DatasetError, match=words):
        load(tmp_path / "Packages", root=tmp_path / "root")
    assert not list((tmp_path / "root").glob("*/*")) if (tmp_path / "root").exists() else True


@pytest.mark.slow
@pytest.mark.skipif(find_index() is None, reason="this machine has no list of Debian packages")
def test_the_index_of_this_machine(tmp_path: Path) -> None:
    data = load("debian-packages", root=tmp_path)
    degree = torch.bincount(data.edge_index[0], minlength=data.num_nodes)
    assert 40_000 < data.num_nodes < 120_000 and 4 < degree.float().mean() < 20  # any release of the last ten years
    assert degree.max() > 0.1 * data.num_nodes and 30 <= data.num_classes <= 70
    same = (data.y[data.edge_index[0]] == data.y[data.edge_index[1]]).float().mean()
    assert 0.3 < same < 0.8 and torch.bincount(data.y).max() < 0.25 * data.num_nodes
