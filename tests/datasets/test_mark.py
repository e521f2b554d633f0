"""A stand-in never passes for the data set it stands in for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from graphlossy.cli.datasets import command
from graphlossy.datasets import DatasetError, load, prepare, verify, write_ogb
from graphlossy.datasets._mark import _FILES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_ogb("synth-arxiv", tmp_path, scale=0.003, official_name=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:60],  # cut off
        lambda text: text.replace('"reference"', '"reference'),  # no JSON any more
        lambda text: text.replace('"ogbn-arxiv"', '"ogbn-elsewhere"'),
        lambda text: text.replace('"num_classes": ', '"num_classes": "many", "n": '),
    ],
)
def test_a_damaged_mark_is_no_missing_mark(folder: Path, damage) -> None:
    load(folder)  # what is kept of it is not used either
    text = (folder / _FILES[0]).read_text()
    assert damage(text) != text
    for name in _FILES[:-1]:
        (folder / name).write_text(damage(text))
    assert load(folder).synthetic  # one whole mark is enough
    (folder / _FILES[-1]).write_text(damage(text))
    for source in (folder, "ogbn-arxiv"):
        with pytest.raises(DatasetError, match="says that the graph is a generated stand-in, but is damaged"):
            load(source, root=folder.parent)


def test_the_mark_goes_where_the_files_go(folder: Path, tmp_path: Path) -> None:
    for part in ("raw", "split"):
        shutil.copytree(folder / part, tmp_path / "copy" / part)
    data = load(tmp_path / "copy")
    assert (data.synthetic, data.name, data.reference) == (True, "synth-arxiv x0.003", "ogbn-arxiv")


def test_a_stand_in_for_another_graph_is_refused(folder: Path) -> None:
    folder.rename(folder.with_name("ogbn_products"))
    with pytest.raises(
        DatasetError, match="is synth-arxiv x0.003, a stand-in for ogbn-arxiv and not for ogbn-products"
    ):
        load("ogbn-products", root=folder.parent)


def test_its_place_is_not_the_originals(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder.parent
    assert prepare("ogbn-arxiv", root, download=False) == folder
    assert json.loads((folder / "manifest.json").read_text())["origin"] == {"source": "synth-arxiv x0.003"}
    for contents in (True, False):  # also one of the original's size, whose numbers of nodes and classes are right
        last = verify("ogbn-arxiv", root, contents=contents)[-1]
        assert last.what == "origin" and "is a generated stand-in (synth-arxiv x0.003), not ogbn-arxiv" in last.problem
    assert not [finding for finding in verify(folder) if finding.problem]

    def run(*arguments: str):
        return CliRunner().invoke(command, [*arguments, "--root", str(root)])

    (row,) = (line for line in run("list").stdout.splitlines() if "│ ogbn-arxiv " in line)
    assert row.rstrip(" │").endswith("stand-in")
    found = run("info", "ogbn-arxiv").stdout
    assert "what is here is a generated stand-in (synth-arxiv x0.003), not ogbn-arxiv" in found
    assert json.loads(run("info", "ogbn-arxiv", "--json").stdout)["stand_in"] == "synth-arxiv x0.003"
    assert "it is a generated stand-in (synth-arxiv x0.003)" in run("prepare", "ogbn-arxiv").stderr
    result = run("verify", "ogbn-arxiv", "--files-only")
    assert result.exit_code == 1 and "WRONG  origin" in result.stdout


def test_verify_finds_a_stand_in_of_any_scale(tmp_path: Path) -> None:
    folder = prepare("synth-arxiv", tmp_path, scale=0.003, seed=2)
    given = {"root": tmp_path, "scale": 0.003, "seed": 2}
    assert not [finding for finding in verify("synth-arxiv", **given) if finding.problem]
    with open(folder / "raw" / "edge.csv.gz", "ab") as stream:
        stream.write(b"\0")
    assert [finding.what for finding in verify("synth-arxiv", **given) if finding.problem] == ["raw/edge.csv.gz"]
    arguments = ["verify", "synth-arxiv", "--scale", "0.003", "--seed", "2", "--root", str(tmp_path)]
    assert CliRunner().invoke(command, arguments).exit_code == 1
    with pytest.raises(DatasetError, match="scale is for generated graphs alone; Cora is none"):
        verify("Cora", scale=0.5)
