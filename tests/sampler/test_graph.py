"""Forms in which a graph may come: all give the same edges; arrays on disk stay there."""

from __future__ import annotations

import mmap
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.utils import to_torch_csr_tensor

from graphlossy.core.neighbors import can_read_elements
from graphlossy.sampler import NeighborSampler
from graphlossy.sampler._graph import Graph, as_graph


def edges_of(graph: Graph) -> list[tuple[int, int]]:
    to = torch.arange(graph.num_nodes).repeat_interleave(graph.in_degree())
    return sorted(zip(graph.indices.tolist(), to.tolist(), strict=True))


def csc(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    graph = as_graph(data)
    return graph.indptr, graph.indices


def test_every_form_gives_the_same_edges(random_data) -> None:
    data = random_data()
    expected = sorted(zip(*data.edge_index.tolist(), strict=True))
    order = data.edge_index[1].argsort(stable=True)
    colptr, row = csc(data)
    forms = [
        data,
        Data(edge_index=data.edge_index[:, order], num_nodes=60),
        Data(edge_index=EdgeIndex(data.edge_index, sparse_size=(60, 60)), num_nodes=60),
        Data(edge_index=EdgeIndex(data.edge_index[:, order], sparse_size=(60, 60), sort_order="col"), num_nodes=60),
        Data(edge_index=data.edge_index.int(), num_nodes=60),
        (colptr, row),
        [colptr.int(), row.int()],
        (colptr.numpy(), row.numpy().astype(np.int32)),
        (colptr.numpy(), row.numpy().astype(np.uint32)),
    ]
    for form in forms:
        assert edges_of(as_graph(form)) == expected
    distinct = data.edge_index.unique(dim=1)
    adj_t = to_torch_csr_tensor(distinct.flip(0), size=(60, 60))
    assert edges_of(as_graph(Data(adj_t=adj_t, num_nodes=60))) == sorted(zip(*distinct.tolist(), strict=True))


def test_edges_keep_their_numbers(random_data) -> None:
    data = random_data(weight=True)
    graph = as_graph(data)
    position = torch.arange(graph.num_edges)
    to = torch.arange(60).repeat_interleave(graph.in_degree())
    assert torch.equal(data.edge_index[:, graph.edge_ids(position)], torch.stack([graph.sources(position), to]))
    assert torch.equal(graph.out_degree(), torch.bincount(data.edge_index[0], minlength=60))
    assert torch.equal(graph.in_degree(), torch.bincount(data.edge_index[1], minlength=60))
    assert torch.equal(graph.in_degree(torch.tensor([3, 1])), graph.in_degree()[[3, 1]])


def test_chunks_cover_every_edge_once(random_data, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = as_graph(random_data())
    whole = list(graph.chunks())
    assert len(whole) == 1
    for size in (1, 7, 100):
        monkeypatch.setattr("graphlossy.sampler._graph._CHUNK", size)
        row, col, where = zip(*graph.chunks(), strict=True)
        assert torch.equal(torch.cat(row), whole[0][0]) and torch.equal(torch.cat(col), whole[0][1])
        assert [s.start for s in where] == list(range(0, 400, size))


def mapped(folder: Path, data: Data, offset: int = 0) -> tuple[np.memmap, np.memmap]:
    arrays = []
    for name, tensor in zip(("colptr", "row"), csc(data), strict=True):
        with open(folder / name, "wb") as file:
            file.write(b"x" * offset)
            tensor.numpy().tofile(file)
        arrays.append(np.memmap(folder / name, dtype=np.int64, mode="r", offset=offset))
    return arrays[0], arrays[1]


def test_memory_mapped_arrays_are_neither_copied_nor_pickled(random_data, tmp_path: Path) -> None:
    data = random_data(edges=3000)
    colptr, row = mapped(tmp_path, data, offset=16)
    graph = as_graph((colptr, row))
    assert graph.indices.data_ptr() == row.ctypes.data and graph.indptr.data_ptr() == colptr.ctypes.data
    sampler = NeighborSampler((colptr, row), [3, 2], seed=1)
    pickled = pickle.dumps(sampler)
    assert len(pickled) < 8 * 3000 / 2
    again = pickle.loads(pickled)
    seeds = torch.arange(10)
    expected = NeighborSampler(csc(data), [3, 2], seed=1).sample(seeds, 5)
    for found in (sampler.sample(seeds, 5), again.sample(seeds, 5)):
        assert torch.equal(found.node, expected.node) and torch.equal(found.edge, expected.edge)
    view = as_graph((colptr, row[: colptr[-1]].view(np.int64)))  # a view of a map is mapped too
    assert torch.equal(pickle.loads(pickle.dumps(view)).indices, graph.indices)
    shifted = as_graph((colptr[:11], row[: colptr[10]]))
    assert torch.equal(pickle.loads(pickle.dumps(shifted)).indices, graph.indices[: colptr[10]])


def test_a_neighbour_that_is_no_node_is_found_where_it_is_touched(random_data, tmp_path: Path) -> None:
    data = random_data()
    _, row = mapped(tmp_path, data)
    wrong = np.memmap(tmp_path / "row", dtype=np.int64, mode="r+")
    wrong[0] = 60
    wrong.flush()
    sampler = NeighborSampler((csc(data)[0], row), [-1], seed=0)
    with pytest.raises(ValueError, match="row must hold node ids from 0 to 59, got 60"):
        sampler.sample(torch.arange(57), 0)


BAD = [
    (3, TypeError, "must be a torch_geometric Data, a pair"),
    (Data(num_nodes=3), ValueError, "no edges to sample"),
    ((torch.tensor([0, 2]), torch.tensor([0])), ValueError, "indptr must rise from 0 to the number of edges, 1"),
    ((torch.tensor([1, 1]), torch.tensor([0])), ValueError, "got 2 entries from 1 to 1"),
    ((torch.tensor([], dtype=torch.int64), torch.tensor([0])), ValueError, "got 0 entries"),
    ((torch.tensor([0, 2, 1, 3]), torch.tensor([0, 0, 0])), ValueError, "indptr must never fall"),
    ((torch.tensor([0, 1]), torch.tensor([1])), ValueError, "edges must join nodes 0 to 0, got 1"),
    ((torch.tensor([0.0, 1]), torch.tensor([0])), TypeError, "indptr must be int32 or int64"),
    (([0, 1], [0]), TypeError, "a torch.Tensor or a numpy array, got list"),
    (Data(edge_index=torch.tensor([[0, 5], [1, 1]]), num_nodes=3), ValueError, "ids from 0 to 2, got 5"),
    (Data(edge_index=torch.tensor([[0, -1], [1, 1]]), num_nodes=3), ValueError, "ids from 0 to 2, got -1"),
    (Data(edge_index=torch.tensor([0, 1]), num_nodes=3), ValueError, r"shape \[2, E\], got torch.int64 \(2,\)"),
    (Data(adj_t=torch.eye(3), num_nodes=3), TypeError, "adj_t must be a sparse CSR tensor"),
]


@pytest.mark.parametrize(("source", "error", "message"), BAD)
def test_what_is_no_graph(source: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_graph(source)


def test_a_graph_without_edges() -> None:
    data = Data(edge_index=torch.empty((2, 0), dtype=torch.int64), num_nodes=4)
    out = NeighborSampler(data, [2, 2], weighted=True, seed=0).sample(torch.tensor([3, 0]), 0)
    assert out.node.tolist() == [3, 0] and out.num_sampled_nodes == [2, 0, 0] and out.edge.tolist() == []


@pytest.mark.skipif(not can_read_elements(), reason="needs the CPU kernels on Linux")
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_edges_read_from_a_file_leave_no_pages_behind(tmp_path: Path, dtype: type) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE

    nodes, degree = 40_000, 100
    source = np.random.default_rng(0).integers(nodes, size=nodes * degree).astype(dtype)
    with open(tmp_path / "row", "wb") as file:
        file.write(b"head")
        source.tofile(file)
    row = np.memmap(tmp_path / "row", dtype=dtype, mode="r", offset=4)
    graph = as_graph((torch.arange(nodes + 1) * degree, row))
    position = torch.randperm(nodes * degree)
    before = resident()
    found = graph.sources(position)
    assert resident() - before < 4 << 20 < source.nbytes
    assert torch.equal(found, torch.from_numpy(source.astype(np.int64))[position])
    (tmp_path / "row").write_bytes(b"head")  # cut short under our feet
    with pytest.raises(OSError, match="cannot be read from its file"):
        graph.sources(position[:10])
    changed = as_graph((graph.indptr, np.memmap(tmp_path / "other", dtype=dtype, mode="w+", shape=source.shape)))
    changed._sources["indices"][:] = 7  # a writable map is read as it is, not from its file
    assert changed.sources(position[:3]).tolist() == [7, 7, 7]


@pytest.mark.parametrize("options", [{}, {"disjoint": True}, {"weight": "degree"}], ids=str)
def test_a_wrong_node_on_disk_is_found_when_it_is_read(random_data, tmp_path: Path, options: dict) -> None:
    colptr, row = csc(random_data())
    wrong = row.clone()
    wrong[int(colptr[7])] = 70  # would be node 10 of the next tree
    for name, array in (("colptr", colptr), ("row", wrong)):
        np.save(tmp_path / f"{name}.npy", array.numpy())
    for mode in ("r", "r+"):
        graph = tuple(np.load(tmp_path / f"{name}.npy", mmap_mode=mode) for name in ("colptr", "row"))
        with pytest.raises(ValueError, match="row must hold node ids from 0 to 59, got 70"):
            NeighborSampler(graph, [-1], seed=0, **options).sample(torch.tensor([7, 3]), 0)
