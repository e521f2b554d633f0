import pytest
import torch

from graphlossy.train import Split, Task


def make_toy(nodes=300, features=24, classes=3, seed=0):
    """A graph whose features and edges both tell the class, but neither of them surely, as a PyG Data."""
    from torch_geometric.data import Data

    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (nodes,), generator=generator)
    x = torch.randn(nodes, features, generator=generator) + 1.5 * torch.nn.functional.one_hot(y, features)
    ends = torch.randint(nodes, (2, nodes * 6), generator=generator)
    keep = (y[ends[0]] == y[ends[1]]) | (torch.rand(nodes * 6, generator=generator) < 0.2)
    edges = torch.cat([ends[:, keep], ends[:, keep].flip(0)], dim=1).unique(dim=1)
    edges = edges[:, edges[0] != edges[1]]
    data = Data(x=x, edge_index=edges, y=y, num_classes=classes, metric="accuracy")
    data.name = "toy"
    order = torch.randperm(nodes, generator=generator)
    parts = order.tensor_split([nodes // 2, 3 * nodes // 4])
    for name, rows in zip(("train_mask", "val_mask", "test_mask"), parts, strict=True):
        data[name] = torch.zeros(nodes, dtype=torch.bool).index_fill_(0, rows, True)
    return data


@pytest.fixture
def toy():
    return make_toy()


@pytest.fixture
def task(toy):
    masks = (toy.train_mask, toy.val_mask, toy.test_mask)
    split = Split(*(mask.nonzero().squeeze(1) for mask in masks))
    return Task("toy", toy.x, toy.edge_index, toy.y, (split,), "accuracy", toy.num_classes, toy.num_edges)
