"""Edges sorted and freed of duplicates: in memory piece by piece, and outside of it, against numpy's plain way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.datasets import DatasetError, _assemble, _csc
from graphlossy.datasets._assemble import distinct, undirected
from graphlossy.datasets._block_model import both_directions
from graphlossy.datasets._csc import build_csc, expand
from graphlossy.datasets._npy import NpyWriter, map_npy


def edge_lists(loops: bool = True) -> st.SearchStrategy[tuple[int, np.ndarray]]:
    def build(nodes: int, count: int, seed: int) -> tuple[int, np.ndarray]:
        edges = np.random.RandomState(seed).randint(nodes, size=(2, count))
        return nodes, edges if loops else edges[:, edges[0] != edges[1]]

    return st.builds(build, st.integers(2, 12), st.integers(0, 60), st.integers(0, 10**6))


def plain(nodes: int, edges: np.ndarray, both: bool = True) -> list[tuple[int, int]]:
    """Distinct pairs (target, source) in order."""
    pairs = {(t, s) for s, t in edges.T.tolist() if s != t}
    return sorted(pairs | {(s, t) for t, s in pairs} if both else pairs)


@given(given_edges=edge_lists(), chunk=st.sampled_from([1, 3, 1000]))
def test_undirected(given_edges: tuple[int, np.ndarray], chunk: int) -> None:
    nodes, edges = given_edges
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_assemble, "_CHUNK", chunk)
        found = undirected(edges, nodes)
        assert list(zip(*found.tolist(), strict=True)) == plain(nodes, edges)
        if found.size:
            assert undirected(found, nodes) is found
            turned = found.copy()
            turned[1, 0] = turned[0, 0]  # a self-loop
            missing = found[:, 1:]  # an edge in one direction only
            for wrong in (turned, missing):
                assert undirected(wrong, nodes) is not wrong
        keys = np.concatenate([edges[0], edges[0]])
        np.testing.assert_array_equal(distinct(keys), np.unique(keys))
        np.testing.assert_array_equal(distinct(keys, in_place=True), np.unique(edges[0]))


@given(
    given_edges=edge_lists(), bucket=st.sampled_from([2, 7, 1000]), chunk=st.integers(1, 70), both=st.booleans(),
    ids=st.booleans(),
)  # fmt: skip
def test_build_csc(
    tmp_path: Path, given_edges: tuple[int, np.ndarray], bucket: int, chunk: int, both: bool, ids: bool
) -> None:
    nodes, edges = given_edges
    chunks = [edges[:, first : first + chunk] for first in range(0, edges.shape[1], chunk)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_csc, "_BUCKET", bucket)
        count = build_csc(chunks, nodes, edges.shape[1], tmp_path, "it", undirected=both, ids=ids)
    colptr, row = map_npy(tmp_path / "colptr.npy"), map_npy(tmp_path / "row.npy")
    target = np.repeat(np.arange(nodes), np.diff(colptr))
    expected = plain(nodes, edges, both)
    assert list(zip(target.tolist(), row.tolist(), strict=True)) == expected and count == len(expected)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("bucket")) == []
    if both:
        assert list(zip(*expand(colptr, row, step=3).tolist(), strict=True)) == expected
    if ids:
        ends = [tuple(edge) for edge in edges.T.tolist()]
        for (t, s), number in zip(expected, map_npy(tmp_path / "edge_id.npy").tolist(), strict=True):
            first = [at for at, end in enumerate(ends) if end == (s, t) or (both and end == (t, s))][0]
            assert number == first
        (tmp_path / "edge_id.npy").unlink()


def test_a_graph_without_edges_and_wrong_counts(tmp_path: Path) -> None:
    assert build_csc([], 3, 0, tmp_path, "it") == 0
    assert map_npy(tmp_path / "row.npy").shape == (0,) and map_npy(tmp_path / "colptr.npy").tolist() == [0] * 4
    with pytest.raises(DatasetError, match="it: has 0 edges; there must be 2"):
        build_csc([], 3, 2, tmp_path, "it")
    with pytest.raises(DatasetError, match=r"it: edge 3 has an end out of range \(-1, 2\)"):
        build_csc([np.array([[0, 1], [1, 0]]), np.array([[0, -1], [1, 2]])], 3, 4, tmp_path, "it")


def test_both_directions_rename() -> None:
    names = np.array([2, 0, 1])
    assert both_directions(np.array([1]), 3, names).tolist() == [[0, 2], [2, 0]]


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    with NpyWriter(tmp_path / "a.npy", np.float32, (2, 3)) as writer:
        for number in range(4):
            writer.append(np.full((number, 2, 3), number))
    array = np.load(tmp_path / "a.npy")
    assert array.shape == (6, 2, 3) and array[:, 0, 0].tolist() == [1, 2, 2, 3, 3, 3]
    with pytest.raises(RuntimeError, match="stop"), NpyWriter(tmp_path / "b.npy", np.int64) as writer:
        writer.append(np.arange(3))
        raise RuntimeError("stop")
    with pytest.raises(DatasetError, match="b.npy: is damaged"):
        map_npy(tmp_path / "b.npy")
