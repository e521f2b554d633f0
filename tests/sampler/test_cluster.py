"""Clusters as batches: the right nodes and edges, empty parts, a partition kept in a file."""

from __future__ import annotations

import builtins
import os
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader
from torch_geometric.utils import subgraph

from graphlossy.sampler import ClusterSampler, cluster


def test_a_batch_is_what_its_clusters_induce(random_data) -> None:
    data = random_data(weight=True)
    partition = torch.randint(7, (60,))
    partition[partition == 3] = 4  # 3 is empty
    sampler = ClusterSampler(data, partition=partition)
    assert sampler.clusters.tolist() == [0, 1, 2, 4, 5, 6] and sampler.num_parts == 7
    loader = NodeLoader(data, sampler, input_nodes=sampler.clusters, batch_size=4)
    seen = []
    for batch, numbers in zip(loader, ([0, 1, 2, 4], [5, 6]), strict=True):
        assert [partition[n] for n in batch.n_id] == sorted(partition[batch.n_id].tolist())
        expected, _ = subgraph(batch.n_id.sort().values, data.edge_index, num_nodes=60)
        found = torch.stack([batch.n_id[batch.edge_index[0]], batch.n_id[batch.edge_index[1]]])
        assert sorted(found.t().tolist()) == sorted(expected.t().tolist())
        assert torch.equal(data.edge_weight[batch.e_id], batch.edge_weight)
        assert set(partition[batch.n_id].tolist()) == set(numbers)
        seen += batch.n_id.tolist()
    assert sorted(seen) == list(range(60))
    out, weights = sampler.sample(torch.tensor([3]), 0)
    assert out.node.tolist() == [] and out.edge.tolist() == [] and weights == {}
    assert sampler.sample(torch.tensor([5, 3, 5]), 0)[0].node.tolist() == (partition == 5).nonzero().view(-1).tolist()


def rings(count: int, size: int) -> Data:
    """Rings with one edge to the next, so that there is one best partition."""
    ring = torch.arange(size)
    parts = [torch.stack([ring, (ring + 1) % size]) + i * size for i in range(count)]
    bridges = torch.stack([torch.arange(count - 1) * size, torch.arange(1, count) * size])
    return Data(edge_index=torch.cat([*parts, bridges], dim=1), num_nodes=count * size)


def test_metis_cuts_where_edges_are_few() -> None:
    pytest.importorskip("pymetis")
    data = rings(4, 12)
    sampler = ClusterSampler(data, 4)
    row, col = data.edge_index
    assert int((sampler.partition[row] != sampler.partition[col]).sum()) <= 6
    assert torch.bincount(sampler.partition, minlength=4).tolist() == [12] * 4
    many = ClusterSampler(rings(2, 3), 20)  # more parts than nodes: some are empty
    assert many.num_parts == 20 and 0 < many.clusters.shape[0] <= 6
    loader = NodeLoader(rings(2, 3), many, input_nodes=many.clusters, batch_size=1)
    assert sorted(n for batch in loader for n in batch.n_id.tolist()) == list(range(6))
    assert ClusterSampler(rings(2, 3), 1).partition.tolist() == [0] * 6


def test_a_partition_is_kept_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def partition(graph, num_parts):
        calls.append(num_parts)
        return torch.arange(graph.num_nodes) % num_parts

    monkeypatch.setattr(cluster, "metis_partition", partition)
    file = tmp_path / "new" / "parts.npz"
    data = rings(3, 4)
    for _ in range(2):
        assert ClusterSampler(data, 3, cache=file).partition.tolist() == [0, 1, 2] * 4
    assert calls == [3] and os.listdir(file.parent) == ["parts.npz"]
    ClusterSampler(data, 2, cache=file)  # another number of parts, another graph, a damaged file: made anew
    other = Data(edge_index=data.edge_index.flip(0), num_nodes=12)
    ClusterSampler(other, 2, cache=file)
    assert calls == [3, 2, 2]
    whole = file.read_bytes()
    for damaged in (whole[:-40], b"", b"not a zip archive"):
        file.write_bytes(damaged)
        assert ClusterSampler(other, 2, cache=str(file)).partition.tolist() == [0, 1] * 6
        assert file.read_bytes() == whole
    assert calls == [3, 2, 2, 2, 2, 2]

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        ClusterSampler(data, 3, cache=file)
    assert os.listdir(file.parent) == ["parts.npz"] and file.read_bytes() == whole


def test_without_pymetis_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if name == "pymetis":
            raise ModuleNotFoundError("No module named 'pymetis'", name="pymetis")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "graphlossy\[cluster\]", or give a partition'):
        ClusterSampler(rings(2, 3), 2)


BAD = [
    ({}, ValueError, "give either num_parts or partition"),
    ({"num_parts": 2, "partition": torch.zeros(6).long()}, ValueError, "give either num_parts or partition"),
    ({"num_parts": 0}, ValueError, "num_parts must be at least 1"),
    ({"partition": torch.zeros(6)}, TypeError, "a tensor of ints, got torch.float32"),
    ({"partition": [0] * 6}, TypeError, "a tensor of ints, got list"),
    ({"partition": torch.zeros(5).long()}, ValueError, r"each of 6 nodes, got shape \(5,\)"),
    ({"partition": torch.tensor([0, 0, 0, 0, 0, -1])}, ValueError, "cluster numbers from 0, got -1"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ClusterSampler(rings(2, 3), **arguments)


def test_a_cluster_that_is_none() -> None:
    sampler = ClusterSampler(rings(2, 3), partition=torch.tensor([0, 0, 0, 1, 1, 1]))
    with pytest.raises(ValueError, match="numbers of clusters, 0 to 1"):
        sampler.sample(torch.tensor([2]), 0)


def test_more_parts_than_nodes_without_a_word_on_stdout(random_data, capfd) -> None:
    for parts in (60, 61, 10**10):
        sampler = ClusterSampler(random_data(), parts)
        assert sampler.clusters.tolist() == list(range(60)) and sampler.num_parts == parts
        assert sampler.sample(torch.tensor([5, parts - 1]), 0)[0].node.tolist() == ([5, 59] if parts == 60 else [5])
    assert capfd.readouterr().out == ""


def test_cluster_numbers_may_be_any() -> None:
    data = Data(edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=3)
    sampler = ClusterSampler(data, partition=torch.tensor([2**62, 0, 2**62]))
    assert sampler.clusters.tolist() == [0, 2**62]
    assert sampler.sample(torch.tensor([2**62]), 0)[0].node.tolist() == [0, 2]


def test_a_cache_that_cannot_be_written_is_found_before_the_work(random_data, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "metis_partition", lambda *_: pytest.fail("worked in vain"))
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe") if hasattr(os, "mkfifo") else (tmp_path / "pipe").mkdir()
    for name, message in (("pipe", "is there and is none"), (".", "is there and is none"), ("file/x", "cannot be wri")):
        with pytest.raises(ValueError, match=message):
            ClusterSampler(random_data(), 4, cache=tmp_path / name)
