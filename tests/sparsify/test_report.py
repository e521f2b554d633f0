"""The report: counts by hand, JSON, text, the picture."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch_geometric.data import Data, HeteroData

from graphlossy.sparsify import DegreeSparsify, degree_sparsify, random_sparsify, report

# a triangle 0-1-2, an edge 2-3, a node 4 alone, a self-loop at 0
GRAPH = torch.tensor([[0, 1, 1, 2, 2, 0, 2, 3, 0], [1, 0, 2, 1, 0, 2, 3, 2, 0]])
THIN = torch.tensor([[0, 1, 1, 2, 0], [1, 0, 2, 1, 0]])


def test_counts_by_hand() -> None:
    found = report(GRAPH, (THIN, torch.tensor([2.0, 2.0, 3.0, 3.0, 1.0])), num_nodes=5)
    assert (found.nodes, found.undirected, found.self_loops) == (5, True, 1)
    assert (found.edges_before, found.edges_after, found.share) == (9, 5, 0.5)
    assert (found.isolated_before, found.isolated_after, found.isolated_made) == (1, 2, 1)
    assert (found.components_before, found.components_after) == (2, 3)
    assert (found.weight_total_before, found.weight_total_after) == (8, 10)
    assert found.weights["mean"] == 2.5 and found.weights["min"] == 2 and found.weights["max"] == 3
    assert found.weights["variation"] == pytest.approx(0.2)
    assert found.degrees_before == [[0, 1], [1, 1], [2, 3]] and found.degrees_after == [[0, 2], [1, 2], [2, 1]]
    assert found.eigenvalues[0] == pytest.approx(0, abs=1e-9) and found.spectral_epsilon >= 1 - 1e-9


def test_spectrum_of_scaled_and_equal_graphs(make_graph) -> None:
    edges = make_graph()
    same = report(edges, edges, 30)
    assert same.eigenvalues == pytest.approx([1, 1]) and same.spectral_epsilon == pytest.approx(0, abs=1e-9)
    scaled = report(edges, (edges, torch.full((edges.shape[1],), 1.25)), 30)
    assert scaled.eigenvalues == pytest.approx([1.25, 1.25]) and scaled.spectral_epsilon == pytest.approx(0.25)
    assert same.weights is None and report(edges, edges, 30, spectral=False).eigenvalues is None
    directed = make_graph(directed=True)
    thin = random_sparsify(directed, 30, ratio=0.9, seed=0)
    assert 0 < report(directed, thin, 30).spectral_epsilon <= 1.2
    one = report(directed, directed[:, :0], 30)
    assert one.eigenvalues == [0, 0] and one.edges_after == 0 and one.isolated_made > 0


def test_text_and_json(make_graph) -> None:
    edges = make_graph()
    found = report(
        Data(edge_index=edges, num_nodes=30), DegreeSparsify(ratio=0.5, seed=0)(Data(edge_index=edges, num_nodes=30))
    )
    assert json.loads(found.to_json()) == json.loads(json.dumps(found.to_dict()))
    text = str(found)
    assert f"{found.edges_before:,} -> {found.edges_after:,}" in text and "epsilon" in text and "4-7" in text
    assert sum(count for _, count in found.degrees_after) == 30


def test_heterogeneous_and_bipartite(make_graph) -> None:
    graph = HeteroData()
    graph["a"].num_nodes, graph["b"].num_nodes = 30, 33
    graph["a", "to", "b"].edge_index = make_graph(directed=True)
    graph["a", "by", "a"].edge_index = make_graph()
    found = report(graph, DegreeSparsify(ratio=0.5, seed=0)(graph))
    assert set(found) == set(graph.edge_types)
    assert found["a", "to", "b"].nodes == 63 and found["a", "by", "a"].nodes == 30
    assert found["a", "to", "b"].isolated_before >= 3
    with pytest.raises(TypeError, match="same types of edges"):
        report(graph, make_graph())


def test_no_edges_and_wrong_kinds() -> None:
    empty = torch.empty(2, 0, dtype=torch.int64)
    found = report(empty, (empty, torch.empty(0)), 3)
    assert found.share == 1 and found.isolated_before == 3 and found.weights is None and found.components_after == 3
    assert "3 nodes" in str(found) and found.to_json()
    with pytest.raises(TypeError, match="must be an edge_index, .* got int"):
        report(5, empty)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_picture(tmp_path, make_graph, ending) -> None:
    pytest.importorskip("matplotlib")
    edges = make_graph()
    found = report(edges, degree_sparsify(edges, 30, ratio=0.5, seed=0), 30)
    path = found.picture(tmp_path / "new" / f"degrees.{ending}")
    start = path.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if ending == "png" else b"<svg" in path.read_bytes() and b"xml" in start
    with pytest.raises(ValueError, match=r"degrees.txt: a picture's name ends in one of .*\.png"):
        found.picture(tmp_path / "degrees.txt")


def test_without_matplotlib_one_line_says_what_to_install(tmp_path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import torch; from graphlossy.sparsify import report\n"
        "e = torch.tensor([[0, 1], [1, 0]])\n"
        f"try: report(e, e).picture({str(tmp_path / 'a.png')!r})\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "graphlossy[plot]"' in done.stdout


def test_functions_import_neither_pyg_nor_matplotlib() -> None:
    code = "import sys, graphlossy.sparsify; print([n for n in ('torch_geometric', 'matplotlib') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    import graphlossy.sparsify

    with pytest.raises(AttributeError, match="no attribute 'DegreSparsify'; its names are"):
        _ = graphlossy.sparsify.DegreSparsify


def test_no_nodes_and_too_many() -> None:
    none = torch.empty((2, 0), dtype=torch.int64)
    found = report(none, none)
    assert found.nodes == found.edges_before == 0 and found.eigenvalues == [1.0, 1.0] and found.share == 1.0
    with pytest.raises(ValueError, match="spectral=True takes dense matrices of at most 20000 nodes"):
        report(torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0, 1], [1, 0]]), 30_000, spectral=True)
