"""Sums and means over sampled neighbours are unbiased; the same weights with a mistake are not."""

from __future__ import annotations

import pytest
import torch

from graphlossy.sampler import NeighborSampler
from graphlossy.sampler._hops import Draw

OPTIONS = [
    {},
    {"replace": True},
    {"weight": "degree"},
    {"weight": "degree", "replace": True},
    {"weight": "edge_weight"},
    {"weight": "edge_weight", "replace": True},
    {"disjoint": True},
]


def features(data) -> torch.Tensor:
    """Numbers that go with the degree, as draws by degree do."""
    degree = torch.bincount(data.edge_index[0], minlength=60).clamp(min=1)
    return data.x[:, 0].double().cos() + 20.0 / degree


def distance(data, means, sampler: NeighborSampler, mean: bool, rounds: int = 400) -> float:
    """Standard errors between the mean aggregation over the sample and the full one, the worst of all nodes."""
    value = data.edge_weight.double()
    row, col = data.edge_index
    x = features(data)
    truth = torch.zeros(60, dtype=torch.float64).index_add(0, col, value * x[row])
    if mean:
        truth /= torch.bincount(col, minlength=60).clamp(min=1)
    found = means(60)
    for seed in range(rounds):
        out = sampler.sample(torch.arange(60), seed)
        total = torch.zeros(out.node.shape[0], dtype=torch.float64)
        total.index_add_(0, out.col, out.metadata.double() * x[out.node[out.row]])
        expanded = sum(out.num_sampled_nodes[:-1])
        found.add(out.node[:expanded], total[:expanded])
    return found.off(truth)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_aggregations_are_unbiased(random_data, means, options: dict, mean: bool) -> None:
    data = random_data(weight=True, edges=700)
    sampler = NeighborSampler(data, [3], weighted=True, mean=mean, seed=0, **options)
    assert distance(data, means, sampler, mean) < 5


@pytest.mark.parametrize("options", OPTIONS[2:6], ids=str)
def test_uniform_weights_for_weighted_draws_are_found_out(
    random_data, means, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted mistake: the weights of a uniform draw, degree / k, whatever the draws were."""
    data = random_data(weight=True, edges=700)
    sampler = NeighborSampler(data, [3], weighted=True, seed=0, **options)
    right = Draw.edge_weight

    def wrong(self, graph, frontier, position, counts, expected):
        return right(Draw(self.replace, None, True, self.mean), graph, frontier, position, counts, expected)

    monkeypatch.setattr(Draw, "edge_weight", wrong)
    assert distance(data, means, sampler, False, rounds=1000) > 8


def test_dividing_by_k_where_fewer_were_drawn_is_found_out(random_data, means, monkeypatch) -> None:
    data = random_data(weight=True, edges=200)
    sampler = NeighborSampler(data, [3], weighted=True, mean=True, seed=0)
    assert distance(data, means, sampler, True) < 5
    right = Draw.edge_weight

    def wrong(self, graph, frontier, position, counts, expected):
        return right(self, graph, frontier, position, counts, expected) * (counts / 3).repeat_interleave(counts)

    monkeypatch.setattr(Draw, "edge_weight", wrong)
    assert distance(data, means, sampler, True) > 8


def test_later_hops_are_unbiased_too(random_data, means) -> None:
    data = random_data(weight=True, edges=500)
    sampler = NeighborSampler(data, [2, 3, 2], weighted=True, weight="degree", seed=0)
    x, value = features(data), data.edge_weight.double()
    row, col = data.edge_index
    truth = torch.zeros(60, dtype=torch.float64).index_add(0, col, value * x[row])
    hops = [means(60) for _ in range(3)]
    for seed in range(400):
        out = sampler.sample(torch.tensor([4, 9]), seed)
        total = torch.zeros(out.node.shape[0], dtype=torch.float64)
        total.index_add_(0, out.col, out.metadata.double() * x[out.node[out.row]])
        ends = torch.tensor(out.num_sampled_nodes).cumsum(0).tolist()
        for hop, (first, end) in enumerate(zip([0, *ends[:2]], ends[:3], strict=True)):
            hops[hop].add(out.node[first:end], total[first:end])
    assert max(found.off(truth, least=30) for found in hops) < 5.5
