import pytest
import torch

from graphlossy.train import Split, Task


def make_task(nodes=300, features=24, classes=3, seed=0):
    """A graph whose features and edges both tell the class, but neither of them surely."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (nodes,), generator=generator)
    x = torch.randn(nodes, features, generator=generator) + 1.5 * torch.nn.functional.one_hot(y, features)
    ends = torch.randint(nodes, (2, nodes * 6), generator=generator)
    keep = (y[ends[0]] == y[ends[1]]) | (torch.rand(nodes * 6, generator=generator) < 0.2)
    edges = torch.cat([ends[:, keep], ends[:, keep].flip(0)], dim=1).unique(dim=1)
    order = torch.randperm(nodes, generator=generator)
    split = Split(order[: nodes // 2], order[nodes // 2 : 3 * nodes // 4], order[3 * nodes // 4 :])
    return Task("toy", x, edges, y, (split,), "accuracy", classes, edges.shape[1])


@pytest.fixture
def task():
    return make_task()
