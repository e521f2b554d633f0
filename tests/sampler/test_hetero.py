"""Graphs with several node and edge types."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.loader import LinkLoader, NodeLoader

from graphlossy.sampler import NeighborSampler, SaintNodeSampler, attach_weights

SIZES = {"author": 30, "paper": 50, "venue": 4}
TYPES = [
    ("author", "writes", "paper"),
    ("paper", "by", "author"),
    ("paper", "cites", "paper"),
    ("paper", "in", "venue"),
]


@pytest.fixture
def data() -> HeteroData:
    made = HeteroData()
    generator = torch.Generator().manual_seed(0)
    for kind, count in SIZES.items():
        made[kind].x = torch.arange(count, dtype=torch.float32).view(-1, 1)
    for kind in TYPES:
        ends = [torch.randint(SIZES[kind[i]], (200,), generator=generator) for i in (0, 2)]
        made[kind].edge_index = torch.stack(ends)
        made[kind].edge_attr = torch.rand(200, 2, generator=generator)
    return made


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("num_neighbors", [[3, 2], {kind: [1 + i, 2] for i, kind in enumerate(TYPES)}])
def test_batches_of_pygs_loader(data: HeteroData, num_neighbors: object, disjoint: bool) -> None:
    sampler = NeighborSampler(data, num_neighbors, weighted=True, disjoint=disjoint, seed=1)
    arguments = {"input_nodes": ("paper", torch.arange(20)), "batch_size": 10, "transform": attach_weights}
    batches = list(NodeLoader(data, sampler, **arguments))
    for number, batch in enumerate(batches):
        assert batch["paper"].n_id[:10].tolist() == list(range(10 * number, 10 * number + 10))
        assert batch["paper"].num_sampled_nodes[0] == 10 and batch["author"].num_sampled_nodes[0] == 0
        for kind in SIZES:
            store = batch[kind]
            assert sum(store.num_sampled_nodes) == store.n_id.shape[0]
            assert torch.equal(store.x[:, 0].long(), store.n_id)
            keys = store.batch * 100 + store.n_id if disjoint else store.n_id
            assert keys.unique().shape == keys.shape
        for kind in TYPES:
            store = batch[kind]
            row, col = store.edge_index
            ends = torch.stack([batch[kind[0]].n_id[row], batch[kind[2]].n_id[col]])
            assert torch.equal(data[kind].edge_index[:, store.e_id], ends)
            assert torch.equal(data[kind].edge_attr[store.e_id], store.edge_attr)
            assert store.edge_weight.shape == row.shape and sum(store.num_sampled_edges) == row.shape[0]
            # Every node that was expanded has min(degree, k) edges, and weights that add up to its degree.
            degree = torch.bincount(data[kind].edge_index[1], minlength=SIZES[kind[2]])[batch[kind[2]].n_id]
            expanded = sum(batch[kind[2]].num_sampled_nodes[:-1])
            total = torch.zeros(degree.shape[0]).index_add(0, col, store.edge_weight)
            torch.testing.assert_close(total[:expanded], degree[:expanded].float())
            assert float(total[expanded:].sum()) == 0
            if disjoint:
                assert torch.equal(batch[kind[0]].batch[row], batch[kind[2]].batch[col])
    for one, two in zip(batches, NodeLoader(data, sampler, num_workers=1, **arguments), strict=True):
        assert all(torch.equal(one[kind].n_id, two[kind].n_id) for kind in SIZES)


def test_sums_are_unbiased(data: HeteroData, means) -> None:
    kind = TYPES[2]
    sampler = NeighborSampler(data, [2, 2], weight={kind: data[kind].edge_attr[:, 0]}, weighted=True, seed=0)
    row, col = data[kind].edge_index
    x = data["paper"].x[:, 0].cos().double()
    truth = torch.zeros(50, dtype=torch.float64).index_add(0, col, x[row])
    for factor, least, most in ((1.0, 0, 5), (1.1, 8, 10**9)):
        found = means(50)
        for seed in range(300):
            out = sampler.sample({"paper": torch.arange(50)}, seed)
            weight = out.metadata[kind].double() * factor
            found.add(
                out.node["paper"],
                torch.zeros(50).double().index_add(0, out.col[kind], weight * x[out.node["paper"][out.row[kind]]]),
            )
        assert least <= found.off(truth) < most


def test_everything_is_the_whole_neighbourhood(data: HeteroData) -> None:
    out = NeighborSampler(data, [-1], seed=0).sample({"paper": torch.tensor([3, 8])}, 0)
    for kind in TYPES:
        row, col = data[kind].edge_index
        wanted = torch.isin(col, torch.tensor([3, 8])) if kind[2] == "paper" else torch.zeros(200, dtype=torch.bool)
        found = torch.stack([out.node[kind[0]][out.row[kind]], out.node[kind[2]][out.col[kind]]])
        assert sorted(found.t().tolist()) == sorted(data[kind].edge_index[:, wanted].t().tolist())


def test_links(data: HeteroData) -> None:
    kind = TYPES[0]
    links = data[kind].edge_index[:, :12]
    loader = LinkLoader(data, NeighborSampler(data, [2, 2], seed=0), edge_label_index=(kind, links), batch_size=6)
    for number, batch in enumerate(loader):
        row, col = batch[kind].edge_label_index
        ends = torch.stack([batch["author"].n_id[row], batch["paper"].n_id[col]])
        assert torch.equal(ends, links[:, 6 * number : 6 * number + 6])


def test_bad_arguments(data: HeteroData) -> None:
    with pytest.raises(ValueError, match="the edge types .*; .*cites.* is missing"):
        NeighborSampler(data, {kind: [2] for kind in TYPES if kind[1] != "cites"})
    with pytest.raises(ValueError, match=r"\('a', 'b', 'c'\) is none"):
        NeighborSampler(data, {kind: [2] for kind in [*TYPES, ("a", "b", "c")]})
    with pytest.raises(ValueError, match="the same number of hops"):
        NeighborSampler(data, {kind: [2] * (1 + i) for i, kind in enumerate(TYPES)})
    with pytest.raises(ValueError, match="one node type"):
        NeighborSampler(data, [2], weight="degree")
    with pytest.raises(ValueError, match="input nodes of type 'paper' must hold node ids from 0 to 49, got 50"):
        NeighborSampler(data, [2], seed=0).sample({"paper": torch.tensor([50])}, 0)
    with pytest.raises(TypeError, match="one node type, got HeteroData"):
        SaintNodeSampler(data, 3)
    data["paper", "cites", "paper"].edge_index[0, 0] = 50
    with pytest.raises(ValueError, match="from 0 to 49, got 50"):
        NeighborSampler(data, [2])
    del data["venue"].x
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="number of nodes of type 'venue' is unknown"):
        del data["paper", "in", "venue"]
        NeighborSampler(data, [2])
