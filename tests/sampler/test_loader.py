"""make_loader: every kind, the same batches whoever computes them, ranks, arrays on disk, bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils import to_torch_csr_tensor

from graphlossy.sampler import KINDS, make_loader
from graphlossy.sampler._graph import as_graph

OPTIONS: dict[str, dict] = {
    "neighbor": {"batch_size": 8, "num_neighbors": [3, 2]},
    "degree-neighbor": {"batch_size": 8, "num_neighbors": [3, 2]},
    "saint-node": {"batch_size": 20},
    "saint-edge": {"batch_size": 10},
    "saint-walk": {"batch_size": 10, "coverage": 2},
    "cluster": {"batch_size": 2, "partition": torch.arange(60) % 7},
    "sparsify": {"ratio": 0.4, "num_batches": 2},
}
SEEDS = ("neighbor", "degree-neighbor")


@pytest.fixture
def data(random_data) -> Data:
    return random_data(directed=False, edges=250)


def assert_same(one: Data, two: Data) -> None:
    assert one.keys() == two.keys()
    for key in one.keys():
        a, b = one[key], two[key]
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, key


@pytest.mark.parametrize("kind", KINDS)
def test_batches_hold_what_belongs_to_their_nodes(data: Data, kind: str) -> None:
    data.metric = "accuracy"
    loader = make_loader(data, kind, **OPTIONS[kind])
    batches = list(loader)
    assert len(batches) == len(loader) > 0
    seen: list[int] = []
    for batch in batches:
        assert torch.equal(batch.x, data.x[batch.n_id]) and torch.equal(batch.y, data.y[batch.n_id])
        assert batch.num_nodes == batch.n_id.shape[0] and batch.metric == "accuracy"
        assert int(batch.edge_index.max()) < batch.num_nodes
        if kind != "sparsify":
            assert torch.equal(data.edge_index[:, batch.e_id], batch.n_id[batch.edge_index])
            assert torch.equal(data.edge_attr[batch.e_id], batch.edge_attr)
        if kind in SEEDS:
            assert bool(data.train_mask[batch.n_id[: batch.batch_size]].all())
            assert batch.batch_size == batch.global_batch_size == batch.num_sampled_nodes[0]
            seen += batch.n_id[: batch.batch_size].tolist()
        else:
            assert torch.equal(batch.train_mask, data.train_mask[batch.n_id])
            seen += batch.n_id.tolist()
        assert ("edge_weight" in batch) is (kind not in ("neighbor", "cluster"))
        assert ("node_weight" in batch) is kind.startswith("saint")
        if "edge_weight" in batch:
            assert batch.edge_weight.shape == batch.edge_index.shape[1:] and batch.edge_weight.dtype == torch.float32
    if kind in SEEDS:
        assert sorted(seen) == data.train_mask.nonzero().squeeze(1).tolist()
    if kind == "cluster":
        assert sorted(seen) == list(range(60))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_depend_on_seed_epoch_and_number_alone(data: Data, kind: str) -> None:
    loader = make_loader(data, kind, seed=5, **OPTIONS[kind])
    torch.manual_seed(0)
    first, second = list(loader), list(loader)  # every pass is an epoch of its own
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), state)  # torch's generator is not used
    assert any(not torch.equal(a.edge_index, b.edge_index) for a, b in zip(first, second, strict=True))
    loader.set_epoch(0)
    again = list(loader)
    other = make_loader(data, kind, seed=5, **OPTIONS[kind])
    for number, batch in enumerate(first):
        assert_same(batch, again[number])
        assert_same(batch, other.batch(number, epoch=0))
    assert_same(second[-1], other.batch(len(other) - 1, epoch=1))
    different = make_loader(data, kind, seed=6, **OPTIONS[kind])
    assert any(not torch.equal(a.edge_index, b.edge_index) for a, b in zip(first, different, strict=True))


@pytest.mark.parametrize("kind", ["neighbor", "saint-edge"])
def test_workers_change_nothing(data: Data, kind: str) -> None:
    alone = make_loader(data, kind, **OPTIONS[kind])
    helped = make_loader(data, kind, num_workers=2, prefetch_factor=3, **OPTIONS[kind])
    for _ in range(2):
        for one, two in zip(alone, helped, strict=True):
            assert_same(one, two)


@pytest.mark.parametrize("num_neighbors", [[-1], [3, 2]])
def test_ranks_share_the_seeds_of_every_batch(data: Data, num_neighbors: list[int]) -> None:
    assert int(data.train_mask.sum()) == 33
    options = {"batch_size": 7, "num_neighbors": num_neighbors, "disjoint": True}
    whole = make_loader(data, "neighbor", **options)
    ranks = [make_loader(data, "neighbor", rank=r, world_size=3, **options) for r in range(3)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        seeds = [part.n_id[: part.batch_size] for part in parts]
        assert torch.equal(torch.cat(seeds).sort().values, batch.n_id[: batch.batch_size].sort().values)
        assert {part.global_batch_size for part in parts} == {batch.batch_size}
        # A tree is the same wherever its seed is: the ranks draw what one process would.
        edges = torch.cat([part.e_id for part in parts]).sort().values
        assert torch.equal(edges, batch.e_id.sort().values)


def test_a_rest_with_fewer_seeds_than_ranks_joins_the_last_batch(data: Data) -> None:
    for size, expected in ((8, [8, 8, 8, 9]), (31, [33]), (40, [33]), (11, [11, 11, 11])):
        loaders = [
            make_loader(data, "neighbor", batch_size=size, num_neighbors=[2], rank=r, world_size=3) for r in range(3)
        ]
        sizes = [[part.batch_size for part in parts] for parts in zip(*loaders, strict=True)]
        assert [sum(s) for s in sizes] == expected and all(max(s) - min(s) <= 1 for s in sizes)


def test_ranks_have_subgraphs_of_their_own(data: Data) -> None:
    options = {"batch_size": 1, "partition": torch.arange(60) % 7}
    ranks = [make_loader(data, "cluster", rank=r, world_size=3, **options) for r in range(3)]
    found = [batch.n_id for loader in ranks for batch in loader]
    assert len(found) == 6 and torch.cat(found).unique().shape == torch.cat(found).shape
    whole = make_loader(data, "saint-node", batch_size=20, num_batches=4)
    parts = [make_loader(data, "saint-node", batch_size=20, num_batches=4, rank=r, world_size=2) for r in range(2)]
    for number in range(4):
        assert_same(whole.batch(number), parts[number % 2].batch(number // 2))


def test_the_loss_of_a_split_is_unbiased(data: Data, means) -> None:
    reachable = torch.bincount(data.edge_index[0], minlength=60) > 0
    nodes = (data.train_mask & reachable).nonzero().squeeze(1)
    loader = make_loader(data, "saint-node", nodes, batch_size=20, num_batches=800)
    degree = torch.bincount(data.edge_index[0], minlength=60).float()  # nodes with many edges come more often
    truth = degree[nodes].mean()
    right, wrong = means(1), means(1)
    for batch in loader:
        loss = (batch.node_weight * degree[batch.n_id])[batch.train_mask].sum().view(1)
        right.add(torch.tensor([0]), loss)
        wrong.add(torch.tensor([0]), degree[batch.n_id[batch.train_mask]].mean().view(1))
    assert right.off(truth.double()) < 4.5 < 6 < wrong.off(truth.double())


def test_arrays_on_disk_and_other_forms_of_the_graph(data: Data, tmp_path: Path) -> None:
    expected = make_loader(data, "neighbor", **OPTIONS["neighbor"]).batch(1)
    np.save(tmp_path / "x.npy", data.x.numpy())
    graph = as_graph(data)
    np.save(tmp_path / "row.npy", graph.indices.numpy().astype(np.int32))
    np.save(tmp_path / "colptr.npy", graph.indptr.numpy())
    opened = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("x", "row", "colptr")}
    stored = Data(x=opened["x"], y=data.y, train_mask=data.train_mask, num_nodes=60)
    for workers in (0, 1):
        loader = make_loader(
            stored, "neighbor", graph=(opened["colptr"], opened["row"]), num_workers=workers, **OPTIONS["neighbor"]
        )
        batch = list(loader)[1]
        assert torch.equal(batch.n_id, expected.n_id) and torch.equal(batch.x, expected.x)
        assert torch.equal(batch.edge_index, expected.edge_index)
    distinct = data.edge_index.unique(dim=1)
    one = Data(x=data.x, adj_t=to_torch_csr_tensor(distinct.flip(0), size=(60, 60)), train_mask=data.train_mask)
    two = Data(x=data.x, edge_index=distinct[:, distinct[1].argsort(stable=True)], train_mask=data.train_mask)
    found = [make_loader(form, "degree-neighbor", **OPTIONS["neighbor"]).batch(0) for form in (one, two)]
    assert torch.equal(found[0].n_id, found[1].n_id) and torch.equal(found[0].edge_weight, found[1].edge_weight)


@pytest.mark.parametrize("split", ["val", None, "ids", "mask"])
def test_splits(data: Data, split: str | None) -> None:
    data.val_mask = torch.arange(60) % 4 == 0
    given = {"ids": torch.tensor([9, 4, 4]), "mask": data.val_mask}.get(str(split), split)
    loader = make_loader(data, "neighbor", given, batch_size=50, num_neighbors=[2], shuffle=False)
    seeds = torch.cat([batch.n_id[: batch.batch_size] for batch in loader])
    expected = {"ids": torch.tensor([9, 4, 4]), None: torch.arange(60)}.get(split, torch.arange(0, 60, 4))
    assert torch.equal(seeds, expected)


def test_drop_last(data: Data) -> None:
    nodes = torch.arange(20)
    loader = make_loader(data, "neighbor", nodes, batch_size=8, num_neighbors=[2], drop_last=True)
    assert len(loader) == 2 and [batch.batch_size for batch in loader] == [8, 8]


BAD = [
    ({"kind": "saint"}, ValueError, "kind must be one of neighbor, .* got 'saint'"),
    ({"split": "test"}, ValueError, "split 'test' needs data.test_mask; data has masks for train"),
    ({"split": torch.zeros(60, dtype=torch.bool)}, ValueError, "has no nodes"),
    ({"split": torch.zeros(50, dtype=torch.bool)}, ValueError, r"must have shape \(60,\), got \(50,\)"),
    ({"split": [0, 60]}, ValueError, "split must hold node ids from 0 to 59, got 60"),
    ({"split": torch.tensor([0.5])}, TypeError, "a mask or a list of node ids, got torch.float32"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    ({"batch_size": "8"}, TypeError, "batch_size must be an int, got str '8'"),
    ({"num_neighbors": [0]}, ValueError, "got 0 in"),
    ({"num_neighbors": 5}, TypeError, "must be a list of one int for each hop, got 5"),
    ({"num_workers": 1, "prefetch_factor": 0}, ValueError, "prefetch_factor must be at least 1"),
    ({"num_workers": -1}, ValueError, "num_workers must be at least 0"),
    ({"rank": 2, "world_size": 2}, ValueError, "rank must be from 0 to world_size - 1 = 1, got 2"),
    ({"batch_size": 2, "world_size": 3}, ValueError, "at least world_size = 3, got 2"),
    ({"split": [3], "world_size": 2}, ValueError, "the number of seeds must be at least world_size = 2, got 1"),
    ({"split": torch.arange(9), "batch_size": 10, "drop_last": True}, ValueError, "leaves no batch"),
    ({"kind": "cluster", "partition": torch.zeros(60).long(), "world_size": 2}, ValueError, "fewer than world_size"),
    ({"kind": "cluster", "partition": torch.zeros(60).long(), "num_batches": 2}, ValueError, "leave it out"),
    ({"kind": "saint-node", "num_batches": 0}, ValueError, "num_batches must be at least 1"),
    ({"kind": "sparsify", "ratio": 1.5}, ValueError, "ratio"),
    ({"shuffle": None}, TypeError, "shuffle must be True or False"),
    ({"data": 3}, TypeError, "a torch_geometric Data, got int"),
    ({"seed": 0.5}, TypeError, "seed must be an int or None"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(data: Data, change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_loader(**({"data": data} | change))


def test_bad_numbers_and_features(data: Data) -> None:
    loader = make_loader(data, "neighbor", **OPTIONS["neighbor"])
    with pytest.raises(ValueError, match="number must be from 0"):
        loader.batch(len(loader))
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        loader.set_epoch(-1)
    with pytest.raises(TypeError, match="epoch must be an int, got str 'a'"):
        loader.batch(0, "a")
    data.x = data.x[:10]
    with pytest.raises(ValueError, match=r"data.x must have a row for each of 60 nodes, got shape \(10, 2\)"):
        make_loader(data, "neighbor")
