"""Whole models as people write them (OGB's examples, PyG's), unmodified: same outputs, close gradients, fewer bytes."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as pyg
from torch import nn
from torch_geometric.utils import to_torch_csr_tensor, to_undirected

import graphlossy

NODES, FEATURES, CLASSES, GRAPHS = 1000, 64, 10, 20


class ArxivGCN(nn.Module):
    """OGB's example for ogbn-arxiv: convolutions that cache their normalised adjacency."""

    def __init__(self):
        super().__init__()
        sizes = [(FEATURES, 64), (64, 64), (64, CLASSES)]
        self.convs = nn.ModuleList(pyg.GCNConv(*size, cached=True) for size in sizes)
        self.bns = nn.ModuleList(nn.BatchNorm1d(64) for _ in sizes[1:])

    def forward(self, x, adj_t, graph):
        for i, conv in enumerate(self.convs[:-1]):
            x = conv(x, adj_t)
            x = self.bns[i](x)
            x = F.relu(x)
            x = F.dropout(x, p=0.5, training=self.training)
        return self.convs[-1](x, adj_t).log_softmax(dim=-1)


class DeeperGCN(nn.Module):
    """PyG's example of Li et al. 2020: learned softmax aggregation, in-place ReLU, checkpointed layers."""

    def __init__(self):
        super().__init__()
        self.node, self.edge, self.out = nn.Linear(FEATURES, 64), nn.Linear(16, 64), nn.Linear(64, CLASSES)
        self.layers = nn.ModuleList()
        for i in range(1, 4):
            conv = pyg.GENConv(64, 64, aggr="softmax", t=1.0, learn_t=True, num_layers=2, norm="layer")
            act = nn.ReLU(inplace=True)
            self.layers.append(pyg.DeepGCNLayer(conv, nn.LayerNorm(64), act, dropout=0.1, ckpt_grad=i % 3))

    def forward(self, x, edge_index, graph):
        x, edges = self.node(x), self.edge(graph["edge_attr"])
        x = self.layers[0].conv(x, edge_index, edges)
        for layer in self.layers[1:]:
            x = layer(x, edge_index, edges)
        x = self.layers[0].act(self.layers[0].norm(x))
        return self.out(F.dropout(x, p=0.1, training=self.training)).log_softmax(-1)


class MoleculeGIN(nn.Module):
    """Graph-level: GIN with its MLPs, mean pooling."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(
            pyg.GINConv(
                nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64)), train_eps=True
            )
            for _ in range(2)
        )
        self.out = nn.Linear(64, CLASSES)

    def forward(self, x, edge_index, graph):
        for conv in self.convs:
            x = F.dropout(F.relu(conv(x, edge_index)), 0.5, self.training)
        return self.out(pyg.global_mean_pool(x, graph["batch"]))[graph["batch"]].log_softmax(-1)


class Relational(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = pyg.RGCNConv(FEATURES, 64, 3, num_bases=2), pyg.FastRGCNConv(64, CLASSES, 3)

    def forward(self, x, edge_index, graph):
        x = F.relu(self.first(x, edge_index, graph["edge_type"]))
        return self.second(x, edge_index, graph["edge_type"]).log_softmax(-1)


class JumpingKnowledge(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = pyg.GraphSAGE(FEATURES, 64, 3, CLASSES, dropout=0.5, norm="batch", jk="cat")

    def forward(self, x, edge_index, graph):
        return self.net(x, edge_index).log_softmax(-1)


class Attention(nn.Module):
    """Three kinds of message that no sparse product computes."""

    def __init__(self):
        super().__init__()
        self.first = pyg.TransformerConv(FEATURES, 16, heads=4, edge_dim=16)
        self.second = pyg.PNAConv(64, 64, ["mean", "max", "std"], ["identity"], deg=torch.tensor([0, 1, 5, 9]))
        self.third = pyg.GATv2Conv(64, CLASSES, heads=2, concat=False)

    def forward(self, x, edge_index, graph):
        x = F.elu(self.first(x, edge_index, graph["edge_attr"]))
        x = F.elu(self.second(x, edge_index))
        return self.third(x, edge_index).log_softmax(-1)


@pytest.fixture(scope="module")
def graph():
    generator = torch.Generator().manual_seed(0)
    edge_index = to_undirected(torch.randint(NODES, (2, 4000), generator=generator))
    edges = edge_index.size(1)
    return {
        "edge_index": edge_index,
        "csr": to_torch_csr_tensor(edge_index.flip(0), size=(NODES, NODES)),
        "x": torch.randn(NODES, FEATURES, generator=generator),
        "y": torch.randint(CLASSES, (NODES,), generator=generator),
        "edge_attr": torch.randn(edges, 16, generator=generator),
        "edge_type": torch.randint(3, (edges,), generator=generator),
        "batch": torch.arange(NODES) * GRAPHS // NODES,
    }


# The largest error of a gradient at 8 bits, and how many times fewer bytes at 2 bits.
CASES = [
    (ArxivGCN, "csr", 0.03, 13),
    (ArxivGCN, "edge_index", 0.03, 13),
    (DeeperGCN, "edge_index", 0.2, 4),
    (MoleculeGIN, "edge_index", 0.1, 11),
    (Relational, "edge_index", 0.03, 12),
    (JumpingKnowledge, "csr", 0.03, 13),
    (JumpingKnowledge, "edge_index", 0.03, 13),
    (Attention, "edge_index", 0.1, 3.5),
]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize(("kind", "adjacency", "error", "less"), CASES)
def test_unmodified_models(graph, kind, adjacency, error, less):
    torch.manual_seed(1)
    model = kind().train()
    plain = copy.deepcopy(model)
    outputs = []
    for net, bits in ((plain, None), (model, 8)):
        if bits is not None:
            graphlossy.compress(net, bits=bits)
        torch.manual_seed(2)
        outputs.append(net(graph["x"], graph[adjacency], graph))
        F.nll_loss(outputs[-1], graph["y"]).backward()
    if adjacency == "csr" or kind not in (ArxivGCN, JumpingKnowledge, MoleculeGIN):
        assert torch.equal(*outputs)
    else:  # routed to the sparse product
        torch.testing.assert_close(*outputs)
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        if b.grad is not None and b.grad.norm() > 1e-5:
            assert (a.grad - b.grad).norm() < error * b.grad.norm(), name
    graphlossy.restore(model)
    ledger = graphlossy.compress(model, bits=2)
    F.nll_loss(model(graph["x"], graph[adjacency], graph), graph["y"]).backward()
    assert ledger.plain_bytes > less * ledger.saved_bytes
    assert str(graphlossy.restore(model)) == str(plain)
