"""The neighbour sampler: structure and order of a batch, its law, PyG's loaders, bad input."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from scipy import stats
from torch_geometric.data import Data
from torch_geometric.loader import LinkLoader, NodeLoader
from torch_geometric.nn import SAGEConv
from torch_geometric.sampler import EdgeSamplerInput, NodeSamplerInput
from torch_geometric.utils import k_hop_subgraph, trim_to_layer

from graphlossy.sampler import NeighborSampler, attach_weights

KINDS = [{}, {"replace": True}, {"weight": "degree"}, {"weight": "degree", "replace": True}, {"disjoint": True}]
WEIGHTED = [*KINDS[:4], {"weight": "edge_weight"}, {"disjoint": True, "weight": "edge_weight"}]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_structure_and_order(random_data, options: dict) -> None:
    data = random_data()
    seeds = torch.tensor([5, 59, 7, 30])
    sampler = NeighborSampler(data, [3, 4, 2], seed=0, **options)
    out = sampler.sample(seeds, 11)
    ids = out.edge if sampler.edge_permutation is None else sampler.edge_permutation[out.edge]
    assert torch.equal(data.edge_index[:, ids], torch.stack([out.node[out.row], out.node[out.col]]))
    assert out.node[:4].tolist() == seeds.tolist()
    assert sum(out.num_sampled_nodes) == out.node.shape[0] and sum(out.num_sampled_edges) == out.edge.shape[0]
    assert out.num_sampled_nodes[0] == 4 and len(out.num_sampled_edges) == 3
    keys = out.node if out.batch is None else out.batch * 60 + out.node
    assert keys.unique().shape == keys.shape
    degree = torch.bincount(data.edge_index[1], minlength=60)
    first = edge = 0
    for hop, k in enumerate([3, 4, 2]):
        end, last = first + out.num_sampled_nodes[hop], edge + out.num_sampled_edges[hop]
        row, col = out.row[edge:last], out.col[edge:last]
        assert bool((col.diff() >= 0).all()) and bool(((col >= first) & (col < end)).all())
        counts = torch.bincount(col - first, minlength=end - first)
        full = degree[out.node[first:end]]
        least = torch.where(full > 0, k, 0) if options.get("replace") else full.clamp(max=k)
        assert torch.equal(counts, least)
        fresh = row[row >= end]  # in order of first appearance
        assert list(dict.fromkeys(fresh.tolist())) == list(range(end, end + out.num_sampled_nodes[hop + 1]))
        if not options.get("replace"):
            assert out.edge[edge:last].unique().shape[0] == last - edge or options.get("disjoint")
        first, edge = end, last
    if out.batch is not None:
        assert torch.equal(out.batch[out.row], out.batch[out.col]) and out.batch[:4].tolist() == [0, 1, 2, 3]


def test_all_neighbours_are_the_k_hop_subgraph(random_data) -> None:
    data = random_data(edges=120)
    seeds = torch.tensor([3, 11])
    out = NeighborSampler(data, [-1, -1], seed=0).sample(seeds, 0)
    nodes, _, _, _ = k_hop_subgraph(seeds, 2, data.edge_index, num_nodes=60)
    assert sorted(out.node.tolist()) == nodes.tolist()
    inner, _, _, _ = k_hop_subgraph(seeds, 1, data.edge_index, num_nodes=60)
    wanted = torch.isin(data.edge_index[1], inner)  # every node within one hop has all its edges
    found = torch.stack([out.node[out.row], out.node[out.col]])
    assert sorted(found.t().tolist()) == sorted(data.edge_index[:, wanted].t().tolist())
    same = NeighborSampler(data, [500, 500], seed=0).sample(seeds, 9)  # more than there are: all, in the same order
    assert torch.equal(same.node, out.node) and torch.equal(same.edge, out.edge)


def test_a_batch_equals_that_of_compiled_pyg(random_data) -> None:
    torch_sparse = pytest.importorskip("torch_sparse")
    assert torch_sparse is not None
    data = random_data()
    ours = NeighborSampler(data, [-1, -1], seed=0)
    theirs = torch.ops.torch_sparse.neighbor_sample(
        ours.graph.indptr, ours.graph.indices, torch.tensor([3, 11, 58]), [-1, -1], False, True
    )
    out = ours.sample(torch.tensor([3, 11, 58]), 0)
    for a, b in zip((out.node, out.row, out.col, out.edge), theirs, strict=True):
        assert torch.equal(a, b)


def star(leaves: int, centres: int = 1) -> Data:
    """Edges from leaves to centres: centre c has leaves c * leaves + centres ..."""
    to = torch.arange(centres).repeat_interleave(leaves)
    leaf = torch.arange(leaves * centres) + centres
    return Data(edge_index=torch.stack([leaf, to]), num_nodes=centres * (leaves + 1))


def test_every_subset_of_neighbours_is_equally_likely_in_pygs_loader() -> None:
    data = star(5, 3000)
    loader = NodeLoader(data, NeighborSampler(data, [2], seed=3), input_nodes=torch.arange(3000), batch_size=1000)
    found: Counter = Counter()
    for batch in loader:
        leaves = (batch.n_id[batch.edge_index[0]] - 3000) % 5
        found.update(map(tuple, leaves.view(-1, 2).sort(dim=1).values.tolist()))
    subsets = list(itertools.combinations(range(5), 2))
    assert set(found) == set(subsets)
    assert stats.chisquare([found[s] for s in subsets]).pvalue > 1e-4


def test_hops_batches_and_trees_are_independent() -> None:
    data = star(6, 2)
    data.edge_index = torch.cat([data.edge_index, torch.tensor([[1], [0]])], dim=1)
    agree = {"batches": 0, "trees": 0}
    tree = NeighborSampler(data, [2], disjoint=True, seed=0)
    single = NeighborSampler(data, [2], seed=0)
    for i in range(200):
        one = single.sample_from_nodes(NodeSamplerInput(None, torch.tensor([1, i % 12 + 2])))
        two = single.sample_from_nodes(NodeSamplerInput(None, torch.tensor([1, (i + 1) % 12 + 2])))
        agree["batches"] += torch.equal(one.edge, two.edge)
        alone, among = tree.sample(torch.tensor([1]), i), tree.sample(torch.tensor([0, 1]), i)
        agree["trees"] += torch.equal(alone.edge, among.edge[among.batch[among.col] == 1])
    assert agree["trees"] == 200 and 1 <= agree["batches"] < 60  # 200 / 15 for independent draws


@pytest.mark.parametrize(("options", "num_workers"), [(o, 0) for o in WEIGHTED] + [({}, 2), (WEIGHTED[4], 2)], ids=str)
def test_workers_change_nothing_in_pygs_loader(random_data, options: dict, num_workers: int) -> None:
    data = random_data(weight=True)
    sampler = NeighborSampler(data, [3, 2], weighted=True, seed=7, **options)
    seeds = data.train_mask.nonzero().squeeze(1)
    arguments = {"node_sampler": sampler, "input_nodes": data.train_mask, "batch_size": 8, "transform": attach_weights}
    torch.manual_seed(num_workers)
    batches = list(NodeLoader(data, num_workers=num_workers, **arguments))
    for number, batch in enumerate(batches):
        expected = sampler.sample_from_nodes(NodeSamplerInput(None, seeds[8 * number : 8 * number + 8]))
        assert torch.equal(batch.n_id, expected.node)
        assert torch.equal(batch.edge_weight, expected.metadata[1]["edge_weight"])
        assert torch.equal(batch.x[:, 0].long(), batch.n_id) and torch.equal(batch.edge_attr[:, 0].long(), batch.e_id)
        assert "seed_time" not in batch and batch.batch_size == min(8, seeds.shape[0] - 8 * number)
    before = [batch.n_id for batch in batches]
    sampler.set_epoch(1)
    assert any(not torch.equal(a, b.n_id) for a, b in zip(before, NodeLoader(data, **arguments), strict=True))
    sampler.set_epoch(0)
    assert all(torch.equal(a, b.n_id) for a, b in zip(before, NodeLoader(data, **arguments), strict=True))


def test_workers_that_live_on_see_the_epoch(random_data) -> None:
    data = random_data()
    sampler = NeighborSampler(data, [2, 2], seed=7)
    loader = NodeLoader(data, sampler, batch_size=30, num_workers=1, persistent_workers=True)
    passes = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        passes.append([batch.n_id for batch in loader])
    assert all(map(torch.equal, passes[0], passes[2])) and not all(map(torch.equal, passes[0], passes[1]))


def test_without_a_seed_torch_governs_the_draws(random_data) -> None:
    data = random_data()
    sampler = NeighborSampler(data, [2, 2])
    inputs = NodeSamplerInput(None, torch.arange(20))
    torch.manual_seed(3)
    one, two = sampler.sample_from_nodes(inputs), sampler.sample_from_nodes(inputs)
    torch.manual_seed(3)
    again = sampler.sample_from_nodes(inputs)
    assert torch.equal(one.node, again.node) and not torch.equal(one.edge, two.edge)


def test_trimming_gives_the_same_output(random_data) -> None:
    data = random_data()
    out = NeighborSampler(data, [3, 2], seed=0).sample(torch.arange(9), 1)
    convs = [SAGEConv(2, 4), SAGEConv(4, 3)]
    x = full = data.x[out.node]
    edge_index = whole = torch.stack([out.row, out.col])
    for layer, conv in enumerate(convs):
        x, edge_index, _ = trim_to_layer(layer, out.num_sampled_nodes, out.num_sampled_edges, x, edge_index)
        x, full = conv(x, edge_index), conv(full, whole)
    torch.testing.assert_close(x[:9], full[:9])


def test_links(random_data) -> None:
    data = random_data(weight=True)
    sampler = NeighborSampler(data, [3, 2], weighted=True, seed=0)
    links = data.edge_index[:, :20]
    batch = next(iter(LinkLoader(data, sampler, edge_label_index=links, batch_size=10, neg_sampling_ratio=1.0)))
    assert torch.equal(batch.n_id[batch.edge_label_index[:, :10]], links[:, :10])
    assert batch.edge_label.tolist() == [1.0] * 10 + [0.0] * 10


def test_a_seed_that_is_there_twice_has_its_edges_twice() -> None:
    out = NeighborSampler(star(4), [2], weighted=True, seed=0).sample(torch.tensor([0, 0, 3]), 0)
    assert out.node[:3].tolist() == [0, 0, 3] and out.col.tolist() == [0, 0, 1, 1]
    assert out.edge[:2].tolist() == out.edge[2:].tolist() and out.metadata.tolist() == [2.0] * 4


DATA = star(3)
BAD = [
    ({"num_neighbors": [3, 0]}, ValueError, "or -1 for all neighbours; got 0"),
    ({"num_neighbors": [-2]}, ValueError, "got -2"),
    ({"num_neighbors": []}, ValueError, "at least one hop"),
    ({"num_neighbors": 5}, TypeError, "a list of one int for each hop, got 5"),
    ({"num_neighbors": [1.5]}, TypeError, "must hold ints, got 1.5"),
    ({"weight": "nothing"}, ValueError, "an edge attribute of the graph, got 'nothing'"),
    ({"weight": torch.ones(2)}, ValueError, r"one weight for each of 3 edges, got shape \(2,\)"),
    ({"weight": torch.tensor([1.0, -1.0, 0.0])}, ValueError, "the weight of edge 1 is -1.0"),
    ({"weight": torch.tensor([1.0, 1.0, torch.nan])}, ValueError, "the weight of edge 2 is nan"),
    ({"weight": torch.ones(3, dtype=torch.bool)}, TypeError, "real numbers, got dtype torch.bool"),
    ({"weight": 3}, TypeError, "a dense torch.Tensor of 3 weights, got int"),
    ({"weight": torch.tensor([1.0, 0.0, 2.0]), "weighted": True}, ValueError, "weight is 0 for 1 edges"),
    ({"num_neighbors": [2**31]}, ValueError, "or -1 for all neighbours; got 2147483648"),
    ({"num_neighbors": 5}, TypeError, "must be a list of one int for each hop, got 5"),
    ({"mean": True}, ValueError, "set weighted=True too"),
    ({"replace": 1}, TypeError, "replace must be True or False, got 1"),
    ({"seed": "a"}, TypeError, "seed must be an int or None"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NeighborSampler(DATA, **({"num_neighbors": [2]} | change))


def test_bad_inputs() -> None:
    sampler = NeighborSampler(DATA, [2], seed=0)
    for nodes in (torch.tensor([0, 4]), torch.tensor([-1])):
        with pytest.raises(ValueError, match="input nodes must hold node ids from 0 to 3"):
            sampler.sample_from_nodes(NodeSamplerInput(None, nodes))
    with pytest.raises(ValueError, match="take no input_time"):
        sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor([0]), time=torch.tensor([1])))
    with pytest.raises(ValueError, match="take no edge_label_time"):
        ends = torch.tensor([0])
        sampler.sample_from_edges(EdgeSamplerInput(None, ends, ends, time=ends))
    with pytest.raises(TypeError, match="epoch must be an int"):
        sampler.set_epoch(1.0)
    bad = star(3)
    bad.edge_weight = torch.tensor([1.0, torch.inf, 1.0])
    with pytest.raises(ValueError, match="edge_weight must be finite"):
        NeighborSampler(bad, [2], weighted=True)
    bad.edge_weight = [1.0, 1.0, 1.0]
    with pytest.raises(TypeError, match="edge_weight must be a torch.Tensor of 3 weights, got list"):
        NeighborSampler(bad, [2], weighted=True)
    with pytest.raises(TypeError, match="input nodes must be a mask or a list of node ids, got \\['a'\\]"):
        sampler.sample(["a"], 0)
    with pytest.raises(ValueError, match="must be integers of shape .* got torch.bool"):
        NeighborSampler(Data(edge_index=torch.ones((2, 3), dtype=torch.bool), num_nodes=2), [2])
    bad.edge_weight = torch.ones(2)
    with pytest.raises(ValueError, match=r"edge_weight must be 3 real numbers, got torch.float32 \(2,\)"):
        NeighborSampler(bad, [2], weighted=True)
