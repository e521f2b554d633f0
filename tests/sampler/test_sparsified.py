"""The whole graph with fresh edges: expected adjacency, seeds, bad input."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.loader import NodeLoader

from graphlossy.sampler import DegreeSparsifySampler, attach_weights


@pytest.mark.parametrize("directed", [True, False])
def test_sums_over_neighbours_are_unbiased(random_data, means, directed: bool) -> None:
    data = random_data(edges=150, directed=directed, weight=False)
    row, col = data.edge_index
    x = data.x[:, 0].double().cos() + 2
    truth = torch.zeros(60, dtype=torch.float64).index_add(0, col, x[row])
    sampler = DegreeSparsifySampler(data, ratio=0.4, seed=0)
    right, wrong = means(60), means(60)
    kept = []
    for seed in range(300):
        out, weights = sampler.sample(torch.empty(0), seed)
        for found, weight in ((right, weights["edge_weight"].double()), (wrong, torch.ones(out.row.shape[0]).double())):
            found.add(
                out.node, torch.zeros(60, dtype=torch.float64).index_add(0, out.col, weight * x[out.node[out.row]])
            )
        kept.append(out.row.shape[0])
    assert right.off(truth) < 5 < 20 < wrong.off(truth)
    assert 0.3 < sum(kept) / len(kept) / data.num_edges < 0.5


def test_every_batch_of_pygs_loader_is_a_new_draw(random_data) -> None:
    data = random_data(directed=False, weight=True)
    data.edge_weight = None
    sampler = DegreeSparsifySampler(data, ratio=0.3, seed=2)
    arguments = {"input_nodes": torch.arange(2), "batch_size": 1, "transform": attach_weights}
    batches = list(NodeLoader(data, sampler, **arguments))
    assert all(torch.equal(batch.x, data.x) and batch.edge_weight.shape[0] == batch.num_edges for batch in batches)
    assert batches[0].edge_index.shape != batches[1].edge_index.shape or not torch.equal(
        batches[0].edge_index, batches[1].edge_index
    )
    for one, two in zip(batches, NodeLoader(data, sampler, num_workers=1, **arguments), strict=True):
        assert torch.equal(one.edge_index, two.edge_index)


def test_without_weights(random_data) -> None:
    out, weights = DegreeSparsifySampler(random_data(), num_samples=50, reweight=False, seed=0).sample(
        torch.empty(0), 1
    )
    assert weights == {} and out.edge is None and 0 < out.row.shape[0] <= 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of ratio, epsilon and num_samples"),
        ({"ratio": 0.5, "epsilon": 0.1}, "exactly one of ratio, epsilon and num_samples"),
        ({"ratio": 0.0}, "ratio"),
        ({"epsilon": -1.0}, "epsilon"),
    ],
)
def test_bad_amounts(random_data, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DegreeSparsifySampler(random_data(), seed=0, **arguments)
